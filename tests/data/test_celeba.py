from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vision_files import NAMES, attribute_list, attribute_values, lay_celeba

import sparsemtl as sm
from sparsemtl.backbones import CNN
from sparsemtl.data import DATASETS, LazySplit, TaskData
from sparsemtl.data.attributes import read_attributes
from sparsemtl.data.images.celeba import GROUPS
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.tasks import Classification, MultiLabel

# The attributes of Maximum Roaming's task groups, by name.
MEMBERS = {
    "eyes": "Bags_Under_Eyes Eyeglasses Narrow_Eyes Arched_Eyebrows Bushy_Eyebrows",
    "mouth": "Big_Lips Mouth_Slightly_Open Smiling Wearing_Lipstick",
    "nose": "Big_Nose Pointy_Nose",
    "beard": "5_o_Clock_Shadow Goatee Mustache No_Beard Sideburns",
    "cheeks": "High_Cheekbones Rosy_Cheeks",
    "worn": "Wearing_Earrings Wearing_Hat Wearing_Necklace Wearing_Necktie",
}


def celeba(root: Path, **options: Any) -> TaskData:
    return DATASETS.build("celeba", root=root, **{"workers": 0, **options})


def split(data: TaskData, name: str) -> LazySplit:
    part = getattr(data, name)
    assert isinstance(part, LazySplit)
    return part


def test_fsmtls_groups_take_every_attribute_once() -> None:
    assert len(GROUPS) == 8
    assert sorted(column for columns in GROUPS.values() for column in columns) == list(range(40))


def test_groups_have_the_attributes_that_their_names_say(tmp_path: Path) -> None:
    lay_celeba(tmp_path)
    tasks = {task.name: task for task in celeba(tmp_path).tasks}
    assert list(tasks) == list(GROUPS)
    for name, members in MEMBERS.items():
        task = tasks[name]
        assert isinstance(task, MultiLabel)
        assert task.label_names == members.split()


@pytest.mark.parametrize("official", [False, True])
def test_images_are_in_the_official_partition_with_their_attributes(tmp_path: Path, official: bool) -> None:
    parts = (0, 2, 1, 0, 2, 0)
    lay_celeba(tmp_path, parts, official=official)
    data = celeba(tmp_path, size=None)
    ones = (attribute_values(6) + 1) // 2
    for number, name in enumerate(("train", "validation", "test")):
        loaded = split(data, name).load()
        rows = [row for row, part in enumerate(parts) if part == number]
        assert np.allclose((255 * loaded.x[:, 0, 5, 5]).numpy(), [250 - 10 * row for row in rows], atol=1.5)
        for group, columns in GROUPS.items():
            assert np.array_equal(loaded.targets[group].numpy(), ones[rows][:, columns])


def test_the_tasks_can_be_one_or_forty(tmp_path: Path) -> None:
    lay_celeba(tmp_path)
    one, each = celeba(tmp_path, attributes="one"), celeba(tmp_path, attributes="each")
    (task,) = one.tasks
    assert isinstance(task, MultiLabel)
    assert task.label_names == NAMES
    assert [task.name for task in each.tasks] == NAMES
    assert all(isinstance(task, Classification) and task.classes == 2 for task in each.tasks)
    together, alone = split(one, "test").load().targets, split(each, "test").load().targets
    assert torch.equal(together["attributes"], torch.stack([alone[name] for name in NAMES], dim=1).float())
    assert {task.target for task in each.only(["Male", "Young"]).tasks} == {"Male", "Young"}


def test_the_shorter_side_is_resized_as_in_the_papers(tmp_path: Path) -> None:
    lay_celeba(tmp_path)
    assert celeba(tmp_path).input_shape == (3, 75, 64)  # 26 x 22 pixels
    assert celeba(tmp_path, size=11).input_shape == (3, 13, 11)
    assert celeba(tmp_path, size=[20, 30]).input_shape == (3, 20, 30)


def test_fewer_images_than_officially_are_noted(tmp_path: Path) -> None:
    lay_celeba(tmp_path)
    assert celeba(tmp_path).notes == (
        "the official partition into training, validation and test images",
        "not the whole data set: 8 images (officially 202,599)",
    )


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks list_attr_celeba\.txt, list_eval_partition\.txt, img_align_celeba\."):
        celeba(tmp_path)
    place = lay_celeba(tmp_path)
    (place / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(DataError, match=r"img_align_celeba lacks 1 of 8 files, the first is 000003\.jpg"):
        celeba(tmp_path)


def test_a_partition_of_other_images_is_refused(tmp_path: Path) -> None:
    place = lay_celeba(tmp_path)
    path = place / "list_eval_partition.txt"
    text = path.read_text()
    path.write_text(text.replace("000004.jpg 0\n", ""))
    with pytest.raises(DataError, match=r"list other images: 1 are in one only, the first is 000004\.jpg"):
        celeba(tmp_path)
    path.write_text(text.replace("000004.jpg 0", "000004.jpg 3"))
    with pytest.raises(DataError, match=r"image 000004\.jpg is in part '3'"):
        celeba(tmp_path)


@pytest.mark.parametrize(
    ("line", "damage", "message"),
    [
        (0, "many", "must begin with the number of its images"),
        (0, "9", "announces 9 images and lists 8"),
        (4, "000003.jpg 1 -1", "line 5: expected a file's name and 40 times 1 or -1"),
        (4, "000003.jpg" + 39 * " 1" + " 2", "line 5: expected a file's name and 40 times 1 or -1"),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(tmp_path: Path, line: int, damage: str, message: str) -> None:
    path = lay_celeba(tmp_path) / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    lines[line] = damage
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        celeba(tmp_path)


def test_attributes_are_read_whatever_stands_between_them(tmp_path: Path) -> None:
    values = attribute_values(5)
    for number, between in enumerate((" ", "  ")):
        path = tmp_path / f"{number}.txt"
        path.write_text(attribute_list([f"{n}.jpg" for n in range(5)], values, between))
        read = read_attributes(path)
        assert read.images == tuple(f"{n}.jpg" for n in range(5))
        assert np.array_equal(read.table.numpy() * 2 - 1, values)
    with pytest.raises(ParameterError, match=r"unknown attribute 'Smile'\. Did you mean 'Smiling'"):
        read.columns(("Smile",))


@pytest.mark.slow
def test_a_network_learns_from_it(tmp_path: Path) -> None:
    lay_celeba(tmp_path)
    data = celeba(tmp_path, size=[16, 16])
    train, validation, test = data.loaders(2)
    model = sm.SharedBottom(CNN(data.input_shape, widths=[4, 4]), data.tasks)
    results = sm.Trainer(model, epochs=1, progress=False, accelerator="cpu").fit(train, validation).test(test)
    assert set(results) == set(GROUPS)
