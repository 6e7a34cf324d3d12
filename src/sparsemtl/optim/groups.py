"""Groups of the entries of a weight, and views of the weight in which the groups lie side by side.

Everything that acts on groups reads a weight as a few `GroupView`s: tensors of shape (L, A, G, B) in which
`x[l, :, g, :]` is one group, so that all groups of a view have A * B entries. For the named groupings it is a view of
the weight's memory in either of torch's formats, so that nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.networks.structures import Structure
from sparsemtl.optim.layers import Layer, check_structures, unit_layers

GroupName = Literal["input-channel", "output-channel", "block", "weight"]
"""W[:, c], W[n], rectangles of output by input channels with their whole kernels, or every entry as a group."""

GroupFunction = Callable[[Tensor], Tensor]
"""Grouping by a user's function: weight -> group numbers from 0, of a shape that broadcasts to the weight's."""

Parameters = Mapping[str, Tensor] | Iterable[Tensor | tuple[str, Tensor]]
"""Parameters with their names, as a mapping or as `named_parameters()` gives them, or without."""


class GroupView(Protocol):
    """Some groups of a weight, all of one size."""

    def read(self, weight: Tensor) -> Tensor:
        """Return the groups in the shape (L, A, G, B), of the weight or of any dense tensor of its shape."""

    def write(self, weight: Tensor, values: Tensor) -> None:
        """Write the tensor of `read`, changed in place, back into the weight; a no-op where `read` returns a view."""


@dataclass(frozen=True)
class Grouping:
    """Grouping of the entries of weights.

    Args:
        by: name of a grouping, function from a weight to the group number per entry, or the heads or neurons of a model
            (`find_structures`), whose entries in all their parameters are one group.
        block: output by input channels of a `block`; at the edges blocks are smaller.
        linear: group weights of two axes as well as those of four (convolutions).

    Raises:
        ParameterError: if there is no such grouping, or the block is not two whole numbers of at least 1.

    The second axis is called input channel, as in `nn.Conv2d` and `nn.Linear`. In a transposed convolution that axis
    is the output's; in a grouped convolution the groups share it.
    """

    by: GroupName | GroupFunction | Mapping[str, Structure] = "input-channel"
    block: tuple[int, ...] = (4, 4)
    linear: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.by, Mapping):
            check_structures(self.by)
        elif not callable(self.by) and self.by not in get_args(GroupName):
            raise ParameterError(unknown_name("grouping", self.by, get_args(GroupName)))
        if len(self.block) != 2 or not all(isinstance(side, int) and side >= 1 for side in self.block):
            raise ParameterError(f"`block` must be two whole numbers of at least 1, got {self.block!r}.")

    @property
    def name(self) -> str:
        """Granularity in a word: the name of the grouping, of the user's function, or of a unit."""
        if isinstance(self.by, Mapping):
            return next((structure.kind for structure in self.by.values()), "unit")
        return getattr(self.by, "__name__", "custom") if callable(self.by) else self.by

    def covers(self, weight: Tensor) -> bool:
        """Return whether the grouping applies to a weight alone: four axes, or two with `linear`; no heads, neurons."""
        return not isinstance(self.by, Mapping) and (weight.ndim == 4 or (self.linear and weight.ndim == 2))

    def layers(self, parameters: Parameters) -> Iterator[Layer]:
        """Yield the parameters that the grouping applies to, those whose groups are read together as one layer.

        Raises:
            ParameterError: for heads and neurons, if no parameter has the name of a part of them.
        """
        if isinstance(self.by, Mapping):
            yield from unit_layers(self.by, dict(named(parameters)))
        else:
            yield from (Layer(name, (weight,)) for name, weight in named(parameters) if self.covers(weight))

    def split(self, weight: Tensor) -> tuple[GroupView, ...]:
        """Return the views of the groups of a weight, or of what `Layer.gather` returns; they fit tensors of its shape.

        Raises:
            ParameterError: if a user's function does not return group numbers.
        """
        rows, columns = weight.shape[:2]
        match self.by:
            case "weight":
                return (_SingleWeights(),)
            case "input-channel":
                return _tiles(rows, columns, (rows, 1))
            case "output-channel" | Mapping():
                return _tiles(rows, columns, (1, columns))
            case "block":
                height, width = self.block
                return _tiles(rows, columns, (height, width))
            case function:
                return _listed(function, weight)


