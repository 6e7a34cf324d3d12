from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vision_files import (
    PerPixel,
    depth,
    forty_of_894,
    image,
    labels,
    lay_nyu_arrays,
    lay_nyu_folders,
    lay_nyu_mat,
    normals,
    save,
)

import sparsemtl as sm
from sparsemtl.data import DATASETS, LazySplit, TaskData
from sparsemtl.data.images.nyu import FORTY, FORTY_TO_THIRTEEN, THIRTEEN, arrays_table, labelled_table, pictures_table
from sparsemtl.data.images.pictures import Array, nearest
from sparsemtl.errors import DataError, LabelWarning, MissingExtraError, ParameterError
from sparsemtl.tasks import Segmentation

# Which of the 40, from 1, become one of the 13 in class13Mapping.mat.
MERGED = {
    "bed": {4},
    "books": {23},
    "ceiling": {22},
    "chair": {5},
    "floor": {2, 20},
    "furniture": {3, 10, 12, 15, 17, 24, 32, 39},
    "objects": {18, 19, 21, 26, 27, 28, 29, 30, 31, 33, 34, 35, 36, 37, 38, 40},
    "picture": {11},
    "sofa": {6},
    "table": {7, 14},
    "television": {25},
    "wall": {1, 8},
    "window": {9, 13, 16},
}


def nyu(root: Path, **options: Any) -> TaskData:
    return DATASETS.build("nyu-v2", root=root, **{"workers": 0, **options})


def part(data: TaskData, name: str) -> LazySplit:
    split = getattr(data, name)
    assert isinstance(split, LazySplit)
    return split


