"""Proximal optimizers: torch's own step, then exactly the map of the penalty, in every loop."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from loops import each
from proximal_oracles import backward, network, same_bits, slow_adaptive_step, slow_plain_step, train
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import MaskWarning, ParameterError
from sparsemtl.optim import (
    L1,
    GroupLasso,
    GroupMCP,
    MaskedOptimizer,
    Penalty,
    ProximalAdamW,
    ProximalSGD,
    ProximalStep,
    group_sparsity,
)
from sparsemtl.optim.groups import Grouping
from sparsemtl.storage.files import read_tree, write_tree

Make = Callable[..., torch.optim.Optimizer]
CONVOLUTIONS = ("0.weight", "3.weight")

PAIRS: dict[str, tuple[Make, Make]] = {
    "adamw": (ProximalAdamW, torch.optim.AdamW),
    "sgd": (ProximalSGD, torch.optim.SGD),
}
KERNELS = {"for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
every_kernel = each("kernel", KERNELS)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "adamw": [{"lr": 1e-2}, {"lr": 3e-2, "weight_decay": 0.3, "amsgrad": True, "betas": (0.8, 0.9)}],
    "sgd": [{"lr": 1e-2}, {"lr": 3e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
}
every_option = each(
    ("name", "options"), [(name, options) for name, all_options in OPTIONS.items() for options in all_options]
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Fused kernels on tiny weights spend seconds waiting for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def torch_options(options: dict[str, Any], name: str) -> dict[str, Any]:
    """The same options for torch's own optimizer, whose eps is another by default."""
    return {**({"eps": 1e-6} if name == "adamw" else {}), **options}


@every_option
@every_kernel
@each("penalty", [None, GroupLasso(strength=0.0), GroupMCP(strength=0.0), L1(strength=0.0)])
def test_without_a_penalty_it_is_torchs_optimizer_bit_for_bit(
    name: str, options: dict[str, Any], kernel: str, penalty: Penalty | None
) -> None:
    ours, plain = network(), network()
    proximal, own = PAIRS[name]
    train(ours, proximal(ours.parameters(), penalty=penalty, **options, **KERNELS[kernel]), 4)
    train(plain, own(plain.parameters(), **torch_options(options, name), **KERNELS[kernel]), 4)
    assert all(map(same_bits, ours.parameters(), plain.parameters()))


@each(("choice", "prox_lr", "strength"), [(0, "lr", 0.03), (1, "lr", 0.07), (1, "step", 0.07)])
@every_kernel
def test_every_step_is_adamws_and_then_the_exact_map_in_its_metric(
    choice: int, prox_lr: Any, strength: float, kernel: str
) -> None:
    model, options = network(), OPTIONS["adamw"][choice]
    optimizer = ProximalAdamW(
        model.parameters(), penalty=GroupLasso(strength=strength), prox_lr=prox_lr, **options, **KERNELS[kernel]
    )
    lr, (beta1, beta2) = options["lr"], options.get("betas", (0.9, 0.999))
    vanished = 0
    for t in range(1, 7):
        twin, twin_optimizer = plain_twin(model, optimizer, **torch_options(options, "adamw"), **KERNELS[kernel])
        train(twin, twin_optimizer, 1, first=t)
        train(model, optimizer, 1, first=t)
        size = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) if prox_lr == "step" else lr
        for (name, found), stepped in zip(model.named_parameters(), twin.parameters(), strict=True):
            if name not in CONVOLUTIONS:
                assert same_bits(found, stepped)
                continue
            state = twin_optimizer.state[stepped]
            moment = state["max_exp_avg_sq" if options.get("amsgrad") else "exp_avg_sq"]
            expected = slow_adaptive_step(stepped.detach(), moment, size, strength, 1e-6)
            torch.testing.assert_close(found.detach(), expected, rtol=1e-10, atol=1e-12)
            vanished += int((expected.flatten(2).abs().amax((0, 2)) == 0).sum())
    assert vanished > 0


