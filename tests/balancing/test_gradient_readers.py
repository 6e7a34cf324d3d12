"""GradNorm and MGDA-UB: balancers that read the tasks' gradients at a target and weigh the losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from policies import Started
from test_balancers import CPU, batch_of, engine_of, model_of, state_of
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS, GradNorm
from sparsemtl.balancing.targets import SharedLayer, shared_layer
from sparsemtl.errors import NonFiniteLossError, ParameterError
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.step import TrainingStep
from sparsemtl.training.steps.task_gradients import TaskGradients


def attached(name: str, count: int, **parameters: Any) -> Any:
    balancer = BALANCERS.build(name, **parameters)
    balancer.attach(count, CPU)
    return balancer


def losses_of(model: sm.MultiTaskModel, group: Group) -> dict[str, Tensor]:
    outputs = model(group.x)
    return {name: task.loss(outputs[name], group.targets[name]) for name, task in model.tasks.items()}


def plain_gradients(model: sm.MultiTaskModel, group: Group, weights: Tensor) -> list[Tensor]:
    """Gradients of the weighted sum of the losses, by autograd alone."""
    total = sum(w * loss for w, loss in zip(weights, losses_of(model, group).values(), strict=True))
    return list(torch.autograd.grad(total, list(model.parameters())))


# GradNorm


def observed(balancer: Any, losses: Tensor, rows: Tensor, present: Tensor | None = None) -> Tensor:
    """The weights after a step with these losses and gradients."""
    here = torch.ones(len(losses), dtype=torch.bool) if present is None else present
    balancer.observe_gradients(losses, rows, here)
    balancer.end_step()
    return balancer.weights(losses)


def test_the_closed_form_is_the_gradient_of_the_formula() -> None:
    torch.manual_seed(0)
    balancer, w = attached("gradnorm", 3, alpha=0.7), torch.tensor([0.5, 1.2, 1.3])
    balancer._w.data.copy_(w)
    first, losses, rows = torch.rand(3) + 0.5, torch.rand(3) + 0.1, torch.randn(3, 6)
    balancer._first = first
    free = w.clone().requires_grad_()
    sizes = (free[:, None] * rows).norm(dim=1)
    relative = losses / first
    goals = (sizes.mean() * (relative / relative.mean()) ** 0.7).detach()
    (expected,) = torch.autograd.grad((sizes - goals).abs().sum(), free)
    found = balancer._slopes(rows.norm(dim=1), losses, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(found, expected)


def test_weights_sum_to_the_number_of_tasks_after_each_step() -> None:
    torch.manual_seed(0)
    balancer = attached("gradnorm", 4, lr=0.3)
    for _ in range(20):
        weights = observed(balancer, torch.rand(4) + 0.1, torch.randn(4, 5) * torch.tensor([[9.0], [1], [1], [0.1]]))
        assert float(weights.sum()) == pytest.approx(4.0, rel=1e-5)
        assert bool((weights > 0).all())
    assert bool(weights[0] < weights[3])  # the largest gradient weighs least


def test_equal_norms_and_equal_relative_losses_leave_the_weights_alone() -> None:
    balancer = attached("gradnorm", 3)
    rows = torch.eye(3) * 2.0
    for factor in (1.0, 0.5, 0.25):
        assert torch.equal(observed(balancer, torch.tensor([1.0, 2.0, 4.0]) * factor, rows), torch.ones(3))


def test_one_task_keeps_its_weight() -> None:
    balancer = attached("gradnorm", 1)
    for loss in (1.0, 0.3):
        assert observed(balancer, torch.tensor([loss]), torch.randn(1, 4)).item() == pytest.approx(1.0)


def test_a_task_without_a_label_keeps_its_weight_and_its_first_loss() -> None:
    torch.manual_seed(0)
    balancer = attached("gradnorm", 3)
    observed(balancer, torch.tensor([1.0, 1.0, 1.0]), torch.randn(3, 4), torch.tensor([True, False, True]))
    assert balancer._first.isnan().tolist() == [False, True, False]
    before = balancer.weights(torch.ones(3)).clone()
    after = observed(balancer, torch.tensor([0.9, 5.0, 0.1]), torch.randn(3, 4), torch.tensor([True, False, True]))
    assert after[1] == before[1] == 1.0
    assert not torch.equal(after, before)
    assert float(after.sum()) == pytest.approx(3.0)


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_first_loss_that_is_not_positive_is_an_error(loss: float) -> None:
    with pytest.raises(NonFiniteLossError, match="gradnorm divides each task's loss by its first one"):
        observed(attached("gradnorm", 2), torch.tensor([1.0, loss]), torch.randn(2, 3))


@pytest.mark.parametrize("update", ["joint", "average"])
def test_the_step_goes_down_the_weighted_losses_then_moves_the_weights(update: Any) -> None:
    model = model_of("abc")
    balancer = GradNorm(lr=0.1)
    engine = engine_of(model, balancer, update)
    for seed in range(3):
        (group,) = batch_of("abc", seed)
        weights = balancer.weights(torch.ones(3, dtype=torch.float64))
        layer = model.get_parameter("encoder.0.weight")
        losses = losses_of(model, group)
        norms = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in losses.values()]
        expected = plain_gradients(model, group, weights)
        slopes = GradNorm._slopes  # the weights of the next step follow from these norms
        result = engine.step([[group]])
        assert list(result.weights.values()) == pytest.approx(weights.tolist())
        for p, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-9)
        first = balancer._first.double()
        balancer._w.data, moved = weights.float(), balancer._w.detach().clone()
        row = torch.stack([loss.detach() for loss in losses.values()]).float()
        found = slopes(balancer, torch.stack(norms).float(), row, torch.ones(3, dtype=torch.bool))
        torch.testing.assert_close(balancer._w.grad, found, rtol=1e-4, atol=1e-6)
        balancer._w.data = moved
        assert bool(first.isfinite().all())


def test_batches_that_accumulate_are_one_step_of_the_whole_batch() -> None:
    whole, parts = model_of("ab"), model_of("ab")
    (group,) = batch_of("ab")
    halves = [[Group(group.x[i::2], {t: y[i::2] for t, y in group.targets.items()}, group.tasks)] for i in (0, 1)]
    one, other = GradNorm(), GradNorm()
    engine_of(whole, one).step([[group]])
    engine_of(parts, other).step(halves)
    torch.testing.assert_close(one.weights(torch.ones(2)), other.weights(torch.ones(2)))
    assert_close(state_of(whole), state_of(parts))


def test_rows_take_the_memory_of_rows_that_are_gone_and_of_no_others() -> None:
    model, (group,) = model_of("ab"), batch_of("ab")
    networks = sm.DenseSharing().start(model)
    gradients = TaskGradients(model, shared_layer(model, None), "joint", Backend.of(model))

    def rows(*tasks: str) -> Tensor:
        losses = {task: loss for task, loss in losses_of(model, group).items() if task in tasks}
        found = gradients.rows(losses, networks)
        assert found is not None
        return found

    first = rows("a", "b")
    before, place = first.clone(), first.data_ptr()
    second = rows("b")
    assert torch.equal(first, before)
    assert not second[0].any()
    assert torch.equal(second[1], before[1])
    del first
    third = rows("a")
    assert third.data_ptr() == place
    assert torch.equal(third[0], before[0])
    assert not third[1].any()


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-9, atol=1e-12)


class Unused(nn.Module):
    """An encoder whose last layer is not part of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.pooler = nn.Linear(6, 6)
        self.out_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))


