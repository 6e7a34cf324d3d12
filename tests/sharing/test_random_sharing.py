"""Random sharing: uniform subsets, drawn apart for every task, from a seed."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import pytest
import torch
from policies import Started
from sharing_toys import NAMES, encoder, loader, model, trained
from torch import nn

import sparsemtl as sm
from sparsemtl.networks.randomness import seed_everything
from sparsemtl.training.steps.step import TrainingStep


def large_model() -> sm.SharedBottom:
    """20,000 maskable weights in three layers."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 45), nn.ReLU(), nn.Linear(45, 22))
    layers.append(nn.Linear(22, 5))
    tasks = [sm.Classification(name, 2) for name in "abc"]
    return sm.SharedBottom(layers, tasks, {name: nn.Linear(5, 2) for name in "abc"})


def drawn(sharing: sm.RandomSharing, network: sm.SharedBottom | None = None, epoch: int = 0) -> sm.TaskMasks:
    started = Started(sharing, network or large_model())
    started.begin_epoch(epoch, [])
    return started.masks


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.9])
def test_the_union_covers_what_independent_draws_cover(keep: float) -> None:
    masks = drawn(sm.RandomSharing(keep=keep, seed=1))
    covered = sum(int(mask.sum()) for mask in masks.union().values())
    expected = 1 - (1 - keep) ** 3
    assert abs(covered / masks.size() - expected) < 3 * sqrt(expected * (1 - expected) / masks.size())


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.9])
def test_tasks_overlap_as_independent_draws_do(keep: float) -> None:
    masks = drawn(sm.RandomSharing(keep=keep, seed=1))
    contained = masks.overlap().containment
    for i in range(3):
        for j in range(3):
            expected, spread = (1.0, 0.0) if i == j else (keep, sqrt(keep * (1 - keep) / (keep * masks.size())))
            assert abs(float(contained[i, j]) - expected) <= 3 * spread


def test_every_layer_keeps_about_its_share() -> None:
    masks = drawn(sm.RandomSharing(keep=0.3, seed=1))
    for name, densities in masks.layer_density().items():
        size = masks.shapes()[name].numel()
        assert all(abs(density - 0.3) < 4 * sqrt(0.3 * 0.7 / size) for density in densities.values()), name


def test_the_same_seed_draws_the_same_masks_whatever_was_drawn_before() -> None:
    first = drawn(sm.RandomSharing(keep=0.3, seed=5))
    torch.rand(100)
    assert drawn(sm.RandomSharing(keep=0.3, seed=5)) == first
    assert drawn(sm.RandomSharing(keep=0.3, seed=6)) != first


def test_without_a_seed_the_runs_own_decides() -> None:
    def at(seed: int, *, waste: int = 0) -> sm.TaskMasks:
        network = large_model()
        seed_everything(seed)
        torch.rand(waste)
        return drawn(sm.RandomSharing(keep=0.3), network)

    assert at(1) == at(1, waste=100)
    assert at(1) != at(2)


@pytest.mark.parametrize(("seed", "same"), [(None, False), (3, True)])
def test_the_seeds_of_a_study_differ_in_their_masks_unless_the_masks_have_a_seed(seed: int | None, same: bool) -> None:
    masks = []
    for run in (0, 1):
        trainer = sm.Trainer(
            model(),
            sharing=sm.RandomSharing(keep=0.5, seed=seed),
            epochs=1,
            seed=run,
            progress=False,
            accelerator="cpu",
        )
        masks.append(trainer.fit(loader(), loader(seed=2)).masks)
    assert (masks[0] == masks[1]) == same


@pytest.mark.parametrize(
    ("every", "changes"), [(0, [0]), (1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (5, [0, 5]), (9, [0])]
)
def test_masks_are_drawn_at_the_start_and_again_where_asked(every: int, changes: list[int]) -> None:
    sharing = Started(sm.RandomSharing(keep=0.3, seed=1, update_every=every), large_model())
    masks = [sharing.masks]
    for epoch in range(7):
        sharing.begin_epoch(epoch, [])
        masks.append(sharing.masks)
        assert sharing.is_selectable(epoch)
    assert [epoch for epoch, (before, after) in enumerate(pairwise(masks)) if before != after] == changes


def test_masks_drawn_again_owe_nothing_to_those_before() -> None:
    sharing = sm.RandomSharing(keep=0.3, seed=1, update_every=1)
    first, second = drawn(sharing), drawn(sharing, epoch=1)
    spread = sqrt(0.3 * 0.7 / (0.3 * first.size()))
    assert all(abs(changed - 0.7) < 4 * spread for changed in second.changed(first).values())


def test_by_default_a_run_keeps_its_first_masks_and_reads_no_data_for_them() -> None:
    engine: TrainingStep = trained(sm.RandomSharing(keep=0.5), loader(), epochs=1)
    first = Started.of(engine).masks
    Started.of(engine).begin_epoch(1, iter(()))
    assert Started.of(engine).masks is first
    assert first is not None
    assert [first.density(task) for task in NAMES] == [0.5] * 3


def test_masks_do_not_depend_on_the_weights() -> None:
    torch.manual_seed(1)
    other = sm.SharedBottom(encoder(), list(model().tasks.values()))
    assert drawn(sm.RandomSharing(seed=2), other) == drawn(sm.RandomSharing(seed=2), model())
