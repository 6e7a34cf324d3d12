"""What a report says about masks: how much tasks keep, how much they share, and where in the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparsemtl.networks.masks import TaskMasks


@dataclass(frozen=True)
class Layer:
    """One parameter, or the whole network.

    Attributes:
        name: shortened by what all names have in common.
        size: number of weights.
        densities: fraction that each task keeps, in the order of the tasks.
        kept_by: fraction of the weights that exactly 0, 1, ..., T tasks keep; sums to 1.
    """

    name: str
    size: int
    densities: Sequence[float]
    kept_by: Sequence[float]


@dataclass(frozen=True)
class SharingView:
    """Everything that a report shows of masks.

    Attributes:
        tasks: the tasks, in the order of all figures.
        whole: the network over all its layers.
        counts: number of weights that each task keeps.
        layers: one a parameter, in the network's order.
        jaccard: |A and B| / |A or B|, T rows of T.
        containment: |A and B| / |A|, A is the row's task.
        overlap: mean of `jaccard` over pairs of tasks; None for one task.
        by_chance: what `overlap` would be if every task had drawn as many weights at random.
    """

    tasks: tuple[str, ...]
    whole: Layer
    counts: Sequence[int]
    layers: Sequence[Layer]
    jaccard: Sequence[Sequence[float]]
    containment: Sequence[Sequence[float]]
    overlap: float | None
    by_chance: float | None


def sharing_view(masks: TaskMasks) -> SharingView:
    """Read masks for a report."""
    overlap = masks.overlap()
    names = list(masks.shapes())
    histograms = {name: _histogram(masks, name) for name in names}
    densities = masks.layer_density()
    sizes = {name: shape.numel() for name, shape in masks.shapes().items()}
    layers = [
        Layer(short, sizes[name], [densities[name][t] for t in masks], _shares(histograms[name]))
        for name, short in zip(names, _shortened(names), strict=True)
    ]
    own = [masks.density(task) for task in masks]
    whole = Layer("all layers", masks.size(), own, _shares(torch.stack(list(histograms.values())).sum(0)))
    return SharingView(
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
    """How many weights of a parameter 0, 1, ..., T tasks keep: int64, shape (T + 1,)."""
    keepers = torch.stack([masks[task][name].flatten() for task in masks]).sum(0)
    return torch.bincount(keepers, minlength=len(masks) + 1)


def _shares(histogram: torch.Tensor) -> list[float]:
    shares: list[float] = (histogram.double() / histogram.sum().clamp(min=1)).tolist()
    return shares


def _jaccard_by_chance(a: float, b: float) -> float:
    """Expected Jaccard overlap, to first order, of two independent masks of densities a and b."""
    either = a + b - a * b
    return a * b / either if either else 0.0


def _mean_of_pairs(matrix: Sequence[Sequence[float]]) -> float | None:
    pairs = [row[j] for i, row in enumerate(matrix) for j in range(i)]
    return sum(pairs) / len(pairs) if pairs else None


def _shortened(names: Sequence[str]) -> list[str]:
    """Drop the leading parts that all names share, and "weight" at the end; a number keeps its parent."""
    parts = [name.split(".") for name in names]
    parts = [p[:-1] if p[-1] == "weight" and len(p) > 1 else p for p in parts]
    while len({p[0] for p in parts}) == 1 and all(len(p) > 1 and not p[1].isdigit() for p in parts):
        parts = [p[1:] for p in parts]
    return [".".join(p) for p in parts]
