"""Copies of strict and proximal optimizers train copies of models, and leave every other optimizer as it is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable
from inspect import isfunction
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn
from torch.optim import lr_scheduler

import sparsemtl as sm
from sparsemtl.errors import ParameterError
from sparsemtl.optim import L1, GroupLasso, MaskedOptimizer, ProximalAdamW, ProximalSGD, ProximalStep

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]
COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda objects: pickle.loads(pickle.dumps(objects)),
}
every_copy = each("duplicate", COPIES.values())
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5),
    "proximal-adamw": lambda p: ProximalAdamW(p, lr=0.05, penalty=L1(strength=0.005, keep_min=1, linear=True)),
    "proximal-sgd": lambda p: ProximalSGD(p, lr=0.1, penalty=GroupLasso(strength=0.005, keep_min=1, linear=True)),
}
every_optimizer = each("name", OPTIMIZERS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))


def masks_of(model: nn.Module) -> sm.TaskMasks:
    generator = torch.Generator().manual_seed(7)
    return sm.TaskMasks(
        {
            t: {n: torch.rand(p.shape, generator=generator) < 0.4 for n, p in model.named_parameters() if p.ndim == 2}
            for t in "ab"
        }
    )


def masked(name: str = "adamw") -> tuple[nn.Sequential, MaskedOptimizer]:
    model = network()
    return model, MaskedOptimizer(OPTIMIZERS[name](model.parameters()), masks_of(model), model)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int], **options: Any) -> None:
    for seed in steps:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step(**options)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(map(torch.equal, left.parameters(), right.parameters()))


@every_optimizer
@every_copy
def test_a_copy_goes_on_as_the_original_does_and_moves_its_own_weights_alone(name: str, duplicate: Any) -> None:
    model, optimizer = masked(name)
    train(model, optimizer, range(3), task="a")
    twin, twin_optimizer = duplicate((model, optimizer))
    start = weights_of(model)
    train(twin, twin_optimizer, range(3, 6), task="a")
    assert all(torch.equal(p, start[key]) for key, p in model.named_parameters())
    assert not same(model, twin)
    train(model, optimizer, range(3, 6), task="a")
    assert same(model, twin)
    held = {key: ~mask for key, mask in twin_optimizer.masks["a"].items()}
    assert all(torch.equal(twin.get_parameter(key)[mask], start[key][mask]) for key, mask in held.items())


@every_copy
def test_a_copy_breaks_no_other_strict_optimizer(duplicate: Any) -> None:
    model, optimizer = masked()
    duplicate(optimizer)
    fresh, fresh_optimizer = masked()
    for one, stepper in ((model, optimizer), (fresh, fresh_optimizer)):
        before = weights_of(one)
        train(one, stepper, range(2))
        assert any(not torch.equal(p, before[key]) for key, p in one.named_parameters())
    assert same(model, fresh)


@every_copy
def test_a_copy_without_its_model_has_one_of_its_own(duplicate: Any) -> None:
    model, optimizer = masked()
    twin = duplicate(optimizer)
    assert twin.masks == optimizer.masks
    ours, theirs = ([p for group in o.param_groups for p in group["params"]] for o in (optimizer, twin))
    assert all(torch.equal(a, b) and a is not b for a, b in zip(ours, theirs, strict=True))
    before = weights_of(model)
    for p in theirs:
        p.grad = torch.ones_like(p)
    twin.step()
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    assert not any(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@every_copy
def test_new_masks_reach_the_copy_alone(duplicate: Any) -> None:
    model, optimizer = masked()
    twin, twin_optimizer = duplicate((model, optimizer))
    old = optimizer.masks
    twin_optimizer.masks = sm.TaskMasks.ones(dict(twin.named_parameters()), "ab")
    train(twin, twin_optimizer, [0])
    assert optimizer.masks is old
    assert all(bool((p != q).all()) for p, q in zip(twin.parameters(), model.parameters(), strict=True))


def test_a_scheduler_is_copied_along() -> None:
    model, optimizer = masked("sgd")
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer, [0])
    scheduler.step()
    twin, twin_optimizer, twin_scheduler = copy.deepcopy((model, optimizer, scheduler))
    train(twin, twin_optimizer, [1])
    twin_scheduler.step()
    assert twin_scheduler.optimizer is twin_optimizer
    assert [o.param_groups[0]["lr"] for o in (optimizer, twin_optimizer)] == [0.05, 0.025]
    before = weights_of(model)
    train(twin, twin_optimizer, [2])
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["step_pre", "step_post"])
def test_step_hooks_are_called_once(kind: str) -> None:
    model, optimizer = masked()
    calls: list[int] = []
    getattr(optimizer, f"register_{kind}_hook")(lambda *_: calls.append(1))
    train(model, optimizer, [0])
    assert calls == [1]


def test_hooks_of_the_state_are_called() -> None:
    _, optimizer = masked()
    calls: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("after saving"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("before loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before saving", "after saving", "before loading", "after loading"]


def test_every_method_of_torchs_optimizers_works() -> None:
    """Nothing is inherited that expects groups and hooks of this object's own."""
    _, optimizer = masked()
    inherited = [
        name
        for name, method in vars(torch.optim.Optimizer).items()
        if isfunction(method) and not name.startswith("_") and name not in vars(MaskedOptimizer)
    ]
    assert inherited == []
    optimizer._patch_step_function()  # what torch does on unpickling; it must not leave the class broken
    train(*masked(), [0])


@every_copy
def test_a_proximal_step_that_was_taken_is_copied_without_the_weights(duplicate: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shrink = ProximalStep(L1(strength=0.01, keep_min=1, linear=True))
    train(model, optimizer, [0])
    shrink(optimizer, model.named_parameters())
    twin = duplicate(shrink)
    assert twin._views == {}
    other = network()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    train(other, other_optimizer, [0])
    twin(other_optimizer, other.named_parameters())
    assert same(model, other)


@every_copy
def test_masks_and_statistics_are_copied(duplicate: Any) -> None:
    model = network()
    masks = masks_of(model)
    with masks.applied(model, "a"):
        model(torch.ones(1, 5))
    assert duplicate(masks) == masks
    norms = sm.TaskNorms(sm.SharedBottom(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), [sm.Regression("a")]))
    twin = duplicate(norms)
    assert all(
        torch.equal(tensor, twin["a"][name]) and tensor is not twin["a"][name] for name, tensor in norms["a"].items()
    )


@pytest.mark.parametrize("wrong", [torch.optim.AdamW, None, "adam"])
def test_what_is_no_optimizer_is_refused(wrong: Any) -> None:
    model = network()
    with pytest.raises(ParameterError, match="`optimizer` must be a torch optimizer"):
        MaskedOptimizer(wrong, masks_of(model), model)