def plain_twin(model: nn.Module, optimizer: ProximalAdamW, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the model with torch's AdamW in the same state."""
    twin = deepcopy(model)
    plain = torch.optim.AdamW(twin.parameters(), **options)
    state = optimizer.state_dict()
    plain.load_state_dict({"state": deepcopy(state["state"]), "param_groups": plain.state_dict()["param_groups"]})
    return twin, plain


@pytest.mark.parametrize("name", PAIRS)
def test_the_plain_step_shrinks_by_the_learning_rate(name: str) -> None:
    model, plain = network(), network()
    adaptive = {"adaptive": False} if name == "adamw" else {}
    proximal, own = PAIRS[name]
    train(model, proximal(model.parameters(), lr=0.05, penalty=GroupLasso(strength=1.1), **adaptive), 1)
    train(plain, own(plain.parameters(), lr=0.05, **torch_options({}, name)), 1)
    for (where, found), stepped in zip(model.named_parameters(), plain.parameters(), strict=True):
        expected = slow_plain_step(stepped.detach(), 0.05, 1.1) if where in CONVOLUTIONS else stepped.detach()
        torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-14)


def test_the_plain_step_removes_nothing_at_the_papers_strengths_where_the_adaptive_one_does() -> None:
    sparse = {}
    for adaptive in (True, False):
        layer, penalty = nn.Conv2d(4, 4, 3), GroupLasso(strength=1e-5)
        layer.weight.data *= 0.2
        optimizer = ProximalAdamW(layer.parameters(), lr=1e-4, eps=1e-8, penalty=penalty, adaptive=adaptive)
        layer.weight.grad = torch.full_like(layer.weight, 1e-2)
        layer.weight.grad[:, 1] = 1e-8  # a channel that hardly matters
        optimizer.step()
        sparse[adaptive] = [not bool(group.any()) for group in layer.weight.unbind(1)]
    assert sparse == {True: [False, True, False, False], False: [False] * 4}


@pytest.mark.parametrize("penalty", [GroupLasso(strength=0.1), GroupMCP(strength=0.1), L1(strength=0.1)])
@pytest.mark.parametrize("name", PAIRS)
def test_a_zero_group_without_gradient_stays_zero(penalty: Penalty, name: str) -> None:
    layer = nn.Conv2d(5, 4, 3).double()
    layer.weight.data[:, 2] = 0
    optimizer = PAIRS[name][0](layer.parameters(), lr=1e-2, weight_decay=0.1, penalty=penalty)
    for seed in range(5):
        images = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        images[:, 2] = 0
        optimizer.zero_grad()
        layer(images).square().sum().backward()
        optimizer.step()
        assert bool((layer.weight[:, 2] == 0).all())
        assert bool(layer.weight.isfinite().all())


def test_memory_formats_train_alike() -> None:
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = network().to(memory_format=memory_format)
        model[0].bias.requires_grad_(False)  # its gradient is zero but for rounding, which Adam magnifies
        train(model, ProximalAdamW(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.02)), 5)
        results.append(weights_of(model))
    for name, left in results[0].items():
        torch.testing.assert_close(left, results[1][name], rtol=1e-9, atol=1e-12)


