"""Result of a check before training: shapes, losses, gradients, labels, memory, time and masks, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsemtl.training.checks.label_counts import LabelCounts
from sparsemtl.training.checks.probe import Probes
from sparsemtl.views.tables import Shaded, Table, Value, html_of, text_of


@dataclass(frozen=True)
class MaskCoverage:
    """Shared weights that the sharing method masks, and those that it does not.

    Attributes:
        masked: parameter, or module whose outputs are masked -> number of its weights or outputs.
        left_out: shared parameter -> why it is not masked.
        density: task -> fraction of the masked weights that it keeps in the first epoch.
    """

    masked: Mapping[str, int]
    left_out: Mapping[str, str]
    density: Mapping[str, float]


@dataclass(frozen=True)
class ExpectedTime:
    """Expected time of training, in seconds.

    Attributes:
        step: median time of an optimizer step.
        loading: mean time to load a batch.
        steps: batches per epoch; None if a loader has no length.
        validation: time to validate an epoch; None if it is not known.
        begin: time to begin the first epoch with one batch of data, such as to choose masks.
        epoch: time of an epoch, without `begin`; None if it is not known.
        total: time of all epochs, without early stopping; None if it is not known.
    """

    step: float
    loading: float
    steps: int | None
    validation: float | None
    begin: float
    epoch: float | None
    total: float | None


@dataclass(frozen=True)
class TrainingCheck:
    """Result of `Trainer.check`; `str(check)` and a notebook show it as tables.

    Attributes:
        probes: shapes, losses and gradients of every task on the first batch.
        counts: task -> its labels in the training data that were read.
        memory: part -> bytes: weights, gradients, optimizer, masks, activations (tensors that autograd keeps for the
            backward pass of a batch, inputs included), and what else the run keeps. Temporary memory of single layers
            is not counted. None where it could not be measured.
        time: expected time of training.
        coverage: what is masked and what is not.
        device: device of the run.
        warnings: what would go wrong, one sentence or two each.

    Examples:
        >>> tasks = [sm.Classification("sign", ["minus", "plus", "zero"]), sm.Regression("sum")]
        >>> model = sm.SharedBottom(nn.Linear(4, 8), tasks)
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> loader = [(x, {"sign": (x[:, 0] > 0).long(), "sum": 1000 * x.sum(1)})]
        >>> check = sm.Trainer(model, progress=False).check(loader)
        >>> for probe in check.probes.tasks:
        ...     print(probe.task, probe.inputs, "->", probe.features, "->", probe.outputs)
        sign float32 (64, 4) -> float32 (64, 8) -> float32 (64, 3)
        sum float32 (64, 4) -> float32 (64, 8) -> float32 (64, 1)
        >>> for warning in check.warnings:
        ...     print(warning.partition(":")[0])
        task 'sign'
        losses of unlike scale in the first batch
    """

    probes: Probes
    counts: Mapping[str, LabelCounts]
    memory: Mapping[str, int | None]
    time: ExpectedTime
    coverage: MaskCoverage
    device: str
    warnings: tuple[str, ...]

    def tables(self) -> list[Table]:
        """Return the check as tables, warnings apart."""
        return [
            _shapes(self),
            _labels(self),
            *_cosines(self.probes),
            _memory(self.memory),
            _time(self.time),
            _masks(self.coverage),
        ]

    def __str__(self) -> str:
        return "\n\n".join([text_of(self.tables()), *(f"warning: {text}" for text in self.warnings)])

    def _repr_html_(self) -> str:
        """Return the check as tables, for notebooks."""
        shown = [Table(["warnings"], [[text] for text in self.warnings])] if self.warnings else []
        return html_of([*self.tables(), *shown])

    def record(self) -> dict[str, Any]:
        """Return the check as plain mappings and lists, for JSON."""
        record = asdict(self)
        tasks, cosines = record["probes"]["tasks"], self.probes.cosines
        return {**record, "probes": tasks, "cosines": [[a, b, cosine] for (a, b), cosine in cosines.items()]}


def _shapes(check: TrainingCheck) -> Table:
    rows = [[probe.task, probe.inputs, probe.features, probe.outputs] for probe in check.probes.tasks]
    return Table(["task", "input", "features", "outputs"], rows, f"One batch on {check.device}")


def _labels(check: TrainingCheck) -> Table:
    rows: list[list[Value]] = []
    for probe in check.probes.tasks:
        count = check.counts[probe.task]
        read = f"{count.known:,} of {count.labels:,}" + (" (all)" if count.whole else "")
        rows.append([probe.task, probe.loss, probe.gradient_norm, f"{probe.known:,} of {probe.labels:,}", read])
    head = ["task", "loss", "gradient norm", "labels in the batch", "labels in the data read"]
    return Table(head, rows, "Losses and their gradients on the shared weights")


def _cosines(probes: Probes) -> Iterator[Table]:
    if not probes.cosines:
        return
    both = {**probes.cosines, **{(b, a): value for (a, b), value in probes.cosines.items()}}
    names = [probe.task for probe in probes.tasks if any(probe.task in pair for pair in both)]
    rows = [[a, *(Shaded(both[a, b], abs(both[a, b])) if a != b else None for b in names)] for a in names]
    yield Table(["", *names], rows, "Cosine of the gradients on the shared weights")


def _memory(memory: Mapping[str, int | None]) -> Table:
    rows: list[list[Value]] = [[part, "not measured" if size is None else _size(size)] for part, size in memory.items()]
    rows.append(["together", _size(sum(size or 0 for size in memory.values()))])
    return Table(["memory", ""], rows)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def _time(time: ExpectedTime) -> Table:
    steps = "unknown" if time.steps is None else f"{time.steps:,}"
    rows = [
        ["optimizer step", time_text(time.step)],
        ["loading a batch", time_text(time.loading)],
        ["beginning an epoch with one batch of data", time_text(time.begin)],
        [
            f"epoch of {steps} batches, validation included" if time.validation else f"epoch of {steps} batches",
            time_text(time.epoch),
        ],
        ["all epochs", time_text(time.total)],
    ]
    return Table(["expected time", ""], rows)


def time_text(seconds: float | None) -> str:
    """Return a time in ms, s, min or h; "unknown" for None."""
    if seconds is None:
        return "unknown"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _masks(coverage: MaskCoverage) -> Table:
    """Return the masked parameters by name, the others by the reason why they are not."""
    rows: list[list[Value]] = [[name, count, "masked"] for name, count in list(coverage.masked.items())[:_ROWS]]
    if len(coverage.masked) > _ROWS:
        rest = list(coverage.masked.values())[_ROWS:]
        rows.append([f"{len(rest)} more", sum(rest), "masked"])
    reasons = Counter(coverage.left_out.values())
    for reason, count in reasons.items():
        first = next(name for name, why in coverage.left_out.items() if why == reason)
        rows.append([first if count == 1 else f"{first} and {count - 1} more", None, f"not masked: {reason}"])
    notes = ["In the first epoch, " + ", ".join(f"{t} keeps {d:.1%}" for t, d in coverage.density.items()) + "."]
    return Table(["shared parameter", "weights", ""], rows, notes=notes if coverage.density else [])


_ROWS = 20
"""Parameters that are listed by name."""
