"""Fused optimizers take the steps of torch's general path, whatever the layout of memory, and go on where they were."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn
from torch.optim import Optimizer

import sparsemtl as sm
from sparsemtl.errors import CheckpointError
from sparsemtl.optim import OPTIMIZERS, fused
from sparsemtl.training.checkpoints.checkpoint import restore, snapshot

OPTIONS: dict[str, dict[str, Any]] = {"adam": {}, "adamw": {}, "sgd": {"nesterov": True}}
GENERAL: dict[str, Callable[..., Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
}
every_optimizer = each("name", OPTIMIZERS)

BASE = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "channels last": lambda x: x.clone(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "gaps": lambda x: torch.stack([x, x], 1)[:, 0],
}


def made(name: str, parameters: Any) -> Optimizer:
    return OPTIMIZERS.build(name, parameters, lr=0.1, weight_decay=0.1, **OPTIONS[name])


def is_fused(name: str, dtype: torch.dtype = torch.float64) -> bool:
    """Whether this version of torch has the kernel on the CPU."""
    return made(name, [nn.Parameter(torch.zeros(1, dtype=dtype))]).param_groups[0]["fused"] is True


def gradient(step: int) -> Tensor:
    return torch.randn(BASE.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(optimizer: Optimizer, steps: range, layout: Callable[[Tensor], Tensor] = torch.clone) -> None:
    """Steps on gradients that are the same for all parameters."""
    for step in steps:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = layout(gradient(step).to(p.dtype))
        optimizer.step()


@every_optimizer
@each("of_gradient", LAYOUTS)
@each("of_parameter", LAYOUTS)
def test_steps_are_those_of_the_general_path_in_every_layout(name: str, of_parameter: str, of_gradient: str) -> None:
    own, general = nn.Parameter(LAYOUTS[of_parameter](BASE)), nn.Parameter(BASE.clone())
    train(made(name, [own]), range(4), LAYOUTS[of_gradient])
    train(GENERAL[name]([general]), range(4))
    torch.testing.assert_close(own, general, rtol=1e-12, atol=1e-12, check_stride=False)


@every_optimizer
def test_a_gradient_that_is_one_number_in_memory_counts_at_every_entry(name: str) -> None:
    own, general = nn.Parameter(BASE.clone()), nn.Parameter(BASE.clone())
    train(made(name, [own]), range(3), lambda x: x[0, 0, 0, 0].expand(BASE.shape))
    train(GENERAL[name]([general]), range(3), lambda x: x[0, 0, 0, 0].repeat(BASE.shape))
    torch.testing.assert_close(own, general, rtol=1e-12, atol=1e-12)


@every_optimizer
def test_parameters_whose_layout_changes_between_steps(name: str) -> None:
    own, general = nn.Parameter(BASE.clone()), nn.Parameter(BASE.clone())
    optimizer, plain = made(name, [own]), GENERAL[name]([general])
    for first, layout in enumerate(LAYOUTS.values()):
        own.data = layout(own.data)
        train(optimizer, range(2 * first, 2 * first + 2))
        train(plain, range(2 * first, 2 * first + 2))
    torch.testing.assert_close(own, general, rtol=1e-12, atol=1e-12, check_stride=False)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_every_dtype_takes_the_steps_of_the_general_path(name: str, dtype: torch.dtype) -> None:
    own = nn.Parameter(BASE.to(dtype))
    exact = nn.Parameter(own.detach().to(torch.promote_types(dtype, torch.float64)))
    train(made(name, [own]), range(3))
    train(GENERAL[name]([exact]), range(3), lambda g: g.to(dtype).to(g.dtype))
    tolerance = max(16 * torch.finfo(dtype).eps, 1e-12)
    torch.testing.assert_close(own.to(exact.dtype), exact, rtol=tolerance, atol=tolerance)


def test_a_kernel_that_loses_the_momentum_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(parameters: list[Tensor], gradients: list[Tensor], *_: Any, lr: float, **options: Any) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p.sub_(g, alpha=lr)

    monkeypatch.setattr(torch, "_fused_sgd_", forgetful)
    fused._is_supported.cache_clear()
    try:
        assert not is_fused("sgd")
    finally:
        fused._is_supported.cache_clear()


def test_the_kernel_is_used_in_groups_that_it_supports_alone() -> None:
    real, imaginary = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    for name in OPTIMIZERS:
        groups = made(name, [{"params": [real]}, {"params": [imaginary]}]).param_groups
        assert groups[0]["fused"] is (True if is_fused(name, torch.float32) else None)
        assert groups[1]["fused"] is None


@every_optimizer
def test_torch_without_the_kernel_takes_the_general_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_is_supported", lambda *_: False)
    own, general = nn.Parameter(BASE.clone()), nn.Parameter(BASE.clone())
    train(made(name, [own]), range(3), LAYOUTS["channels last"])
    train(GENERAL[name]([general]), range(3), LAYOUTS["channels last"])
    assert torch.equal(own, general)


@every_optimizer
def test_parameters_whose_first_gradient_comes_later(name: str) -> None:
    own, general = ([nn.Parameter(BASE.clone()) for _ in range(3)] for _ in range(2))
    for optimizer in (made(name, own), GENERAL[name](general)):
        parameters = optimizer.param_groups[0]["params"]
        for step, present in enumerate([(0,), (1,), (0, 1), (0, 1, 2)]):
            optimizer.zero_grad()
            for index in present:
                parameters[index].grad = gradient(step)
            optimizer.step()
    torch.testing.assert_close(own, general, rtol=1e-12, atol=1e-12)


def test_sparse_gradients_are_left_to_the_general_path() -> None:
    own, general = (nn.Embedding(5, 3, sparse=True) for _ in range(2))
    general.load_state_dict(own.state_dict())
    for table, optimizer in (
        (own, OPTIMIZERS.build("sgd", own.parameters(), lr=0.1)),
        (general, torch.optim.SGD(general.parameters(), lr=0.1, momentum=0.9)),
    ):
        for row in (0, 1, 3):
            optimizer.zero_grad()
            table(torch.tensor([row, 1])).square().sum().backward()
            optimizer.step()
    assert torch.equal(own.weight, general.weight)


@every_optimizer
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_runs_once_and_its_gradients_are_aligned(name: str, by_name: bool) -> None:
    own, general = nn.Parameter(LAYOUTS["channels last"](BASE)), nn.Parameter(BASE.clone())
    calls = []

    def closure() -> float:
        calls.append(1)
        own.grad = gradient(0)
        return 3.0

    optimizer = made(name, [own])
    assert (optimizer.step(closure=closure) if by_name else optimizer.step(closure)) == 3.0
    train(GENERAL[name]([general]), range(1))
    assert len(calls) == 1
    torch.testing.assert_close(own, general, rtol=1e-12, atol=1e-12, check_stride=False)


@every_optimizer
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_are_guarded_too(name: str, duplicate: Callable[[Any], Any]) -> None:
    optimizer, general = made(name, [nn.Parameter(BASE.clone())]), nn.Parameter(BASE.clone())
    train(optimizer, range(2))
    twin = duplicate(optimizer)
    train(twin, range(2, 4), LAYOUTS["channels last"])
    train(GENERAL[name]([general]), range(4))
    torch.testing.assert_close(twin.param_groups[0]["params"][0], general, rtol=1e-12, atol=1e-12)
    assert torch.equal(optimizer.param_groups[0]["params"][0], twin.param_groups[0]["params"][0]) is False


@every_optimizer
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_resumed_optimizer_goes_on_bit_for_bit_although_states_are_saved_contiguous(name: str, layout: str) -> None:
    whole, first = (nn.Parameter(LAYOUTS[layout](BASE)) for _ in range(2))
    train(made(name, [whole]), range(6))
    interrupted = made(name, [first])
    train(interrupted, range(3))
    saved = copy.deepcopy(interrupted.state_dict())
    for entry in saved["state"].values():
        entry.update({key: value.contiguous() for key, value in entry.items() if isinstance(value, Tensor)})
    again = nn.Parameter(first.detach().clone())
    resumed = made(name, [again])
    resumed.load_state_dict(saved)
    train(resumed, range(3, 6))
    assert torch.equal(again, whole)
    assert again.stride() == whole.stride()


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(BASE.clone())


@every_optimizer
@pytest.mark.parametrize("kernel", [None, False])
def test_a_run_from_before_fused_kernels_goes_on_as_it_would_have(name: str, kernel: bool | None) -> None:
    whole = nn.Parameter(BASE.clone())
    train(GENERAL[name]([whole]), range(6))
    owner = Owner()
    before = GENERAL[name](owner.parameters())
    train(before, range(3))
    before.param_groups[0]["fused"] = kernel
    state = copy.deepcopy(snapshot(owner, {"optimizer": before}, {}))
    after = Owner()
    resumed = made(name, after.parameters())
    restore(state, after, {"optimizer": resumed}, "here")
    train(resumed, range(3, 6))
    assert torch.equal(after.weight, whole)


@every_optimizer
def test_a_fused_run_goes_on_where_the_kernel_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, owner, after = nn.Parameter(BASE.clone()), Owner(), Owner()
    train(GENERAL[name]([whole]), range(6))
    before = made(name, owner.parameters())
    train(before, range(3))
    state = copy.deepcopy(snapshot(owner, {"optimizer": before}, {}))
    state["parts"]["optimizer"]["param_groups"][0]["fused"] = True
    monkeypatch.setattr(fused, "_is_supported", lambda *_: False)
    resumed = made(name, after.parameters())
    restore(state, after, {"optimizer": resumed}, "here")
    assert resumed.param_groups[0]["fused"] is None
    train(resumed, range(3, 6))
    torch.testing.assert_close(after.weight, whole, rtol=1e-12, atol=1e-12)


def test_a_checkpoint_with_a_kernel_that_is_no_switch_is_refused() -> None:
    owner = Owner()
    optimizer = made("adam", owner.parameters())
    state = snapshot(owner, {"optimizer": optimizer}, {})
    state["parts"]["optimizer"]["param_groups"][0]["fused"] = "always"
    with pytest.raises(CheckpointError, match=r"param_groups\[0\]: expected True, False or None for"):
        restore(state, owner, {"optimizer": optimizer}, "here")


@every_optimizer
def test_a_gradient_scaler_leaves_out_whole_steps(name: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = made(name, [p])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    for value in (torch.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((p * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert len(steps) == 1
    expected = nn.Parameter(torch.ones(3))
    plain = GENERAL[name]([expected])
    expected.sum().backward()
    plain.step()
    torch.testing.assert_close(p, expected)


@pytest.mark.parametrize("balancing", ["mean", "mgda"])
def test_a_trainer_guards_fused_optimizers_of_its_user(balancing: str) -> None:
    def run(make: Callable[[Any], Optimizer], layout: torch.memory_format) -> dict[str, Tensor]:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
        tasks = [sm.Regression("a"), sm.Regression("b")]
        model = sm.SharedBottom(encoder, tasks, {task.name: nn.Linear(36, 1) for task in tasks}).double()
        x = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        data = [(x, {"a": x.mean((1, 2, 3)), "b": -x.mean((1, 2, 3))})]
        options: dict[str, Any] = {"epochs": 3, "progress": False, "accelerator": "cpu", "precision": "64-true"}
        trainer = sm.Trainer(model.to(memory_format=layout), balancing=balancing, optimizer=make, **options)
        trainer.fit(data, data)
        return {name: p.detach().contiguous() for name, p in model.named_parameters()}

    general = run(lambda p: torch.optim.Adam(p, lr=0.1), torch.channels_last)
    own = run(lambda p: fused.use_fused(torch.optim.Adam(p, lr=0.1)), torch.channels_last)
    torch.testing.assert_close(own, general, rtol=1e-9, atol=1e-9)
