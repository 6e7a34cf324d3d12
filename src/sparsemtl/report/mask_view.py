"""Densities and overlaps of masks: per task, per pair of tasks, and per layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparsemtl.errors import CheckpointError, MaskError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.run_folder import RunRecord
from sparsemtl.views.tables import short_names


@dataclass(frozen=True)
class _MaskedLayer:
    """Masks of one parameter, or of all parameters together.

    Attributes:
        name: name of the parameter, without the parts that all names share.
        size: number of weights.
        densities: fraction of the weights that each task keeps, in the order of the tasks.
        kept_by: fraction of the weights that exactly 0, 1, ..., T tasks keep; sums to 1.
    """

    name: str
    size: int
    densities: Sequence[float]
    kept_by: Sequence[float]


@dataclass(frozen=True)
class MaskView:
    """Densities and overlaps of the masks of T tasks.

    Attributes:
        tasks: names of the tasks, in the order of all lists.
        whole: all layers together.
        counts: number of weights that each task keeps.
        layers: one entry per parameter, in the network's order.
        jaccard: (T, T), Jaccard index |A and B| / |A or B| in [0, 1].
        containment: (T, T), |A and B| / |A| in [0, 1], where A is the task of the row.
        overlap: mean of `jaccard` over pairs of tasks; None for one task.
        by_chance: expected `overlap` of random masks of the same densities; None for one task.
    """

    tasks: tuple[str, ...]
    whole: _MaskedLayer
    counts: Sequence[int]
    layers: Sequence[_MaskedLayer]
    jaccard: Sequence[Sequence[float]]
    containment: Sequence[Sequence[float]]
    overlap: float | None
    by_chance: float | None


def masks_of(run: RunRecord) -> TaskMasks | None:
    """Return which of the weights that tasks share each task uses at the end; None if all tasks use all.

    Raises:
        CheckpointError: if a file is damaged.
    """
    if not run.folder.networks.is_file():
        return None
    try:
        networks = TaskNetworks.load(run.folder.networks)
        if networks.masks is not None or not any(network.weight_factors for network in networks.values()):
            return networks.masks
        tasks = Counter(name for network in networks.values() for name in network.weight_factors)
        tensors, _ = read_tensors(run.folder.model)
        return networks.kept({n: t for n, t in tensors.items() if tasks[n] > 1 or len(networks) == 1})
    except MaskError as error:
        raise CheckpointError(str(error)) from None


def mask_view(masks: TaskMasks) -> MaskView:
    """Return the densities and overlaps of masks."""
    overlap = masks.overlap()
    names = list(masks.shapes())
    histograms = {name: _histogram(masks, name) for name in names}
    densities = masks.layer_density()
    sizes = {name: shape.numel() for name, shape in masks.shapes().items()}
    layers = [
        _MaskedLayer(short, sizes[name], [densities[name][t] for t in masks], _shares(histograms[name]))
        for name, short in zip(names, short_names(names), strict=True)
    ]
    own = [masks.density(task) for task in masks]
    whole = _MaskedLayer("all layers", masks.size(), own, _shares(torch.stack(list(histograms.values())).sum(0)))
    return MaskView(
        masks.tasks,
        whole,
        [masks.count(task) for task in masks],
        layers,
        overlap.jaccard.tolist(),
        overlap.containment.tolist(),
        _mean_of_pairs(overlap.jaccard.tolist()),
        _mean_of_pairs([[_jaccard_by_chance(a, b) for b in own] for a in own]),
    )


def _histogram(masks: TaskMasks, name: str) -> torch.Tensor:
    """Return the number of weights of a parameter that 0, 1, ..., T tasks keep: int64, shape (T + 1,)."""
    keepers = torch.stack([masks[task][name].flatten() for task in masks]).sum(0)
    return torch.bincount(keepers, minlength=len(masks) + 1)


def _shares(histogram: torch.Tensor) -> list[float]:
    shares: list[float] = (histogram.double() / histogram.sum().clamp(min=1)).tolist()
    return shares


def _jaccard_by_chance(a: float, b: float) -> float:
    """Return the expected Jaccard index, to first order, of two independent masks of densities a and b."""
    either = a + b - a * b
    return a * b / either if either else 0.0


def _mean_of_pairs(matrix: Sequence[Sequence[float]]) -> float | None:
    pairs = [row[j] for i, row in enumerate(matrix) for j in range(i)]
    return sum(pairs) / len(pairs) if pairs else None