@dataclass(frozen=True)
class _Tiles:
    """Rectangles of output by input channels, side by side, that fill a range of rows and one of columns."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    tile: tuple[int, int]

    def read(self, weight: Tensor) -> Tensor:
        """Return the groups as a view."""
        kernels = _kernels(weight)[slice(*self.rows), :, slice(*self.columns)]
        height, width = self.tile
        return kernels.view(-1, height * kernels.shape[1], kernels.shape[2] // width, width * kernels.shape[3])

    def write(self, weight: Tensor, values: Tensor) -> None:
        """Do nothing: `read` returns a view."""


class _SingleWeights:
    """Every entry as a group of its own."""

    def read(self, weight: Tensor) -> Tensor:
        """Return the groups as a view."""
        return _kernels(weight).view(1, 1, -1, 1)

    def write(self, weight: Tensor, values: Tensor) -> None:
        """Do nothing: `read` returns a view."""


@dataclass(frozen=True, eq=False)
class _Listed:
    """Groups at any positions of a weight.

    Args:
        positions: (groups, size), positions of the entries in the flattened weight.
    """

    positions: Tensor

    def read(self, weight: Tensor) -> Tensor:
        """Return the groups as a copy."""
        return torch.take(weight, self.positions)[None, None]

    def write(self, weight: Tensor, values: Tensor) -> None:
        """Write the groups back."""
        weight.put_(self.positions, values[0, 0])


def named(parameters: Parameters) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, parameter); a parameter without a name is named by its position and shape."""
    pairs = parameters.items() if isinstance(parameters, Mapping) else parameters
    for place, item in enumerate(pairs):
        yield (f"parameter {place} of shape {tuple(item.shape)}", item) if isinstance(item, Tensor) else item


def laid_out_as(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return the tensor in the memory format of a dense weight of its shape; itself if it has that format already."""
    last = not weight.is_contiguous()
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def places(part: Tensor, size: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices that cut a tensor of shape (L, A, G, B) between groups, into pieces of about `size` entries."""
    slabs, inner, groups, outer = part.shape
    rows, columns = max(1, size // (inner * groups * outer)), max(1, size // (inner * outer))
    for row in range(0, slabs, rows):
        for column in range(0, groups, columns):
            yield slice(row, row + rows), slice(None), slice(column, column + columns)


def _kernels(weight: Tensor) -> Tensor:
    """Return a dense weight as a view (outputs, K, inputs, 1) or (outputs, 1, inputs, K) of K kernel entries each."""
    if weight.is_contiguous():
        return weight.view(weight.shape[0], 1, weight.shape[1], -1)
    return weight.permute(0, 2, 3, 1).flatten(1, 2)[..., None]


def _tiles(rows: int, columns: int, tile: tuple[int, int]) -> tuple[GroupView, ...]:
    """Return whole tiles, and the smaller ones of the last row and column."""
    ranges = product(_ranges(rows, tile[0]), _ranges(columns, tile[1]))
    return tuple(_Tiles((top, bottom), (left, right), (h, w)) for (top, bottom, h), (left, right, w) in ranges)


def _ranges(length: int, side: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, side of a tile): the range of whole tiles, then the rest."""
    rest = length % side
    if length > rest:
        yield 0, length - rest, side
    if rest:
        yield length - rest, length, rest


def _listed(function: GroupFunction, weight: Tensor) -> tuple[GroupView, ...]:
    """Return a view per size of a user's groups."""
    numbers = function(weight.detach())
    if not isinstance(numbers, Tensor) or numbers.is_floating_point() or numbers.is_complex():
        raise ParameterError(f"a grouping function must return a tensor of whole numbers, got {_kind(numbers)}.")
    try:
        numbers = numbers.to(weight.device, torch.int64).broadcast_to(weight.shape).flatten()
    except RuntimeError:
        raise ParameterError(
            f"a grouping function must number every entry of the weight: its shape {tuple(numbers.shape)} does not "
            f"broadcast to {tuple(weight.shape)}."
        ) from None
    if numbers.numel() and int(numbers.min()) < 0:
        raise ParameterError(f"a grouping function must count groups from 0, got {int(numbers.min())}.")
    counts = numbers.bincount()
    starts, order = counts.cumsum(0) - counts, numbers.argsort(stable=True)
    return tuple(
        _Listed(order[starts[counts == size, None] + torch.arange(size, device=order.device)])
        for size in counts[counts > 0].unique().tolist()
    )


def _kind(found: object) -> str:
    return str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
