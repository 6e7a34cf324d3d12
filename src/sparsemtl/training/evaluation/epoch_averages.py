"""Figures of an epoch, as rows for callbacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sparsemtl.balancing import Balancer
from sparsemtl.errors import LabelWarning
from sparsemtl.storage.metrics import MetricRow
from sparsemtl.training.checkpoints.structure import check_state
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.steps.result import StepResult
from sparsemtl.training.steps.step import TrainingStep


class EpochAverages:
    """Averages the losses of the steps of an epoch."""

    def __init__(self) -> None:
        self._losses: dict[str, tuple[float, int]] = {}
        self._terms: dict[str, tuple[float, int]] = {}  # "task/loss_name" -> sum, steps
        self._weights: dict[str, float] = {}
        self.samples = 0

    def add(self, result: StepResult) -> None:
        """Add the losses, weights and samples of a step."""
        for task, loss in result.losses.items():
            total, count = self._losses.get(task, (0.0, 0))
            self._losses[task] = (total + loss, count + 1)
        for task, terms in result.terms.items():
            for name, loss in terms.items():
                total, count = self._terms.get(f"{task}/{name}", (0.0, 0))
                self._terms[f"{task}/{name}"] = (total + loss, count + 1)
        self._weights = result.weights
        self.samples += result.samples

    @property
    def losses(self) -> dict[str, float]:
        """Mean training loss of every task that had a label."""
        return {task: total / count for task, (total, count) in self._losses.items()}

    @property
    def weights(self) -> dict[str, float]:
        """Last weights of the balancer."""
        return dict(self._weights)

    def rows(self, epoch: int, step: int) -> Iterator[MetricRow]:
        """Yield the mean training losses, and the last weights of the balancer."""
        for task, loss in self.losses.items():
            yield MetricRow(epoch, step, "train", task, "loss", loss)
        for key, (total, count) in self._terms.items():
            task, _, name = key.partition("/")
            yield MetricRow(epoch, step, "train", task, name, total / count)
        for task, weight in self._weights.items():
            yield MetricRow(epoch, step, "balancing", task, "weight", weight)

    def state_dict(self) -> dict[str, object]:
        """Return everything that a resumed epoch needs."""
        return {
            "losses": dict(self._losses),
            "terms": dict(self._terms),
            "weights": dict(self._weights),
            "samples": self.samples,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore a state of `state_dict`."""
        check_state(state["losses"], dict.fromkeys(state["losses"], (0.0, 1)), "meter.losses")  # type: ignore[call-overload]
        terms: Any = state.get("terms", {})  # checkpoints of 0.2 have none
        check_state(terms, dict.fromkeys(terms, (0.0, 1)), "meter.terms")
        check_state(state["weights"], dict.fromkeys(state["weights"], 0.0), "meter.weights")  # type: ignore[call-overload]
        self._losses = {task: (t, c) for task, (t, c) in state["losses"].items()}  # type: ignore[attr-defined]
        self._terms = {key: (t, c) for key, (t, c) in terms.items()}
        self._weights = dict(state["weights"])  # type: ignore[call-overload]
        self.samples = int(state["samples"])  # type: ignore[call-overload]


def epoch_rows(
    meter: EpochAverages, validation: Results, step: TrainingStep, place: tuple[int, int], figures: Mapping[str, float]
) -> list[MetricRow]:
    """Return all figures of an epoch.

    Args:
        meter: averages of its training steps.
        validation: results of its validation.
        step: the training step, with sharing method, architecture and balancer.
        place: number of the epoch, from 1, and optimizer steps until its end.
        figures: name -> figure of the run.
    """
    epoch, steps = place
    return [
        *meter.rows(epoch, steps),
        *result_rows(epoch, steps, "validation", validation),
        *_figure_rows(epoch, steps, "sharing", step.sharing.metrics(step.model, step.networks)),
        *_figure_rows(epoch, steps, "architecture", step.model.metrics()),
        *_figure_rows(epoch, steps, "balancing", _balancing(step.balancer, tuple(step.tasks))),
        *_run_rows(epoch, steps, figures),
    ]


def _balancing(balancer: Balancer, tasks: tuple[str, ...]) -> Iterator[tuple[str, str, float]]:
    return (("" if row is None else tasks[row], name, value) for row, name, value in balancer.metrics())


def result_rows(epoch: int, step: int, split: str, results: Results) -> Iterator[MetricRow]:
    """Yield every task's metrics on a split."""
    for task, metrics in results.items():
        for metric, value in metrics.items():
            yield MetricRow(epoch, step, split, task, metric, value)


def _figure_rows(epoch: int, step: int, split: str, figures: Iterable[tuple[str, str, float]]) -> Iterator[MetricRow]:
    """Yield figures of the sharing method, the architecture or the balancer.

    Args:
        epoch: number of the epoch, from 1.
        step: optimizer steps until then.
        split: `sharing`, `architecture` or `balancing`.
        figures: (task or "", name, value) of each.
    """
    for task, name, value in figures:
        yield MetricRow(epoch, step, split, task, name, value)


def _run_rows(epoch: int, step: int, figures: Mapping[str, float]) -> Iterator[MetricRow]:
    """Yield figures of all tasks together."""
    for name, value in figures.items():
        yield MetricRow(epoch, step, "run", "", name, value)


def warn_of_missing_labels(step: TrainingStep, meter: EpochAverages, epoch: int) -> None:
    """Warn of every task without a labelled sample in an epoch.

    Args:
        step: the training step.
        meter: averages of the epoch.
        epoch: number of the epoch, from 0.
    """
    drawn = ", or was not drawn" if step.update == "random_one" else ""
    for task in step.tasks:
        if task not in meter.losses:
            text = f"task {task!r} had no labelled sample in epoch {epoch + 1}{drawn}."
            warnings.warn(text, LabelWarning, stacklevel=4)
