"""Images that are the same: equal pixels in whatever files, and copies that were saved anew or resized.

Equal pixels are found by a digest. For copies, small grey images are compared, whose correlation barely changes when an
image is compressed or resized; a pair that is alike there counts only if both images, decoded once more, agree in every
place and colour. Images without contrast, which correlate with anything, are compared by their pixels alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparsemtl.data.images.pictures import Array, load_pillow
from sparsemtl.errors import DataError

_DIGEST = 16
"""Bytes of a digest."""
SIDE = 16
"""Height and width of the small grey images in pixels."""
_FINE = 32
"""Largest height and width at which two images are finally compared, in pixels."""
PLAIN = 6.0
"""Standard deviation of grey levels below which an image has no contrast."""
ALIKE = 0.97
"""Correlation of small grey images from which a pair is compared in detail."""
WHOLE, PLACE = 0.13, 0.5
"""Differences that two copies may have, in standard deviations of the image: the root mean square of all, and the mean
over any block of `_BLOCK` pixels' side."""
NOISE = 3.0
"""Grey levels that compression may add to these differences."""
_BLOCK = 4
_ASPECT = 0.04
"""Relative difference of the proportions that rounding leaves when an image is resized."""
ROWS = 4096
"""Number of images that are compared with all others at a time."""


def fingerprint(image: Array) -> tuple[Array, Array]:
    """Return the digest, uint8 (_DIGEST,), and the small grey version, uint8 (SIDE, SIDE), of an image (H, W, 3)."""
    code = hashlib.blake2b(repr(image.shape).encode(), digest_size=_DIGEST)
    code.update(image.tobytes())
    return np.frombuffer(code.digest(), np.uint8), _reduced(image, SIDE).mean(2).round().astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Fingerprints of N images."""

    digests: Array  # of size and pixels, uint8, (N, _DIGEST); zeros for images that cannot be decoded
    small: Array  # grey images, uint8, (N, SIDE, SIDE)

    @classmethod
    def of(cls, each: Iterable[tuple[Array, Array] | None]) -> Fingerprints:
        """Join fingerprints of single images; None is an image that cannot be decoded, and is like no other."""
        nothing = np.zeros(_DIGEST, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        digests, small = zip(*(one or nothing for one in each), strict=True)
        return cls(np.stack(digests), np.stack(small))

    @classmethod
    def joined(cls, parts: Sequence[Fingerprints]) -> Fingerprints:
        """Join the fingerprints of several folders."""
        return cls(np.concatenate([of.digests for of in parts]), np.concatenate([of.small for of in parts]))

    def __len__(self) -> int:
        return len(self.digests)

    def decodable(self) -> Array:
        """Return whether each image can be decoded, bool, shape (N,)."""
        return np.asarray(self.digests.any(1))


def same_pixels(prints: Fingerprints, rows: Array, others: Array) -> dict[int, int]:
    """Return row -> the first of `others` that has the same pixels; rows without such are left out."""
    known = prints.decodable()
    first: dict[bytes, int] = {}
    for other in others[known[others]].tolist():
        first.setdefault(prints.digests[other].tobytes(), other)
    found = {row: first.get(prints.digests[row].tobytes(), row) for row in rows[known[rows]].tolist()}
    return {row: other for row, other in found.items() if row != other}


def copies(prints: Fingerprints, rows: Array, others: Array, read: Callable[[int], Array]) -> dict[int, int]:
    """Return row -> one of `others` that is a copy, saved anew or resized; rows without such are left out.

    Args:
        prints: fingerprints of all images.
        rows, others: indices of the images that are compared, every one of `rows` with every one of `others`.
        read: row -> image (H, W, 3) of bytes.
    """
    rows, others = (chosen[_has_contrast(prints.small[chosen])] for chosen in (rows, others))
    candidates = _normalized(prints.small[others])
    fine = lru_cache(maxsize=4096)(lambda row: _FineImage.of(read(row)))
    found: dict[int, int] = {}
    for start in range(0, len(rows), ROWS):
        piece = rows[start : start + ROWS]
        near = _normalized(prints.small[piece]) @ candidates.T >= ALIKE
        for row, other in zip(*(index.tolist() for index in near.nonzero()), strict=True):
            one, two = int(piece[row]), int(others[other])
            if one not in found and one != two and fine(one).is_copy(fine(two)):
                found[one] = two
    return found


@dataclass(frozen=True, eq=False)
class _FineImage:
    """Image for the detailed comparison."""

    image: Array  # at most `_FINE` pixels high and wide, int16, (side, side, 3)
    size: tuple[int, int]  # original height and width

    @classmethod
    def of(cls, image: Array) -> _FineImage:
        side = max(_BLOCK, min(_FINE, *image.shape[:2]) // _BLOCK * _BLOCK)
        return cls(_reduced(image, side), (image.shape[0], image.shape[1]))

    def is_copy(self, other: _FineImage) -> bool:
        (height, width), (other_height, other_width) = self.size, other.size
        one, two = height * other_width, width * other_height
        if abs(one - two) > _ASPECT * max(one, two):
            return False
        side = min(len(self.image), len(other.image))
        a, b = (_reduced(image.astype(np.uint8), side) for image in (self.image, other.image))
        spread = float(a.mean(2).std())
        off = (a - b).astype(np.float64)
        blocks = off.reshape(side // _BLOCK, _BLOCK, side // _BLOCK, _BLOCK, 3).mean((1, 3))
        whole, place = np.sqrt(np.square(off).mean()), np.abs(blocks).max()
        return bool(whole <= WHOLE * spread + NOISE and place <= PLACE * spread + NOISE)


def _reduced(image: Array, side: int) -> Array:
    """Return a square of means of the pixels, int16, shape (side, side, 3)."""
    if image.dtype != np.uint8 or image.ndim != 3:
        raise DataError(f"expected an image of bytes, (H, W, 3), got {image.dtype} of shape {image.shape}.")
    pillow = load_pillow("comparing images")
    small = pillow.fromarray(image).resize((side, side), pillow.Resampling.BOX)
    return np.asarray(small).astype(np.int16)


def _has_contrast(small: Array) -> Array:
    return np.asarray(small.reshape(len(small), SIDE * SIDE).std(1) >= PLAIN)


def _normalized(small: Array) -> Array:
    """Return rows of mean 0 and length 1, float32, shape (N, SIDE * SIDE)."""
    rows = small.reshape(len(small), SIDE * SIDE).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
