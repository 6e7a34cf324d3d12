"""What a run measured beside its tasks' metrics, epoch by epoch: a section of charts for each subject."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sparsemtl.report.charts import Chart, Line, line_chart
from sparsemtl.report.drawing import NEUTRAL
from sparsemtl.storage.run_folder import RunRecord


@dataclass(frozen=True)
class Subject:
    """What several figures are about.

    Attributes:
        title: of the section.
        caption: what a reader must know of it.
        split: under which the figures are logged.
        figures: name of a figure -> what its chart is called, and what is drawn.
    """

    title: str
    caption: str
    split: str
    figures: Mapping[str, tuple[str, str]] = field(default_factory=dict)


MASKS = Subject(
    "How the masks changed",
    "After every epoch. What did not change is not drawn.",
    "sharing",
    {
        "changed": ("weights replaced", "part of a renewed mask"),
        "density": ("density", "part of the weights in use"),
        "mean_mask": ("mean mask", "mean over the weights"),
        "sparsity": ("sparsity", "dropped of what a task may share"),
        "overlap": ("overlap", "mean Jaccard of two tasks"),
    },
)
ALIGNMENT = Subject(
    "How far the tasks are from the auxiliary network",
    "How much what a task's aligned layers give differs from what the auxiliary network's give, class by class; mean "
    "over the batches of an epoch, before its factor in the loss.",
    "sharing",
    {"discrepancy": ("discrepancy", "by task")},
)
OTHERS = Subject(
    "What the method measured",
    "After every epoch. What did not change is not drawn.",
    "sharing",
    {"lambda": ("lambda", "strength of the penalty")},
)
"""Of figures that no other subject has as well, by their own names."""
WEIGHTS = Subject(
    "Loss weights",
    "How much each task's loss counted, epoch by epoch.",
    "balancing",
    {"weight": ("loss weight", "by task")},
)


@dataclass(frozen=True)
class Section:
    """A subject with its charts.

    Attributes:
        subject: what they are about.
        charts: one a figure, at least one.
        by_task: whether a chart has a line a task.
    """

    subject: Subject
    charts: list[Chart]
    by_task: bool


def measured(run: RunRecord, colours: Mapping[str, int]) -> Iterator[Section]:
    """The sections of what changed from epoch to epoch, in the order of their subjects.

    Args:
        run: the run.
        colours: task -> number of its colour.
    """
    for subject in (MASKS, ALIGNMENT, OTHERS, WEIGHTS):
        own = [name for name in _names(run, subject) if _subject(name, subject.split) is subject]
        by_task = [chart for name in own if (chart := _by_task(run, subject, name, colours))]
        whole = [chart for name in own if (chart := _whole(run, subject, name))]
        if by_task or whole:
            yield Section(subject, [*by_task, *whole], bool(by_task))


def _names(run: RunRecord, subject: Subject) -> list[str]:
    """Figures that are logged where the subject's are: the subject's own first, in its order."""
    logged = dict.fromkeys(row.name for row in run.metrics if row.split == subject.split)
    return [*(name for name in subject.figures if name in logged), *(n for n in logged if n not in subject.figures)]


def _subject(name: str, split: str) -> Subject:
    return next((s for s in (MASKS, ALIGNMENT, WEIGHTS) if s.split == split and name in s.figures), OTHERS)


def _words(subject: Subject, name: str, unit: str) -> tuple[str, str]:
    return subject.figures.get(name, (name.replace("_", " "), unit))


def _by_task(run: RunRecord, subject: Subject, name: str, colours: Mapping[str, int]) -> Chart | None:
    """A chart with a line for every task that the figure was logged of; None if there is nothing to see."""
    curves = {task: curve for task in colours if len(curve := run.curve(subject.split, task, name))}
    if not any(map(_moves, curves.values())):
        return None
    title, unit = _words(subject, name, "by task")
    lines = [_dotted(curve, colours[task]) for task, curve in curves.items()]
    return Chart(title, unit, line_chart(lines, label=f"{title} over epochs"))


def _whole(run: RunRecord, subject: Subject, name: str) -> Chart | None:
    """A chart of a figure of the run as a whole; None if there is nothing to see."""
    curve = run.curve(subject.split, "", name)
    if not _moves(curve):
        return None
    title, unit = _words(subject, name, "of all tasks together")
    return Chart(title, unit, line_chart([_dotted(curve, NEUTRAL)], label=f"{title} of the run over epochs"))


def _dotted(curve: Mapping[int, float], colour: int) -> Line:
    return Line(list(curve), list(curve.values()), colour, dots=len(curve) < 30)


def _moves(curve: Mapping[int, float]) -> bool:
    if len(curve) < 2:
        return False
    low, high = min(curve.values()), max(curve.values())
    return high - low > 1e-6 * max(1.0, abs(high))