def read(data: TaskData, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    split = part(data, name).load()
    return split.x, split.targets


def first_bytes(data: TaskData, name: str) -> list[int]:
    """Which of the laid images are in a part."""
    return (read(data, name)[0][:, 0, 0, 0] * 255).round().int().tolist()


def assert_holds(split: LazySplit, number: int, row: int, classes: Array) -> None:
    """Row `row` of a split is the laid image `number`, with all labels."""
    x, targets = next(iter(split.select(torch.tensor([row])).loader(1)))
    assert np.allclose(x[0].numpy().transpose(1, 2, 0), image(number) / 255, atol=1e-6)
    assert np.array_equal(targets["segmentation"][0].numpy(), classes)
    assert np.allclose(targets["depth"][0, 0].numpy(), depth(number), atol=1e-3)
    if "normals" in targets:
        assert np.allclose(targets["normals"][0].numpy().transpose(1, 2, 0), normals(number), atol=0.01)


def test_the_forty_classes_become_the_thirteen_of_the_official_table() -> None:
    assert len(FORTY) == len(set(FORTY)) == 40
    assert list(MERGED) == list(THIRTEEN)
    for index, (name, numbers) in enumerate(MERGED.items(), start=1):
        assert {number for number, merged in enumerate(FORTY_TO_THIRTEEN, start=1) if merged == index} == numbers, name
    for name in (
        "bed",
        "books",
        "ceiling",
        "chair",
        "floor",
        "picture",
        "sofa",
        "table",
        "television",
        "wall",
        "window",
    ):
        assert pictures_table(13).ids[FORTY.index(name) + 1] == THIRTEEN.index(name)


def test_ids_of_every_layout_mean_their_classes() -> None:
    assert arrays_table().ids == {-1: 255, 255: 255} | {n: n for n in range(13)}
    assert pictures_table(40).ids == {0: 255, 255: 255} | {n: n - 1 for n in range(1, 41)}
    table = labelled_table(13, [4, 40, 1])
    assert table.ids == {0: 255, 1: THIRTEEN.index("bed"), 2: THIRTEEN.index("objects"), 3: THIRTEEN.index("wall")}


def test_arrays_are_read_as_they_were_laid(tmp_path: Path) -> None:
    lay_nyu_arrays(tmp_path, train=12)
    data = nyu(tmp_path)
    assert [task.name for task in data.tasks] == ["segmentation", "depth", "normals"]
    assert data.input_shape == (3, 16, 24)
    for number in range(3):
        classes = labels(100 + number, -1, 12)
        assert_holds(part(data, "test"), 100 + number, number, np.where(classes < 0, 255, classes))
    assert first_bytes(data, "test") == [100, 101, 102]
    assert sorted(first_bytes(data, "train") + first_bytes(data, "validation")) == list(range(12))


@pytest.mark.parametrize("pictures", [False, True], ids=["arrays", "pictures"])
@pytest.mark.parametrize("classes", [40, 13])
def test_folders_are_read_as_they_were_laid(tmp_path: Path, pictures: bool, classes: int) -> None:
    lay_nyu_folders(tmp_path, pictures=pictures)
    data = nyu(tmp_path, classes=classes, validation=0.4)
    assert [task.name for task in data.tasks] == ["segmentation", "depth", "normals"]
    assert data.tasks[0].outputs == classes
    merged = np.array([255, *range(40)] if classes == 40 else [255, *(n - 1 for n in FORTY_TO_THIRTEEN)])
    for number in range(3):
        assert_holds(part(data, "test"), 100 + number, number, merged[labels(100 + number, 0, 40)])


def test_a_third_list_keeps_validation_and_test_apart(tmp_path: Path) -> None:
    lay_nyu_folders(tmp_path, lists=("train", "val", "test"))
    data = nyu(tmp_path)
    assert [first_bytes(data, name) for name in ("train", "validation", "test")] == [
        [0, 1, 2],
        [100, 101, 102],
        [200, 201, 202],
    ]
    assert any("gt_sets/val.txt" in note for note in data.notes)


@pytest.mark.parametrize("classes", [40, 13])
def test_the_labelled_file_is_read_in_the_official_split(tmp_path: Path, classes: int) -> None:
    lay_nyu_mat(tmp_path)
    data = nyu(tmp_path, classes=classes, validation=0.25)
    assert [task.name for task in data.tasks] == ["segmentation", "depth"]
    assert first_bytes(data, "test") == [1, 5]
    assert sorted(first_bytes(data, "train") + first_bytes(data, "validation")) == [0, 2, 3, 6]
    merged = np.arange(40) if classes == 40 else np.array(FORTY_TO_THIRTEEN) - 1
    table = np.concatenate([[255], merged[forty_of_894() - 1]])
    assert_holds(part(data, "test"), 5, 1, table[labels(5, 0, 894)])


def test_lists_of_numbers_serve_as_the_split(tmp_path: Path) -> None:
    place = lay_nyu_mat(tmp_path, split=False)
    (place / "train.txt").write_text("1\n2\n3\n")
    (place / "test.txt").write_text("7\n5\n")
    assert first_bytes(nyu(tmp_path, validation=0.4), "test") == [6, 4]
    (place / "test.txt").write_text("7\n3\n")
    with pytest.raises(DataError, match="is in 'train' and in 'test'"):
        nyu(tmp_path)
    (place / "test.txt").write_text("7\n8\n")
    with pytest.raises(DataError, match=r"names image 8; nyu_depth_v2_labeled.mat has images 1 \.\. 7"):
        nyu(tmp_path)
    (place / "test.txt").write_text("seven\n")
    with pytest.raises(DataError, match=r"test\.txt must have a number on every line"):
        nyu(tmp_path)


def test_without_the_mapping_the_labelled_file_has_depth_alone(tmp_path: Path) -> None:
    lay_nyu_mat(tmp_path, mapping=False)
    assert [task.name for task in nyu(tmp_path, validation=0.25).tasks] == ["depth"]
    with pytest.raises(DataError, match=r"lacks classMapping40\.mat, without which the 13 classes are not known"):
        nyu(tmp_path, classes=13)


def test_tasks_are_those_that_have_files(tmp_path: Path) -> None:
    place = lay_nyu_arrays(tmp_path)
    for name in ("train", "val"):
        (place / name / "normal").rename(place / name / "elsewhere")
    assert [task.name for task in nyu(tmp_path).tasks] == ["segmentation", "depth"]
    (place / "train" / "depth").rename(place / "train" / "beside")
    with pytest.raises(DataError, match="training images have segmentation; test images segmentation, depth"):
        nyu(tmp_path)


def test_the_first_layout_that_is_there_is_taken_or_the_one_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks nyuv2/train/image, NYUD_MT/gt_sets, .*of which one is needed"):
        nyu(tmp_path)
    lay_nyu_mat(tmp_path)
    lay_nyu_folders(tmp_path)
    assert "NYUD_MT" in nyu(tmp_path, validation=0.4).notes[0]
    assert "nyu_depth_v2" in nyu(tmp_path, validation=0.4, layout="mat").notes[0]
    with pytest.raises(DataError, match="`sparsemtl data check nyu-v2` says how to get it"):
        nyu(tmp_path, layout="arrays")


def test_every_map_is_resized_with_its_image(tmp_path: Path) -> None:
    lay_nyu_arrays(tmp_path)
    x, targets = read(nyu(tmp_path, size=[8, 8]), "test")
    assert {name: tuple(map_.shape) for name, map_ in targets.items()} == {
        "segmentation": (3, 8, 8),
        "depth": (3, 1, 8, 8),
        "normals": (3, 3, 8, 8),
    }
    assert x.shape == (3, 3, 8, 8)
    classes = labels(101, -1, 12)
    assert np.array_equal(targets["segmentation"][1].numpy(), nearest(np.where(classes < 0, 255, classes), (8, 8)))
    lengths = targets["normals"].norm(dim=1)
    assert bool(((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all())


def test_the_validation_images_are_chosen_by_the_seed(tmp_path: Path) -> None:
    lay_nyu_arrays(tmp_path, train=20)
    chosen = [first_bytes(nyu(tmp_path, seed=seed, validation=0.25), "validation") for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 5
    notes = nyu(tmp_path, seed=1).notes
    assert any("seed 1" in note for note in notes)
    assert any("20 training images (officially 795), 3 test images (officially 654)" in note for note in notes)


def test_the_arrays_have_thirteen_classes_only(tmp_path: Path) -> None:
    lay_nyu_arrays(tmp_path)
    with pytest.raises(ParameterError, match="the arrays have 13 classes"):
        nyu(tmp_path, classes=40)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    place = lay_nyu_arrays(tmp_path)
    (place / "train" / "depth" / "4.npy").unlink()
    with pytest.raises(DataError, match=r"train/depth lacks 1 of 6 files, the first is 4\.npy"):
        nyu(tmp_path)
    lay_nyu_folders(tmp_path)
    (tmp_path / "NYUD_MT" / "images" / "0101.png").unlink()
    with pytest.raises(DataError, match=r"images lacks 1 of 3 files, the first is 0101\.png"):
        nyu(tmp_path, layout="folders")


@pytest.mark.parametrize("folder", ["image", "label", "depth", "normal"])
def test_a_damaged_file_is_named_when_it_is_read(tmp_path: Path, folder: str) -> None:
    place = lay_nyu_arrays(tmp_path)
    path = place / "val" / folder / "1.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{path} is not a whole"):
        read(nyu(tmp_path), "test")


def test_a_damaged_labelled_file_is_named(tmp_path: Path) -> None:
    place = lay_nyu_mat(tmp_path)
    path = place / "nyu_depth_v2_labeled.mat"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"{path} is not a whole MATLAB 7\.3 file"):
        nyu(tmp_path)
    (place / "splits.mat").write_bytes(b"nothing")
    lay_nyu_mat(tmp_path / "other")
    (tmp_path / "other" / "nyu_depth_v2" / "splits.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"splits\.mat is not a whole MATLAB file of version 5"):
        nyu(tmp_path / "other")


def test_a_label_beyond_the_classes_is_named(tmp_path: Path) -> None:
    place = lay_nyu_arrays(tmp_path)
    save(place / "val/label/2.npy", labels(3, 0, 13))
    with pytest.raises(DataError, match=r"val/label/2\.npy has a label 13 .*13 classes are -1 \.\. 12 and 255"):
        read(nyu(tmp_path), "test")


def test_maps_of_another_size_are_refused(tmp_path: Path) -> None:
    place = lay_nyu_arrays(tmp_path)
    save(place / "val/depth/2.npy", depth(3, 8, 12))
    with pytest.raises(DataError, match=r"val/depth/2\.npy has 8x12 pixels, its image .*val/image/2\.npy 16x24"):
        read(nyu(tmp_path, size=[8, 8]), "test")


def test_nan_in_depth_counts_as_unknown_and_is_told(tmp_path: Path) -> None:
    place = lay_nyu_arrays(tmp_path)
    metres = depth(101)
    metres[5:7] = np.nan
    save(place / "val/depth/1.npy", metres)
    with pytest.warns(LabelWarning, match=r"val/depth/1\.npy: 48 of 384 pixels are NaN"):
        _, targets = read(nyu(tmp_path), "test")
    assert targets["depth"].isfinite().all()
    assert not targets["depth"][1, 0, 5:7].any()


@pytest.mark.parametrize("package", ["h5py", "scipy.io"])
def test_without_a_package_the_extra_is_named(tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_nyu_mat(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"\.mat needs '\w+': pip install 'sparsemtl\[vision\]'"):
        nyu(tmp_path)


@pytest.mark.parametrize("layout", ["arrays", pytest.param("mat", marks=pytest.mark.slow)])
def test_a_network_learns_from_it(tmp_path: Path, layout: str) -> None:
    {"arrays": lay_nyu_arrays, "mat": lay_nyu_mat}[layout](tmp_path)
    data = nyu(tmp_path, size=[16, 16], validation=0.3)
    train, validation, test = data.loaders(2)
    model = sm.SharedBottom(PerPixel(), data.tasks)
    trainer = sm.Trainer(model, epochs=1, progress=False, accelerator="cpu").fit(train, validation)
    results = trainer.test(test)
    assert 0 <= results["segmentation"]["miou"] <= 1
    assert results["depth"]["abs_err"] > 0
    assert isinstance(data.tasks[0], Segmentation)
