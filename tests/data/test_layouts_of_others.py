"""Folders as other people have them, and the words for what there is of a data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from object_files import lay_classes, lay_tiny_imagenet
from table_files import write

from sparsemtl.cli import data as cli_data
from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.images.folders import counted
from sparsemtl.data.requirements import Expected, Found, Package
from sparsemtl.errors import DataError
from sparsemtl.tasks import Classification


def build(root: Path, folder: str = "birds") -> TaskData:
    return DATASETS.build("image-folders", root=root, tasks={"birds": folder}, workers=0, size=4)


def classes(data: TaskData) -> list[str]:
    (task,) = data.tasks
    assert isinstance(task, Classification)
    return task.class_names


@pytest.mark.parametrize("inner", ["images", "Images"])
def test_images_of_a_class_may_lie_in_a_folder_of_their_own(tmp_path: Path, inner: str) -> None:
    lay_classes(tmp_path / "plain", ["crow", "wren"], "{number}.JPEG")
    for name in ("crow", "wren"):
        shutil.copytree(tmp_path / "plain" / name, tmp_path / "birds" / name / inner)
        (tmp_path / "birds" / name / f"{name}_boxes.txt").write_text("no image")
    one, other = build(tmp_path), build(tmp_path, "plain")
    assert classes(one) == classes(other) == ["crow", "wren"]
    assert len(one.train["birds"]) == len(other.train["birds"]) > 0  # type: ignore[index, arg-type]


def test_the_folder_of_tiny_imagenet_is_named_with_its_data_set(tmp_path: Path) -> None:
    lay_tiny_imagenet(tmp_path)
    with pytest.raises(DataError, match=r"holds images without folders of classes.*data set `tiny-imagenet`"):
        build(tmp_path, "tiny-imagenet-200")
    assert len(classes(build(tmp_path, "tiny-imagenet-200/train"))) == 4


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "VAL"), ("train", "Validation")])
def test_capitals_make_no_part_a_class(tmp_path: Path, names: tuple[str, str]) -> None:
    for width, part in enumerate(names, start=12):
        lay_classes(tmp_path / "birds" / part, ["crow", "wren"], "{number}.png", width=width)
    data = build(tmp_path)
    assert classes(data) == ["crow", "wren"]
    assert len(data.test["birds"]) == 16  # type: ignore[index, arg-type]


def test_what_macos_adds_to_an_archive_is_no_class(tmp_path: Path) -> None:
    lay_classes(tmp_path / "birds", ["crow", "wren"], "{number}.png")
    (tmp_path / "birds" / "__MACOSX" / "crow").mkdir(parents=True)
    (tmp_path / "birds" / "__MACOSX" / "crow" / "._1.png").write_bytes(b"no image")
    assert classes(build(tmp_path)) == ["crow", "wren"]


def test_capitals_make_no_difference_to_the_parts_of_a_table(tmp_path: Path) -> None:
    for name in ("Train", "TEST"):
        write(tmp_path / "mine" / f"{name}.csv", [("n", "y"), *((n, "ab"[n % 2]) for n in range(20))])
    data = DATASETS.build("table", path=str(tmp_path / "mine"), targets={"y": "classification"})
    assert len(data.test) == 20
    rows = [(n, "ab"[n % 2], ("Train", "VALIDATION", "test")[n % 3]) for n in range(30)]
    path = write(tmp_path / "one.csv", [("n", "y", "part"), *rows])
    data = DATASETS.build("table", path=str(path), targets={"y": "classification"}, split_column="part")
    assert len(data.test) == 10


@pytest.mark.parametrize(
    ("found", "notes"),
    [
        (100, ()),
        (99, ("not the whole data set: 99 images (officially 100)",)),
        (101, ("more than the official data set: 101 images (officially 100)",)),
    ],
)
def test_more_is_not_called_less(found: int, notes: tuple[str, ...]) -> None:
    assert counted({"images": found}, {"images": 100}) == notes


def test_both_more_and_less_are_said() -> None:
    assert len(counted({"a": 1, "b": 3}, {"a": 2, "b": 2})) == 2


def test_the_columns_of_a_check_never_touch() -> None:
    found = [
        Found(Expected("training images", ("a/*",), 100_000), 100_010, 196_300_000),
        Found(Expected("words", ("b",), 1), 1, 12),
    ]
    lines = list(cli_data._package_lines(Package("all", tuple(of.expected for of in found), "s", "l", "g"), found))
    assert "100,010 of 100,000 files, 196.3 MB  training images: a/*" in lines[1]
    assert lines[1].index("training") == lines[2].index("words")
