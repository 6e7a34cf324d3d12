from __future__ import annotations

import pytest
import torch
from synthetic import LAYERS, make_masks

from sparsemtl.networks.masks import TaskMasks
from sparsemtl.report.mask_view import mask_view

MASKS = TaskMasks(
    {
        "a": {
            "net.one.weight": torch.tensor([1, 1, 0, 0]).bool(),
            "net.two.bias": torch.tensor([1, 0]).bool(),
        },
        "b": {
            "net.one.weight": torch.tensor([1, 0, 1, 0]).bool(),
            "net.two.bias": torch.tensor([1, 0]).bool(),
        },
    }
)


def test_figures_by_hand():
    view = mask_view(MASKS)
    assert view.tasks == ("a", "b")
    assert view.counts == [3, 3]
    assert [layer.name for layer in view.layers] == ["one", "two.bias"]
    assert view.layers[0].kept_by == [0.25, 0.5, 0.25]
    assert view.layers[1].kept_by == [0.5, 0.0, 0.5]
    assert view.whole.kept_by == pytest.approx([2 / 6, 2 / 6, 2 / 6])
    assert view.overlap == pytest.approx(2 / 4)
    assert view.containment[0][1] == pytest.approx(2 / 3)
    # densities of 1/2: both keep 1/4, either keeps 3/4
    assert view.by_chance == pytest.approx(1 / 3)


def test_how_many_tasks_keep_each_weight_agrees_with_counting_them_one_by_one():
    masks = make_masks(["digit", "even", "loops"], 0.4, LAYERS, seed=1)
    view = mask_view(masks)
    vectors = [masks.flat(task).tolist() for task in masks]
    keepers = [sum(weight) for weight in zip(*vectors, strict=True)]
    assert view.whole.kept_by == pytest.approx([keepers.count(k) / len(keepers) for k in range(4)])
    assert all(sum(layer.kept_by) == pytest.approx(1) for layer in view.layers)


def test_random_masks_overlap_as_chance_predicts():
    generator = torch.Generator().manual_seed(0)
    random = {t: {"w": torch.rand(200_000, generator=generator) < p} for t, p in (("a", 0.3), ("b", 0.5))}
    view = mask_view(TaskMasks(random))
    assert view.overlap == pytest.approx(view.by_chance, abs=0.005)


def test_one_task_overlaps_with_nothing():
    view = mask_view(TaskMasks({"a": MASKS["a"]}))
    assert view.overlap is None
    assert view.by_chance is None


def test_masks_that_keep_nothing_are_shown():
    view = mask_view(TaskMasks({t: {"w": torch.zeros(3, dtype=torch.bool)} for t in "ab"}))
    assert view.whole.kept_by == [1, 0, 0]
    assert view.by_chance == 0


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["encoder.conv1.weight", "encoder.layer1.0.conv1.weight"], ["conv1", "layer1.0.conv1"]),
        (["encoder.0.weight", "encoder.3.weight"], ["encoder.0", "encoder.3"]),
        (["weight"], ["weight"]),
        (["a.weight", "a.bias"], ["a", "a.bias"]),
    ],
)
def test_names_lose_what_they_have_in_common_but_numbers_keep_their_parent(names, short):
    masks = TaskMasks({"a": {name: torch.ones(2, dtype=torch.bool) for name in names}})
    assert [layer.name for layer in mask_view(masks).layers] == short
