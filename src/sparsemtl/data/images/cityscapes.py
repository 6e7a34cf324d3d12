"""Cityscapes: street scenes with classes and disparity (Cordts et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from typing_extensions import Doc, Unpack

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import complete, numbered
from sparsemtl.data.images.maps import IGNORE, BinaryMaps, ClassMap, DepthMap, Field, ImageSource, LabelTable, as_stored
from sparsemtl.data.images.photos import LayoutOptions, PhotoLayout, Photos, find_layout, photo_data
from sparsemtl.data.images.pictures import Array, Files, as_size, colours, numbers
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.tasks import Depth, Segmentation, Task

FOLDER, IMAGES = "cityscapes", "leftImg8bit"
SEGMENTATION, DEPTH = "segmentation", "depth"
OFFICIAL = (2975, 500)
"""Official numbers of training and validation images."""


class Label(NamedTuple):
    """Row of the official table of labels (cityscapesScripts, helpers/labels.py)."""

    name: str
    id: int
    category: str
    evaluated: bool


_BY_CATEGORY = {
    "void": "unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground",
    "flat": "road*, sidewalk*, parking, rail track",
    "construction": "building*, wall*, fence*, guard rail, bridge, tunnel",
    "object": "pole*, polegroup, traffic light*, traffic sign*",
    "nature": "vegetation*, terrain*",
    "sky": "sky*",
    "human": "person*, rider*",
    "vehicle": "car*, truck*, bus*, caravan, trailer, train*, motorcycle*, bicycle*",
}
"""Category -> labels in the order of their ids, from 0; a star marks the classes of the official evaluation."""
LABELS = (
    *(
        Label(name.removesuffix("*"), number, category, name.endswith("*"))
        for number, (category, name) in enumerate(
            (category, name) for category, names in _BY_CATEGORY.items() for name in names.split(", ")
        )
    ),
    Label("license plate", -1, "vehicle", False),
)
CATEGORIES = tuple(_BY_CATEGORY)[1:]
NAMES = {7: CATEGORIES, 19: tuple(label.name for label in LABELS if label.evaluated)}
"""Number of classes -> their names, in the official order of train ids and categories."""


def official_table(classes: int) -> LabelTable:
    """Return the ids of gtFine's labelIds: labels outside of the official evaluation are unknown in both forms."""
    names = NAMES[classes]
    ids = {
        label.id: names.index(label.name if classes == 19 else label.category) if label.evaluated else IGNORE
        for label in LABELS
    }
    return LabelTable("Cityscapes", names, ids)


def arrays_table(classes: int) -> LabelTable:
    """Return the ids of the preprocessed arrays: the classes from 0, -1 for unknown."""
    ids = {-1: IGNORE, IGNORE: IGNORE, **dict(enumerate(range(classes)))}
    return LabelTable(f"Cityscapes with {classes} classes", NAMES[classes], ids)


def from_disparity(stored: Array, where: str) -> Array:
    """Convert stored numbers p to disparity in pixels of the official images: (p - 1) / 256, 0 if p is 0."""
    if stored.dtype.kind not in "ui" or stored.dtype.itemsize < 2:
        raise DataError(f"{where} holds {stored.dtype}; disparity has 16 bits.")
    return np.where(stored > 0, (stored.astype(np.float32) - 1) / 256, 0)


def _official_part(folder: Path, part: str, classes: int) -> tuple[Files, ClassMap, list[Field]]:
    """Return images, classes and, if there is disparity, inverse depth of leftImg8bit, gtFine and disparity."""
    images, ending = folder / IMAGES / part, f"_{IMAGES}.png"
    names = sorted(path.relative_to(images).as_posix().removesuffix(ending) for path in images.glob(f"*/*{ending}"))
    if not names:
        raise DataError(f"{images} has no images CITY/NAME{ending}.")

    def files(kind: str, ending: str, decode: Callable[[Path], Array]) -> Files:
        return complete(folder / kind / part, [f"{name}_{ending}.png" for name in names], decode)

    labels = ClassMap(SEGMENTATION, files("gtFine", "gtFine_labelIds", numbers), official_table(classes))
    depth: list[Field] = []
    if (folder / "disparity").is_dir():
        depth = [DepthMap(DEPTH, files("disparity", "disparity", numbers), from_disparity)]
    return files(IMAGES, IMAGES, colours), labels, depth


def _arrays_part(folder: Path, part: str, classes: int) -> tuple[Files, ClassMap, list[Field]]:
    """Return the same of the preprocessed arrays of MTAN (Liu et al. 2019) and LibMTL."""
    folder = folder / part
    names = numbered(folder / "image")
    labels = folder / f"label_{classes}"
    if classes == 7 and not labels.is_dir():
        labels = folder / "label"  # the name in LibMTL
    depth: list[Field] = []
    if (folder / "depth").is_dir():
        depth = [DepthMap(DEPTH, complete(folder / "depth", names, numbers), as_stored)]
    images, maps = complete(folder / "image", names, colours), complete(labels, names, numbers)
    return images, ClassMap(SEGMENTATION, maps, arrays_table(classes)), depth


