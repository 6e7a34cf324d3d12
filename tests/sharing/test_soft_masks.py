"""Soft masks: never below zero, zero exactly where the proximal step says, and a task's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from policies import Started
from sharing_toys import NAMES, batch_of, engine_of, loader, model, run_epoch, tasks, trained
from states import assert_same
from torch import Tensor

import sparsemtl as sm
from sparsemtl.backbones import CNN
from sparsemtl.data import TensorLoader
from sparsemtl.errors import EmptyMaskError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing import SoftMaskSharing
from sparsemtl.storage.files import read_tree


def soft(**options: Any) -> SoftMaskSharing:
    return SoftMaskSharing(**{"linear": True, "lambda_": 0.05, **options})


def flat(sharing: Started, task: str) -> Tensor:
    return torch.cat([psi.detach().flatten() for psi in sharing.soft[task].values()])


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_masks_are_never_negative_and_many_become_zero(granularity: Any, optimizer: str) -> None:
    sharing = soft(granularity=granularity, lambda_=1.0, init="uniform")
    engine = engine_of(model(), sharing, optimizer=optimizer)
    sharing = Started.of(engine)
    for epoch in range(4):
        run_epoch(engine, loader(), epoch)
        assert all(bool((flat(sharing, task) >= 0).all()) for task in NAMES)
    assert any(bool((flat(sharing, task) == 0).any()) for task in NAMES)


@each("low", [0.0, 0.5])
def test_random_masks_begin_above_the_lower_end(low: float) -> None:
    torch.manual_seed(0)
    found = flat(Started(soft(init="uniform", low=low), model()), NAMES[0])
    assert low <= float(found.min()) < low + 0.1
    assert 0.9 < float(found.max()) < 1


def test_masks_of_ones_are_the_shared_network_bit_for_bit() -> None:
    network, x = model(), batch_of(5).x
    sharing = Started(soft(init="ones"), network)
    network.eval()
    expected = network(x)
    for task in NAMES:
        with sharing.view(task):
            assert torch.equal(network(x)[task], expected[task])


def test_a_mask_becomes_zero_exactly_where_its_gradient_step_ends_below_the_threshold() -> None:
    rate, strength = 0.5, 0.4
    sharing = soft(lambda_=strength, init="uniform", update="average")
    network = sm.SharedBottom(model().encoder, tasks(kind=2.0))
    torch.manual_seed(1)
    engine = engine_of(network, sharing, optimizer=lambda p: torch.optim.SGD(p, lr=rate), balancing="sum")
    sharing = Started.of(engine)
    before = {task: flat(sharing, task).clone() for task in NAMES}
    group = batch_of(16)
    engine.step([[group]])
    for task in NAMES:
        gradient = torch.cat([psi.grad.flatten() for psi in sharing.soft[task].values()])  # type: ignore[union-attr]
        stepped = before[task] - rate * gradient
        threshold = rate * network.tasks[task].weight * strength
        torch.testing.assert_close(flat(sharing, task), (stepped - threshold).clamp(min=0))
        assert torch.equal(flat(sharing, task) == 0, stepped <= threshold)


def test_only_tasks_that_took_part_shrink() -> None:
    sharing = soft(init="ones", lambda_=0.5)
    engine = engine_of(model(), sharing, optimizer="sgd", update="average")
    sharing = Started.of(engine)
    group = batch_of(8)
    engine.step([[type(group)(group.x, group.targets, ("kind",))]])
    assert not torch.equal(flat(sharing, "kind"), torch.ones_like(flat(sharing, "kind")))
    assert torch.equal(flat(sharing, "side"), torch.ones_like(flat(sharing, "side")))


def test_a_task_s_masks_learn_from_its_loss_only() -> None:
    network = model()
    sharing = Started(soft(init="uniform"), network)
    group = batch_of(8)
    with sharing.view("kind"):
        network.tasks["kind"].loss(network(group.x)["kind"], group.targets["kind"]).backward()
    assert all(psi.grad is not None and psi.grad.any() for psi in sharing.soft["kind"].values())
    assert all(psi.grad is None for task in ("marks", "side") for psi in sharing.soft[task].values())


def test_a_layer_of_which_a_task_reads_nothing_any_more_is_named() -> None:
    sharing = Started(soft(), model())
    task, name = NAMES[-1], list(sharing.soft[NAMES[-1]])[-1]
    with torch.no_grad():
        sharing.soft[task][name].flatten()[1:] = 0
        sharing.end_epoch(1)
        sharing.soft[task][name].zero_()
    with pytest.raises(EmptyMaskError, match=f"'{task}' over '{name}' has nothing left after epoch 2"):
        sharing.end_epoch(1)


def test_a_run_whose_masks_become_empty_ends_in_that_epoch_though_it_is_the_last() -> None:
    with pytest.raises(EmptyMaskError, match="has nothing left after epoch 1: every entry is zero"):
        sm.Trainer(model(), sharing=soft(lambda_=1e6), epochs=1, progress=False).fit(loader(), loader())


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_a_run_folder_has_every_tasks_network_as_it_computes(granularity: Any, tmp_path: Path) -> None:
    network, x = model(), batch_of(5).x
    sharing = soft(init="uniform", granularity=granularity)
    trainer = sm.Trainer(network, sharing=sharing, epochs=2, folder=tmp_path, progress=False).fit(loader(), loader())
    networks = TaskNetworks.load(tmp_path / "networks.safetensors", network)
    for task in NAMES:
        tensors = networks.tensors(network, task)
        with torch.no_grad():
            alone = torch.func.functional_call(network, tensors, (x,), {"tasks": (task,)})[task]
        assert torch.equal(trainer.predict(x)[task], alone)
        for name, psi in trainer.networks[task].weight_factors.items():
            assert torch.equal(tensors[name], (psi * network.get_parameter(name)).detach())


def test_filters_have_a_number_each_and_their_masks_cover_whole_filters() -> None:
    torch.manual_seed(0)
    encoder = CNN((3, 8, 8), widths=[4, 6])
    network = sm.SharedBottom(encoder, [sm.Classification("a", 2), sm.Classification("b", 3)])
    sharing = Started(SoftMaskSharing(granularity="channel", init="uniform"), network)
    shapes = {name: tuple(psi.shape) for name, psi in sharing.soft["a"].items()}
    assert sorted(shapes.values()) == [(4, 1, 1, 1), (6, 1, 1, 1)]
    with torch.no_grad():
        first = next(iter(sharing.soft["a"].values()))
        first[1] = 0
    kept = next(iter(sharing.masks["a"].values()))  # type: ignore[index]
    assert [bool(filter.any()) for filter in kept] == [True, False, True, True]


def test_linear_layers_are_masked_on_demand_only() -> None:
    with pytest.raises(sm.errors.ParameterError, match="`linear=True` takes linear layers as well"):
        SoftMaskSharing().start(model())


def test_masks_say_what_each_task_reads() -> None:
    engine = trained(soft(lambda_=3.0, init="uniform"), loader())
    masks = Started.of(engine).masks
    assert masks is not None
    for task in NAMES:
        assert torch.equal(masks.flat(task), flat(Started.of(engine), task) > 0)  # type: ignore[arg-type]


def test_a_run_with_soft_masks_resumes_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 6, generator=generator)
    targets = {"kind": torch.randint(0, 3, (60,), generator=generator), "side": (x[:, 0] > 0).long()}

    def fit(folder: Path, epochs: int, *, resume: bool = False) -> sm.Trainer:
        torch.manual_seed(0)
        network = sm.SharedBottom(model().encoder, [sm.Classification("kind", 3), sm.Classification("side", 2)])
        options: dict[str, Any] = {"epochs": epochs, "folder": folder, "progress": False, "monitor": "loss"}
        trainer = sm.Trainer(network, sharing=soft(init="uniform"), **options)
        train = TensorLoader(x[:40], {t: v[:40] for t, v in targets.items()}, batch_size=8, shuffle=True)
        return trainer.fit(train, TensorLoader(x[40:], {t: v[40:] for t, v in targets.items()}), resume=resume)

    fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    fit(tmp_path / "parts", 4, resume=True)
    whole, parts = (read_tree(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("whole", "parts"))
    assert_same(whole["model"], parts["model"])
    assert_same(whole["parts"]["step"]["networks"], parts["parts"]["step"]["networks"])
