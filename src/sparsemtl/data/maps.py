"""What is known of every pixel, out of files: classes, depth, normals; and the source of them with their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsemtl.data.lazy import Sample
from sparsemtl.data.pictures import Array, bilinear, nearest, target_size
from sparsemtl.errors import DataError

IGNORE = 255
"""The label of pixels that have none."""
SHORTEST, LONGEST = 0.05, 2.0
"""Lengths between which a vector says a direction: shorter ones are unknown, longer ones no normals."""
BYTES_PER_UNIT = 127.5
"""Steps of a byte in one unit of a normal that is stored as a colour: 0 is -1, 255 is 1."""


class Rows(Protocol):
    """One array a sample: a file each, or a part of a file."""

    def __len__(self) -> int:
        """Number of samples."""

    def where(self, row: int) -> str:
        """What to call it in messages."""

    def read(self, row: int) -> Array:
        """Decode it."""


@dataclass
class Frame:
    """The image that a sample's maps lie over.

    Attributes:
        where: its file.
        native: height and width as stored.
        size: height and width as asked for.
        remarks: kind -> what a person should know; maps add to it.
    """

    where: str
    native: tuple[int, int]
    size: tuple[int, int]
    remarks: dict[str, str] = field(default_factory=dict)

    def fit(self, array: Array, where: str) -> Array:
        """Bring a map to the size asked for.

        Raises:
            DataError: if it has another size than the image.
        """
        if array.shape[:2] != self.native:
            height, width = array.shape[:2]
            raise DataError(
                f"{where} has {height}x{width} pixels, its image {self.where} {self.native[0]}x{self.native[1]}. "
                "They do not belong together, or one was resized."
            )
        return nearest(array, self.size)

    def remark(self, kind: str, text: str) -> None:
        """Note what a person should know."""
        self.remarks.setdefault(kind, text)

    def check_known(self, target: str, known: bool, where: str) -> None:
        """Note a map without a known pixel."""
        if not known:
            self.remark(f"{target}: empty", f"{where} has no known pixel; the sample adds nothing to {target!r}.")


class Field(Protocol):
    """Labels of one or several targets."""

    @property
    def targets(self) -> Sequence[str]:
        """The targets."""

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """A sample's labels.

        Raises:
            DataError: naming the file that is absent, damaged or does not fit.
        """


@dataclass(frozen=True)
class ImageSource:
    """Images with labels of several targets.

    Attributes:
        images: one array (H, W, 3) a sample, bytes or floats.
        fields: the labels.
        size: see `pictures.Size`.
    """

    images: Rows
    fields: tuple[Field, ...]
    size: int | tuple[int, int] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of all fields."""
        return tuple(target for part in self.fields for target in part.targets)

    def __len__(self) -> int:
        return len(self.images)

    def where(self, row: int) -> str:
        """The image's file."""
        return self.images.where(row)

    def sample(self, row: int, targets: Sequence[str]) -> Sample:
        """Decode the image and the labels of these targets."""
        image = self.images.read(row)
        height, width = image.shape[:2]
        frame = Frame(self.where(row), (height, width), target_size(self.size, height, width))
        labels: dict[str, Tensor] = {}
        for part in self.fields:
            if not set(part.targets).isdisjoint(targets):
                labels |= part.read(row, frame)
        return Sample(bilinear(image, frame.size), {target: labels[target] for target in targets}, frame.remarks)


@dataclass(frozen=True)
class LabelTable:
    """The ids that files use for classes.

    Attributes:
        title: whose ids they are, as messages name them.
        classes: names of the classes.
        ids: id in the files -> class, or `IGNORE`.
    """

    title: str
    classes: tuple[str, ...]
    ids: Mapping[int, int]

    @cached_property
    def _lookup(self) -> Array:
        """Position id - lowest id -> class; -1 where there is no such id."""
        lookup = np.full(max(self.ids) - min(self.ids) + 1, -1, dtype=np.int64)
        for number, index in self.ids.items():
            lookup[number - min(self.ids)] = index
        return lookup

    @cached_property
    def _of_bytes(self) -> Array:
        """The class of every byte: what pictures hold, and the fast way."""
        return np.array([self.ids.get(number, -1) for number in range(256)])

    def _classes(self, ids: Array) -> Array:
        """Classes, -1 where there is no such id."""
        if ids.dtype == np.uint8:
            return np.asarray(self._of_bytes[ids])
        positions = ids.astype(np.float64) - min(self.ids)  # exact for every id, and NaN is no position
        inside = (positions >= 0) & (positions < len(self._lookup)) & (positions == np.floor(positions))
        return np.where(inside, self._lookup[np.where(inside, positions, 0).astype(np.int64)], -1)

    def classes_of(self, ids: Array, where: str) -> Array:
        """Classes of ids (H, W) as bytes.

        Raises:
            DataError: naming the file and the first id that is not in the table.
        """
        if ids.ndim == 3 and ids.shape[2] == 1:
            ids = ids[..., 0]
        if ids.ndim != 2:
            raise DataError(f"{where} has shape {ids.shape}; expected one label a pixel, (height, width).")
        found = self._classes(ids)
        if (found < 0).any():
            wrong = ids[found < 0]
            raise DataError(
                f"{where} has a label {wrong[0]:g} ({wrong.size} of {ids.size} pixels have none of the table); those "
                f"of {self.title} are {_ranges(self.ids)}. Is `classes` that of the files?"
            )
        return found.astype(np.uint8)


