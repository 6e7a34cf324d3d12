"""Recipes: how the weight of a small network is cut from a weight that several networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparsemtl.compaction.graph.network import WeightCut
from sparsemtl.storage.bits import pack

_BLOCK = 2**15
"""Entries that are computed at once, at most: they fit into a cache in double precision, and take torch one thread."""
_WORTH = 0.5
"""Largest size of the entries that differ, as a fraction of the weight's."""


@dataclass(frozen=True)
class Recipe:
    """Weight as a part of another one.

    Attributes:
        base: (outputs, inputs, ...), the other weight.
        left: indices of its first and second axis; None for all.
        axis: axis of the outputs, 0 or 1.
        dtype: dtype of the weight.
        factor: (outputs that are left,), factors of folded norms, multiplied in their precision; None without.
        kept: one bit per entry of the flattened weight, 0 for zeros; None if none is zero where the part is not.
        positions: indices of entries of the flattened weight that no cut gives.
        values: those entries.
    """

    base: Tensor
    left: tuple[Tensor | None, Tensor | None]
    axis: int
    dtype: torch.dtype
    factor: Tensor | None = None
    kept: Tensor | None = None
    positions: Tensor | None = None
    values: Tensor | None = None

    def tensor(self) -> Tensor:
        """Return the weight as a new tensor."""
        part = self.base
        for axis, index in enumerate(self.left):
            part = part if index is None else part.index_select(axis, index)
        made = torch.empty(part.shape, dtype=self.dtype)
        sizes = [-1 if axis == self.axis else 1 for axis in range(part.ndim)]
        factor = None if self.factor is None else self.factor.view(sizes).expand(part.shape)
        size = part[:1].numel()
        step = 8 // math.gcd(size, 8)  # rows after which the bits of the next row begin with a byte
        rows = step * max(1, _BLOCK // max(1, step * size))
        for start in range(0, len(part), rows):
            block = slice(start, start + rows)
            if factor is None:
                made[block] = part[block]
            else:
                made[block] = part[block].to(factor.dtype).mul_(factor[block])
            if self.kept is not None:
                made[block] *= self._bits(start * size, made[block].shape)
        if self.positions is not None and self.values is not None:
            made.view(-1).index_copy_(0, self.positions, self.values)
        return made

    def _bits(self, first: int, shape: torch.Size) -> Tensor:
        """Return 1 for entries of a block that are other than zero, 0 for the others, in the dtype of the weight."""
        assert self.kept is not None
        packed = self.kept[first // 8 : -(-(first + shape.numel()) // 8)]
        bits = np.unpackbits(packed.numpy(), count=shape.numel())
        return torch.from_numpy(bits).view(shape).to(self.dtype)  # torch.where takes ten times as long

    def on(self, base: Tensor, left: tuple[Tensor | None, Tensor | None]) -> Recipe:
        """Return the same recipe for another base."""
        return replace(self, base=base, left=left)


def recipe_for(weight: Tensor, base: Tensor, cut: WeightCut) -> Recipe | None:
    """Return the recipe that gives a weight, None if there is none that is smaller than the weight.

    Args:
        weight: the weight.
        base: the model's tensor that it is a part of.
        cut: the record of compaction.
    """
    if not weight.is_floating_point() or not base.is_floating_point() or min(weight.ndim, base.ndim) < 2:
        return None
    for one in (base, base.t()) if base.ndim == 2 else (base,):  # GPT-2's layers hold (inputs, outputs)
        left = _indices(one, cut)
        if _shape(one, left) != weight.shape:
            continue
        factor = None if cut.factor is None else cut.factor.cpu()
        if factor is not None and (rows := left[cut.axis]) is not None:
            factor = factor[rows - _start(one, cut, cut.axis)]
        found = _completed(Recipe(one, left, cut.axis, weight.dtype, factor), weight)
        if found is not None:
            return found
    return None


def _indices(base: Tensor, cut: WeightCut) -> tuple[Tensor | None, Tensor | None]:
    """Return the indices of a base that a cut leaves; None for a whole axis."""
    found: list[Tensor | None] = []
    for axis, entries in enumerate(cut.entries):
        length = base.shape[axis]
        index = entries
        if cut.part is not None and cut.part[1] % base.ndim == axis:
            chunk = torch.arange(length).chunk(cut.part[0])[cut.part[2]]
            index = chunk if entries is None else chunk[entries] if _inside(entries, len(chunk)) else None
        whole = index is None or (len(index) == length and bool((index == torch.arange(length)).all()))
        found.append(None if whole or index is None or not _inside(index, length) else index)
    return found[0], found[1]


def _inside(index: Tensor, length: int) -> bool:
    return not len(index) or int(index.max()) < length


def _start(base: Tensor, cut: WeightCut, axis: int) -> int:
    """Return the first index of the part of a base on an axis."""
    if cut.part is None or cut.part[1] % base.ndim != axis:
        return 0
    return int(torch.arange(base.shape[axis]).chunk(cut.part[0])[cut.part[2]][0])


def _shape(base: Tensor, left: Sequence[Tensor | None]) -> torch.Size:
    sizes = [size if index is None else len(index) for size, index in zip(base.shape, left, strict=False)]
    return torch.Size([*sizes, *base.shape[2:]])


def _completed(recipe: Recipe, weight: Tensor) -> Recipe | None:
    """Return a recipe with zeros and with the entries that differ; None if these are too many."""
    made = recipe.tensor()
    if not torch.equal(made, weight):
        kept = weight != 0
        if bool(((made != 0) & ~kept).any()):
            recipe = replace(recipe, kept=pack(kept))
            made = recipe.tensor()
        positions = (made != weight).flatten().nonzero().flatten()
        if len(positions) * (8 + weight.element_size()) > _WORTH * weight.nbytes:
            return None
        if len(positions):
            recipe = replace(recipe, positions=positions, values=weight.flatten()[positions])
    return recipe if torch.equal(recipe.tensor(), weight) else None
