from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vision_files import NAMES, Array, PerPixel, attribute_values, lay_celebamask, part_mask, save

import sparsemtl as sm
from sparsemtl.data import DATASETS, LazySplit, TaskData
from sparsemtl.data.images.celebamask import CLASSES, PARTS
from sparsemtl.data.images.pictures import nearest
from sparsemtl.errors import ConfigError, DataError, ParameterError

NUMBERS = (0, 1, 2, 3, 4, 5, 2000)


def faces(root: Path, **options: Any) -> TaskData:
    return DATASETS.build("celebamask-hq", root=root, **{"workers": 0, "size": 16, **options})


def read(data: TaskData, name: str = "train") -> tuple[Tensor, dict[str, Tensor]]:
    split = getattr(data, name)
    assert isinstance(split, LazySplit)
    loaded = split.load()
    return loaded.x, loaded.targets


def members(data: TaskData) -> list[list[int]]:
    """Numbers of the images of the three parts."""
    parts = (data.train, data.validation, data.test)
    return [[NUMBERS[row] for row in part.rows.tolist()] for part in parts if isinstance(part, LazySplit)]


def merged(number: int) -> Array:
    """What the official script g_mask.py makes of an image's masks."""
    classes = np.zeros((16, 16), dtype=int)
    for index, part in enumerate(PARTS):
        for row in range(16):
            for column in range(16):
                if part_mask(number, part)[row, column]:
                    classes[row, column] = index + 1
    return classes


def test_the_nineteen_classes_are_in_the_official_order() -> None:
    order = "skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair hat ear_r neck_l neck cloth"
    assert CLASSES[19].names == ("background", *order.split())
    assert CLASSES[19].paint == tuple((part, index + 1) for index, part in enumerate(order.split()))


def test_all_parts_are_merged_as_the_official_script_does_it(tmp_path: Path) -> None:
    lay_celebamask(tmp_path)
    data = faces(tmp_path, classes=19, split="less-is-more")
    assert data.tasks[0].outputs == 19
    _, targets = read(data)
    for row, number in enumerate((3, 4, 5, 2000)):
        assert np.array_equal(targets["segmentation"][row].numpy(), merged(number))


def test_three_classes_are_background_hair_and_skin(tmp_path: Path) -> None:
    lay_celebamask(tmp_path)
    data = faces(tmp_path, split="less-is-more")
    assert data.tasks[0].outputs == 3
    _, targets = read(data, "validation")
    expected = np.where(part_mask(0, "hair"), 1, np.where(part_mask(0, "skin"), 2, 0))
    assert np.array_equal(targets["segmentation"][0].numpy(), expected)


def test_parts_that_are_not_seen_have_no_mask(tmp_path: Path) -> None:
    lay_celebamask(tmp_path, unseen=("hair", "hat"))
    _, targets = read(faces(tmp_path, split="less-is-more"), "validation")
    assert np.array_equal(targets["segmentation"][0].numpy(), np.where(part_mask(0, "skin"), 2, 0))


def test_masks_and_images_are_brought_to_one_size(tmp_path: Path) -> None:
    lay_celebamask(tmp_path)
    x, targets = read(faces(tmp_path, size=[8, 12], split="less-is-more"), "validation")
    assert x.shape == (1, 3, 8, 12)
    hair, skin = (nearest(part_mask(0, part), (8, 12)) for part in ("hair", "skin"))
    assert np.array_equal(targets["segmentation"][0].numpy(), np.where(hair, 1, np.where(skin, 2, 0)))


