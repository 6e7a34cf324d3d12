"""The training step against slow and obvious loops in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise, repeat
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import each
from policies import Started
from states import assert_same, state_of
from torch import Tensor, nn
from training_toys import apart, moved, shared, table, tasks

import sparsemtl as sm
from sparsemtl.balancing import as_balancer
from sparsemtl.errors import NonFiniteLossError, ParameterError
from sparsemtl.sharing.sharing import Update
from sparsemtl.tasks.batches import Group
from sparsemtl.tasks.own_losses import OwnLosses
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.step import TrainingStep

CPU = torch.device("cpu")
UPDATES: tuple[Update, ...] = ("joint", "average", "alternate")
MOVING = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}


def engine_of(
    model: sm.MultiTaskModel,
    update: Update = "joint",
    *,
    balancing: Any = "mean",
    sharing: sm.Sharing | None = None,
    clip: Callable[[], Any] | None = None,
    **options: Any,
) -> TrainingStep:
    """An engine on plain torch with SGD."""
    method = sharing or sm.DenseSharing()
    balancer = as_balancer(balancing)
    balancer.attach(len(model.tasks), CPU)
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], **(options or {"lr": 0.1}))
    backend = Backend(model, Tensor.backward, clip, CPU)
    networks = method.start(model)
    return TrainingStep(model, optimizer, networks, sharing=method, balancing=balancer, update=update, backend=backend)


def batch_of(names: str = "ab", rows: slice = slice(0, 8), dtype: torch.dtype = torch.float32) -> list[Group]:
    x, targets = table(dtype=dtype)
    return [Group(x[rows], {name: targets[name][rows] for name in names}, tuple(names))]


def unlabelled(groups: Sequence[Group], task: str) -> list[Group]:
    """The same batch without a label of one task."""
    missing = {"a": -100, "b": float("nan"), "c": float("nan")}[task]
    return [
        Group(g.x, {t: torch.full_like(y, missing) if t == task else y for t, y in g.targets.items()}, g.tasks)
        for g in groups
    ]


def plain_loss(task: str, output: Tensor, target: Tensor) -> Tensor:
    """The three losses as a textbook has them."""
    if task == "a":
        return F.cross_entropy(output, target, reduction="sum") / len(target)
    if task == "b":
        return ((output.squeeze(1) - target) ** 2).sum() / len(target)
    return F.binary_cross_entropy_with_logits(output, target, reduction="none").sum() / target.numel()


def losses_of(model: sm.MultiTaskModel, group: Group, names: Sequence[str]) -> list[Tensor]:
    outputs = model(group.x, tasks=list(names))
    return [plain_loss(name, outputs[name], group.targets[name]) for name in names]


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def slow_joint(model: sm.MultiTaskModel, optimizer: torch.optim.Optimizer, group: Group) -> None:
    optimizer.zero_grad()
    losses = losses_of(model, group, group.tasks)
    torch.stack([loss / len(losses) for loss in losses]).sum().backward()
    optimizer.step()


def slow_average(model: sm.MultiTaskModel, optimizer: torch.optim.Optimizer, group: Group) -> None:
    optimizer.zero_grad()
    for task in group.tasks:
        (losses_of(model, group, [task])[0] / len(group.tasks)).backward()
    optimizer.step()


def slow_alternate(model: sm.MultiTaskModel, optimizer: torch.optim.Optimizer, group: Group) -> None:
    for task in group.tasks:
        optimizer.zero_grad()
        losses_of(model, group, [task])[0].backward()
        optimizer.step()


SLOW = {"joint": slow_joint, "average": slow_average, "alternate": slow_alternate}


def batches(count: int) -> Iterator[list[Group]]:
    for i in range(count):
        yield batch_of(rows=slice(8 * i, 8 * i + 8))


@pytest.mark.parametrize("update", UPDATES)
def test_training_is_the_plain_loop_bit_for_bit(update: Update) -> None:
    model = shared(norm=True, dropout=0.3)
    reference = deepcopy(model)
    engine, optimizer = engine_of(model, update, **MOVING), torch.optim.SGD(reference.parameters(), **MOVING)
    for i, batch in enumerate(batches(4)):
        torch.manual_seed(i)
        engine.step([batch])
        torch.manual_seed(i)
        SLOW[update](reference, optimizer, batch[0])
    assert_same(state_of(model), state_of(reference))


@pytest.mark.parametrize("update", ["joint", "average"])
@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_the_gradient_is_the_mean_of_the_tasks_gradients(update: Update, names: str) -> None:
    model = shared(names, norm=True).double()
    batch = batch_of(names, dtype=torch.float64)
    everything = list(model.parameters())
    apart_gradients = [
        torch.autograd.grad(losses_of(model, batch[0], [task])[0], everything, materialize_grads=True) for task in names
    ]
    engine_of(model, update).step([batch])
    for parameter, *rows in zip(everything, *apart_gradients, strict=True):
        torch.testing.assert_close(parameter.grad, torch.stack(rows).mean(0), rtol=1e-6, atol=1e-12)


def masked_gradient(model: sm.MultiTaskModel, group: Group, task: str, masks: sm.TaskMasks, forward: bool) -> Any:
    """S_t * g_t by `functional_call` and `autograd.grad`, a path of its own."""
    leaves = {name: p.detach().requires_grad_() for name, p in model.shared_parameters().items()}
    used = {
        name: leaf * masks[task][name] if forward and name in masks[task] else leaf for name, leaf in leaves.items()
    }
    output = torch.func.functional_call(model, used, (group.x,), {"tasks": (task,)})[task]
    rows = torch.autograd.grad(plain_loss(task, output, group.targets[task]), list(leaves.values()))
    return {n: row * masks[task][n] if n in masks[task] else row for n, row in zip(leaves, rows, strict=True)}


@pytest.mark.parametrize("mask_applies_to", ["weights", "gradients"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0)])
def test_the_shared_gradient_is_the_weighted_sum_of_masked_gradients(
    mask_applies_to: Any, weights: tuple[float, float]
) -> None:
    model = shared(a=weights[0], b=weights[1]).double()
    sharing = sm.RandomSharing(keep=0.4, mask_applies_to=mask_applies_to)
    engine = engine_of(model, "average", sharing=sharing, balancing="sum")
    Started.of(engine).begin_epoch(0, ())
    batch = batch_of(dtype=torch.float64)
    rows = [
        masked_gradient(model, batch[0], task, engine.networks.masks, mask_applies_to == "weights") for task in "ab"
    ]
    engine.step([batch])
    for name, parameter in model.shared_parameters().items():
        expected = weights[0] * rows[0][name] + weights[1] * rows[1][name]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-12)


def test_gradient_masks_work_in_one_forward_too() -> None:
    gradient = {}
    for update in ("joint", "average"):
        model = shared().double()
        sharing = sm.RandomSharing(keep=0.4, mask_applies_to="gradients", update=update, seed=3)
        engine = engine_of(model, update, sharing=sharing)
        Started.of(engine).begin_epoch(0, ())
        engine.step([batch_of(dtype=torch.float64)])
        gradient[update] = gradients(model)
    for name, expected in gradient["average"].items():
        torch.testing.assert_close(gradient["joint"][name], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("update", UPDATES)
def test_a_task_of_weight_zero_teaches_nothing(update: Update) -> None:
    model, reference = shared(b=0.0), shared()
    before = state_of(model)
    engine_of(model, update).step([batch_of()])
    assert moved(before, state_of(model)).isdisjoint({"heads.b.weight", "heads.b.bias"})
    engine_of(reference, update).step([unlabelled(batch_of(), "b")])
    assert_same(state_of(model), state_of(reference))


def step_on(model: sm.MultiTaskModel, update: Update, balancing: Any, parts: list[list[Group]]) -> TrainingStep:
    engine = engine_of(model.double(), update, balancing=balancing)
    torch.manual_seed(5)
    engine.step(parts)
    return engine


@each(
    ("update", "balancing"),
    [
        *zip(UPDATES, repeat("mean")),
        *[(update, name) for update in ("joint", "average") for name in ("uncertainty", "imtl-l", "mgda", "pcgrad")],
    ],
)
def test_accumulated_batches_are_one_large_batch(update: Update, balancing: str) -> None:
    accumulated, large = shared(), shared()
    parts = [batch_of(rows=slice(i, i + 6), dtype=torch.float64) for i in (0, 6, 12)]
    one = step_on(accumulated, update, balancing, parts)
    other = step_on(large, update, balancing, [batch_of(rows=slice(0, 18), dtype=torch.float64)])
    for name, expected in state_of(large).items():
        torch.testing.assert_close(state_of(accumulated)[name], expected, rtol=1e-6, atol=1e-9, msg=name)
    for mine, yours in zip(one.balancer.parameters(), other.balancer.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("update", "steps"), [("joint", 1), ("average", 1), ("alternate", 2)])
def test_gradients_are_clipped_once_before_every_step(update: Update, steps: int) -> None:
    model = shared()
    norms: list[float] = []

    def clip() -> None:
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.01)))
        assert moved(seen[-1], state_of(model)) == set()

    seen = [state_of(model)]
    engine = engine_of(model, update, clip=clip, lr=1.0)
    step = engine.optimizer.step

    def remembered() -> None:
        step()
        seen.append(state_of(model))

    engine.optimizer.step = remembered  # type: ignore[method-assign]
    engine.step([batch_of()])
    assert len(norms) == steps
    assert min(norms) > 0.01
    for before, after in pairwise(seen):
        distance = sum(float(((after[name] - before[name]) ** 2).sum()) for name in before) ** 0.5
        assert distance == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("update", UPDATES)
def test_the_head_of_a_task_without_a_label_rests_and_so_do_its_momentum_and_decay(update: Update) -> None:
    model = shared(norm=True)
    engine = engine_of(model, update, **MOVING)
    engine.step([batch_of()])
    before = state_of(model)
    result = engine.step([unlabelled(batch_of(), "b")])
    changed = moved(before, state_of(model))
    assert {name for name in before if name.startswith("heads.b")}.isdisjoint(changed)
    assert {"heads.a.weight", "encoder.0.weight"} <= changed
    assert list(result.losses) == ["a"]


@pytest.mark.parametrize("update", ["joint", "average"])
@pytest.mark.parametrize("missing", ["a", "b", "c"])
def test_a_task_without_a_label_adds_exactly_nothing(update: Update, missing: str) -> None:
    present = "abc".replace(missing, "")
    model, reference = shared("abc"), shared("abc")
    engine_of(model, update).step([unlabelled(batch_of("abc"), missing)])
    group = batch_of("abc")[0]
    losses = losses_of(reference, group, present)
    if update == "joint":
        sum(loss * (1 / 3) for loss in losses).backward()  # type: ignore[union-attr]
    else:
        for task in present:
            (losses_of(reference, group, task)[0] * (1 / 3)).backward()
    assert_same(gradients(model), gradients(reference))


def test_samples_without_a_label_add_exactly_nothing() -> None:
    half, whole = shared("b"), shared("b")
    x, targets = table()
    gone = targets["b"].clone()
    gone[4:] = float("nan")
    engine_of(half).step([[Group(x[:8], {"b": gone[:8]}, ("b",))]])
    engine_of(whole).step([[Group(x[:4], {"b": targets["b"][:4]}, ("b",))]])
    for name, expected in gradients(whole).items():
        torch.testing.assert_close(gradients(half)[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("update", "balancing"),
    [*zip(UPDATES, repeat("mean")), *zip(repeat("joint"), ["uncertainty", "dwa", "mgda", "famo"])],
)
def test_a_batch_without_any_label_moves_nothing(update: Update, balancing: str) -> None:
    model = shared()
    engine = engine_of(model, update, balancing=balancing, **MOVING)
    engine.step([batch_of()])
    before = state_of(model), engine.balancer.state_dict()
    result = engine.step([unlabelled(unlabelled(batch_of(), "a"), "b")])
    assert_same((state_of(model), engine.balancer.state_dict()), before)
    assert result.losses == {}


@pytest.mark.parametrize("update", UPDATES)
def test_tasks_with_inputs_of_their_own_train_on_them_only(update: Update) -> None:
    groups = [batch_of("a", slice(0, 5))[0], batch_of("b", slice(20, 32))[0]]
    model, reference = shared(norm=True), shared(norm=True)
    optimizer = torch.optim.SGD(reference.parameters(), **MOVING)
    result = engine_of(model, update, **MOVING).step([groups])
    for group in groups:
        loss = losses_of(reference, group, group.tasks)[0]
        (loss if update == "alternate" else loss / 2).backward()
        if update == "alternate":
            optimizer.step()
            optimizer.zero_grad()
    if update != "alternate":
        optimizer.step()
    for name, expected in state_of(reference).items():
        torch.testing.assert_close(state_of(model)[name], expected, rtol=1e-5, atol=1e-7)
    assert result.samples == 5 + 12


def test_a_group_leaves_the_heads_of_other_tasks_alone() -> None:
    model = shared(norm=True)
    before = state_of(model)
    engine_of(model, "average", **MOVING).step([[batch_of("b")[0]]])
    assert {name for name in moved(before, state_of(model)) if "heads" in name} == {"heads.b.weight", "heads.b.bias"}


@each("update", ["joint", "average"])
@each("task", ["a", "b"])
@each("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_moved(update: Update, task: str, value: float) -> None:
    model = shared()
    engine = engine_of(model, update, **MOVING)
    engine.step([batch_of()])
    before = state_of(model), deepcopy(engine.optimizer.state_dict())
    engine.tasks[task]._losses = OwnLosses("t", lambda output, target: output.sum() * value, None)
    with pytest.raises(NonFiniteLossError, match=rf"the loss of task '{task}' is .*at epoch 3, batch 2, step 9"):
        engine.step([batch_of(), batch_of()], "epoch 3, batch 2, step 9")
    assert_same((state_of(model), engine.optimizer.state_dict()), before)


def test_in_turns_only_the_tasks_before_a_broken_one_have_moved() -> None:
    model, reference = shared(), shared()
    engine_of(reference, "alternate").step([unlabelled(batch_of(), "b")])
    engine = engine_of(model, "alternate")
    engine.tasks["b"]._losses = OwnLosses("t", lambda output, target: output.sum() * float("nan"), None)
    with pytest.raises(NonFiniteLossError, match=r"the loss of task 'b' is nan\. .* A smaller learning rate"):
        engine.step([batch_of()])
    assert_same(state_of(model), state_of(reference))


def test_a_weight_that_is_not_finite_stops_before_anything_moved() -> None:
    model = shared()
    engine = engine_of(model, balancing="geometric-mean")
    before = state_of(model)
    engine.tasks["b"]._losses = OwnLosses("t", lambda output, target: output.sum() * 0, None)
    with pytest.raises(NonFiniteLossError, match=r"the balancer's weight of task '.' is .*at epoch 1"):
        engine.step([batch_of()], "epoch 1")
    assert_same(state_of(model), before)


@pytest.mark.parametrize("balancing", ["uncertainty", "dwa", "random", "famo", "mgda", "pcgrad"])
def test_a_balancer_that_combines_is_refused_where_tasks_take_turns(balancing: str) -> None:
    with pytest.raises(ParameterError, match=r"one task at a time.*Use update='average'"):
        engine_of(shared(), "alternate", balancing=balancing)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_in_turns_only_the_ratio_of_constant_weights_counts(scale: float) -> None:
    from torchjd.scalarization import Constant

    model = shared()
    engine = engine_of(model, "alternate", balancing=Constant(torch.tensor([1.0, 3.0]) * scale))
    assert engine.step([batch_of()]).weights == pytest.approx({"a": 0.5, "b": 1.5})


def test_one_task_has_nobody_to_take_turns_with() -> None:
    states = []
    for update in UPDATES:
        model = shared("b", norm=True)
        engine_of(model, update, balancing="uncertainty").step([batch_of("b")])
        states.append(state_of(model))
    assert_same(states[0], states[1])
    assert_same(states[0], states[2])


def test_a_step_tells_the_mean_loss_over_the_batches_in_which_a_task_had_a_label() -> None:
    full, lacking = batch_of(rows=slice(0, 8)), unlabelled(batch_of(rows=slice(8, 14)), "b")
    for update in UPDATES:
        model = shared()
        with torch.no_grad():
            expected = [
                [float(loss) for loss in losses_of(model, group, "ab")]
                for group in (full[0], batch_of(rows=slice(8, 14))[0])
            ]
        result = engine_of(model, update, lr=1e-12).step([full, lacking])
        assert result.losses == pytest.approx({"a": (expected[0][0] + expected[1][0]) / 2, "b": expected[0][1]})
        assert result.samples == 14


class Penalised(sm.DenseSharing):
    """Dense, with a term of its own for one task, and a count of the steps that it followed."""

    steps = 0

    def penalty(self, model: sm.MultiTaskModel, networks: Any, task: str) -> Tensor | None:
        weight = model.shared_parameters()["encoder.0.weight"]
        return 0.3 * (weight**2).sum() if task == "b" else None

    def after_step(self, model: Any, networks: Any, optimizer: Any, weights: Any) -> None:
        self.steps += 1


@pytest.mark.parametrize(("update", "steps"), [("joint", 1), ("average", 1), ("alternate", 2)])
def test_a_penalty_adds_to_its_tasks_loss_and_every_step_is_followed(update: Update, steps: int) -> None:
    model, plain = shared().double(), shared().double()
    sharing = Penalised()
    pull = 0.6 * model.shared_parameters()["encoder.0.weight"].detach()
    before = model.shared_parameters()["encoder.0.weight"].detach().clone()
    result = engine_of(model, update, sharing=sharing, lr=1.0).step([batch_of(dtype=torch.float64)])
    expected = engine_of(plain, update, lr=1.0).step([batch_of(dtype=torch.float64)])
    assert sharing.steps == steps
    assert result.losses["a"] == expected.losses["a"]
    if update != "alternate":
        assert result.losses == expected.losses
        difference = plain.state_dict()["encoder.0.weight"] - model.state_dict()["encoder.0.weight"]
        torch.testing.assert_close(difference, pull / 2)
    assert not torch.equal(before, model.state_dict()["encoder.0.weight"])


@pytest.mark.parametrize("update", ["average", "alternate"])
def test_a_strict_method_holds_what_the_tasks_of_a_step_do_not_keep(update: Update) -> None:
    model = shared(norm=True)
    sharing = sm.RandomSharing(keep=0.3, seed=1)
    engine = engine_of(model, update, sharing=sharing, **MOVING)
    everything = engine.networks
    engine.begin_epoch(0, ())
    chosen, engine.networks = engine.networks, everything
    engine.step([batch_of()])  # moments everywhere
    engine.networks = chosen
    before = state_of(model)
    engine.step([unlabelled(batch_of(), "b")])
    for name, mask in engine.networks.masks["a"].items():
        still = model.state_dict()[name] == before[name]
        assert bool(still[~mask].all())
        assert not bool(still[mask].all())


def test_rows_of_gradients_come_in_the_tasks_order_whatever_task_came_first() -> None:
    from torchjd.aggregation import Constant

    model, reference = shared().double(), shared().double()
    full = batch_of(dtype=torch.float64)
    windows = [unlabelled(full, "a"), full]
    engine_of(model, "joint", balancing=Constant(torch.tensor([1.0, 3.0], dtype=torch.float64))).step(windows)
    losses_a, losses_b = losses_of(reference, full[0], "ab")
    (losses_a / 2 + 3 * losses_b).backward()
    for name, parameter in reference.shared_parameters().items():
        torch.testing.assert_close(model.shared_parameters()[name].grad, parameter.grad)


@pytest.mark.parametrize("update", ["joint", "average"])
def test_networks_that_share_nothing_train_as_without_an_aggregator(update: Update) -> None:
    model, reference = apart(), apart()
    engine_of(model, update, balancing="mgda").step([batch_of()])
    engine_of(reference, update, balancing="sum").step([batch_of()])
    assert_same(state_of(model), state_of(reference))


def test_a_task_that_has_no_label_enters_the_balancing_with_its_last_loss() -> None:
    engine = engine_of(shared(), "joint", balancing="geometric-mean", lr=1e-12)
    first = engine.step([batch_of()]).losses
    result = engine.step([unlabelled(batch_of(), "b")])
    mean = (result.losses["a"] * first["b"]) ** 0.5
    assert result.weights["a"] == pytest.approx(mean / (2 * result.losses["a"]))


def test_what_an_engine_remembers_survives_a_checkpoint() -> None:
    model = shared()
    engine = engine_of(model, "joint", balancing="dwa")
    engine.step([batch_of()])
    other = engine_of(shared(), "joint", balancing="dwa")
    other.load_state_dict(engine.state_dict())
    assert other.state_dict() == engine.state_dict()
    assert engine.state_dict()["last_losses"]["b"] > 0


def test_tasks_may_read_the_same_target() -> None:
    model = sm.SharedBottom(nn.Linear(6, 5), [*tasks("b"), sm.Regression("again", target="b")])
    x, targets = table()
    result = engine_of(model).step([[Group(x, {"b": targets["b"]}, ("b", "again"))]])
    assert set(result.losses) == {"b", "again"}


def test_what_is_no_networks_is_refused() -> None:
    model = shared()
    with pytest.raises(ParameterError, match=r"`networks` must be TaskNetworks, such as .*, got None"):
        TrainingStep(model, torch.optim.SGD(model.parameters()), None)  # type: ignore[arg-type]


def test_one_forward_pass_for_tasks_with_networks_of_their_own_is_refused() -> None:
    model = shared()
    networks = sm.RandomSharing(keep=0.5).start(model)
    with pytest.raises(ParameterError, match=r"each task has a network of its own\. Use update='average'"):
        TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1), networks, update="joint")