def test_a_state_saved_in_another_memory_format_fits() -> None:
    models = network(), network()
    optimizers = [ProximalAdamW(m.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.02)) for m in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 2)
    models[0].to(memory_format=torch.channels_last)  # the moments stay as they were
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 2, first=2)
    for left, right in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_the_order_of_the_channels_does_not_matter() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    straight, shuffled = nn.Conv2d(5, 4, 3).double(), nn.Conv2d(5, 4, 3).double()
    shuffled.load_state_dict({**straight.state_dict(), "weight": straight.weight[:, order]})
    images = torch.randn(3, 5, 6, 6, dtype=torch.float64)
    for layer, own in ((straight, images), (shuffled, images[:, order])):
        optimizer = ProximalAdamW(layer.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.1))
        for _ in range(5):
            optimizer.zero_grad()
            layer(own).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(shuffled.weight, straight.weight[:, order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalty", [GroupLasso(strength=0.05), GroupMCP(strength=0.05), L1(strength=0.05)])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("keep_min", [0, 3])
def test_the_size_of_the_pieces_does_not_matter(
    penalty: Penalty, adaptive: bool, keep_min: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for size in (2**18, 7, 60):
        monkeypatch.setattr("sparsemtl.optim.proximal_step.CACHED", size)
        model = network()
        own = replace(penalty, keep_min=keep_min)
        train(model, ProximalAdamW(model.parameters(), lr=1e-2, penalty=own, adaptive=adaptive), 3)
        results.append(weights_of(model))
    for other in results[1:]:
        for name in CONVOLUTIONS:
            torch.testing.assert_close(other[name], results[0][name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("by", ["input-channel", "output-channel", "block"])
def test_a_users_function_that_numbers_named_groups_does_what_the_name_does(by: str) -> None:
    numbers: dict[str, Callable[[Tensor], Tensor]] = {
        "input-channel": lambda w: torch.arange(w.shape[1]).view(1, -1, 1, 1),
        "output-channel": lambda w: torch.arange(w.shape[0]).view(-1, 1, 1, 1),
        "block": lambda w: (
            torch.arange(w.shape[0]).view(-1, 1, 1, 1) // 4 * 10 + torch.arange(w.shape[1]).view(1, -1, 1, 1) // 4
        ),
    }
    results = []
    for groups in (by, numbers[by]):
        model, penalty = network(), GroupLasso(strength=0.05 if by == "block" else 0.03, granularity=groups)
        train(model, ProximalAdamW(model.parameters(), lr=1e-2, penalty=penalty), 4)
        results.append(weights_of(model))
    assert group_sparsity(results[0], Grouping(by)) > 0
    for name in CONVOLUTIONS:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-10, atol=1e-13)


def test_a_users_function_is_called_once_a_weight() -> None:
    calls = []

    def channels(weight: Tensor) -> Tensor:
        calls.append(tuple(weight.shape))
        return torch.arange(weight.shape[1]).view(1, -1, 1, 1)

    model = network()
    optimizer = ProximalAdamW(model.parameters(), penalty=GroupLasso(strength=1e-3, granularity=channels))
    train(model, optimizer, 3)
    optimizer.param_groups[0]["penalty"] = replace(optimizer.param_groups[0]["penalty"], strength=2e-3)
    train(model, optimizer, 2)
    assert calls == [(6, 3, 3, 3), (4, 6, 1, 1)]


# ---- parameter groups ------------------------------------------------------------------------------------------


def test_groups_have_penalties_of_their_own() -> None:
    model, single = network(), network()
    strong, weak = GroupLasso(strength=0.05), L1(strength=0.01, linear=True)
    optimizer = ProximalAdamW(
        [
            {"params": model[0].parameters()},
            {"params": model[1].parameters()},
            {"params": model[3].parameters(), "penalty": None},
            {"params": model[5].parameters(), "penalty": weak, "adaptive": False, "lr": 0.1},
        ],
        lr=1e-2,
        penalty=strong,
    )
    train(model, optimizer, 1)
    groups = [{"params": single[i].parameters(), "lr": 0.1 if i == 5 else 0.01} for i in (0, 1, 3, 5)]
    plain = torch.optim.AdamW(groups, eps=1e-6)
    train(single, plain, 1)
    assert same_bits(model[3].weight, single[3].weight)
    moved = single[5].weight.detach()
    torch.testing.assert_close(
        model[5].weight.detach(), moved.sign() * (moved.abs() - 0.1 * 0.01).clamp(min=0), rtol=1e-12, atol=1e-15
    )
    moment = plain.state[single[0].weight]["exp_avg_sq"]
    expected = slow_adaptive_step(single[0].weight.detach(), moment, 1e-2, 0.05, 1e-6)
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-10, atol=1e-12)


def test_a_group_added_later_has_the_default_penalty() -> None:
    model = network()
    optimizer = ProximalAdamW(model[0].parameters(), lr=1e-2, penalty=GroupLasso(strength=10.0, keep_min=1))
    optimizer.add_param_group({"params": model[3].parameters()})
    train(model, optimizer, 1)
    assert group_sparsity([model[3].weight]) == 5 / 6


def test_linear_weights_are_shrunk_only_if_asked_for() -> None:
    model = network()
    penalty = GroupLasso(strength=10.0, linear=True, keep_min=1)
    train(model, ProximalAdamW(model.parameters(), lr=1e-2, penalty=penalty), 1)
    assert int((model[5].weight != 0).any(0).sum()) == 1
    assert bool((model[5].bias != 0).all())


def test_a_parameter_without_gradient_took_no_step_and_is_not_shrunk() -> None:
    model = network()
    before = weights_of(model)
    optimizer = ProximalSGD(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.1))
    backward(model, 0)
    model[0].weight.grad = None
    optimizer.step()
    assert same_bits(model[0].weight, before["0.weight"])
    assert not torch.equal(model[3].weight, before["3.weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: ProximalAdamW(m[5].parameters(), penalty=GroupLasso(strength=1.0)), "no parameter is covered"),
        (lambda m: ProximalSGD(m.parameters(), lr=1.0, penalty="l1"), "must be a Penalty"),
        (lambda m: ProximalAdamW(m.parameters(), penalty=L1(strength=1.0), prox_lr="eps"), "'prox_lr' parameter"),
        (lambda m: ProximalAdamW([{"params": m.parameters(), "penalty": 3}], penalty=None), "must be a Penalty"),
    ],
)
def test_a_wrong_option_is_refused(make: Callable[[nn.Sequential], Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make(network())


# ---- states ----------------------------------------------------------------------------------------------------


def make_adamw(model: nn.Module, **options: Any) -> ProximalAdamW:
    return ProximalAdamW(
        [{"params": model[0].parameters()}, {"params": model[3].parameters(), "penalty": L1(strength=0.01)}],
        **{"lr": 1e-2, "penalty": GroupLasso(strength=0.03, granularity="block", block=(2, 2)), **options},
    )


@pytest.mark.parametrize("through", ["torch.save", "write_tree"])
def test_a_state_goes_through_a_file_without_pickled_objects_and_training_goes_on(through: str, tmp_path: Path) -> None:
    model = network()
    optimizer = make_adamw(model, prox_lr="step")
    optimizer.param_groups[0]["penalty"] = replace(optimizer.param_groups[0]["penalty"], strength=0.05)
    train(model, optimizer, 3)
    path = tmp_path / "state"
    if through == "torch.save":
        torch.save(optimizer.state_dict(), path)
        state = torch.load(path, weights_only=True)
    else:
        write_tree(path, optimizer.state_dict())
        state = read_tree(path)
    other = deepcopy(model)
    resumed = make_adamw(other)
    resumed.load_state_dict(state)
    assert [group["penalty"] for group in resumed.param_groups] == [g["penalty"] for g in optimizer.param_groups]
    assert resumed.param_groups[0]["penalty"].strength == 0.05
    assert resumed.param_groups[0]["prox_lr"] == "step"
    train(model, optimizer, 3, first=3)
    train(other, resumed, 3, first=3)
    assert all(map(same_bits, model.parameters(), other.parameters()))


def test_a_state_of_torchs_adamw_is_taken_over() -> None:
    model = network()
    plain = torch.optim.AdamW(model.parameters(), lr=0.5, eps=1e-6)
    train(model, plain, 2)
    optimizer = ProximalAdamW(model.parameters(), penalty=GroupLasso(strength=0.01))
    optimizer.load_state_dict(plain.state_dict())
    (group,) = optimizer.param_groups
    assert (group["lr"], group["penalty"], group["adaptive"]) == (0.5, GroupLasso(strength=0.01), True)
    train(model, optimizer, 1)


def test_a_state_of_another_penalty_is_refused() -> None:
    model = network()
    saved = make_adamw(model).state_dict()
    other = ProximalAdamW(
        [{"params": model[0].parameters()}, {"params": model[3].parameters(), "penalty": None}],
        penalty=GroupLasso(strength=0.03),
    )
    with pytest.raises(ParameterError, match="group 1: the state was saved with penalty L1, this optimizer has None"):
        other.load_state_dict(saved)


def test_a_users_function_stays_with_the_optimizer() -> None:
    def channels(weight: Tensor) -> Tensor:
        return torch.arange(weight.shape[1]).view(1, -1, 1, 1)

    model = network()
    optimizer = ProximalAdamW(model.parameters(), penalty=GroupLasso(strength=0.01, granularity=channels))
    train(model, optimizer, 1)
    state = torch.load(_saved(optimizer.state_dict()), weights_only=True)
    other = ProximalAdamW(model.parameters(), penalty=GroupLasso(strength=0.5, granularity=channels))
    other.load_state_dict(state)
    assert other.param_groups[0]["penalty"] == GroupLasso(strength=0.01, granularity=channels)


def _saved(state: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("copy", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_shrinking(copy: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = ProximalAdamW(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.03))
    train(model, optimizer, 2)
    other, other_optimizer = copy((model, optimizer))
    train(model, optimizer, 3, first=2)
    train(other, other_optimizer, 3, first=2)
    assert group_sparsity(model.named_parameters()) > 0
    assert all(map(same_bits, model.parameters(), other.parameters()))


# ---- loops -----------------------------------------------------------------------------------------------------


def test_hooks_see_the_shrunken_weights_once_a_step() -> None:
    model = network()
    torch.optim.AdamW(model.parameters())  # torch patches the classes of optimizers that it has seen
    optimizer = ProximalAdamW(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=10.0, keep_min=2))
    seen: list[float] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(group_sparsity([model[3].weight])))
    train(model, optimizer, 2)
    assert seen == [4 / 6, 4 / 6]


def test_a_closure_and_a_schedule_work_as_with_torch() -> None:
    model = network()
    optimizer = ProximalSGD(model.parameters(), lr=0.1, penalty=GroupLasso(strength=0.1))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    loss = optimizer.step(lambda: float(backward(model, 0).detach()))
    assert loss is not None
    assert loss > 0
    schedule.step()
    before = weights_of(model)
    train(model, optimizer, 1)  # the learning rate is zero now, so nothing shrinks either
    assert all(same_bits(p, before[name]) for name, p in model.named_parameters())


def test_accumulated_gradients_step_like_one_batch() -> None:
    whole, parts = network().eval(), network().eval()
    for model, batches in ((whole, [slice(None)]), (parts, [slice(0, 1), slice(1, 4)])):
        optimizer = ProximalAdamW(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.005))
        for seed in range(3):
            optimizer.zero_grad()
            for samples in batches:
                backward(model, seed, samples)
            optimizer.step()
    for left, right in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@every_kernel
@each("name", PAIRS)
def test_a_step_that_a_gradient_scaler_skips_shrinks_nothing(kernel: str, name: str) -> None:
    model = network(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = PAIRS[name][0](model.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.1), **KERNELS[kernel])
    for bad in (False, True, False):
        before = weights_of(model)
        optimizer.zero_grad()
        images = torch.randn(4, 3, 4, 4)
        scaler.scale((model(images) - 1).square().sum()).backward()
        if bad:
            assert model[3].weight.grad is not None
            model[3].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        for where in CONVOLUTIONS:
            assert same_bits(model.get_parameter(where), before[where]) == bad


def test_a_step_under_autocast_is_the_same() -> None:
    results = []
    for enabled in (False, True):
        model = network(dtype=torch.float32)
        optimizer = ProximalAdamW(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.02))
        for seed in range(3):
            optimizer.zero_grad()
            backward(model, seed)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                optimizer.step()
        results.append(model)
    assert all(map(same_bits, *(model.parameters() for model in results)))


@each("dtype", [torch.bfloat16, torch.float16])
@each("penalty", [GroupLasso(strength=0.05), GroupMCP(strength=0.05), L1(strength=0.05)])
@each("adaptive", [True, False])
def test_weights_of_half_precision_are_shrunk_as_in_single(
    dtype: torch.dtype, penalty: Penalty, adaptive: bool
) -> None:
    half, single = nn.Conv2d(6, 5, 3).to(dtype), nn.Conv2d(6, 5, 3)
    single.load_state_dict(half.state_dict())
    for layer in (half, single):
        layer.weight.grad = torch.linspace(0.1, 1, 270, dtype=dtype).view_as(layer.weight).to(layer.weight.dtype)
    steps = {}
    for layer in (half, single):
        optimizer = torch.optim.SGD([layer.weight], lr=0.5)
        optimizer.state[layer.weight]["exp_avg_sq"] = layer.weight.grad.clone()  # a metric, the same for both
        optimizer.param_groups[0]["eps"] = 1e-3
        ProximalStep(penalty, adaptive=adaptive)(optimizer, [layer.weight])
        steps[layer.weight.dtype] = layer.weight.detach()
    assert steps[dtype].dtype == dtype
    assert torch.equal(steps[dtype], steps[torch.float32].to(dtype))


def test_fabric_steps_it_like_any_optimizer() -> None:
    plain, model = network(), network()
    train(plain, ProximalAdamW(plain.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.02)), 3)
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = fabric.setup(
        model, ProximalAdamW(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.02))
    )
    train(wrapped, optimizer, 3)
    assert all(map(same_bits, model.parameters(), plain.parameters()))


