"""Cityscapes: street scenes with classes and disparity (Cordts et al. 2016)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sparsemtl.data.base import TaskData
from sparsemtl.data.cityscapes.layouts import CITYSCAPES_LAYOUTS, FOLDER, CityscapesLayout, Part
from sparsemtl.data.folders import absent, counted, held_out
from sparsemtl.data.lazy import LazySplit
from sparsemtl.data.maps import ImageSource, OneOfClasses
from sparsemtl.data.options import ProperFraction, checked, resolve_root
from sparsemtl.data.pictures import Size, as_size
from sparsemtl.data.requirements import requires_files
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.registry.parameters import Natural, NonNegative
from sparsemtl.tasks import Depth, Segmentation, Task

OFFICIAL = {"training images": 2975, "test images": 500}
Reading = Literal["segmentation", "maximum-roaming"]


@requires_files(*((kind.package,) for kind in CITYSCAPES_LAYOUTS.values()))
@checked
def cityscapes(
    *,
    root: str | Path | None = None,
    layout: Literal["auto", "official", "arrays"] = "auto",
    classes: Literal[7, 19] = 7,
    reading: Reading = "segmentation",
    size: Size = None,
    validation: ProperFraction = 0.1,
    seed: Natural = 0,
    workers: Natural | None = None,
    memory: NonNegative = 1.0,
) -> TaskData:
    """Cityscapes: street scenes with segmentation and inverse depth (Cordts et al. 2016).

    The tasks are `segmentation` and `depth`; in the reading `maximum-roaming` each of the 7 categories as a map of its
    own, and `depth`. The layouts, of which `auto` takes the first that lies under the root:

        official  cityscapes/leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png       1024x2048
                  cityscapes/gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png
                  cityscapes/disparity/{train,val}/CITY/NAME_disparity.png           without it there is no depth
        arrays    cityscapes/{train,val}/{image,label_7,depth}/0.npy, 1.npy, ...     128x256; also label_19 and label

    Inverse depth is the disparity in pixels of the official images, (p - 1) / 256 of what a file holds, whatever `size`
    is; 0 stands for unknown, and for what is infinitely far. Arrays have it in a unit of their own.

    Source: https://www.cityscapes-dataset.com, after registration; for research, teaching and personal use. Needs the
    extra `vision`.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        layout: which files to read.
        classes: 7 categories or 19 classes; labels that the official evaluation leaves out are unknown in both.
        reading: `segmentation`, or `maximum-roaming` as Pascal et al. (2021) and FSMTL have it: 7 maps of one category
            against all else, unknown pixels among the latter; `miou` of a map is the IoU of its category.
        size: height and width in pixels, or the shorter side's; by default as the files have it.
        validation: share of the official training images held out, in (0, 1).
        seed: of what is held out.
        workers: threads that decode; 0 decodes in the training thread; by default one a processor, at most 4.
        memory: gigabytes a split may take in memory, in which case it is decoded once.

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
    place = resolve_root(root) / FOLDER
    kind = _choose(layout, place)
    pixels = as_size(size)
    parts = [kind.read(place, part, classes) for part in ("train", "val")]
    train, test = (LazySplit.of(_source(part, reading, pixels), workers=workers, memory=memory) for part in parts)
    if train.targets != test.targets:
        raise DataError(f"{place}: training images have {', '.join(train.targets)}; val {', '.join(test.targets)}.")
    rest, validating = held_out(train, validation, seed=seed)
    return TaskData(
        "cityscapes",
        _tasks(parts[0], reading),
        rest,
        validating,
        test,
        notes=(
            f"read from {kind.package.title}",
            f"validation: {100 * validation:.4g} % of the official training images, at random (seed {seed}); test: the "
            "official validation images, as the labels of the official test images are not public",
            *counted({"training images": len(train), "test images": len(test)}, OFFICIAL),
        ),
    )


def _choose(layout: str, place: Path) -> CityscapesLayout:
    kinds = list(CITYSCAPES_LAYOUTS.values()) if layout == "auto" else [CITYSCAPES_LAYOUTS[layout]]
    for kind in kinds:
        if (place / kind.marker).exists():
            return kind
    raise absent("cityscapes", place, [kind.marker for kind in kinds], one_of=len(kinds) > 1)


def _source(part: Part, reading: Reading, size: int | tuple[int, int] | None) -> ImageSource:
    classes = part.classes if reading == "segmentation" else OneOfClasses(part.classes)
    return ImageSource(part.images, (classes,) if part.depth is None else (classes, part.depth), size)


def _tasks(part: Part, reading: Reading) -> tuple[Task, ...]:
    names = part.classes.table.classes
    if reading == "segmentation":
        tasks: list[Task] = [Segmentation(part.classes.target, names)]
    else:
        tasks = [Segmentation(name, ["other", name], background=0) for name in names]
    return (*tasks, Depth(part.depth.target)) if part.depth else tuple(tasks)
