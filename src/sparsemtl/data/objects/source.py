"""Where labelled images are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsemtl.data.lazy import Sample, decoding_threads
from sparsemtl.data.objects.cache import PictureCache
from sparsemtl.data.objects.likeness import Print, Prints
from sparsemtl.data.objects.listing import Listing
from sparsemtl.data.pictures import Array, Size, as_size, bilinear, read_picture
from sparsemtl.errors import DataError, ParameterError

LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a grey image, in 65536ths: ITU-R 601, as Pillow has them."""


@dataclass(frozen=True)
class Form:
    """What becomes of every image.

    Attributes:
        height: in pixels.
        width: in pixels.
        crop: keep the proportions and cut out the middle; else squeeze.
        grey: one channel instead of three.
    """

    height: int
    width: int
    crop: bool
    grey: bool

    @classmethod
    def of(cls, size: Size, *, grey: bool) -> Form:
        """Read a parameter `size`: a square's side, or height and width.

        Raises:
            ParameterError: if it is neither.
        """
        sides = as_size(size)
        if sides is None:
            raise ParameterError("`size` must be a number, or a height and a width: images differ in size.")
        if isinstance(sides, int):
            return cls(sides, sides, True, grey)
        return cls(*sides, False, grey)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (1 if self.grey else 3), self.height, self.width

    def decode(self, path: Path) -> Tensor:
        """Bytes (channels, height, width), upright as a viewer would show the file.

        Raises:
            DataError: naming the file, if it is absent or damaged.
        """
        return self.apply(read_upright(path))

    def apply(self, image: Array) -> Tensor:
        """Bytes (channels, height, width) of an upright image (H, W, 3)."""
        if self.crop:
            side = min(image.shape[:2])
            top, left = ((length - side) // 2 for length in image.shape[:2])
            image = image[top : top + side, left : left + side]
        x = bilinear(image, (self.height, self.width))
        return grey(x) if self.grey else x


def read_upright(path: str | Path) -> Array:
    """An image (H, W, 3) of bytes, upright as a viewer would show the file.

    Raises:
        DataError: naming the file, if it is absent or damaged.
    """
    return read_picture(Path(path), rgb=True, upright=True)


def grey(colours: Tensor) -> Tensor:
    """The brightness of colours, bytes (3, H, W), as bytes (1, H, W)."""
    weights = torch.tensor(LUMA)[:, None, None]
    return ((colours.int() * weights).sum(0, keepdim=True) + 0x8000 >> 16).byte()


@dataclass(frozen=True, eq=False)
class ClassPictures:
    """Images of one task, decoded from their files or read from where decoded ones are kept.

    Attributes:
        target: the target.
        listing: the files and their classes.
        form: what becomes of every image.
        cache: where decoded images are kept; None if nowhere.
    """

    target: str
    listing: Listing
    form: Form
    cache: PictureCache | None

    @property
    def targets(self) -> tuple[str, ...]:
        """The one target."""
        return (self.target,)

    def __len__(self) -> int:
        return len(self.listing)

    def where(self, row: int) -> str:
        """The image's file."""
        return self.listing.paths[row]

    def labels_of(self, target: str) -> Tensor:
        """The classes of all images, without a look at them."""
        return self.listing.labels

    def sample(self, row: int, targets: Sequence[str]) -> Sample:
        """An image with its class."""
        return Sample(self.pixels(row), dict.fromkeys(targets, self.listing.labels[row]), {})

    def pixels(self, row: int) -> Tensor:
        """An image as bytes (channels, height, width).

        Raises:
            DataError: naming the file, if it is absent or damaged.
        """
        if self.cache is not None and (kept := self.cache.read(row)) is not None:
            return torch.frombuffer(kept, dtype=torch.uint8).view(self.form.shape)
        return self._formed(row, read_upright(self.where(row)))

    def prints(self, workers: int | None) -> Prints:
        """What all images are recognised by, from where it is kept; else every image is decoded, also for training.

        Args:
            workers: threads that decode.
        """
        if self.cache is not None and (kept := self.cache.read_prints(len(self))) is not None:
            return Prints(*kept)
        with ThreadPoolExecutor(max(1, decoding_threads(workers))) as threads:
            prints = Prints.of(threads.map(self._print, range(len(self))))
        if self.cache is not None:
            self.cache.write_prints(prints.digests, prints.small)
        return prints

    def _print(self, row: int) -> Print | None:
        """Return what an image is recognised by; None if it cannot be decoded."""
        try:
            image = read_upright(self.where(row))
        except DataError:
            return None
        if self.cache is not None and self.cache.read(row) is None:
            self._formed(row, image)
        return Print.of(image)

    def _formed(self, row: int, image: Array) -> Tensor:
        """An image as it is learned from, kept if images are."""
        x = self.form.apply(image)
        if self.cache is not None:
            self.cache.write(row, x.contiguous().numpy().tobytes())
        return x