PENALTIES_OF_ALL_KINDS = [
    L1(strength=0.6),
    GroupLasso(strength=0.4),
    GroupLasso(strength=0.4, granularity="output-channel"),
    GroupLasso(strength=0.4, granularity="block", block=(2, 3)),
    GroupMCP(strength=0.3, gamma=1.5),
    GroupMCP(strength=0.3, gamma=0.8, granularity="output-channel"),
    GroupMCP(strength=0.2, gamma=5.0, granularity="block", block=(3, 2)),
]


@each("adaptive", [True, False])
@each("penalty", PENALTIES_OF_ALL_KINDS)
def test_no_weight_nearby_or_far_is_better_than_where_the_step_ends(penalty: Penalty, adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 5, 2, 2, generator=generator, dtype=torch.float64)
    start *= torch.linspace(0.1, 2, 5, dtype=torch.float64).view(1, 5, 1, 1)
    start[:3, :3] *= 0.1
    start[0] *= 0.1
    moment = torch.rand(start.shape, generator=generator, dtype=torch.float64)
    weight, lr = nn.Parameter(start.clone()), 1.0
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.SGD([weight], lr=lr)
    optimizer.param_groups[0]["eps"], optimizer.state[weight]["exp_avg_sq"] = 0.1, moment
    ProximalStep(penalty, adaptive=adaptive)(optimizer, [weight])
    d = moment.sqrt() + 0.1 if adaptive else torch.ones_like(start)

    def objective(z: Tensor) -> float:
        return float((d * (start - z).square()).sum() / 2 + lr * penalty.value([z]))

    end = weight.detach()
    least = objective(end) - 1e-12
    assert bool((end == 0).any())
    assert bool((end != 0).any())
    for other in (torch.zeros_like(end), start, end * 1.01, end * 0.99):
        assert objective(other) >= least
        for part in penalty.grouping.split(end):
            slabs, _, groups, _ = part.read(end).shape
            for slab, group in product(range(slabs), range(groups)):
                mixed = end.clone()
                part.read(mixed)[slab, :, group] = part.read(other)[slab, :, group]
                assert objective(mixed) >= least
    for size in (1e-1, 1e-3, 1e-5):
        for _ in range(50):
            step = size * torch.randn(end.shape, generator=generator, dtype=torch.float64)
            assert objective(end + step) >= least


