"""Options of masks by a criterion: the criterion itself, fractions per task, and the end of the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from policies import Started
from sharing_toys import NAMES, engine_of, loader, model, run_epoch, trained
from states import assert_same, state_of

import sparsemtl as sm
from sparsemtl.criteria import Fisher, Gradient, Specific, choose_masks
from sparsemtl.errors import ConfigError, DeadUnitWarning, ParameterError
from sparsemtl.sharing import SHARING, PBFSSharing, Sharing


def first_masks(sharing: Sharing, network: sm.MultiTaskModel) -> sm.TaskMasks:
    started = Started(sharing, network)
    started.begin_epoch(0, loader(shuffle=False))
    masks = started.masks
    assert isinstance(masks, sm.TaskMasks)
    return masks


def test_fisher_sharing_ranks_by_the_criterion_that_is_named() -> None:
    network, data = model(norm=False), loader(shuffle=False)
    for spec, criterion in (
        ("specific", Specific(of=Fisher(samples=16))),
        ({"name": "specific", "of": "gradient"}, Specific(of=Gradient())),
        ({"name": "specific", "of": {"name": "fisher", "estimator": "efs"}}, Specific(of=Fisher(estimator="efs"))),
        (Gradient(), Gradient()),
    ):
        sharing = sm.FisherSharing(keep=0.4, warmup=0, samples=16, criterion=spec)
        assert first_masks(sharing, network) == choose_masks(criterion, network, data, keep=0.4)


def test_the_criterion_scores_what_the_method_masks() -> None:
    options: dict[str, Any] = {"criterion": "specific", "warmup": 0, "exclude": "encoder.0"}
    assert list(first_masks(sm.FisherSharing(**options), model())["kind"]) == ["encoder.3.weight"]
    channels = sm.FisherSharing(criterion="specific", warmup=0, granularity="channel")
    assert "encoder.0.bias" in first_masks(channels, model())["kind"]


def test_labels_of_an_inner_criterion_are_drawn_anew() -> None:
    sharing = Started(sm.FisherSharing(warmup=0, estimator="sample", criterion="specific"), model())
    masks = []
    for epoch in range(2):
        sharing.begin_epoch(epoch, loader(shuffle=False))
        masks.append(sharing.masks)
    assert masks[0] != masks[1]


def test_pbfs_prunes_by_task_specific_scores() -> None:
    pruned = [
        trained(PBFSSharing(warmup=0, reach_at=2, criterion=spec), loader()).networks.masks
        for spec in ("specific", {"name": "specific", "of": "fisher"}, "fisher")
    ]
    assert pruned[0] == pruned[1] != pruned[2]


def test_a_criterion_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown criterion 'specifik'"):
        SHARING.build("fisher", criterion="specifik")
    with pytest.raises(ConfigError, match="criterion 'gradient': unknown parameter 'sample'"):
        SHARING.build("pbfs", criterion={"name": "specific", "of": {"name": "gradient", "sample": 3}})


@pytest.mark.parametrize("method", ["fisher", "random"])
def test_tasks_have_densities_of_their_own(method: str) -> None:
    sharing = SHARING.build(method, keep={"kind": 0.25, "side": 0.5})
    engine = trained(sharing, loader())
    masks = engine.networks.masks
    assert masks is not None
    assert {task: round(masks.density(task), 2) for task in NAMES} == {"kind": 0.25, "marks": 1.0, "side": 0.5}
    with pytest.raises(ParameterError, match=r"`keep`: unknown task 'knd'. Did you mean 'kind'"):
        SHARING.build(method, keep={"knd": 0.5}).start(model())


def choices(sharing: Sharing, epochs: int) -> list[int]:
    """The epochs that chose masks."""
    sharing.begin_training(epochs)
    engine = engine_of(model(), sharing, optimizer="adam")
    chosen = []
    for epoch in range(epochs):
        before = engine.networks.masks
        run_epoch(engine, loader(), epoch)
        if engine.networks.masks is not before:
            chosen.append(epoch)
    return chosen


@pytest.mark.parametrize(
    ("share", "warmup", "expected"), [(0.5, 1, [1, 2]), (0.34, 0, [0, 1, 2]), (0.1, 2, [2]), (1.0, 1, [1, 2, 3, 4, 5])]
)
def test_masks_stay_after_a_share_of_the_epochs(share: float, warmup: int, expected: list[int]) -> None:
    assert choices(sm.FisherSharing(keep=0.4, warmup=warmup, freeze_masks=share), 6) == expected


def test_masks_stay_once_a_choice_changed_almost_nothing() -> None:
    still = {"keep": 0.4, "warmup": 1, "criterion": "magnitude"}
    sharing = sm.FisherSharing(**still, freeze_masks="stable")
    engine = engine_of(model(), sharing, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    changed = []
    for epoch in range(6):
        before = engine.networks.masks
        run_epoch(engine, loader(), epoch)
        changed.append(engine.networks.masks is not before)
    assert changed == [False, True, True, False, False, False]  # weights do not move: the second choice settles it
    assert choices(sm.FisherSharing(keep=0.4, freeze_masks="stable"), 4) == [1, 2, 3]  # here they change much


def test_a_share_needs_the_number_of_epochs_and_time_for_the_target() -> None:
    sharing = sm.FisherSharing(freeze_masks=0.5)
    with pytest.raises(ParameterError, match=r"In a loop of your own call `sharing.begin_training\(epochs\)` first"):
        Started(sharing, model()).begin_epoch(1, loader())
    with pytest.raises(ParameterError, match="ends the choice of masks after 5 of 10 epochs, before `target_sparsity`"):
        sm.FisherSharing(freeze_masks=0.5, target_sparsity=0.5, reach_at=8).begin_training(10)


@pytest.mark.parametrize("freeze", [0.5, "stable"])
def test_a_run_with_frozen_masks_is_resumed_bit_for_bit(freeze: Any, tmp_path: Path) -> None:
    ends = []
    for stops in (None, 2, 4):
        torch.manual_seed(0)
        folder = tmp_path / str(stops)
        for last in filter(None, (stops, 5)):
            trainer = sm.Trainer(
                model(),
                sharing=sm.FisherSharing(keep=0.4, criterion="magnitude", freeze_masks=freeze),
                epochs=5,
                folder=folder,
                progress=False,
                accelerator="cpu",
                measure_cost=False,
            )
            trainer.epochs = last
            trainer.fit(loader(), loader(seed=2), resume=last == 5 and stops is not None)
        ends.append((state_of(trainer.model), trainer.networks.masks))
    for state, masks in ends[1:]:
        assert_same(state, ends[0][0])
        assert masks == ends[0][1]


def test_dead_units_are_warned_of_once_and_a_floor_keeps_them_alive() -> None:
    with pytest.warns(DeadUnitWarning, match="FisherSharing: units are dead") as caught:
        trained(sm.FisherSharing(keep=0.05), loader(), epochs=4)
    assert len(caught) == 1
    floored = trained(sm.FisherSharing(keep=0.05, min_per_unit=1), loader()).networks.masks
    assert floored is not None
    assert all(bool(mask.any(1).all()) for task in NAMES for mask in floored[task].values())
    with pytest.raises(ParameterError, match="`min_per_unit` is for granularity 'weight'"):
        sm.FisherSharing(granularity="channel", min_per_unit=1)
