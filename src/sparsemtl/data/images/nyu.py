"""NYU-v2: 1,449 indoor images with classes, depth and normals (Silberman et al. 2012).

Classes are the 40 of Gupta et al. (2013), or the 13 of Couprie et al. (2013) into which they merge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc, Unpack

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import complete, listed, numbered, suffix_of
from sparsemtl.data.images.maps import (
    IGNORE,
    Arrays,
    ClassMap,
    DepthMap,
    Field,
    ImageSource,
    LabelTable,
    NormalMap,
    as_stored,
    from_millimetres,
)
from sparsemtl.data.images.matlab import Stack, shape_of, whole_numbers
from sparsemtl.data.images.photos import LayoutOptions, PhotoLayout, Photos, find_layout, photo_data
from sparsemtl.data.images.pictures import Array, Files, as_size, colours, numbers
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.tasks import Depth, Normals, Segmentation, Task

NyuClasses = Literal[13, 40]
FixedSize = int | tuple[int, int] | None
SEGMENTATION, DEPTH, NORMALS = "segmentation", "depth", "normals"
LABELLED, TO_FORTY = "nyu_depth_v2_labeled.mat", "classMapping40.mat"
OFFICIAL = (795, 654)
"""Official numbers of training and test images."""
# fmt: off
FORTY = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)
THIRTEEN = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "television",
    "wall", "window",
)
FORTY_TO_THIRTEEN = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6,
    8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
    7, 3, 2, 6, 11, 7, 7, 7, 7, 7,
    7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)
# fmt: on
"""Number, from 1, of the class among the 13 of each of the 40 (class13Mapping.mat)."""
NAMES: Mapping[int, tuple[str, ...]] = {13: THIRTEEN, 40: FORTY}


def arrays_table() -> LabelTable:
    """Return the ids of the preprocessed arrays: the 13 from 0, -1 for unknown."""
    return LabelTable("NYU-v2 with 13 classes", THIRTEEN, {-1: IGNORE, IGNORE: IGNORE, **dict(enumerate(range(13)))})


def pictures_table(classes: NyuClasses) -> LabelTable:
    """Return the ids of the pictures: the 40 from 1, 0 and 255 for unknown."""
    return LabelTable("NYU-v2 with 40 classes", NAMES[classes], {0: IGNORE, IGNORE: IGNORE, **_from_forty(classes)})


def labelled_table(classes: NyuClasses, to_forty: Sequence[int]) -> LabelTable:
    """Return the ids of the labelled file: 894 names from 1, each of which is one of the 40; 0 for unknown."""
    forty = _from_forty(classes)
    ids = {number: forty[forty_id] for number, forty_id in enumerate(to_forty, start=1)}
    return LabelTable("the labelled NYU-v2", NAMES[classes], {0: IGNORE, **ids})


def _from_forty(classes: NyuClasses) -> dict[int, int]:
    """Return number of a class among the 40, from 1 -> index of the class that it becomes."""
    merged = range(1, 41) if classes == 40 else FORTY_TO_THIRTEEN
    return {number: index - 1 for number, index in enumerate(merged, start=1)}


def _read_arrays(folder: Path, classes: NyuClasses | None, size: FixedSize) -> Photos:
    """Read the preprocessed arrays of MTAN (Liu et al. 2019) and LibMTL."""
    if classes == 40:
        raise ParameterError("nyu-v2: the arrays have 13 classes; 40 need the folders or the labelled file.")
    table = arrays_table()

    def source(part: Path) -> ImageSource:
        names = numbered(part / "image")

        def files(kind: str) -> Files | None:
            return complete(part / kind, names, numbers) if (part / kind).is_dir() else None

        fields = _fields(files("label"), table, files("depth"), as_stored, files("normal"))
        return ImageSource(complete(part / "image", names, colours), fields, size)

    return Photos(_tasks(table), source(folder / "train"), source(folder / "val"))


def _read_folders(folder: Path, classes: NyuClasses | None, size: FixedSize) -> Photos:
    """Read the folders of NYUD_MT (Maninis et al. 2019, in the form of Vandenhende et al. 2020)."""
    lists = folder / "gt_sets"
    held_out = [part for part in ("val", "test") if (lists / f"{part}.txt").is_file()]
    if not held_out:
        raise DataError(f"{lists} has neither val.txt nor test.txt.")
    stems = {part: listed(lists / f"{part}.txt") for part in ("train", *held_out)}
    _check_disjoint(stems, lists)
    table = pictures_table(classes or 40)

    def files(kind: str, part: str, suffixes: Sequence[str], decode: Callable[[Path], Array]) -> Files:
        suffix = suffix_of(folder / kind, stems[part][0], suffixes)
        return complete(folder / kind, [f"{stem}{suffix}" for stem in stems[part]], decode)

    def maps(kind: str, part: str, *suffixes: str) -> Files | None:
        return files(kind, part, suffixes, numbers) if (folder / kind).is_dir() else None

    def source(part: str) -> ImageSource:
        depth = maps("depth", part, ".npy", ".png")
        unit = from_millimetres if depth and depth.names[0].endswith(".png") else as_stored
        normals = maps("normals", part, ".npy", ".png", ".jpg")
        fields = _fields(maps("segmentation", part, ".png"), table, depth, unit, normals)
        return ImageSource(files("images", part, (".jpg", ".png"), colours), fields, size)

    sources = {part: source(part) for part in stems}
    test = sources.get("test") or sources["val"]
    validation = sources.get("val") if "test" in sources else None
    return Photos(_tasks(table), sources["train"], test, validation, validated="the images of gt_sets/val.txt")


def _read_labelled(folder: Path, classes: NyuClasses | None, size: FixedSize) -> Photos:
    """Read the labelled file with the official split."""
    path, mapping = folder / LABELLED, folder / TO_FORTY
    if classes is not None and not mapping.is_file():
        raise DataError(f"{folder} lacks {TO_FORTY}, without which the {classes} classes are not known.")
    table = labelled_table(classes or 40, whole_numbers(mapping, "mapClass")) if mapping.is_file() else None
    counts = {variable: shape_of(path, variable)[-1] for variable in ("images", "labels", "depths")}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path} has {', '.join(f'{n} {variable}' for variable, n in counts.items())}: not the same.")
    rows = _official_rows(folder)
    for row in (*rows["train"], *rows["test"]):
        if not 0 <= row < counts["images"]:
            raise DataError(
                f"{folder}: the split names image {row + 1}; {LABELLED} has images 1 .. {counts['images']}."
            )
    _check_disjoint(rows, folder)

    def source(part: tuple[int, ...]) -> ImageSource:
        fields = _fields(Stack(path, "labels", part), table, Stack(path, "depths", part), as_stored, None)
        return ImageSource(Stack(path, "images", part), fields, size)

    return Photos(_tasks(table), source(rows["train"]), source(rows["test"]))


def _official_rows(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the indices of training and test images, from 0."""
    rows = {}
    for part in ("train", "test"):
        if (folder / "splits.mat").is_file():
            found = whole_numbers(folder / "splits.mat", f"{part}Ndxs")
        else:
            path = folder / f"{part}.txt"
            lines = listed(path)
            if not all(line.isdecimal() for line in lines):
                raise DataError(f"{path} must have a number on every line, from 1 as in splits.mat.")
            found = [int(line) for line in lines]
        rows[part] = tuple(number - 1 for number in found)
    return rows