# ---- the step on its own ---------------------------------------------------------------------------------------

KIN: dict[str, tuple[Callable[[Iterable[Any]], torch.optim.Optimizer], bool]] = {
    "adam": (lambda p: torch.optim.Adam(p, lr=1e-2, eps=1e-5), True),
    "nadam": (lambda p: torch.optim.NAdam(p, lr=1e-2, eps=1e-5), True),
    "radam": (lambda p: torch.optim.RAdam(p, lr=1e-2, eps=1e-5), True),
    "sgd": (lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), False),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=1e-2), False),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=1e-2), False),
}


@each("name", KIN)
@each("adaptive", [True, False])
def test_the_step_reads_size_and_metric_from_any_optimizer(name: str, adaptive: bool) -> None:
    make, has_metric = KIN[name]
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 2)
    stepped = weights_of(model)
    ProximalStep(GroupLasso(strength=0.02), adaptive=adaptive)(optimizer, model.named_parameters())
    for where, found in model.named_parameters():
        if where not in CONVOLUTIONS:
            assert same_bits(found, stepped[where])
        elif adaptive and has_metric:
            moment = optimizer.state[found]["exp_avg_sq"]
            expected = slow_adaptive_step(stepped[where], moment, 1e-2, 0.02, 1e-5)
            torch.testing.assert_close(found.detach(), expected, rtol=1e-10, atol=1e-12)
        else:
            expected = slow_plain_step(stepped[where], 1e-2, 0.02)
            torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("wrap", ["none", "masked", "fabric"])