def _ranges(numbers: Mapping[int, int]) -> str:
    """Put numbers into words: "-1 .. 12 and 255"."""
    ends: list[list[int]] = []
    for number in sorted(numbers):
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return " and ".join(str(low) if low == high else f"{low} .. {high}" for low, high in ends)


@dataclass(frozen=True)
class ClassMap:
    """A class at every pixel: bytes (H, W), 255 where it is unknown."""

    target: str
    rows: Rows
    table: LabelTable

    @property
    def targets(self) -> tuple[str, ...]:
        """The one target."""
        return (self.target,)

    def classes(self, row: int, frame: Frame) -> Array:
        """The classes of a sample."""
        where = self.rows.where(row)
        return self.table.classes_of(frame.fit(self.rows.read(row), where), where)

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """The classes of a sample."""
        classes = self.classes(row, frame)
        frame.check_known(self.target, bool((classes != IGNORE).any()), self.rows.where(row))
        return {self.target: torch.from_numpy(classes)}


@dataclass(frozen=True)
class OneOfClasses:
    """Every class of a map as a target of its own: 1 at its pixels, 0 at all others, unknown ones among them."""

    map: ClassMap

    @property
    def targets(self) -> tuple[str, ...]:
        """The classes."""
        return self.map.table.classes

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """All classes' maps."""
        classes = torch.from_numpy(self.map.classes(row, frame))
        return {name: (classes == index).to(torch.uint8) for index, name in enumerate(self.targets)}


@dataclass(frozen=True)
class DepthMap:
    """A distance, or its inverse, at every pixel: floats (1, H, W), 0 where it is unknown.

    Attributes:
        target: the target.
        rows: the arrays.
        unit: array (H, W) of the files -> floats in the target's unit, 0 where unknown.
    """

    target: str
    rows: Rows
    unit: Callable[[Array, str], Array]

    @property
    def targets(self) -> tuple[str, ...]:
        """The one target."""
        return (self.target,)

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """The depth of a sample; numbers that are not finite become unknown, with a remark."""
        where = self.rows.where(row)
        array = self.rows.read(row)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.ndim != 2:
            raise DataError(f"{where} has shape {array.shape}; expected one depth a pixel, (height, width).")
        depth = self.unit(frame.fit(array, where), where).astype(np.float32)
        depth = _finite(depth, np.isfinite(depth), self.target, where, frame)
        frame.check_known(self.target, bool((depth > 0).any()), where)
        return {self.target: torch.from_numpy(depth)[None]}


@dataclass(frozen=True)
class NormalMap:
    """The surface's direction at every pixel: unit vectors (3, H, W), zeros where it is unknown."""

    target: str
    rows: Rows

    @property
    def targets(self) -> tuple[str, ...]:
        """The one target."""
        return (self.target,)

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """The normals of a sample; colours stand for -1 .. 1 in each direction."""
        where = self.rows.where(row)
        array = self.rows.read(row)
        if array.ndim != 3 or array.shape[2] != 3:
            raise DataError(f"{where} has shape {array.shape}; expected normals (height, width, 3).")
        array = frame.fit(array, where)
        as_colours = array.dtype == np.uint8
        vectors = array / BYTES_PER_UNIT - 1 if as_colours else array.astype(np.float64)
        vectors = _finite(vectors, np.asarray(np.isfinite(vectors).all(2)), self.target, where, frame)
        unit = _unit(np.where(array.any(2, keepdims=True), vectors, 0) if as_colours else vectors, where)
        frame.check_known(self.target, bool(unit.any()), where)
        return {self.target: torch.from_numpy(np.ascontiguousarray(unit.transpose(2, 0, 1)))}


def _finite(values: Array, finite: Array, target: str, where: str, frame: Frame) -> Array:
    """Values with zeros, which stand for unknown, at the pixels that are not finite."""
    if finite.all():
        return values
    frame.remark(
        f"{target}: not finite",
        f"{where}: {finite.size - np.count_nonzero(finite)} of {finite.size} pixels are NaN or infinite; they count "
        f"as unknown for {target!r}.",
    )
    return np.where(finite.reshape(*finite.shape, *[1] * (values.ndim - 2)), values, 0).astype(values.dtype)


def _unit(vectors: Array, where: str) -> Array:
    """Vectors (H, W, 3) of length one; zeros where they are too short to say a direction."""
    length = np.linalg.norm(vectors, axis=2, keepdims=True)
    if length.max() > LONGEST:
        raise DataError(f"{where} has a vector of length {length.max():.4g}; a normal has length one.")
    known = length > SHORTEST
    return np.where(known, vectors / np.where(known, length, 1), 0).astype(np.float32)


@dataclass(frozen=True)
class Values:
    """Labels that are known without a file of their own.

    Attributes:
        target: the target.
        labels: one row a sample.
    """

    target: str
    labels: Tensor

    @property
    def targets(self) -> tuple[str, ...]:
        """The one target."""
        return (self.target,)

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """The labels of a sample."""
        return {self.target: self.labels[row]}


def as_stored(depth: Array, where: str) -> Array:
    """Depth in the unit of the files; what is not above zero is unknown."""
    return depth


def from_millimetres(depth: Array, where: str) -> Array:
    """Metres from whole millimetres."""
    if depth.dtype.kind not in "ui" or depth.dtype.itemsize < 2:
        raise DataError(f"{where} holds {depth.dtype}; depth in a picture has 16 bits, in millimetres.")
    return depth / 1000
