"""NYU-v2: 1,449 indoor images with classes, depth and normals (Silberman et al. 2012)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sparsemtl.data.base import Samples, TaskData
from sparsemtl.data.folders import absent, counted, held_out
from sparsemtl.data.lazy import LazySplit
from sparsemtl.data.nyu.classes import Classes
from sparsemtl.data.nyu.layouts import DEPTH, NORMALS, NYU_LAYOUTS, SEGMENTATION, NyuLayout, Parts
from sparsemtl.data.options import ProperFraction, checked, resolve_root
from sparsemtl.data.pictures import Size, as_size
from sparsemtl.data.requirements import requires_files
from sparsemtl.errors import DataError
from sparsemtl.registry.parameters import Natural, NonNegative
from sparsemtl.tasks import Depth, Normals, Segmentation, Task

OFFICIAL = {"training images": 795, "test images": 654}


@requires_files(*((kind.package,) for kind in NYU_LAYOUTS.values()))
@checked
def nyu_v2(
    *,
    root: str | Path | None = None,
    layout: Literal["auto", "arrays", "folders", "mat"] = "auto",
    classes: Classes | None = None,
    size: Size = None,
    validation: ProperFraction = 0.1,
    seed: Natural = 0,
    workers: Natural | None = None,
    memory: NonNegative = 1.0,
) -> TaskData:
    """NYU-v2: indoor images with segmentation, depth and surface normals (Silberman et al. 2012).

    The tasks are `segmentation`, `depth` in metres and `normals`, as far as there are files of them. The layouts, of
    which `auto` takes the first that lies under the root:

        arrays    nyuv2/{train,val}/{image,label,depth,normal}/0.npy, 1.npy, ...       288x384, 13 classes
        folders   NYUD_MT/gt_sets/{train,val}.txt     names of samples, one a line; with test.txt, val.txt validates
                  NYUD_MT/images/NAME.jpg             or .png
                  NYUD_MT/segmentation/NAME.png       1 .. 40, 0 unknown
                  NYUD_MT/depth/NAME.npy              metres; or .png of 16 bits, millimetres
                  NYUD_MT/normals/NAME.npy            -1 .. 1; or .png or .jpg, a byte for each direction
        mat       nyu_depth_v2/nyu_depth_v2_labeled.mat
                  nyu_depth_v2/splits.mat             or train.txt and test.txt, with numbers from 1
                  nyu_depth_v2/classMapping40.mat     894 names to 40 classes; without it there is no segmentation

    A depth or a normal that is NaN or infinite counts as unknown, with a warning that names the first file.

    Source: https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html. No licence is stated; it is published for research.
    Needs the extra `vision`.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        layout: which files to read.
        classes: 13 or 40; by default 13 for arrays, which have no others, and 40 for the rest.
        size: height and width in pixels, or the shorter side's; by default as the files have it.
        validation: share of the training images held out, in (0, 1), where no list says which validate.
        seed: of what is held out.
        workers: threads that decode; 0 decodes in the training thread; by default one a processor, at most 4.
        memory: gigabytes a split may take in memory, in which case it is decoded once.

    Raises:
        DataError: if files are absent or do not fit each other.

    Differences from the papers:
        - Validation images are held out from the 795 training images; MTAN, LibMTL and others have none and look at
          the test images. Here the 654 official test images only report.
        - Depth stays in metres. Less is More divides it by an image's largest value and clips it below; the metric
          `mae_less_is_more` does the former.
        - Less is More has 41 outputs for 40 classes, one of which is never right.
        - Depth and normals are resized by the nearest pixel, and normals brought to length one.
        - The labelled file has no normals. Its `depths` are read, with the holes filled, as everywhere.
    """
    place = resolve_root(root)
    kind = _choose(layout, place)
    parts = kind.read(place / kind.folder, classes, as_size(size))
    train: Samples = LazySplit.of(parts.train, workers=workers, memory=memory)
    test = LazySplit.of(parts.test, workers=workers, memory=memory)
    found = {"training images": len(train), "test images": len(test)}
    if parts.validation is None:
        train, validating = held_out(train, validation, seed=seed)
        chosen = f"{100 * validation:.4g} % of the official training images, at random (seed {seed})"
    else:
        validating = LazySplit.of(parts.validation, workers=workers, memory=memory)
        chosen = "the images of gt_sets/val.txt"
    return TaskData(
        "nyu-v2",
        _tasks(parts),
        train,
        validating,
        test,
        notes=(
            f"read from {kind.folder} ({kind.package.title})",
            f"validation: {chosen}; test: the official test images",
            *counted(found, OFFICIAL),
        ),
    )


def _choose(layout: str, root: Path) -> NyuLayout:
    kinds = list(NYU_LAYOUTS.values()) if layout == "auto" else [NYU_LAYOUTS[layout]]
    for kind in kinds:
        if (root / kind.folder / kind.marker).exists():
            return kind
    raise absent("nyu-v2", root, [f"{kind.folder}/{kind.marker}" for kind in kinds], one_of=len(kinds) > 1)


def _tasks(parts: Parts) -> tuple[Task, ...]:
    found = parts.train.targets
    if not found:
        raise DataError("nyu-v2: there are images, and neither classes nor depth nor normals of them.")
    if found != parts.test.targets:
        raise DataError(
            f"nyu-v2: training images have {', '.join(found)}; test images {', '.join(parts.test.targets)}."
        )
    tasks: list[Task] = [Segmentation(SEGMENTATION, parts.table.classes)] if parts.table else []
    return tuple(task for task in (*tasks, Depth(DEPTH), Normals(NORMALS)) if task.name in found)