def test_attributes_are_tasks_by_the_names_given_to_them(tmp_path: Path) -> None:
    lay_celebamask(tmp_path)
    ones = torch.from_numpy((attribute_values(7) + 1) // 2)
    data = faces(tmp_path, split="less-is-more")
    assert [task.name for task in data.tasks] == ["segmentation", "male", "smile"]
    _, targets = read(data)
    for task, attribute in {"male": "Male", "smile": "Smiling"}.items():
        assert torch.equal(targets[task], ones[3:, NAMES.index(attribute)])
    glasses = faces(tmp_path, attributes={"glasses": "Eyeglasses"})
    assert [task.name for task in glasses.tasks] == ["segmentation", "glasses"]
    assert [task.name for task in faces(tmp_path, attributes={}).tasks] == ["segmentation"]
    with pytest.raises(ParameterError, match=r"unknown attribute 'Smile'\. Did you mean 'Smiling'"):
        faces(tmp_path, attributes={"smile": "Smile"})
    with pytest.raises(ParameterError, match="no attribute's task can be called 'segmentation'"):
        faces(tmp_path, attributes={"segmentation": "Male"})


def test_the_official_split_is_celebas_partition(tmp_path: Path) -> None:
    lay_celebamask(tmp_path)  # CelebA's numbers 162770, 162771, 182637, 182638 in turn
    data = faces(tmp_path)
    assert members(data) == [[0, 4], [1, 2, 5, 2000], [3]]
    assert "CelebA's official partition" in data.notes[0]


def test_the_split_of_less_is_more_is_its_list(tmp_path: Path) -> None:
    lay_celebamask(tmp_path)
    assert members(faces(tmp_path, split="less-is-more")) == [[3, 4, 5, 2000], [0], [1, 2]]


def test_the_random_split_follows_the_seed(tmp_path: Path) -> None:
    lay_celebamask(tmp_path)
    drawn = [members(faces(tmp_path, split="random", seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(number for part in drawn[0] for number in part) == sorted(NUMBERS)
    assert "seed 1" in faces(tmp_path, split="random", seed=1).notes[0]
    with pytest.raises(ConfigError, match="parameter"):
        faces(tmp_path, splits="random")


def test_a_bad_split_file_is_named(tmp_path: Path) -> None:
    place = lay_celebamask(tmp_path)
    path = place / "celebA_datasplit.json"
    for content, message in {
        "{": "is not a JSON object of lists",
        json.dumps({"train": ["0.jpg"], "val": ["1.jpg"]}): "is not a JSON object of lists",
        json.dumps({"train": ["0.jpg"], "val": ["0.jpg"], "test": ["2.jpg"]}): "lists 1 images twice",
        json.dumps({"train": ["0.jpg"], "val": ["9.jpg"], "test": ["2.jpg"]}): r"the first is 9\.jpg",
    }.items():
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            faces(tmp_path, split="less-is-more")
    path.unlink()
    with pytest.raises(DataError, match=r"celebA_datasplit\.json does not exist\. It is src/dataset/"):
        faces(tmp_path, split="less-is-more")
    mapping = place / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text("\n".join(mapping.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match=r"lacks 1 of 7 images, the first is 2000\.jpg"):
        faces(tmp_path)
    mapping.unlink()
    with pytest.raises(DataError, match="does not exist"):
        faces(tmp_path)


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks CelebA-HQ-img, CelebAMask-HQ-mask-anno, CelebAMask-HQ-attribute-anno"):
        faces(tmp_path)
    place = lay_celebamask(tmp_path)
    for path in place.glob("CelebAMask-HQ-mask-anno/1/*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"mask-anno/1 has no mask of .*2000\.jpg"):
        read(faces(tmp_path, split="less-is-more"))
    (place / "CelebA-HQ-img" / "4.jpg").unlink()
    with pytest.raises(DataError, match=r"CelebA-HQ-img lacks 1 of 7 files, the first is 4\.jpg"):
        faces(tmp_path)


def test_a_mask_of_other_proportions_is_refused(tmp_path: Path) -> None:
    place = lay_celebamask(tmp_path)
    save(place / "CelebAMask-HQ-mask-anno/0/00000_hair.png", np.zeros((16, 12), dtype=np.uint8))
    with pytest.raises(DataError, match=r"00000_hair\.png has 16x12 pixels, its image .*0\.jpg 32x32"):
        read(faces(tmp_path, split="less-is-more"), "validation")


@pytest.mark.slow
def test_a_network_learns_from_it(tmp_path: Path) -> None:
    lay_celebamask(tmp_path)
    data = faces(tmp_path, split="less-is-more")
    train, validation, test = data.loaders(2)
    model = sm.SharedBottom(PerPixel(), data.tasks)
    results = sm.Trainer(model, epochs=1, progress=False, accelerator="cpu").fit(train, validation).test(test)
    assert set(results) == {"segmentation", "male", "smile"}
