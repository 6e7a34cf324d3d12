from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vision_files import PerPixel, depth, disparity, image, labels, lay_city_arrays, lay_cityscapes, save

import sparsemtl as sm
from sparsemtl.data import DATASETS, LazySplit, TaskData
from sparsemtl.data.images.cityscapes import CATEGORIES, LABELS, NAMES, arrays_table, from_disparity, official_table
from sparsemtl.data.images.pictures import nearest
from sparsemtl.errors import DataError, ParameterError

# id: trainId, categoryId, ignoreInEval, as cityscapesScripts has them in helpers/labels.py.
OFFICIAL = {
    **dict.fromkeys(range(7), (255, 0, True)),
    7: (0, 1, False),
    8: (1, 1, False),
    9: (255, 1, True),
    10: (255, 1, True),
    11: (2, 2, False),
    12: (3, 2, False),
    13: (4, 2, False),
    14: (255, 2, True),
    15: (255, 2, True),
    16: (255, 2, True),
    17: (5, 3, False),
    18: (255, 3, True),
    19: (6, 3, False),
    20: (7, 3, False),
    21: (8, 4, False),
    22: (9, 4, False),
    23: (10, 5, False),
    24: (11, 6, False),
    25: (12, 6, False),
    26: (13, 7, False),
    27: (14, 7, False),
    28: (15, 7, False),
    29: (255, 7, True),
    30: (255, 7, True),
    31: (16, 7, False),
    32: (17, 7, False),
    33: (18, 7, False),
    -1: (255, 7, True),
}
TRAIN_ID_NAMES = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle"
)


def city(root: Path, **options: Any) -> TaskData:
    return DATASETS.build("cityscapes", root=root, **{"workers": 0, "validation": 0.25, **options})


def read(data: TaskData, name: str = "test") -> tuple[Tensor, dict[str, Tensor]]:
    split = getattr(data, name)
    assert isinstance(split, LazySplit)
    loaded = split.load()
    return loaded.x, loaded.targets


def first_bytes(data: TaskData, name: str) -> list[int]:
    """Which of the laid images are in a part."""
    return (read(data, name)[0][:, 0, 0, 0] * 255).round().int().tolist()


def test_the_table_of_labels_is_the_official_one() -> None:
    assert {label.id for label in LABELS} == set(OFFICIAL)
    categories = ("void", *CATEGORIES)
    for label in LABELS:
        _, category, ignored = OFFICIAL[label.id]
        assert (categories.index(label.category), not label.evaluated) == (category, ignored), label.name
    assert NAMES[19] == tuple(TRAIN_ID_NAMES.split(","))


def test_nineteen_classes_are_the_official_train_ids() -> None:
    assert official_table(19).ids == {number: train_id for number, (train_id, _, _) in OFFICIAL.items()}


def test_seven_classes_are_the_categories_of_what_is_evaluated() -> None:
    expected = {number: 255 if ignored else category - 1 for number, (_, category, ignored) in OFFICIAL.items()}
    assert official_table(7).ids == expected
    assert official_table(7).classes == ("flat", "construction", "object", "nature", "sky", "human", "vehicle")


@pytest.mark.parametrize("classes", [7, 19])
def test_official_files_are_read_as_they_were_laid(tmp_path: Path, classes: int) -> None:
    lay_cityscapes(tmp_path)
    data = city(tmp_path, classes=classes)
    assert [(task.name, task.outputs) for task in data.tasks] == [("segmentation", classes), ("depth", 1)]
    x, targets = read(data)
    assert data.input_shape == (3, 16, 24)
    for row, number in enumerate((100, 101)):
        assert np.array_equal((x[row] * 255).round().numpy().transpose(1, 2, 0), image(number))
        table = np.array([official_table(classes).ids[n] for n in range(34)])
        assert np.array_equal(targets["segmentation"][row].numpy(), table[labels(number, 0, 33)])
        stored = disparity(number).astype(float)
        assert np.array_equal(targets["depth"][row, 0].numpy(), np.where(stored > 0, (stored - 1) / 256, 0))


def test_disparity_is_in_pixels_and_zero_is_unknown() -> None:
    stored = np.array([[0, 1, 257, 32257, 65535]], dtype=np.uint16)
    assert from_disparity(stored, "file").tolist() == [[0, 0, 1, 126, 65534 / 256]]
    with pytest.raises(DataError, match="file holds uint8; disparity has 16 bits"):
        from_disparity(stored.astype(np.uint8), "file")


def test_official_validation_images_test_and_some_training_images_validate(tmp_path: Path) -> None:
    lay_cityscapes(tmp_path, train=8)
    data = city(tmp_path)
    assert first_bytes(data, "test") == [100, 101]
    train, validation = first_bytes(data, "train"), first_bytes(data, "validation")
    assert sorted(train + validation) == list(range(8))
    assert len(validation) == 2
    assert any("official validation images" in note and "seed 0" in note for note in data.notes)
    assert any("8 training images (officially 2,975)" in note for note in data.notes)
    assert first_bytes(city(tmp_path, seed=1), "validation") != validation


@pytest.mark.parametrize("folder", ["label_7", "label"])
def test_arrays_are_read_as_they_were_laid(tmp_path: Path, folder: str) -> None:
    lay_city_arrays(tmp_path, folder=folder)
    x, targets = read(city(tmp_path))
    for row, number in enumerate((100, 101)):
        assert np.allclose(x[row].numpy().transpose(1, 2, 0), image(number) / 255, atol=1e-6)
        classes = labels(number, -1, 6)
        assert np.array_equal(targets["segmentation"][row].numpy(), np.where(classes < 0, 255, classes))
        assert np.array_equal(targets["depth"][row, 0].numpy(), depth(number))
    assert arrays_table(19).ids == {-1: 255, 255: 255} | {n: n for n in range(19)}