def _reader(read: Callable[[Path, str, int], tuple[Files, ClassMap, list[Field]]]) -> Callable[..., Photos]:
    """Return the function that reads all photographs of a layout."""

    def photos(folder: Path, classes: int, reading: str, size: int | tuple[int, int] | None) -> Photos:
        def source(part: str) -> ImageSource:
            images, labels, depth = read(folder, part, classes)
            return ImageSource(images, (labels if reading == "segmentation" else BinaryMaps(labels), *depth), size)

        tasks: list[Task] = [Segmentation(SEGMENTATION, NAMES[classes])]
        if reading == "maximum-roaming":
            tasks = [Segmentation(name, ["other", name], background=0) for name in NAMES[classes]]
        return Photos(
            {task.name: task for task in (*tasks, Depth(DEPTH))},
            source("train"),
            source("val"),
            tested="the official validation images, as the labels of the official test images are not public",
        )

    return photos


def _in_both_parts(about: str, kind: str, ending: str, *, optional: bool = False) -> tuple[Expected, Expected]:
    patterns = {part: (f"{FOLDER}/{kind}/{part}/*/*_{ending}.png",) for part in ("train", "val")}
    return (
        Expected(f"training {about}", patterns["train"], 2975, optional),
        Expected(f"validation {about}", patterns["val"], 500, optional),
    )


_TERMS = "own terms: research, teaching and personal use only, no redistribution"
_CITYSCAPES_LAYOUTS = {
    "official": PhotoLayout(
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
        FOLDER,
        f"{IMAGES}/train",
        _reader(_official_part),
    ),
    "arrays": PhotoLayout(
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
        FOLDER,
        "train/image",
        _reader(_arrays_part),
    ),
}


@requires_files(*((kind.package,) for kind in _CITYSCAPES_LAYOUTS.values()))
@checked
def cityscapes(
    *,
    layout: Annotated[
        Literal["auto", "official", "arrays"], Doc("Layout of the files; `auto` takes the first that exists.")
    ] = "auto",
    classes: Annotated[
        Literal[7, 19],
        Doc("7 categories or 19 classes; labels outside of the official evaluation are unknown in both."),
    ] = 7,
    reading: Annotated[
        Literal["segmentation", "maximum-roaming"],
        Doc(
            "`segmentation`, or `maximum-roaming` as in Pascal et al. (2021) and FSMTL: 7 maps of one category against "
            "all else, unknown pixels among the latter; `miou` of a map is the IoU of its category."
        ),
    ] = "segmentation",
    **options: Unpack[LayoutOptions],
) -> TaskData:
    """Cityscapes: street scenes with segmentation and inverse depth (Cordts et al. 2016).

    The tasks are `segmentation` and `depth`; in the reading `maximum-roaming` each of the 7 categories as a map of its
    own, and `depth`. The layouts:

        official  cityscapes/leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png       1024x2048
                  cityscapes/gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png
                  cityscapes/disparity/{train,val}/CITY/NAME_disparity.png           without it there is no depth
        arrays    cityscapes/{train,val}/{image,label_7,depth}/0.npy, 1.npy, ...     128x256; also label_19 and label

    Inverse depth is the disparity in pixels of the official images, (p - 1) / 256 for a stored number p, whatever
    `size` is; 0 stands for unknown, and for what is infinitely far. Arrays have it in a unit of their own.

    Source: https://www.cityscapes-dataset.com, after registration; for research, teaching and personal use. Needs the
    extra `vision`.

    Raises:
        DataError: if files are absent or do not fit each other.

    Differences from the papers:
        - The official test images have no public labels: the 500 official validation images are the test split, and
          validation images are held out from the 2,975 training images. The papers choose on what they report.
        - A map of one category has two outputs and a softmax; Maximum Roaming has one output and a sigmoid, which is
          the same model of the difference of the two. Their mIoU and pixel accuracy are means over batches.
        - MTAN made its arrays with code that it does not show; whether its 7 categories leave out what the official
          evaluation does is not known. With the official files they do.
    """
    if reading == "maximum-roaming" and classes != 7:
        raise ParameterError("cityscapes: the reading 'maximum-roaming' has 7 categories; leave `classes` at 7.")
    root = resolve_root(options["root"])
    kind = find_layout("cityscapes", _CITYSCAPES_LAYOUTS, layout, root)
    photos = kind.read(root / kind.folder, classes, reading, as_size(options["size"]))
    return photo_data("cityscapes", kind, photos, OFFICIAL, options)