def unused_model() -> sm.SharedBottom:
    torch.manual_seed(0)
    return sm.SharedBottom(Unused(), [sm.Classification("a", 3), sm.Regression("b")]).double()


def test_the_default_layer_is_the_last_that_the_losses_depend_on() -> None:
    model = unused_model()
    assert shared_layer(model, None) == SharedLayer((("encoder.pooler.weight",), ("encoder.first.weight",)))
    engine = engine_of(model, GradNorm())
    engine.step([batch_of("ab")])
    assert engine._observed is not None
    (weight,) = engine._observed._weights
    assert weight is model.get_parameter("encoder.first.weight")


def test_a_named_layer_that_the_losses_do_not_depend_on_is_an_error() -> None:
    with pytest.raises(ParameterError, match=r"task 'a': its loss does not depend on 'encoder.pooler.weight'"):
        engine_of(unused_model(), GradNorm(layer="encoder.pooler")).step([batch_of("ab")])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("encoder.frist", r"unknown layer 'encoder.frist'. Did you mean 'encoder.first'\?"),
        ("heads.a", r"layer 'heads.a' has no trained weight that all tasks use. Layers with one: encoder.first"),
        ("encoder.norm", r"layer 'encoder.norm' has no trained weight that all tasks use"),
    ],
)
def test_a_layer_that_tasks_do_not_share_is_refused_before_training(layer: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        engine_of(unused_model(), GradNorm(layer=layer))


def test_a_frozen_encoder_is_refused_before_training() -> None:
    model = unused_model()
    model.encoder.requires_grad_(False)
    with pytest.raises(ParameterError, match="SharedBottom has no trained weight that all of its tasks use"):
        engine_of(model, GradNorm())


def test_it_must_be_attached_first() -> None:
    with pytest.raises(RuntimeError, match=r"not attached yet; call attach\(tasks, device\)"):
        GradNorm().observe_gradients(torch.ones(2), torch.ones(2, 3), torch.ones(2, dtype=torch.bool))


# MGDA-UB


def weights_of(rows: Tensor, losses: Tensor | None = None, *, normalise: Any = "none") -> Tensor:
    balancer = attached("mgda-ub", len(rows), normalise=normalise)
    losses = torch.ones(len(rows), dtype=rows.dtype) if losses is None else losses
    balancer.observe_gradients(losses, rows, torch.ones(len(rows), dtype=torch.bool))
    return balancer.weights(losses)


def random_rows(tasks: int, seed: int = 0) -> Tensor:
    return torch.randn(tasks, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_weights_are_the_minimum_norm_point(tasks: int) -> None:
    for seed in range(5):
        rows = random_rows(tasks, seed) + 0.3
        weights = weights_of(rows)
        assert bool((weights >= 0).all())
        assert float(weights.sum()) == pytest.approx(1.0)
        point = weights @ rows
        assert bool((rows @ point >= point @ point - 1e-5).all())


def test_two_tasks_have_their_closed_form() -> None:
    a, b = random_rows(2, 1)
    first = float(((b - a) @ b / (b - a).square().sum()).clamp(0, 1))
    assert weights_of(torch.stack([a, b])).tolist() == pytest.approx([first, 1 - first])


def test_orthogonal_gradients_of_one_length_weigh_the_same() -> None:
    assert weights_of(torch.eye(4, dtype=torch.float64) * 3).tolist() == pytest.approx([0.25] * 4)


def test_a_gradient_of_zero_has_all_the_weight() -> None:
    rows = random_rows(3)
    rows[1] = 0
    for normalise in ("none", "l2", "loss", "loss+"):
        assert weights_of(rows, normalise=normalise).tolist() == pytest.approx([0.0, 1.0, 0.0])


def test_gradients_are_divided_by_norms_and_losses() -> None:
    rows, losses = random_rows(3) * torch.tensor([[1.0], [5.0], [0.2]]), torch.tensor([2.0, 0.5, 4.0]).double()
    norms = rows.norm(dim=1)
    for normalise, divisors in {"l2": norms, "loss": losses, "loss+": norms * losses}.items():
        expected = weights_of(rows / divisors[:, None])
        torch.testing.assert_close(weights_of(rows, losses, normalise=normalise), expected)


def test_the_step_weighs_losses_by_their_gradients_at_the_representation() -> None:
    model = model_of("abc")
    (group,) = batch_of("abc")
    features = model.encoder(group.x).detach().requires_grad_()
    rows = [
        torch.autograd.grad(task.loss(model.heads[name](features), group.targets[name]), features)[0].flatten()
        for name, task in model.tasks.items()
    ]
    weights = weights_of(torch.stack(rows))
    expected = plain_gradients(model, group, weights)
    result = engine_of(model, BALANCERS.build("mgda-ub")).step([[group]])
    assert list(result.weights.values()) == pytest.approx(weights.tolist())
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-9)


def test_masked_gradients_of_one_forward_pass_are_masked_after_weighing() -> None:
    model = model_of("abc")
    sharing = sm.RandomSharing(keep=0.4, mask_applies_to="gradients", seed=2)
    engine = engine_of(model, BALANCERS.build("mgda-ub"), "joint", sharing)
    Started.of(engine).begin_epoch(0, ())
    (group,) = batch_of("abc")
    weight = model.get_parameter("encoder.0.weight")
    masks = [engine.networks[task].gradient_mask["encoder.0.weight"] for task in "abc"]
    rows = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses_of(model, group).values()]
    result = engine.step([[group]])
    expected = sum(w * mask * row for w, mask, row in zip(result.weights.values(), masks, rows, strict=True))
    torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("update", ["average", None])