def test_nineteen_classes_need_their_own_arrays(tmp_path: Path) -> None:
    place = lay_city_arrays(tmp_path)
    with pytest.raises(DataError, match=r"label_19 is no folder"):
        city(tmp_path, classes=19)
    for part in ("train", "val"):
        (place / part / "label_7").rename(place / part / "label_19")
    assert city(tmp_path, classes=19).tasks[0].outputs == 19


def test_maximum_roaming_reads_each_category_against_all_else(tmp_path: Path) -> None:
    lay_city_arrays(tmp_path)
    data = city(tmp_path, reading="maximum-roaming")
    assert [task.name for task in data.tasks] == [*CATEGORIES, "depth"]
    assert all(task.outputs == 2 for task in data.tasks[:7])
    _, targets = read(data)
    one_hot = torch.stack([targets[name] for name in CATEGORIES], dim=1)
    classes = torch.from_numpy(np.stack([labels(number, -1, 6) for number in (100, 101)]))
    scattered = torch.zeros(2, 8, 16, 24).scatter_(1, classes[:, None].long() + 1, 1)[:, 1:]  # as its code does it
    assert torch.equal(one_hot, scattered.to(torch.uint8))
    assert all(bool(task.labelled(task.labels(targets)).all()) for task in data.tasks)
    blank = torch.stack([torch.ones(2, 16, 24), torch.zeros(2, 16, 24)], 1)
    for task in data.tasks[:7]:
        metrics = task.metrics()
        task.update(metrics, blank, targets[task.name])
        assert float(metrics["miou"].compute()) == 0, "nothing of the category is found"
    with pytest.raises(ParameterError, match="has 7 categories; leave `classes` at 7"):
        city(tmp_path, reading="maximum-roaming", classes=19)


def test_one_category_alone_needs_no_other_file_than_its_own(tmp_path: Path) -> None:
    place = lay_cityscapes(tmp_path)
    for path in place.glob("disparity/*/*/*.png"):
        path.write_bytes(b"broken")
    data = city(tmp_path, reading="maximum-roaming").only(["human", "sky"])
    assert set(read(data)[1]) == {"human", "sky"}


def test_without_disparity_there_is_no_depth(tmp_path: Path) -> None:
    lay_cityscapes(tmp_path, with_disparity=False)
    assert [task.name for task in city(tmp_path).tasks] == ["segmentation"]


def test_images_and_maps_can_have_any_size(tmp_path: Path) -> None:
    lay_cityscapes(tmp_path)
    x, targets = read(city(tmp_path, size=[6, 10], classes=19))
    assert x.shape == (2, 3, 6, 10)
    ids = nearest(labels(100, 0, 33), (6, 10))
    assert targets["segmentation"][0].tolist() == [[official_table(19).ids[int(n)] for n in row] for row in ids]
    assert targets["depth"].max() > 100  # disparity is that of the full image


def test_the_official_files_come_first_and_either_can_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks \w+/leftImg8bit/train, cityscapes/train/image, of which one is needed"):
        city(tmp_path)
    lay_city_arrays(tmp_path)
    assert "arrays" in city(tmp_path).notes[0]
    lay_cityscapes(tmp_path)
    assert "official files" in city(tmp_path).notes[0]
    assert "arrays" in city(tmp_path, layout="arrays").notes[0]


def test_an_image_without_labels_is_named(tmp_path: Path) -> None:
    place = lay_cityscapes(tmp_path)
    lost = next(place.glob("gtFine/train/bochum/*_labelIds.png"))
    lost.unlink()
    with pytest.raises(DataError, match=rf"gtFine/train lacks 1 of 5 files, the first is bochum/{lost.name}"):
        city(tmp_path)
    for path in place.glob("leftImg8bit/val/*/*"):
        path.unlink()
    with pytest.raises(DataError, match=r"leftImg8bit/(train|val) has no images|gtFine/train lacks"):
        city(tmp_path)


def test_a_damaged_picture_and_one_of_another_size_are_named(tmp_path: Path) -> None:
    place = lay_cityscapes(tmp_path)
    path = next(place.glob("leftImg8bit/val/lindau/*000101*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{path} is not a whole image"):
        read(city(tmp_path))
    save(path, image(101, 8, 12))
    with pytest.raises(DataError, match=rf"000101.*labelIds\.png has 16x24 pixels, its image {path} 8x12"):
        read(city(tmp_path))


def test_a_label_beyond_the_table_is_named(tmp_path: Path) -> None:
    place = lay_cityscapes(tmp_path)
    path = next(place.glob("gtFine/val/lindau/*000100*labelIds.png"))
    save(path, labels(100, 0, 34).astype(np.uint8))
    with pytest.raises(DataError, match=rf"{path} has a label 34 .*Cityscapes are -1 \.\. 33"):
        read(city(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:losses of unlike scale")  # one epoch of a tiny network gives no stable scales
@pytest.mark.parametrize("reading", ["segmentation", "maximum-roaming"])
def test_a_network_learns_from_it(tmp_path: Path, reading: str) -> None:
    lay_cityscapes(tmp_path)
    data = city(tmp_path, reading=reading)
    train, validation, test = data.loaders(2)
    model = sm.SharedBottom(PerPixel(), data.tasks)
    results = sm.Trainer(model, epochs=1, progress=False, accelerator="cpu").fit(train, validation).test(test)
    assert set(results) == {task.name for task in data.tasks}
    assert results["depth"]["abs_err"] > 0