def test_the_step_after_an_optimizer_is_the_proximal_optimizer(wrap: str) -> None:
    ours, model = network(), network()
    train(ours, ProximalAdamW(ours.parameters(), lr=1e-2, eps=1e-8, penalty=GroupLasso(strength=0.02)), 4)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if wrap == "masked":
        optimizer = MaskedOptimizer(optimizer, sm.TaskMasks.ones(dict(model.named_parameters()), "a"), model)
    if wrap == "fabric":
        optimizer = Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizer)
    shrink = ProximalStep(GroupLasso(strength=0.02))
    for seed in range(4):
        train(model, optimizer, 1, first=seed)
        shrink(optimizer, model.named_parameters())
    assert all(map(same_bits, model.parameters(), ours.parameters()))


def test_some_of_the_parameters_may_be_shrunk_but_only_the_optimizers_own() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[:3].parameters(), lr=0.1)
    backward(model, 0)
    before = weights_of(model)
    shrink = ProximalStep(GroupLasso(strength=0.1))
    shrink(optimizer, [model[0].weight])
    assert same_bits(model[3].weight, before["3.weight"])
    assert not torch.equal(model[0].weight, before["0.weight"])
    with pytest.raises(ParameterError, match=r"3\.weight is not among the parameters of SGD"):
        shrink(optimizer, {"3.weight": model[3].weight})


