"""Decoding of images that have one class each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsemtl.data.images.classified.cache import ImageCache
from sparsemtl.data.images.classified.duplicates import Fingerprints, fingerprint
from sparsemtl.data.images.classified.listing import Listing
from sparsemtl.data.images.pictures import Array, Size, as_size, bilinear, read_picture, read_pictures
from sparsemtl.data.lazy import DecodedSample, decoding_threads
from sparsemtl.errors import DataError, ParameterError

_LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a grey image, in 65536ths: ITU-R 601, as in Pillow."""


@dataclass(frozen=True)
class Form:
    """Form to which every image is brought."""

    height: int
    width: int
    crop: bool  # keep the proportions and cut out the middle; else squeeze
    grey: bool  # one channel instead of three

    @classmethod
    def of(cls, size: Size, *, grey: bool) -> Form:
        """Return the form for a parameter `size`: the side of a square, or height and width."""
        sides = as_size(size)
        if sides is None:
            raise ParameterError("`size` must be a number, or a height and a width: images differ in size.")
        return cls(sides, sides, True, grey) if isinstance(sides, int) else cls(*sides, False, grey)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of channels, height and width."""
        return (1 if self.grey else 3), self.height, self.width

    def apply(self, image: Array) -> Tensor:
        """Return an upright image (H, W, 3) as bytes (channels, height, width)."""
        if self.crop:
            side = min(image.shape[:2])
            top, left = ((length - side) // 2 for length in image.shape[:2])
            image = image[top : top + side, left : left + side]
        x = bilinear(image, (self.height, self.width))
        return _grey(x) if self.grey else x


def read_upright(path: str | Path) -> Array:
    """Return an image (H, W, 3) of bytes, upright as a viewer would show the file."""
    return read_picture(path, rgb=True, upright=True)


def _grey(colours: Tensor) -> Tensor:
    """Return the brightness of colours, bytes (3, H, W), as bytes (1, H, W)."""
    weights = torch.tensor(_LUMA)[:, None, None]
    return ((colours.int() * weights).sum(0, keepdim=True) + 0x8000 >> 16).byte()


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Images of one task, decoded from their files or read from a cache."""

    listing: Listing
    form: Form
    cache: ImageCache | None

    @property
    def targets(self) -> tuple[str, ...]:
        """Name of the one target."""
        return (self.listing.name,)

    def __len__(self) -> int:
        return len(self.listing)

    def where(self, row: int) -> str:
        """Return the file of an image."""
        return self.listing.paths[row]

    def labels_of(self, target: str) -> Tensor:
        """Return the classes of all images, without decoding any."""
        return self.listing.labels

    def sample(self, row: int, targets: Sequence[str]) -> DecodedSample:
        """Return an image, bytes (channels, height, width), with its class."""
        (sample,) = self.samples([row], targets)
        return sample

    def samples(self, rows: Sequence[int], targets: Sequence[str]) -> list[DecodedSample]:
        """Return several samples."""
        found = {row: x for row in rows if (x := self._cached(row)) is not None}
        absent = [row for row in rows if row not in found]
        for row, image in zip(absent, read_pictures([self.where(row) for row in absent]), strict=True):
            found[row] = self._formed(row, image)
        labels = self.listing.labels
        return [DecodedSample(found[row], dict.fromkeys(targets, labels[row]), {}) for row in rows]

    def _cached(self, row: int) -> Tensor | None:
        cached = None if self.cache is None else self.cache.read(row)
        return None if cached is None else torch.frombuffer(cached, dtype=torch.uint8).view(self.form.shape)

    def fingerprints(self, workers: int | None) -> Fingerprints:
        """Return the fingerprints of all images. Those that are not cached are computed; this also fills the cache.

        Args:
            workers: number of threads that decode.
        """
        if self.cache is not None and (cached := self.cache.read_fingerprints(len(self))) is not None:
            return Fingerprints(*cached)
        with ThreadPoolExecutor(max(1, decoding_threads(workers))) as threads:
            found = Fingerprints.of(threads.map(self._fingerprint, range(len(self))))
        if self.cache is not None:
            self.cache.write_fingerprints(found.digests, found.small)
        return found

    def _fingerprint(self, row: int) -> tuple[Array, Array] | None:
        try:
            image = read_upright(self.where(row))
        except DataError:
            return None
        if self.cache is not None and self.cache.read(row) is None:
            self._formed(row, image)
        return fingerprint(image)

    def _formed(self, row: int, image: Array) -> Tensor:
        x = self.form.apply(image)
        if self.cache is not None:
            self.cache.write(row, x.contiguous().numpy().tobytes())
        return x
