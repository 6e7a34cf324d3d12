"""The contract of callbacks, and how the trainer calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemtl.networks.randomness import fork_rng
from sparsemtl.storage.metrics import MetricRow


@dataclass(frozen=True)
class FitInfo:
    """Description of a run whose training starts or resumes.

    Attributes:
        name: name of the run.
        folder: run folder; None if nothing is written.
        config: configuration of the run.
        epochs: largest number of epochs.
        primary: task -> name of its primary metric.
        resume_at: optimizer steps at the last checkpoint, if the run resumes. Rows of later steps are logged again,
            and so are rows of the split `test`. None if the run starts.
    """

    name: str
    folder: Path | None
    config: Mapping[str, Any]
    epochs: int
    primary: Mapping[str, str]
    resume_at: int | None = None


@dataclass(frozen=True)
class StepInfo:
    """State of a run after an optimizer step.

    Attributes:
        epoch: number of the epoch, from 1.
        batch: batches done in the epoch.
        batches: batches of the epoch; None if unknown.
        losses: task -> loss, of the tasks that had a label in the step.
        samples_per_second: mean speed since the epoch started or resumed.
    """

    epoch: int
    batch: int
    batches: int | None
    losses: Mapping[str, float]
    samples_per_second: float


class Callback:
    """Base of callbacks: methods that the trainer calls at the events of a run. All of them do nothing.

    The order is `on_fit_start`, then per epoch `on_step` several times and `on_epoch_end`, then `on_fit_end`; after
    the test `on_test_end` and `on_run_end`. Random numbers that a callback draws do not change the run, except in
    `on_step`.

    Examples:
        >>> class LossPrinter(Callback):
        ...     def on_epoch_end(self, rows, improved):
        ...         for row in rows:
        ...             if (row.split, row.name) == ("validation", "loss"):
        ...                 print(f"epoch {row.epoch}: loss of {row.task} below {math.ceil(row.value)}")
        >>> import math, torch, sparsemtl as sm
        >>> _ = torch.manual_seed(0)
        >>> model = sm.SharedBottom(torch.nn.Linear(2, 4), [sm.Regression("price")])
        >>> loader = [(torch.ones(4, 2), {"price": torch.zeros(4)})]
        >>> trainer = sm.Trainer(model, epochs=1, progress=False, callbacks=[LossPrinter()])
        >>> trainer.fit(loader, loader).masks
        epoch 1: loss of price below 1
    """

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(given)})"

    def on_fit_start(self, run: FitInfo) -> None:
        """Prepare for a run that starts or resumes."""

    def on_step(self, step: StepInfo) -> None:
        """Read the losses of an optimizer step."""

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Read the figures of an epoch, which was just validated.

        Args:
            rows: losses, metrics, and what the sharing method, the architecture and the balancer measured.
            improved: the epoch is the best one so far, of the model or of a task that is selected on its own.
        """

    def on_fit_end(self) -> None:
        """Close what `on_fit_start` opened. Called after training, and also after an error in it."""

    def on_test_end(self, rows: Sequence[MetricRow]) -> None:
        """Read the metrics on test data, which are of the split `test`."""

    def on_run_end(self) -> None:
        """Use the files of the run, which are all written: the run was tested and its summary is final."""


def tag_of(row: MetricRow) -> str:
    """Return the name of a figure among those of all tasks and splits: `task/split/name`."""
    return "/".join(part for part in (row.task, row.split, row.name) if part)


@contextmanager
def fitting(callbacks: Sequence[Callback], run: FitInfo) -> Iterator[None]:
    """Context of the training of a run, from `on_fit_start` to `on_fit_end` of every callback."""
    with ExitStack() as stack:
        for callback in callbacks:
            with fork_rng():
                callback.on_fit_start(run)
            stack.callback(callback.on_fit_end)
        yield


def notify(callbacks: Sequence[Callback], event: str, *arguments: Any) -> None:
    """Call the method `event` of every callback, in order; random numbers that it draws do not change the run."""
    with fork_rng():
        for callback in callbacks:
            getattr(callback, event)(*arguments)
