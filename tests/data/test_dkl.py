from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsemtl.data import DATASETS
from sparsemtl.data.images.mnist import KMNIST, MNIST
from sparsemtl.errors import DataError, ParameterError


def test_every_task_has_the_images_of_its_own_data_set(laid_root: Path) -> None:
    data = DATASETS.build("dkl", root=laid_root)
    assert data.heterogeneous
    assert [(task.name, task.outputs) for task in data.tasks] == [("digit", 10), ("kuzushiji", 10), ("letter", 26)]
    for name, task in (("mnist", "digit"), ("kmnist", "kuzushiji"), ("emnist-letters", "letter")):
        alone = DATASETS.build(name, root=laid_root)
        for part, own in ((data.train, alone.train), (data.validation, alone.validation), (data.test, alone.test)):
            assert torch.equal(part[task].x, own.x)
            assert torch.equal(part[task].targets[task], own.targets[task])


def test_a_part_can_be_replaced_and_brings_its_own_name(laid_root: Path) -> None:
    data = DATASETS.build("dkl", root=laid_root, kuzushiji="fashion-mnist")
    assert [task.name for task in data.tasks] == ["digit", "item", "letter"]
    assert any("mnist, fashion-mnist, emnist-letters" in note for note in data.notes)


def test_sizes_count_for_every_task(laid_root: Path) -> None:
    data = DATASETS.build("dkl", root=laid_root, train_size=18, test_size=5)
    for part, size in ((data.train, 18), (data.validation, 2), (data.test, 5)):
        assert [len(split) for split in part.values()] == [size] * 3


def test_parts_must_differ(laid_root: Path) -> None:
    with pytest.raises(ParameterError, match="three parts of dkl must differ, got mnist, mnist, emnist-letters"):
        DATASETS.build("dkl", root=laid_root, kuzushiji="mnist")


def test_a_part_that_is_not_known_is_refused(laid_root: Path) -> None:
    with pytest.raises(ParameterError, match="'letters' parameter of dkl must be one of 'mnist', 'fashion-mnist'"):
        DATASETS.build("dkl", root=laid_root, letters="cifar")


def test_an_absent_part_is_named(tmp_path: Path, lay: Callable[..., dict[str, Tensor]]) -> None:
    lay(tmp_path, MNIST)
    with pytest.raises(DataError, match=f"kmnist: .*KMNIST/raw lacks {KMNIST.files[0]}"):
        DATASETS.build("dkl", root=tmp_path)


def test_three_sources_are_those_of_their_own_data_sets(laid_root: Path) -> None:
    data = DATASETS.build("three-sources", root=laid_root, train_size=18, test_size=5, seed=3)
    assert data.heterogeneous
    assert [(task.name, task.outputs) for task in data.tasks] == [("digit", 10), ("item", 10), ("small-digit", 10)]
    for name, task in (("mnist", "digit"), ("fashion-mnist", "item")):
        alone = DATASETS.build(name, root=laid_root, train_size=18, test_size=5, seed=3)
        for part, own in ((data.train, alone.train), (data.validation, alone.validation), (data.test, alone.test)):
            assert torch.equal(part[task].x, own.x)
    small = DATASETS.build("digits", seed=3)
    for part, own, count in (
        (data.train, small.train, 18),
        (data.validation, small.validation, 360),
        (data.test, small.test, 5),
    ):
        found = part["small-digit"]
        assert found.x.shape == (count, 1, 28, 28)
        assert torch.equal(found.targets["small-digit"], own.targets["digit"][:count])
        torch.testing.assert_close(found.x.mean((1, 2, 3)), own.x[:count].mean((1, 2, 3)), atol=0.05, rtol=0)
