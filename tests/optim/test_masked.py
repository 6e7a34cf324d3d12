"""Strict updates: what no active task keeps ends a step with the bits that it began with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from loops import each
from policies import Started
from torch import Tensor, nn
from torch.optim import lr_scheduler

import sparsemtl as sm
from sparsemtl.balancing import as_balancer
from sparsemtl.errors import MaskError, ParameterError
from sparsemtl.optim import MaskedOptimizer, freeze_outside_mask
from sparsemtl.optim.masked import FreezeOutsideMask
from sparsemtl.sharing.sharing import Update
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.step import TrainingStep

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1),
}
every_optimizer = each("name", OPTIMIZERS)


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal down to the sign of zero and the payload of NaN."""
    integers = INTEGERS[left.element_size()]
    return torch.equal(left.detach().view(integers), right.detach().view(integers))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))


def masks_of(model: nn.Module, density: float = 0.4) -> sm.TaskMasks:
    generator = torch.Generator().manual_seed(7)
    weights = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    return sm.TaskMasks(
        {t: {n: torch.rand(p.shape, generator=generator) < density for n, p in weights.items()} for t in "abc"}
    )


def backward(model: nn.Module, seed: int) -> Tensor:
    """A dense loss, whose gradient is zero nowhere."""
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
    loss = (model(x) - x[:, :2]).square().mean()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int], **options: Any) -> None:
    for seed in steps:
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step(**options)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_held(model: nn.Module, before: dict[str, Tensor], active: dict[str, Tensor]) -> None:
    """Outside of `active` every bit is as before; inside every weight moved, and so did what is not masked."""
    for name, p in model.named_parameters():
        mask = active.get(name, torch.ones_like(p, dtype=torch.bool))
        assert same_bits(p[~mask], before[name][~mask]), name
        assert bool((p != before[name])[mask].all()), name


@every_optimizer
@each("task", [None, "b", ("a", "c"), ()])
def test_what_no_active_task_keeps_never_moves(name: str, task: str | tuple[str, ...] | None) -> None:
    model = network()
    masks, before = masks_of(model), weights_of(model)
    optimizer = MaskedOptimizer(OPTIMIZERS[name](model.parameters()), masks, model)
    train(model, optimizer, range(6), task=task)
    assert_held(model, before, masks.union((task,) if isinstance(task, str) else task))


@every_optimizer
def test_memory_and_decay_move_no_held_weight_and_would_without(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, range(3))
    masks = masks_of(model)
    outside = {name: ~mask for name, mask in masks.union().items()}
    plain, plain_optimizer = deepcopy((model, optimizer))
    before = weights_of(model)
    for one, stepper in ((model, MaskedOptimizer(optimizer, masks, model)), (plain, plain_optimizer)):
        for p in one.parameters():
            p.grad = torch.zeros_like(p)
        stepper.step()
    for parameter, held in outside.items():
        assert same_bits(model.get_parameter(parameter)[held], before[parameter][held])
        assert bool((plain.get_parameter(parameter) != before[parameter])[held].all())


@every_optimizer
def test_what_is_kept_moves_as_under_the_plain_optimizer(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, range(3))
    plain, plain_optimizer = deepcopy((model, optimizer))
    masks = masks_of(model)
    train(model, MaskedOptimizer(optimizer, masks, model), [3])
    train(plain, plain_optimizer, [3])
    for parameter, mask in masks.union().items():
        assert same_bits(model.get_parameter(parameter)[mask], plain.get_parameter(parameter)[mask])
    assert same_bits(model[0].bias, plain[0].bias)


@every_optimizer
def test_masks_that_keep_everything_change_no_bit(name: str) -> None:
    model, plain = network(), network()
    masks = sm.TaskMasks.ones(dict(model.named_parameters()), "ab")
    train(model, MaskedOptimizer(OPTIMIZERS[name](model.parameters()), masks, model), range(5))
    train(plain, OPTIMIZERS[name](plain.parameters()), range(5))
    assert all(map(same_bits, model.parameters(), plain.parameters()))


