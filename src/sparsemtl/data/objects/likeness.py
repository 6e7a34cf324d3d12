"""Pictures that are the same: equal pixels in whatever files, and copies that were saved anew or resized.

Equal pixels are found by a digest. For copies, small grey pictures are compared, whose correlation barely changes when
a picture is compressed or resized; a pair that is alike there counts only if both pictures, decoded once more, agree in
every place and colour. Pictures without contrast, which correlate with anything, are compared by their pixels alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparsemtl.data.pictures import Array, load_pillow
from sparsemtl.errors import DataError

DIGEST = 16
"""Bytes of a digest."""
SIDE = 16
"""Pixels of the side of the small grey pictures."""
FINE = 32
"""Pixels, at most, of the side at which two pictures are compared in the end."""
PLAIN = 6.0
"""Standard deviation of grey levels below which a picture has no contrast."""
ALIKE = 0.97
"""Correlation of small grey pictures from which a pair is looked at more closely."""
WHOLE, PLACE = 0.13, 0.5
"""Differences that two copies may have, in standard deviations of the picture: the root mean square of all, and the
mean over any block of `BLOCK` pixels' side."""
NOISE = 3.0
"""Grey levels that compression may add to these differences."""
BLOCK = 4
ASPECT = 0.04
"""Relative difference of the proportions that rounding leaves when a picture is resized."""
ROWS = 4096
"""Pictures that are compared with all others at a time."""


@dataclass(frozen=True, eq=False)
class Print:
    """What a picture is recognised by.

    Attributes:
        digest: of its size and pixels, uint8, shape (DIGEST,).
        small: grey picture, uint8, shape (SIDE, SIDE).
    """

    digest: Array
    small: Array

    @classmethod
    def of(cls, image: Array) -> Print:
        """The print of a picture (H, W, 3) of bytes."""
        return cls(np.frombuffer(_digest(image), np.uint8), _reduced(image, SIDE).mean(2).round().astype(np.uint8))


@dataclass(frozen=True, eq=False)
class Prints:
    """What pictures are recognised by.

    Attributes:
        digests: of size and pixels, uint8, shape (N, DIGEST); zeros where a picture cannot be decoded.
        small: grey pictures, uint8, shape (N, SIDE, SIDE).
    """

    digests: Array
    small: Array

    @classmethod
    def of(cls, each: Iterable[Print | None]) -> Prints:
        """Prints of several pictures; None is one that cannot be decoded, and is like no other."""
        nothing = Print(np.zeros(DIGEST, np.uint8), np.zeros((SIDE, SIDE), np.uint8))
        known = [one or nothing for one in each]
        return cls(np.stack([one.digest for one in known]), np.stack([one.small for one in known]))

    @classmethod
    def joined(cls, prints: Sequence[Prints]) -> Prints:
        """Prints of several folders, one behind the other."""
        return cls(np.concatenate([of.digests for of in prints]), np.concatenate([of.small for of in prints]))

    def __len__(self) -> int:
        return len(self.digests)

    def keys(self) -> list[bytes | None]:
        """Return what pictures of equal pixels have in common; None where a picture cannot be decoded."""
        return [bytes(digest) if digest.any() else None for digest in self.digests]


def same_pixels(prints: Prints, rows: Array, others: Array) -> dict[int, int]:
    """Row -> the first of `others` that has the same pixels; rows without such are left out."""
    keys = prints.keys()
    first: dict[bytes, int] = {}
    for other in others.tolist():
        if (key := keys[other]) is not None:
            first.setdefault(key, other)
    found = {row: first[key] for row in rows.tolist() if (key := keys[row]) is not None and key in first}
    return {row: other for row, other in found.items() if row != other}


def copies(prints: Prints, rows: Array, others: Array, read: Callable[[int], Array]) -> dict[int, int]:
    """Row -> one of `others` that is a copy, saved anew or resized; rows without such are left out.

    Args:
        prints: of all pictures.
        rows, others: of the pictures that are compared, every one of `rows` with every one of `others`.
        read: row -> picture (H, W, 3) of bytes.
    """
    rows, others = (chosen[_has_contrast(prints.small[chosen])] for chosen in (rows, others))
    there = _normal(prints.small[others])
    fine = lru_cache(maxsize=4096)(lambda row: _Fine.of(read(row)))
    found: dict[int, int] = {}
    for start in range(0, len(rows), ROWS):
        piece = rows[start : start + ROWS]
        near = _normal(prints.small[piece]) @ there.T >= ALIKE
        for row, other in zip(*(index.tolist() for index in near.nonzero()), strict=True):
            one, two = int(piece[row]), int(others[other])
            if one not in found and one != two and fine(one).is_copy(fine(two)):
                found[one] = two
    return found


@dataclass(frozen=True, eq=False)
class _Fine:
    """A picture as it is compared in the end.

    Attributes:
        image: at most `FINE` pixels a side, int16, shape (side, side, 3).
        size: height and width that it had.
    """

    image: Array
    size: tuple[int, int]

    @classmethod
    def of(cls, image: Array) -> _Fine:
        side = max(BLOCK, min(FINE, *image.shape[:2]) // BLOCK * BLOCK)
        return cls(_reduced(image, side), (image.shape[0], image.shape[1]))

    def is_copy(self, other: _Fine) -> bool:
        (height, width), (other_height, other_width) = self.size, other.size
        one, two = height * other_width, width * other_height
        if abs(one - two) > ASPECT * max(one, two):
            return False
        side = min(len(self.image), len(other.image))
        a, b = (_reduced(image.astype(np.uint8), side) for image in (self.image, other.image))
        spread = float(a.mean(2).std())
        off = (a - b).astype(np.float64)
        blocks = off.reshape(side // BLOCK, BLOCK, side // BLOCK, BLOCK, 3).mean((1, 3))
        whole, place = np.sqrt(np.square(off).mean()), np.abs(blocks).max()
        return bool(whole <= WHOLE * spread + NOISE and place <= PLACE * spread + NOISE)


def _digest(image: Array) -> bytes:
    code = hashlib.blake2b(repr(image.shape).encode(), digest_size=DIGEST)
    code.update(image.tobytes())
    return code.digest()


def _reduced(image: Array, side: int) -> Array:
    """A square of means of the pixels, int16, shape (side, side, 3)."""
    if image.dtype != np.uint8 or image.ndim != 3:
        raise DataError(f"expected a picture of bytes, (H, W, 3), got {image.dtype} of shape {image.shape}.")
    pillow = load_pillow("comparing images")
    small = pillow.fromarray(image).resize((side, side), pillow.Resampling.BOX)
    return np.asarray(small).astype(np.int16)


def _has_contrast(small: Array) -> Array:
    contrast: Array = small.reshape(len(small), SIDE * SIDE).std(1) >= PLAIN
    return contrast


def _normal(small: Array) -> Array:
    """Rows of mean 0 and length 1, float32, shape (N, SIDE * SIDE)."""
    rows = small.reshape(len(small), SIDE * SIDE).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    normal: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal
