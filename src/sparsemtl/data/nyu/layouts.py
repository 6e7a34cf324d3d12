"""The three layouts in which NYU-v2 is had, each read into the same form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsemtl.data.folders import complete, listed, numbered, suffix_of
from sparsemtl.data.maps import (
    ClassMap,
    DepthMap,
    Field,
    ImageSource,
    LabelTable,
    NormalMap,
    as_stored,
    from_millimetres,
)
from sparsemtl.data.matlab import Stack, shape_of, whole_numbers
from sparsemtl.data.nyu.classes import Classes, arrays_table, labelled_table, pictures_table
from sparsemtl.data.pictures import Array, Files, colours, numbers
from sparsemtl.data.requirements import Expected, Package
from sparsemtl.errors import DataError, ParameterError

SEGMENTATION, DEPTH, NORMALS = "segmentation", "depth", "normals"
LABELLED, TO_FORTY = "nyu_depth_v2_labeled.mat", "classMapping40.mat"
FixedSize = int | tuple[int, int] | None

_ADDRESS = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
_LICENCE = "none is stated; published for research, cite Silberman et al. (2012)"


@dataclass(frozen=True)
class Parts:
    """What a layout gives.

    Attributes:
        table: the classes; None if they cannot be told.
        train: training samples.
        test: test samples.
        validation: validation samples, where the layout has any of its own.
    """

    table: LabelTable | None
    train: ImageSource
    test: ImageSource
    validation: ImageSource | None = None


def read_arrays(place: Path, classes: Classes | None, size: FixedSize) -> Parts:
    """Read the preprocessed arrays of MTAN (Liu et al. 2019) and LibMTL.

    Raises:
        DataError: if a file is absent.
        ParameterError: if 40 classes are asked for.
    """
    if classes == 40:
        raise ParameterError("nyu-v2: the arrays have 13 classes; 40 need the folders or the labelled file.")
    table = arrays_table()

    def source(part: Path) -> ImageSource:
        names = numbered(part / "image")

        def files(folder: str) -> Files | None:
            return complete(part / folder, names, numbers) if (part / folder).is_dir() else None

        fields = _fields(files("label"), table, files("depth"), as_stored, files("normal"))
        return ImageSource(complete(part / "image", names, colours), fields, size)

    return Parts(table, source(place / "train"), source(place / "val"))


def read_folders(place: Path, classes: Classes | None, size: FixedSize) -> Parts:
    """Read the folders of NYUD_MT (Maninis et al. 2019, in the form of Vandenhende et al. 2020).

    Raises:
        DataError: if a list or a file is absent, or two lists share a sample.
    """
    lists = place / "gt_sets"
    names = {part: listed(lists / f"{part}.txt") for part in _lists_of(lists)}
    check_disjoint(names, lists)
    table = pictures_table(classes or 40)

    def source(stems: Sequence[str]) -> ImageSource:
        def files(folder: str, *suffixes: str) -> Files | None:
            if not (place / folder).is_dir():
                return None
            suffix = suffix_of(place / folder, stems[0], suffixes)
            return complete(place / folder, [f"{stem}{suffix}" for stem in stems], numbers)

        images = [f"{stem}{suffix_of(place / 'images', stems[0], ('.jpg', '.png'))}" for stem in stems]
        depth = files("depth", ".npy", ".png")
        unit = from_millimetres if depth and depth.names[0].endswith(".png") else as_stored
        normals = files("normals", ".npy", ".png", ".jpg")
        fields = _fields(files("segmentation", ".png"), table, depth, unit, normals)
        return ImageSource(complete(place / "images", images, colours), fields, size)

    sources = {part: source(stems) for part, stems in names.items()}
    test = sources.pop("test", None) or sources.pop("val")
    return Parts(table, sources["train"], test, sources.get("val"))


def _lists_of(lists: Path) -> list[str]:
    found = [part for part in ("val", "test") if (lists / f"{part}.txt").is_file()]
    if not found:
        raise DataError(f"{lists} has neither val.txt nor test.txt.")
    return ["train", *found]


def read_labelled(place: Path, classes: Classes | None, size: FixedSize) -> Parts:
    """Read the labelled file with the official split.

    Raises:
        DataError: if a file is absent or damaged, or the split does not fit.
    """
    path, mapping = place / LABELLED, place / TO_FORTY
    if classes is not None and not mapping.is_file():
        raise DataError(f"{place} lacks {TO_FORTY}, without which the {classes} classes are not known.")
    table = labelled_table(classes or 40, whole_numbers(mapping, "mapClass")) if mapping.is_file() else None

    def source(rows: tuple[int, ...]) -> ImageSource:
        labels = Stack(path, "labels", rows) if table else None
        fields = _fields(labels, table, Stack(path, "depths", rows), as_stored, None)
        return ImageSource(Stack(path, "images", rows), fields, size)

    count = _common_count(path)
    train, test = _official_rows(place)
    for row in (*train, *test):
        if not 0 <= row < count:
            raise DataError(f"{place}: the split names image {row + 1}; {LABELLED} has images 1 .. {count}.")
    check_disjoint({"train": train, "test": test}, place)
    return Parts(table, source(train), source(test))


def _common_count(path: Path) -> int:
    """Number of images, the same for all variables."""
    counts = {variable: shape_of(path, variable)[-1] for variable in ("images", "labels", "depths")}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path} has {', '.join(f'{n} {variable}' for variable, n in counts.items())}: not the same.")
    return counts["images"]


def _official_rows(place: Path) -> tuple[tuple[int, ...], ...]:
    """Training and test images, from 0."""
    if (place / "splits.mat").is_file():
        found = [whole_numbers(place / "splits.mat", variable) for variable in ("trainNdxs", "testNdxs")]
    else:
        found = [_listed_numbers(place / f"{part}.txt") for part in ("train", "test")]
    return tuple(tuple(number - 1 for number in numbers) for numbers in found)


def _listed_numbers(path: Path) -> list[int]:
    lines = listed(path)
    if not all(line.isdecimal() for line in lines):
        raise DataError(f"{path} must have a number on every line, from 1 as in splits.mat.")
    return [int(line) for line in lines]


def _fields(
    labels: Files | Stack | None,
    table: LabelTable | None,
    depth: Files | Stack | None,
    unit: Callable[[Array, str], Array],
    normals: Files | Stack | None,
) -> tuple[Field, ...]:
    fields: list[Field] = []
    if labels is not None and table is not None:
        fields.append(ClassMap(SEGMENTATION, labels, table))
    if depth is not None:
        fields.append(DepthMap(DEPTH, depth, unit))
    if normals is not None:
        fields.append(NormalMap(NORMALS, normals))
    return tuple(fields)


def check_disjoint(parts: Mapping[str, Sequence[object]], where: Path) -> None:
    """Refuse a sample that is in two parts."""
    seen: dict[object, str] = {}
    for part, names in parts.items():
        for name in names:
            if seen.setdefault(name, part) != part:
                raise DataError(f"{where}: {name} is in {seen[name]!r} and in {part!r}.")


@dataclass(frozen=True)
class NyuLayout:
    """One of the layouts.

    Attributes:
        package: the files.
        folder: where they lie under the root.
        marker: what tells that they are there.
        read: (folder, classes, size) -> parts.
    """

    package: Package
    folder: str
    marker: str
    read: Callable[[Path, Classes | None, FixedSize], Parts]


NYU_LAYOUTS = {
    "arrays": NyuLayout(
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
        read_arrays,
    ),
    "folders": NyuLayout(
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
        read_folders,
    ),
    "mat": NyuLayout(
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
            source=f"{_ADDRESS}; {TO_FORTY} from https://github.com/ankurhanda/nyuv2-meta-data",
            licence=_LICENCE,
            get=f"put {LABELLED} (2.8 GB), splits.mat and {TO_FORTY} into nyu_depth_v2 under the root",
        ),
        "nyu_depth_v2",
        LABELLED,
        read_labelled,
    ),
}