def test_new_masks_hold_from_the_next_step_on() -> None:
    model = network()
    masks = masks_of(model)
    optimizer = MaskedOptimizer(OPTIMIZERS["adamw"](model.parameters()), masks, model)
    train(model, optimizer, range(2))
    rest = {name: ~mask for name, mask in masks.union().items()}
    inverse = sm.TaskMasks(dict.fromkeys(masks, rest))
    optimizer.masks = inverse
    before = weights_of(model)
    train(model, optimizer, range(2, 4))
    assert optimizer.masks is inverse
    assert_held(model, before, inverse.union())


def test_masks_of_another_model_and_unknown_tasks_are_refused() -> None:
    model = network()
    masks = masks_of(model)
    with pytest.raises(ParameterError, match=r"has none of the model's parameters.*such as '0\.weight'"):
        MaskedOptimizer(OPTIMIZERS["sgd"](network().parameters()), masks, model)
    with pytest.raises(MaskError, match=r"parameter '0\.weight': the mask has shape \(6, 5\), the parameter \(3, 5\)"):
        MaskedOptimizer(OPTIMIZERS["sgd"](model.parameters()), masks, nn.Sequential(nn.Linear(5, 3)))
    optimizer = MaskedOptimizer(OPTIMIZERS["sgd"](model.parameters()), masks, model)
    before = weights_of(model)
    backward(model, 0)
    with pytest.raises(MaskError, match="unknown task 'd'"):
        optimizer.step(task="d")
    assert all(same_bits(p, before[name]) for name, p in model.named_parameters())


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@settings(deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS, st.booleans()), min_size=1, max_size=20), st.sampled_from(DTYPES))
def test_any_number_is_held_bit_for_bit_and_any_is_let_through(
    entries: list[tuple[float, float, bool]], dtype: torch.dtype
) -> None:
    old, new, kept = map(list, zip(*entries, strict=True))
    mask = torch.tensor(kept)
    weight = nn.Parameter(torch.tensor(old).to(dtype))
    before, after = weight.detach().clone(), torch.tensor(new).to(dtype)
    with freeze_outside_mask({"w": weight}, {"w": mask}), torch.no_grad():
        weight.copy_(after)
    assert same_bits(weight[~mask], before[~mask])
    assert same_bits(weight[mask], after[mask])


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7)])
def test_weights_are_held_in_parts(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemtl.networks.masked_product._PART", 3)
    weight, mask = nn.Parameter(torch.randn(shape)), torch.rand(shape) < 0.5
    before = weight.detach().clone()
    with freeze_outside_mask({"w": weight}, {"w": mask}), torch.no_grad():
        weight += 1
    assert same_bits(weight, torch.where(mask, before + 1, before))


def test_weights_are_held_in_any_memory_format() -> None:
    weight = nn.Parameter(torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last))
    mask, before = torch.rand(3, 4, 2, 2) < 0.5, weight.detach().clone()
    with freeze_outside_mask({"w": weight}, {"w": mask}), torch.no_grad():
        weight += 1
    assert torch.equal(weight, torch.where(mask, before + 1, before))
    assert weight.is_contiguous(memory_format=torch.channels_last)


@each("rows", [[], [0], [1, 4], [0, 1, 2, 3, 4]])
@each("memory_format", [torch.contiguous_format, torch.channels_last])
@each("dtype", DTYPES)
def test_whole_rows_are_held_bit_for_bit(
    dtype: torch.dtype, memory_format: torch.memory_format, rows: list[int]
) -> None:
    weight = nn.Parameter(torch.randn(5, 8, 2, 2).to(dtype).to(memory_format=memory_format))
    with torch.no_grad():
        weight[:, :3, 0, 0] = torch.tensor([torch.nan, torch.inf, -0.0], dtype=dtype)
    whole = torch.ones(weight.shape, dtype=torch.bool)
    whole[rows] = False
    part = whole.clone()
    part[0, 0] = not part[0, 0, 0, 0]
    before, memory = weight.detach().clone(), {}
    for mask in (whole, part, whole, part):
        with FreezeOutsideMask({"w": weight}, {"w": mask}, memory), torch.no_grad():
            weight += 1
        now = weight.detach().clone()
        assert same_bits(now[~mask], before[~mask])
        assert same_bits(now[mask], (before + 1)[mask])
        before = now


def test_nothing_is_copied_where_everything_may_move() -> None:
    weight, memory = nn.Parameter(torch.zeros(4, 20)), {}
    with FreezeOutsideMask({"w": weight}, {"w": torch.ones(4, 20, dtype=torch.bool)}, memory), torch.no_grad():
        weight += 1
    assert not memory
    assert bool((weight == 1).all())


def test_a_hold_serves_many_steps_and_shares_its_memory_with_others() -> None:
    weight, memory = nn.Parameter(torch.zeros(3)), {}
    first = FreezeOutsideMask({"w": weight}, {"w": torch.tensor([True, True, False])}, memory)
    second = FreezeOutsideMask({"w": weight}, {"w": torch.tensor([False, True, False])}, memory)
    for hold in (first, second, first, second, second):
        with hold, torch.no_grad():
            weight += 1
    assert weight.tolist() == [2.0, 5.0, 0.0]


def test_weights_are_held_where_the_step_fails_half_way() -> None:
    weight = nn.Parameter(torch.zeros(2))

    def step() -> None:
        weight.data += 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), freeze_outside_mask({"w": weight}, {"w": torch.tensor([True, False])}):
        step()
    assert weight.tolist() == [1.0, 0.0]


def test_without_a_mask_everything_may_move() -> None:
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    for active in (None, {"w": torch.tensor([False, False])}):
        with freeze_outside_mask({"w": weight, "v": other}, active), torch.no_grad():
            weight += 1
            other += 1
    assert weight.tolist() == [1.0, 1.0]
    assert other.tolist() == [2.0, 2.0]


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=10),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_schedulers_drive_it_like_the_optimizer_that_it_wraps(schedule: str) -> None:
    model, plain = network(), network()
    masks = sm.TaskMasks.ones(dict(model.named_parameters()), "a")
    optimizers = [MaskedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5), masks, model)]
    optimizers.append(torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.5))
    rates: list[list[float]] = []
    for one, optimizer in zip((model, plain), optimizers, strict=True):
        scheduler = SCHEDULERS[schedule](optimizer)
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "call optimizer.step() before lr_scheduler.step()"
            for seed in range(6):
                train(one, optimizer, [seed])
                scheduler.step(*([1.0] if schedule == "plateau" else []))
                seen.append(optimizer.param_groups[0]["lr"])
        rates.append(seen)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    assert all(map(same_bits, model.parameters(), plain.parameters()))


def scaled_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, seed: int, factor: float = 1.0, **options: Any
) -> None:
    optimizer.zero_grad()
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
    scaler.scale(model(x).square().mean() * factor).backward()
    scaler.step(optimizer, **options)
    scaler.update()


def test_a_gradient_scaler_steps_it_for_one_task_or_all() -> None:
    model = network()
    masks = masks_of(model)
    optimizer = MaskedOptimizer(OPTIMIZERS["adamw"](model.parameters()), masks, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for task in (None, "b"):
        before = weights_of(model)
        scaled_step(model, optimizer, scaler, 1, task=task)
        assert_held(model, before, masks.union() if task is None else masks[task])


def test_a_gradient_scaler_skips_the_step_of_infinite_gradients() -> None:
    model = network()
    optimizer = MaskedOptimizer(OPTIMIZERS["adamw"](model.parameters()), masks_of(model), model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights_of(model)
    scaled_step(model, optimizer, scaler, 1, factor=float("inf"))
    assert all(same_bits(p, before[name]) for name, p in model.named_parameters())
    assert scaler.get_scale() < 1024


@pytest.mark.parametrize("make", [lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3), OPTIMIZERS["sgd"]])
def test_closures_are_called_and_their_loss_comes_back(make: Make) -> None:
    model, plain = network(), network()
    masks = masks_of(model)
    optimizer, before = MaskedOptimizer(make(model.parameters()), masks, model), weights_of(model)

    def closure(one: nn.Module = model) -> Tensor:
        one.zero_grad()
        return backward(one, 0)

    expected = make(plain.parameters()).step(lambda: closure(plain))
    assert torch.equal(optimizer.step(closure, task="a"), expected)
    assert_held(model, before, dict(masks["a"]))


def test_a_group_added_later_is_trained() -> None:
    model, extra = network(), nn.Parameter(torch.ones(3))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = MaskedOptimizer(inner, masks_of(model), model)
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    extra.grad = torch.ones(3)
    optimizer.step()
    assert extra.tolist() == [0.5] * 3
    assert optimizer.param_groups is inner.param_groups
    assert len(optimizer.param_groups) == 2


def test_gradients_are_cleared_either_way() -> None:
    model = network()
    optimizer = MaskedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), masks_of(model), model)
    backward(model, 0)
    optimizer.zero_grad(set_to_none=False)
    assert not any(p.grad is None or p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@every_optimizer
def test_a_run_saved_and_loaded_goes_on_bit_for_bit(name: str) -> None:
    model = network()
    masks, before = masks_of(model), weights_of(model)
    optimizer = MaskedOptimizer(OPTIMIZERS[name](model.parameters()), masks, model)
    train(model, optimizer, range(3))
    state = deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(3, 6))
    resumed = network(seed=1)
    resumed.load_state_dict(state[0])
    again = MaskedOptimizer(OPTIMIZERS[name](resumed.parameters()), masks, resumed)
    again.load_state_dict(state[1])
    train(resumed, again, range(3, 6))
    assert all(map(same_bits, resumed.parameters(), model.parameters()))
    assert_held(resumed, before, masks.union())


@every_optimizer
def test_its_state_is_that_of_the_wrapped_optimizer(name: str) -> None:
    model = network()
    inner = OPTIMIZERS[name](model.parameters())
    optimizer = MaskedOptimizer(inner, masks_of(model), model)
    train(model, optimizer, range(2))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    assert str(optimizer.state_dict()) == str(inner.state_dict())
    assert repr(inner) in repr(optimizer)


def test_fabric_takes_it_for_an_optimizer() -> None:
    model = network()
    masks, before = masks_of(model), weights_of(model)
    fabric = Fabric(accelerator="cpu", devices=1)
    module = fabric.setup_module(model)
    optimizer = MaskedOptimizer(OPTIMIZERS["adamw"](model.parameters()), masks, model)
    stepped = fabric.setup_optimizers(optimizer)
    for seed in range(3):
        stepped.zero_grad()
        backward(module, seed)
        stepped.step()
    assert_held(model, before, masks.union())
    assert str(stepped.state_dict()) == str(optimizer.state_dict())


def shared_model() -> sm.SharedBottom:
    torch.manual_seed(2)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
    tasks = [sm.Classification("a", 3), sm.Regression("b")]
    return sm.SharedBottom(encoder, tasks, {"a": nn.Linear(6, 3), "b": nn.Linear(6, 1)})


def group(seed: int) -> Group:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 5, generator=generator)
    return Group(x, {"a": torch.randint(0, 3, (8,), generator=generator), "b": x.sum(1)}, ("a", "b"))


def by_the_step(update: Update, make: Make) -> tuple[sm.SharedBottom, Started]:
    model, sharing, balancer = shared_model(), sm.RandomSharing(keep=0.4, seed=5), as_balancer("mean")
    networks = sharing.start(model)
    balancer.attach(2, torch.device("cpu"))
    step = TrainingStep(model, make(model.parameters()), networks, sharing=sharing, balancing=balancer, update=update)
    started = Started.of(step)
    started.begin_epoch(0, [])
    for seed in range(5):
        step.step([[group(seed)]])
    return model, started


def by_hand(update: Update, make: Make, masks: sm.TaskMasks) -> sm.SharedBottom:
    """The loop that a user writes with the public pieces."""
    model = shared_model()
    norms = sm.TaskNorms(model)
    optimizer = MaskedOptimizer(make(model.parameters()), masks, model)
    for seed in range(5):
        batch = group(seed)
        optimizer.zero_grad()
        for name, task in model.tasks.items():
            with masks.applied(model, name), norms.applied(model, name):
                loss = task.loss(model(batch.x, tasks=(name,))[name], batch.targets[name])
            if update == "alternate":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step(task=name)
            else:
                (loss / 2).backward()
        if update == "average":
            optimizer.step()
    return model


@every_optimizer
@each("update", ["alternate", "average"])
def test_a_loop_of_ones_own_equals_the_engine_bit_for_bit(update: Update, name: str) -> None:
    trained, sharing = by_the_step(update, OPTIMIZERS[name])
    expected = by_hand(update, OPTIMIZERS[name], sharing.masks)
    for parameter, p in trained.named_parameters():
        assert same_bits(p, expected.get_parameter(parameter)), parameter
    assert sharing.masks.density() == pytest.approx(0.4, abs=0.01)
