"""Affinity of tasks in a shared network: which weights they are sensitive to, and where their gradients point."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.criteria import choose_masks
from sparsemtl.criteria.criterion import Criterion, Scores
from sparsemtl.criteria.fisher import Fisher
from sparsemtl.criteria.specific import Specific
from sparsemtl.errors import DeadUnitWarning, LabelError, LikelihoodWarning, ParameterError
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.model_state import preserve_model_state
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.tasks.batches import Loaders, groups_for, preserve_loader_state
from sparsemtl.tasks.task import Task
from sparsemtl.views.tables import Shaded, Table, Value, text_of

RELATED = 0.15
"""Mean overlap at keep 0.1 from which tasks are grouped. Measured on clustered regressions: about 0.2 within a cluster,
0.08 across, 0.05 by chance."""


@dataclass(frozen=True)
class TaskAffinity:
    """Affinity of the tasks of a shared network; matrices of shape (T, T).

    Attributes:
        tasks: names of rows and columns.
        keep: fraction of the shared weights that the compared masks keep.
        overlap: Jaccard index, in [0, 1], of the masks by Fisher information; k / (2 - k) for random masks of keep k.
        specific: the same of masks by task-specific Fisher information.
        cosine: cosine, in [-1, 1], of the tasks' mean gradients on the shared weights; NaN if one of them is 0.
        losses: task -> mean loss.

    Examples:
        >>> overlap = ((1.0, 0.1, 0.3), (0.1, 1.0, 0.0), (0.3, 0.0, 1.0))
        >>> TaskAffinity(("a", "b", "c"), 0.1, overlap, overlap, overlap, {}).groups()
        [['a', 'c'], ['b']]
    """

    tasks: tuple[str, ...]
    keep: float
    overlap: Sequence[Sequence[float]]
    specific: Sequence[Sequence[float]]
    cosine: Sequence[Sequence[float]]
    losses: Mapping[str, float]

    def groups(self, least: float = RELATED) -> list[list[str]]:
        """Return groups of tasks by overlap: average linkage (UPGMA), cut at a mean overlap.

        Args:
            least: mean overlap of two groups, in [0, 1], from which they are joined.
        """
        groups = [[number] for number in range(len(self.tasks))]
        while len(groups) > 1:
            one, two = max(combinations(groups, 2), key=lambda pair: self._mean_overlap(*pair))
            if self._mean_overlap(one, two) < least:
                break
            groups = sorted([*(group for group in groups if group not in (one, two)), sorted(one + two)])
        return [[self.tasks[number] for number in group] for group in groups]

    def tables(self) -> list[Table]:
        """Return the matrices as tables."""
        masks = f"Jaccard index of the weights that matter most to two tasks ({self.keep:.0%} of the shared weights)"
        chance = self.keep / (2 - self.keep)
        return [
            self._table(self.overlap, f"{masks}, by Fisher information; {chance:.2f} by chance"),
            self._table(self.specific, "The same by task-specific Fisher information"),
            self._table(self.cosine, "Cosine of the tasks' gradients on the shared weights"),
        ]

    def record(self) -> dict[str, Any]:
        """Return the affinity as plain values, for JSON."""
        matrices = {name: [list(row) for row in getattr(self, name)] for name in ("overlap", "specific", "cosine")}
        about = {"tasks": list(self.tasks), "keep": self.keep, "losses": dict(self.losses)}
        return {**about, **matrices, "groups": self.groups()}

    def __str__(self) -> str:
        return text_of(self.tables())

    def _mean_overlap(self, one: Sequence[int], two: Sequence[int]) -> float:
        return sum(self.overlap[a][b] for a in one for b in two) / (len(one) * len(two))

    def _table(self, matrix: Sequence[Sequence[float]], title: str) -> Table:
        pairs = zip(self.tasks, matrix, strict=True)
        rows: list[list[Value]] = [[task, *(Shaded(value, abs(value)) for value in row)] for task, row in pairs]
        return Table(["", *self.tasks], rows, title)


def task_affinity(
    model: MultiTaskModel, loaders: Loaders, *, keep: float = 0.1, samples: int | None = 1024
) -> TaskAffinity:
    """Measure which shared weights the tasks of a model are sensitive to, and where their gradients point.

    The model is best trained for some epochs, all tasks on the same weights. It is left as it is.

    Args:
        model: the model; its tasks share trained weights.
        loaders: training data, one loader for all tasks, or task -> loader.
        keep: fraction of the shared weights that the compared masks keep, in (0, 1]. Groups of tasks were
            found at 0.1, hardly at 0.3.
        samples: labelled samples per task that are read; all if None.

    Raises:
        ParameterError: if the tasks share no trained weights that masks cover, or `keep` is out of range.
        LabelError: if a task has no labelled sample.
    """
    shared = {name: p for name, p in model.shared_parameters().items() if p.requires_grad}
    if not shared.keys() & maskable_parameters(model).keys():
        raise ParameterError(
            f"the tasks of {type(model).__name__} share no trained weights that masks cover, so that they have no "
            "affinity to measure. Use a model with a shared encoder that is trained, such as SharedBottom."
        )
    with preserve_loader_state(loaders), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadUnitWarning)  # nothing runs with these masks
        warnings.simplefilter("ignore", LikelihoodWarning)  # the fallback ranks weights as well
        fisher = _Known(Fisher(samples=samples).scores(model, loaders, list(model.tasks.values())))
        overlap = choose_masks(fisher, model, loaders, keep=keep).overlap()
        specific = choose_masks(Specific(of=fisher), model, loaders, keep=keep).overlap()
        with preserve_model_state(model):
            found = {name: _gradient(model, loaders, task, shared, samples) for name, task in model.tasks.items()}
    units = torch.stack([gradient / gradient.norm() for gradient, _ in found.values()])
    losses = {name: loss for name, (_, loss) in found.items()}
    matrices = (overlap.jaccard.tolist(), specific.jaccard.tolist(), (units @ units.T).tolist())
    return TaskAffinity(tuple(model.tasks), keep, *matrices, losses)


class _Known(Criterion):
    """Scores that are known already.

    Args:
        scores: the scores.
    """

    reads_data = False

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Return the scores."""
        return self._scores


def _gradient(
    model: MultiTaskModel, loaders: Loaders, task: Task, shared: Mapping[str, nn.Parameter], samples: int | None
) -> tuple[Tensor, float]:
    """Return a task's gradient on the shared weights, and its loss: means over labelled samples."""
    device, dtype = placement(model)
    total, loss_sum, seen = torch.zeros(()), 0.0, 0
    for group in groups_for(loaders, task):
        group = group.to(device, dtype)
        target = task.labels(group.targets)
        if count := int(task.labelled(target).sum()):
            loss = task.loss(model(group.x, tasks=(task.name,))[task.name], target)
            gradients = torch.autograd.grad(loss, list(shared.values()), allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, shared.values(), strict=True)]
            total = total.to(device) + count * torch.cat([part.flatten().float() for part in parts])
            loss_sum += count * float(loss.detach())
            seen += count
        if samples is not None and seen >= samples:
            break
    if not seen:
        raise LabelError(
            f"task {task.name!r} has no labelled sample to take gradients on. Leave the task out, or use data "
            "with labels of it."
        )
    return total / seen, loss_sum / seen