def test_another_penalty_takes_effect_from_the_next_step_on() -> None:
    penalties = [GroupLasso(strength=0.1), GroupLasso(strength=0.2, granularity="output-channel"), L1(strength=0.3)]
    start = torch.randn(4, 5, 3, 3)
    lasting = ProximalStep(penalties[0])
    results = []
    for shrink_with in (lambda penalty: lasting, ProximalStep):
        weight = nn.Parameter(start.clone())
        weight.grad = torch.zeros_like(weight)
        for penalty in penalties:
            shrink = shrink_with(penalty)
            shrink.penalty = penalty
            shrink(torch.optim.SGD([weight], lr=0.5), [weight])
        results.append(weight)
    assert same_bits(*results)


def test_a_weight_with_gaps_in_memory_is_shrunk_in_place() -> None:
    wide = torch.randn(4, 12, 3, 3)
    weight, twin = nn.Parameter(wide[:, ::2]), nn.Parameter(wide[:, ::2].clone())
    for p in (weight, twin):
        p.grad = torch.ones_like(p)
        ProximalStep(GroupLasso(strength=1.0))(torch.optim.SGD([p], lr=0.1), [p])
    assert torch.equal(weight, twin)
    assert weight.data_ptr() == wide.data_ptr()
    assert torch.equal(wide[:, ::2], twin)