def _fields(
    labels: Arrays | None,
    table: LabelTable | None,
    depth: Arrays | None,
    unit: Callable[[Array, str], Array],
    normals: Arrays | None,
) -> tuple[Field, ...]:
    fields: list[Field] = []
    if labels is not None and table is not None:
        fields.append(ClassMap(SEGMENTATION, labels, table))
    if depth is not None:
        fields.append(DepthMap(DEPTH, depth, unit))
    if normals is not None:
        fields.append(NormalMap(NORMALS, normals))
    return tuple(fields)


def _tasks(table: LabelTable | None) -> dict[str, Task]:
    tasks: list[Task] = [Segmentation(SEGMENTATION, table.classes)] if table else []
    return {task.name: task for task in (*tasks, Depth(DEPTH), Normals(NORMALS))}


def _check_disjoint(parts: Mapping[str, Sequence[object]], where: Path) -> None:
    """Raise a DataError if a sample is in two parts."""
    seen: dict[object, str] = {}
    for part, names in parts.items():
        for name in names:
            if seen.setdefault(name, part) != part:
                raise DataError(f"{where}: {name} is in {seen[name]!r} and in {part!r}.")


_LICENCE = "none is stated; published for research, cite Silberman et al. (2012)"
_NYU_LAYOUTS = {
    "arrays": PhotoLayout(
        Package(
            "arrays that multi-task papers share",
            (
                Expected("images: floats (288, 384, 3) in [0, 1]", ("nyuv2/*/image/*.npy",), 1449),
                Expected("classes: 0 .. 12, -1 unknown", ("nyuv2/*/label/*.npy",), 1449, optional=True),
                Expected("depth: metres (288, 384, 1), 0 unknown", ("nyuv2/*/depth/*.npy",), 1449, optional=True),
                Expected("normals: (288, 384, 3), 0 unknown", ("nyuv2/*/normal/*.npy",), 1449, optional=True),
            ),
            source="nyuv2.zip, linked at https://github.com/lorenmt/mtan and https://github.com/median-research-group/LibMTL",
            licence=_LICENCE,
            get="unpack so that nyuv2/train/image/0.npy and nyuv2/val/image/0.npy lie under the root",
        ),
        "nyuv2",
        "train/image",
        _read_arrays,
    ),
    "folders": PhotoLayout(
        Package(
            "folders of pictures (NYUD_MT)",
            (
                Expected("lists train.txt and val.txt, perhaps test.txt", ("NYUD_MT/gt_sets/*.txt",)),
                Expected("images", ("NYUD_MT/images/*.jpg", "NYUD_MT/images/*.png"), 1449),
                Expected("classes: 1 .. 40, 0 unknown", ("NYUD_MT/segmentation/*.png",), 1449, optional=True),
                Expected("depth", ("NYUD_MT/depth/*.npy", "NYUD_MT/depth/*.png"), 1449, optional=True),
                Expected(
                    "normals", tuple(f"NYUD_MT/normals/*.{s}" for s in ("npy", "png", "jpg")), 1449, optional=True
                ),
            ),
            source="NYUD_MT.tgz, linked at https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch",
            licence=_LICENCE,
            get="unpack so that NYUD_MT/gt_sets/train.txt lies under the root",
        ),
        "NYUD_MT",
        "gt_sets",
        _read_folders,
    ),
    "mat": PhotoLayout(
        Package(
            "the labelled file",
            (
                Expected("images, labels and depths", (f"nyu_depth_v2/{LABELLED}",), 1),
                Expected(
                    "the official split, or lists train.txt and test.txt",
                    ("nyu_depth_v2/splits.mat", "nyu_depth_v2/t*.txt"),
                ),
                Expected("894 names to 40 classes", (f"nyu_depth_v2/{TO_FORTY}",), 1, optional=True),
            ),
            source="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; "
            f"{TO_FORTY} from https://github.com/ankurhanda/nyuv2-meta-data",
            licence=_LICENCE,
            get=f"put {LABELLED} (2.8 GB), splits.mat and {TO_FORTY} into nyu_depth_v2 under the root",
        ),
        "nyu_depth_v2",
        LABELLED,
        _read_labelled,
    ),
}


