"""The masks of CelebAMask-HQ: a picture a part, merged into one class at every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsemtl.data.maps import Frame
from sparsemtl.data.pictures import Array, nearest, read_picture
from sparsemtl.errors import DataError

PARTS = (
    "skin",
    "nose",
    "eye_g",
    "l_eye",
    "r_eye",
    "l_brow",
    "r_brow",
    "l_ear",
    "r_ear",
    "mouth",
    "u_lip",
    "l_lip",
    "hair",
    "hat",
    "ear_r",
    "neck_l",
    "neck",
    "cloth",
)
"""In the order of the official script g_mask.py: a part covers those before it, and its class is its place from 1."""
A_FOLDER = 2000
"""Images whose masks lie in one folder."""


@dataclass(frozen=True)
class Classes:
    """A reading of the masks.

    Attributes:
        names: of the classes.
        paint: (part, class) in the order in which they are painted over each other.
    """

    names: tuple[str, ...]
    paint: tuple[tuple[str, int], ...]


CLASSES = {
    3: Classes(("background", "hair", "skin"), (("skin", 2), ("hair", 1))),
    19: Classes(("background", *PARTS), tuple((part, index) for index, part in enumerate(PARTS, start=1))),
}


@dataclass(frozen=True)
class PartMasks:
    """A class at every pixel, painted from the masks of parts.

    Attributes:
        target: the target.
        folder: where the masks lie.
        numbers: of the images.
        paint: (part, class) in the order in which they are painted over each other; what none covers is class 0.
    """

    target: str
    folder: Path
    numbers: tuple[int, ...]
    paint: tuple[tuple[str, int], ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The one target."""
        return (self.target,)

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """The classes of a sample.

        Raises:
            DataError: if it has no mask at all, or one is damaged or has other proportions than the image.
        """
        place = self.folder / str(self.numbers[row] // A_FOLDER)
        classes = np.zeros(frame.size, dtype=np.uint8)
        found = False
        for part, index in self.paint:
            path = place / f"{self.numbers[row]:05d}_{part}.png"
            if path.is_file():  # parts that are not seen have no mask
                found = True
                classes[_mask(path, frame)] = index
        if not found and not any(place.glob(f"{self.numbers[row]:05d}_*.png")):
            raise DataError(f"{place} has no mask of {frame.where}.")
        return {self.target: torch.from_numpy(classes)}


def _mask(path: Path, frame: Frame) -> Array:
    """Where a part is, at the image's size: masks are drawn at half of it."""
    mask = read_picture(path, rgb=True)
    (height, width), (image_height, image_width) = mask.shape[:2], frame.native
    if height * image_width != width * image_height:
        raise DataError(
            f"{path} has {height}x{width} pixels, its image {frame.where} {image_height}x{image_width}: other "
            "proportions. They do not belong together."
        )
    return nearest(np.asarray(mask.any(axis=2)), frame.size)
