from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.data import DATASETS, Split
from sparsemtl.data.images.mnist import FASHION_MNIST, MNIST

Lay = Callable[..., dict[str, Tensor]]


def built(root: Path, name: str = "multi-fashion-mnist", **options: Any) -> tuple[Split, Split, Split]:
    data = DATASETS.build(name, root=root, **{"train_size": 90, "test_size": 50, **options})
    assert isinstance(data.train, Split)
    assert isinstance(data.validation, Split)
    assert isinstance(data.test, Split)
    return data.train, data.validation, data.test


def items(split: Split) -> tuple[list[int], list[int]]:
    """Which of the laid images lie left and right: their outer corner pixels are never covered."""
    corners = (split.x[:, 0, 0, 0], split.x[:, 0, -1, -1])
    left, right = ((corner * 255).round().int().tolist() for corner in corners)
    return left, right


def test_images_are_the_brighter_of_two_items_in_opposite_corners(tmp_path: Path, lay: Lay) -> None:
    digits, clothes = lay(tmp_path, MNIST), lay(tmp_path, FASHION_MNIST)
    train, _, test = built(tmp_path)
    for split, images, labels, offset in ((train, *MNIST.files[:2], 0), (test, *MNIST.files[2:], 100)):
        assert split.x.shape[1:] == (1, 36, 36)
        for sample, (left, right) in enumerate(zip(*items(split), strict=True)):
            first, second = digits[images][left - offset], clothes[images][right - offset]
            brighter = torch.zeros(36, 36)
            brighter[:28, :28] = first
            brighter[8:, 8:] = brighter[8:, 8:].maximum(second.float())
            torch.testing.assert_close(split.x[sample, 0] * 255, brighter, rtol=0.0, atol=1e-3)
            assert split.targets["left"][sample] == digits[labels][left - offset]
            assert split.targets["right"][sample] == clothes[labels][right - offset]


@pytest.mark.parametrize("name", ["multi-mnist", "multi-fashion", "multi-fashion-mnist"])
def test_no_image_is_in_pairs_of_two_parts(name: str, laid_root: Path) -> None:
    train, validation, test = built(laid_root, name)
    trained = {number for side in items(train) for number in side}
    validated = {number for side in items(validation) for number in side}
    assert not trained & validated
    assert trained | validated == set(range(40))
    assert {number for side in items(test) for number in side} == set(range(100, 120))


def test_every_item_is_used_as_often_as_any_other(laid_root: Path) -> None:
    train, _, _ = built(laid_root, train_size=3 * 36)
    for side in items(train):
        assert torch.tensor(side).bincount().unique().tolist() in ([3], [0, 3])


def test_sides_are_drawn_independently(laid_root: Path) -> None:
    train, _, _ = built(laid_root, "multi-mnist", train_size=360)
    left, right = items(train)
    assert sum(a == b for a, b in zip(left, right, strict=True)) < 36
    assert len(set(zip(left, right, strict=True))) > 200


def test_sides_may_have_different_numbers_of_images(tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path, MNIST, train=20)
    lay(tmp_path, FASHION_MNIST, train=60)
    train, validation, _ = built(tmp_path)
    left, right = items(train)
    assert len(set(left)) == 18
    assert max(right) >= 20
    assert set(left) | set(items(validation)[0]) == set(range(20))


def test_fewer_pairs_are_the_beginning_of_more_and_leave_the_test_as_it_is(laid_root: Path) -> None:
    many, _, test = built(laid_root, train_size=200)
    few, validation, same_test = built(laid_root, train_size=45)
    assert torch.equal(few.x, many.x[:45])
    assert torch.equal(test.x, same_test.x)
    assert len(validation) == 5


def test_the_canvas_can_be_resized(laid_root: Path) -> None:
    whole, small = built(laid_root)[0], built(laid_root, size=28)[0]
    assert small.x.shape == (90, 1, 28, 28)
    expected = F.interpolate(whole.x, size=(28, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(small.x, expected)
    assert torch.equal(small.targets["left"], whole.targets["left"])


def test_sixty_thousand_pairs_come_from_the_official_files(real_root: Path) -> None:
    data = DATASETS.build("multi-mnist", root=real_root)
    assert (len(data.train), len(data.validation), len(data.test)) == (60_000, 6_667, 10_000)
    assert isinstance(data.train, Split)
    assert data.train.targets["left"].bincount().min() > 5_000
    assert (data.train.targets["left"] == data.train.targets["right"]).float().mean().item() == pytest.approx(
        0.1, abs=0.01
    )


YES = {
    "left": [
        ("even", "02468", "13579"),
        ("large", "56789", "01234"),
        ("loop", "0689", "123457"),
        ("stem", "149", "0235678"),
    ],
    "right": [
        ("footwear", "579", "0123468"),
        ("top", "0246", "135789"),
        ("sleeves", "246", "0135789"),
        ("below-waist", "1579", "023468"),
    ],
}
"""Side -> attribute, classes that have it, classes that do not."""


def test_attributes_are_those_of_the_classes_of_the_same_pairs(laid_root: Path) -> None:
    data = DATASETS.build("pair-attributes", root=laid_root, train_size=90, test_size=50)
    classes = {name: {task: (low, high) for task, low, high in rows} for name, rows in YES.items()}
    assert [task.name for task in data.tasks] == [task for rows in YES.values() for task, *_ in rows]
    for part, pairs in zip((data.train, data.validation, data.test), built(laid_root), strict=True):
        assert isinstance(part, Split)
        assert torch.equal(part.x, pairs.x)
        for side, attributes in classes.items():
            for task, (yes, no) in attributes.items():
                labels = part.targets[task]
                for number, label in zip(pairs.targets[side].tolist(), labels.tolist(), strict=True):
                    assert label == int(str(number) in yes)
                    assert (str(number) in yes) != (str(number) in no)