@requires_files(*((kind.package,) for kind in _NYU_LAYOUTS.values()))
@checked
def nyu_v2(
    *,
    layout: Annotated[
        Literal["auto", "arrays", "folders", "mat"], Doc("Layout of the files; `auto` takes the first that exists.")
    ] = "auto",
    classes: Annotated[
        NyuClasses | None, Doc("Number of classes; by default 13 for arrays, which have no others, 40 for the rest.")
    ] = None,
    **options: Unpack[LayoutOptions],
) -> TaskData:
    """NYU-v2: indoor images with segmentation, depth and surface normals (Silberman et al. 2012).

    The tasks are `segmentation`, `depth` in metres and `normals`, as far as there are files of them. The layouts:

        arrays    nyuv2/{train,val}/{image,label,depth,normal}/0.npy, 1.npy, ...       288x384, 13 classes
        folders   NYUD_MT/gt_sets/{train,val}.txt     names of samples, one per line; with test.txt, val.txt validates
                  NYUD_MT/images/NAME.jpg             or .png
                  NYUD_MT/segmentation/NAME.png       1 .. 40, 0 unknown
                  NYUD_MT/depth/NAME.npy              metres; or .png of 16 bits, millimetres
                  NYUD_MT/normals/NAME.npy            -1 .. 1; or .png or .jpg, one byte per direction
        mat       nyu_depth_v2/nyu_depth_v2_labeled.mat
                  nyu_depth_v2/splits.mat             or train.txt and test.txt, with numbers from 1
                  nyu_depth_v2/classMapping40.mat     894 names to 40 classes; without it there is no segmentation

    A depth or a normal that is NaN or infinite counts as unknown, with a warning that names the first file.

    Source: https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html. No licence is stated; it is published for research.
    Needs the extra `vision`.

    Raises:
        DataError: if files are absent or do not fit each other.

    Differences from the papers:
        - Validation images are held out from the 795 training images; MTAN, LibMTL and others have none and select
          on the test images. Here the 654 official test images only report.
        - Depth stays in metres. Less is More divides it by an image's largest value and clips it below; the metric
          `mae_less_is_more` does the former.
        - Less is More has 41 outputs for 40 classes, one of which is never right.
        - Depth and normals are resized by the nearest pixel, and normals brought to length one.
        - The labelled file has no normals. Its `depths` are read, with the holes filled, as everywhere.
    """
    root = resolve_root(options["root"])
    kind = find_layout("nyu-v2", _NYU_LAYOUTS, layout, root)
    photos = kind.read(root / kind.folder, classes, as_size(options["size"]))
    return photo_data("nyu-v2", kind, photos, OFFICIAL, options)