# ---- layers that die -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("penalty", [GroupLasso(strength=50.0), GroupMCP(strength=50.0), L1(strength=50.0)])
def test_keep_min_groups_of_every_layer_keep_the_optimizers_value(penalty: Penalty, adaptive: bool) -> None:
    model, plain = network(), network()
    own = replace(penalty, keep_min=2)
    train(model, ProximalAdamW(model.parameters(), lr=1e-2, penalty=own, adaptive=adaptive), 1)
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, eps=1e-6)
    train(plain, plain_optimizer, 1)
    for name in CONVOLUTIONS:
        found, stepped = model.get_parameter(name).detach(), plain.get_parameter(name).detach()
        d = plain_optimizer.state[plain.get_parameter(name)]["exp_avg_sq"].sqrt() + 1e-6 if adaptive else 1.0
        if isinstance(penalty, L1):
            pull, kept = (stepped * d).abs().flatten(), (found != 0).flatten()
            assert torch.equal(found.flatten()[kept], stepped.flatten()[kept])
        else:
            pull, kept = (stepped * d).transpose(0, 1).flatten(1).norm(dim=1), (found != 0).flatten(2).any(2).any(0)
            assert torch.equal(found[:, kept], stepped[:, kept])
        assert set(kept.nonzero().flatten().tolist()) == set(pull.topk(2).indices.tolist())


def test_keep_min_changes_nothing_while_enough_groups_live() -> None:
    results = []
    for keep_min in (0, 1):
        model = network()
        penalty = GroupLasso(strength=0.02, keep_min=keep_min)
        train(model, ProximalAdamW(model.parameters(), lr=1e-2, penalty=penalty), 5)
        results.append(model)
    assert group_sparsity(results[0].named_parameters()) > 0
    assert all(map(same_bits, *(model.parameters() for model in results)))


def test_keep_min_beyond_the_number_of_groups_keeps_them_all() -> None:
    model, plain = network(), network()
    train(model, ProximalSGD(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=1e3, keep_min=100)), 1)
    train(plain, torch.optim.SGD(plain.parameters(), lr=1e-2), 1)
    assert all(map(same_bits, model.parameters(), plain.parameters()))


@pytest.mark.parametrize("penalty", [GroupLasso(strength=1e3), GroupMCP(strength=1e3), L1(strength=1e3)])
def test_a_layer_that_dies_is_warned_of_once_by_name(penalty: Penalty) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    shrink = ProximalStep(penalty)
    backward(model, 0)
    with pytest.warns(MaskWarning) as told:
        shrink(optimizer, model.named_parameters())
    texts = [str(warning.message) for warning in told]
    assert [text.split(":")[0] for text in texts] == ["'0.weight'", "'3.weight'"]
    assert all(f"granularity {penalty.grouping.name}" in text and "keep_min=1" in text for text in texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shrink(optimizer, model.named_parameters())


def test_the_optimizer_names_a_dead_layer_as_well_as_it_can() -> None:
    model = network()
    backward(model, 0)
    optimizer = ProximalSGD(model.parameters(), lr=1.0, penalty=GroupLasso(strength=1e3))
    with pytest.warns(MaskWarning) as told:
        optimizer.step()
    assert str(told[0].message).startswith("'parameter 0 of shape (6, 3, 3, 3)': every group")
    assert group_sparsity(model.named_parameters()) == 1.0


# ---- several processes -----------------------------------------------------------------------------------------


def _process(rank: int, meeting: str, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(network().eval())
    optimizer = ProximalAdamW(model.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.003))
    for seed in range(3):
        optimizer.zero_grad()
        backward(model, seed, slice(2 * rank, 2 * rank + 2))
        optimizer.step()
    results.put((rank, {name: p.detach().numpy() for name, p in model.module.named_parameters()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_shrink_the_same_weights(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_process, args=(rank, str(tmp_path / "meeting"), results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    alone = network().eval()
    optimizer = ProximalAdamW(alone.parameters(), lr=1e-2, penalty=GroupLasso(strength=0.003))
    for seed in range(3):
        optimizer.zero_grad()
        backward(alone, seed)
        for p in alone.parameters():
            assert p.grad is not None
            p.grad /= 2  # a process' loss is a sum over its own images over all of them; DDP takes the mean
        optimizer.step()
    for name, p in alone.named_parameters():
        assert (found[0][name] == found[1][name]).all()
        torch.testing.assert_close(torch.from_numpy(found[0][name]), p.detach(), rtol=1e-9, atol=1e-12)
