"""The two layouts in which Cityscapes is had, each read into the same form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsemtl.data.cityscapes.classes import arrays_table, official_table
from sparsemtl.data.folders import complete, numbered
from sparsemtl.data.maps import ClassMap, DepthMap, LabelTable, as_stored
from sparsemtl.data.pictures import Array, Files, colours, numbers
from sparsemtl.data.requirements import Expected, Package
from sparsemtl.errors import DataError

FOLDER, IMAGES = "cityscapes", "leftImg8bit"
SEGMENTATION, DEPTH = "segmentation", "depth"
_TERMS = "own terms: research, teaching and personal use only, no redistribution"


@dataclass(frozen=True)
class Part:
    """The official training or validation images.

    Attributes:
        images: the images.
        classes: their classes.
        depth: their inverse depth, if it is there.
    """

    images: Files
    classes: ClassMap
    depth: DepthMap | None


def read_official(place: Path, part: str, classes: int) -> Part:
    """Read leftImg8bit, gtFine and disparity.

    Raises:
        DataError: if there is no image, or one has no labels.
    """
    folder = place / IMAGES / part
    ending = f"_{IMAGES}.png"
    names = sorted(path.relative_to(folder).as_posix().removesuffix(ending) for path in folder.glob(f"*/*{ending}"))
    if not names:
        raise DataError(f"{folder} has no images CITY/NAME{ending}.")

    def files(kind: str, ending: str, decode: Callable[[Path], Array]) -> Files:
        return complete(place / kind / part, [f"{name}_{ending}.png" for name in names], decode)

    labels = ClassMap(SEGMENTATION, files("gtFine", "gtFine_labelIds", numbers), official_table(classes))
    depth = None
    if (place / "disparity").is_dir():
        depth = DepthMap(DEPTH, files("disparity", "disparity", numbers), from_disparity)
    return Part(files(IMAGES, IMAGES, colours), labels, depth)


def read_arrays(place: Path, part: str, classes: int) -> Part:
    """Read the preprocessed arrays of MTAN (Liu et al. 2019) and LibMTL.

    Raises:
        DataError: if a file is absent.
    """
    folder = place / part
    names = numbered(folder / "image")
    labels = folder / f"label_{classes}"
    if classes == 7 and not labels.is_dir():
        labels = folder / "label"  # as LibMTL names it
    table: LabelTable = arrays_table(classes)
    depth = None
    if (folder / "depth").is_dir():
        depth = DepthMap(DEPTH, complete(folder / "depth", names, numbers), as_stored)
    images = complete(folder / "image", names, colours)
    return Part(images, ClassMap(SEGMENTATION, complete(labels, names, numbers), table), depth)


def from_disparity(stored: Array, where: str) -> Array:
    """Disparity in pixels of the official images: (p - 1) / 256 of the number p that a file holds, 0 if p is 0."""
    if stored.dtype.kind not in "ui" or stored.dtype.itemsize < 2:
        raise DataError(f"{where} holds {stored.dtype}; disparity has 16 bits.")
    return np.where(stored > 0, (stored.astype(np.float32) - 1) / 256, 0)


@dataclass(frozen=True)
class CityscapesLayout:
    """One of the layouts.

    Attributes:
        package: the files.
        marker: what tells that they are there.
        read: (folder, train or val, classes) -> images with their labels.
    """

    package: Package
    marker: str
    read: Callable[[Path, str, int], Part]


def _in_both_parts(about: str, kind: str, ending: str, *, optional: bool = False) -> tuple[Expected, Expected]:
    patterns = {part: (f"{FOLDER}/{kind}/{part}/*/*_{ending}.png",) for part in ("train", "val")}
    return (
        Expected(f"training {about}", patterns["train"], 2975, optional),
        Expected(f"validation {about}", patterns["val"], 500, optional),
    )


CITYSCAPES_LAYOUTS = {
    "official": CityscapesLayout(
        Package(
            "the official files",
            (
                *_in_both_parts("images", IMAGES, IMAGES),
                *_in_both_parts("label ids", "gtFine", "gtFine_labelIds"),
                *_in_both_parts("disparity", "disparity", "disparity", optional=True),
            ),
            source="https://www.cityscapes-dataset.com/downloads/",
            licence=f"{_TERMS}; registration",
            get=(
                "register, accept the terms, and unpack leftImg8bit_trainvaltest.zip (11 GB), "
                "gtFine_trainvaltest.zip (241 MB) and, for depth, disparity_trainvaltest.zip (3.5 GB) into "
                f"{FOLDER} under the root"
            ),
        ),
        f"{IMAGES}/train",
        read_official,
    ),
    "arrays": CityscapesLayout(
        Package(
            "arrays that multi-task papers share",
            (
                Expected("images: floats (128, 256, 3) in [0, 1]", (f"{FOLDER}/*/image/*.npy",), 3475),
                Expected(
                    "7 classes from 0, -1 unknown",
                    (f"{FOLDER}/*/label_7/*.npy", f"{FOLDER}/*/label/*.npy"),
                    3475,
                    optional=True,
                ),
                Expected("19 classes from 0, -1 unknown", (f"{FOLDER}/*/label_19/*.npy",), 3475, optional=True),
                Expected("inverse depth (128, 256, 1), 0 unknown", (f"{FOLDER}/*/depth/*.npy",), 3475, optional=True),
            ),
            source="cityscapes2.zip (128x256) or cityscapes.zip (256x512), linked at https://github.com/lorenmt/mtan",
            licence=_TERMS,
            get=f"unpack so that {FOLDER}/train/image/0.npy and {FOLDER}/val/image/0.npy lie under the root",
        ),
        "train/image",
        read_arrays,
    ),
}
