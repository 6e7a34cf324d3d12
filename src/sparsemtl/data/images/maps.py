"""Labels of every pixel, decoded from files: classes, depth, normals; and the source of images with such labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsemtl.data.images.pictures import Array, bilinear, nearest, target_size
from sparsemtl.data.lazy import DecodedSample
from sparsemtl.errors import DataError

IGNORE = 255
"""Label of pixels without a class."""
SHORTEST, LONGEST = 0.05, 2.0
"""Lengths between which a vector is a direction: shorter ones are unknown, longer ones no normals."""
_BYTES_PER_UNIT = 127.5
"""Steps of a byte in one unit of a normal that is stored as a colour: 0 is -1, 255 is 1."""


class Arrays(Protocol):
    """One array per sample: a file each, or a part of a file."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def where(self, row: int) -> str:
        """Return the name of a sample's array for messages."""

    def read(self, row: int) -> Array:
        """Decode the array of a sample."""


@dataclass
class Frame:
    """Image to which the maps of a sample belong."""

    where: str  # its file
    native: tuple[int, int]  # height and width in the file
    size: tuple[int, int]  # height and width after resizing
    remarks: dict[str, str] = field(default_factory=dict)  # of `DecodedSample`; maps add theirs

    def fit(self, array: Array, where: str) -> Array:
        """Resize a map with its image."""
        if array.shape[:2] != self.native:
            height, width = array.shape[:2]
            raise DataError(
                f"{where} has {height}x{width} pixels, its image {self.where} {self.native[0]}x{self.native[1]}. "
                "They do not belong together, or one was resized."
            )
        return nearest(array, self.size)

    def check_known(self, target: str, known: bool, where: str) -> None:
        """Add a remark on a map without a known pixel."""
        if not known:
            text = f"{where} has no known pixel; the sample adds nothing to {target!r}."
            self.remarks.setdefault(f"{target}: empty", text)

    def finite(self, target: str, values: Array, where: str) -> Array:
        """Replace vectors that are not finite by zeros, which are unknown, with a remark; values (H, W, channels)."""
        finite = np.isfinite(values).all(2, keepdims=True)
        if finite.all():
            return values
        self.remarks.setdefault(
            f"{target}: not finite",
            f"{where}: {finite.size - np.count_nonzero(finite)} of {finite.size} pixels are NaN or infinite; they "
            f"count as unknown for {target!r}.",
        )
        return np.where(finite, values, 0).astype(values.dtype)


class Field(Protocol):
    """Labels of one or several targets."""

    @property
    def targets(self) -> Sequence[str]:
        """Names of the targets."""

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """Return target -> label of a sample."""


@dataclass(frozen=True)
class ImageSource:
    """Images (H, W, 3), bytes or floats, with labels; `size` as in `pictures.Size`."""

    images: Arrays
    fields: tuple[Field, ...]
    size: int | tuple[int, int] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets of all fields."""
        return tuple(target for part in self.fields for target in part.targets)

    def __len__(self) -> int:
        return len(self.images)

    def where(self, row: int) -> str:
        """Return the file of an image."""
        return self.images.where(row)

    def sample(self, row: int, targets: Sequence[str]) -> DecodedSample:
        """Decode an image and the labels of these targets."""
        image = self.images.read(row)
        height, width = image.shape[:2]
        frame = Frame(self.where(row), (height, width), target_size(self.size, height, width))
        labels: dict[str, Tensor] = {}
        for part in self.fields:
            if not set(part.targets).isdisjoint(targets):
                labels |= part.read(row, frame)
        return DecodedSample(bilinear(image, frame.size), {name: labels[name] for name in targets}, frame.remarks)


@dataclass(frozen=True)
class LabelTable:
    """Ids of classes in files."""

    title: str  # name of the table in messages
    classes: tuple[str, ...]
    ids: Mapping[int, int]  # id in the files -> class, or `IGNORE`

    @cached_property
    def _lookup(self) -> Array:
        """Class at position id - lowest id, -1 where there is no such id; all bytes have a position."""
        lookup = np.full(max(*self.ids, 255) - self._lowest + 1, -1, dtype=np.int64)
        for number, index in self.ids.items():
            lookup[number - self._lowest] = index
        return lookup

    @cached_property
    def _lowest(self) -> int:
        return min(*self.ids, 0)

    def classes_of(self, ids: Array, where: str) -> Array:
        """Return the classes of ids (H, W) as bytes; an error names the file and the first unknown id."""
        if ids.dtype == np.uint8:  # pictures, the fast way
            found = np.asarray(self._lookup[-self._lowest :][ids])
        else:
            positions = ids.astype(np.float64) - self._lowest  # exact for every id, and NaN is no position
            inside = (positions >= 0) & (positions < len(self._lookup)) & (positions == np.floor(positions))
            found = np.where(inside, self._lookup[np.where(inside, positions, 0).astype(np.int64)], -1)
        if (found < 0).any():
            wrong = ids[found < 0]
            raise DataError(
                f"{where} has a label {wrong[0]:g} ({wrong.size} of {ids.size} pixels have none of the table); those "
                f"of {self.title} are {_ranges(self.ids)}. Is `classes` that of the files?"
            )
        return found.astype(np.uint8)


def _ranges(numbers: Mapping[int, int]) -> str:
    """Return numbers as text: "-1 .. 12 and 255"."""
    ends: list[list[int]] = []
    for number in sorted(numbers):
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return " and ".join(str(low) if low == high else f"{low} .. {high}" for low, high in ends)


def _plane(array: Array, where: str, kind: str) -> Array:
    """Return an array (H, W) or (H, W, 1) as (H, W)."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise DataError(f"{where} has shape {array.shape}; expected one {kind} per pixel, (height, width).")
    return array