def test_tasks_with_networks_of_their_own_are_refused_before_training(update: Any) -> None:
    with pytest.raises(ParameterError, match=r"one representation of all tasks, the output of 'encoder', but with"):
        engine_of(model_of("abc"), BALANCERS.build("mgda-ub"), update, sm.RandomSharing(keep=0.5))


def test_data_of_each_tasks_own_are_refused() -> None:
    x = torch.rand(8, 4)
    loaders = {"a": [(x, torch.arange(8) % 3)], "b": [(x, torch.rand(8))]}
    trainer = sm.Trainer(model_of("ab").float(), balancing="mgda-ub", epochs=1, progress=False)
    with pytest.raises(ParameterError, match="Use a balancer of the shared weights' gradients, such as `mgda`"):
        trainer.fit(loaders, loaders)


def test_an_architecture_without_a_common_representation_is_refused_before_training() -> None:
    encoder = nn.Sequential(nn.Linear(4, 6))
    model = sm.CrossStitch(encoder, [sm.Classification("a", 3), sm.Regression("b")])
    with pytest.raises(ParameterError, match="CrossStitch has no common representation, one module whose output all"):
        engine_of(model, BALANCERS.build("mgda-ub"))


class Pyramid(nn.Module):
    """An encoder with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x).tanh()
        return {"low": low, "high": self.high(low)}


class Reads(nn.Module):
    def __init__(self, key: str, width: int, out: int) -> None:
        super().__init__()
        self.key, self.linear = key, nn.Linear(width, out)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.linear(features[self.key])


def test_a_representation_may_be_a_nest_of_tensors() -> None:
    torch.manual_seed(0)
    heads = {"a": Reads("low", 5, 3), "b": Reads("high", 3, 1)}
    model = sm.SharedBottom(Pyramid(), [sm.Classification("a", 3), sm.Regression("b")], heads).double()
    result = engine_of(model, BALANCERS.build("mgda-ub")).step([batch_of("ab")])
    assert sum(result.weights.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["gradnorm", "mgda-ub"])
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_all_precisions_train(name: str, precision: Any) -> None:
    x, targets = torch.randn(16, 4), {"a": torch.arange(16) % 3, "b": torch.randn(16)}
    trainer = sm.Trainer(
        model_of().float(), balancing=name, epochs=2, accelerator="cpu", progress=False, precision=precision
    )
    trainer.fit([(x, targets)], [(x, targets)])
    assert all(math.isfinite(float(p.detach().sum())) for p in trainer.model.parameters())


def test_a_gradient_scaler_scales_nothing_that_a_balancer_reads() -> None:
    """The rows are those of the losses as they are, and none if they overflow."""
    model = model_of("ab").float()
    balancer, seen = GradNorm(), []
    balancer.observe_gradients = lambda losses, rows, present: seen.append(rows)  # type: ignore[method-assign]
    balancer.attach(2, CPU)
    for factor in (1.0, 2.0**10, math.inf):
        backend = Backend(
            model,
            lambda loss, factor=factor, **options: (loss * factor).backward(**options),
            None,
            CPU,
            True,
            lambda factor=factor: factor,
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step = TrainingStep(model, optimizer, sm.DenseSharing().start(model), balancing=balancer, backend=backend)
        (group,) = batch_of("ab")
        step.step(
            [[Group(group.x.float(), {t: y if t == "a" else y.float() for t, y in group.targets.items()}, group.tasks)]]
        )
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1])