@dataclass(frozen=True)
class OneTarget:
    """Part that fields of one target have in common."""

    target: str

    @property
    def targets(self) -> tuple[str, ...]:
        """Name of the one target."""
        return (self.target,)


@dataclass(frozen=True)
class ClassMap(OneTarget):
    """Class of every pixel: bytes (H, W), 255 where it is unknown."""

    rows: Arrays
    table: LabelTable

    def classes(self, row: int, frame: Frame) -> Array:
        """Return the classes of a sample as an array."""
        where = self.rows.where(row)
        return self.table.classes_of(_plane(frame.fit(self.rows.read(row), where), where, "label"), where)

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """Return the classes of a sample."""
        classes = self.classes(row, frame)
        frame.check_known(self.target, bool((classes != IGNORE).any()), self.rows.where(row))
        return {self.target: torch.from_numpy(classes)}


@dataclass(frozen=True)
class BinaryMaps:
    """One map per class of a class map: 1 at its pixels, 0 at all others, unknown ones among them."""

    map: ClassMap

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.map.table.classes

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """Return the maps of all classes."""
        classes = torch.from_numpy(self.map.classes(row, frame))
        return {name: (classes == index).to(torch.uint8) for index, name in enumerate(self.targets)}


@dataclass(frozen=True)
class DepthMap(OneTarget):
    """Distance, or its inverse, at every pixel: floats (1, H, W), 0 where it is unknown.

    `unit` converts an array (H, W) to floats in the target's unit, 0 where unknown.
    """

    rows: Arrays
    unit: Callable[[Array, str], Array]

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """Return the depth of a sample; numbers that are not finite become unknown, with a remark."""
        where = self.rows.where(row)
        array = frame.fit(_plane(self.rows.read(row), where, "depth"), where)
        depth = frame.finite(self.target, self.unit(array, where).astype(np.float32)[..., None], where)
        frame.check_known(self.target, bool((depth > 0).any()), where)
        return {self.target: torch.from_numpy(depth[..., 0])[None]}


@dataclass(frozen=True)
class NormalMap(OneTarget):
    """Direction of the surface at every pixel: unit vectors (3, H, W), zeros where it is unknown."""

    rows: Arrays

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """Return the normals of a sample; colours stand for -1 .. 1 in each direction."""
        where = self.rows.where(row)
        array = self.rows.read(row)
        if array.ndim != 3 or array.shape[2] != 3:
            raise DataError(f"{where} has shape {array.shape}; expected normals (height, width, 3).")
        array = frame.fit(array, where)
        as_colours = array.dtype == np.uint8
        vectors = array / _BYTES_PER_UNIT - 1 if as_colours else array.astype(np.float64)
        vectors = frame.finite(self.target, vectors, where)
        vectors = np.where(array.any(2, keepdims=True), vectors, 0) if as_colours else vectors
        length = np.linalg.norm(vectors, axis=2, keepdims=True)
        if length.max() > LONGEST:
            raise DataError(f"{where} has a vector of length {length.max():.4g}; a normal has length one.")
        known = length > SHORTEST
        unit = np.where(known, vectors / np.where(known, length, 1), 0).astype(np.float32)
        frame.check_known(self.target, bool(unit.any()), where)
        return {self.target: torch.from_numpy(np.ascontiguousarray(unit.transpose(2, 0, 1)))}


@dataclass(frozen=True)
class Values(OneTarget):
    """Labels without files of their own: one row per sample."""

    labels: Tensor

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """Return the label of a sample."""
        return {self.target: self.labels[row]}


def as_stored(depth: Array, where: str) -> Array:
    """Return depth in the unit of the files; what is not above zero is unknown."""
    return depth


def from_millimetres(depth: Array, where: str) -> Array:
    """Convert whole millimetres to metres."""
    if depth.dtype.kind not in "ui" or depth.dtype.itemsize < 2:
        raise DataError(f"{where} holds {depth.dtype}; depth in a picture has 16 bits, in millimetres.")
    return depth / 1000
