"""Training on slices: losses and gradients of masked execution, from the weights that a task's mask keeps."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sparsemtl as sm
from sparsemtl.compaction.slices.slicing import NumberedModel
from sparsemtl.errors import CompactionWarning
from sparsemtl.networks.task_networks import TaskNetwork

TASKS = ("left", "right")


def labels(count: int = 6) -> dict[str, Tensor]:
    return {task: torch.arange(count) % (2 + place) for place, task in enumerate(TASKS)}


def tasks() -> list[sm.Task]:
    return [sm.Classification(task, 2 + place) for place, task in enumerate(TASKS)]


class Attention(nn.Module):
    """Transformer in front of whose heads stands a norm, and a mean over tokens."""

    def __init__(self, width: int = 8, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.layer = nn.TransformerEncoderLayer(width, heads, 12, dropout, batch_first=True, norm_first=True)
        self.out_features = width

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embed(x)).mean(1)


class Checkpointed(nn.Sequential):
    """Layers whose activations are computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two convolutions beside a shortcut, behind a first one."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=False) for c in (3, width, width))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.out_features = width

    def forward(self, x: Tensor) -> Tensor:
        first, inner, last = (lambda y, c=c, n=n: n(c(y)) for c, n in zip(self.convs, self.norms, strict=True))
        stream = torch.relu(first(x))
        return torch.relu(last(torch.relu(inner(stream))) + stream).mean((2, 3))


class Bare(nn.Module):
    """Encoder that multiplies by matrices of its own, (outputs, inputs) and (inputs, outputs), behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 12), nn.Linear(6, 10)
        self.first, self.second = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(8, 6))
        self.bias = nn.Parameter(torch.randn(8))
        self.out_features = 10

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(torch.relu(self.layer(x)) @ self.first.t() + self.bias)
        return torch.relu(self.last(hidden @ self.second))


def mlp(kind: type[nn.Sequential] = nn.Sequential, *extra: nn.Module) -> nn.Sequential:
    layers = nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), *extra, nn.Linear(12, 10), nn.GELU()
    return kind(*layers)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (mlp, (4,), "channel"),
    "bare": (Bare, (4,), "channel"),
    "checkpointed": (lambda: mlp(Checkpointed), (4,), "channel"),
    "residual": (Residual, (3, 8, 8), "channel"),
    "heads": (Attention, (5, 3), "head"),
    "neurons": (Attention, (5, 3), "neuron"),
}
"""Name -> encoder, shape of a sample, units."""


def model_of(encoder: nn.Module, x: Tensor, dtype: torch.dtype = torch.float64) -> sm.SharedBottom:
    model = sm.SharedBottom(encoder, tasks()).to(dtype)
    model(x)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():  # norms are neither 1 nor 0
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=dtype)
    return model.train()


def problem(case: str, seed: int = 0, **options: Any) -> tuple[sm.SharedBottom, sm.TaskNetworks, Tensor]:
    torch.manual_seed(seed)
    make, shape, units = CASES[case]
    x = torch.randn(6, *shape, dtype=torch.float64)
    model = model_of(make(), x)
    return model, networks_of(model, x, granularity=units, **options), x


def networks_of(model: sm.MultiTaskModel, x: Tensor, **options: Any) -> sm.TaskNetworks:
    sharing = sm.RandomSharing(seed=3, **{"keep": 0.4, "scope": "layer", **options})
    found = sharing.begin_epoch(0, model, sharing.start(model), [(x, labels(len(x)))])
    assert found is not None
    return found


def gradients(model: sm.MultiTaskModel, context: Any, task: str, x: Tensor) -> tuple[float, dict[str, Tensor | None]]:
    """Loss and gradients of a task on a batch."""
    model.zero_grad()
    with context:
        loss = model.tasks[task].loss(model(x, tasks=(task,))[task], labels(len(x))[task])
        loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def assert_close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    for name, gradient in expected[1].items():
        assert (found[1][name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient, rtol=tolerance, atol=tolerance)
            assert found[1][name].stride() == gradient.stride()


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_masked_execution(case: str) -> None:
    model, networks, x = problem(case)
    slices = sm.TaskSlices(model)
    for task in TASKS:
        expected = gradients(model, networks.swapped(model, task), task, x)
        assert_close(gradients(model, slices.swapped(networks, task), task, x), expected)
        share = slices.share(task)
        assert share is not None
        assert share < 0.95


def test_gradients_in_single_precision_differ_by_rounding_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, 8)
    model = model_of(Residual(), x, torch.float32)
    networks, slices = networks_of(model, x, granularity="channel"), sm.TaskSlices(model)
    expected = gradients(model, networks.swapped(model, "left"), "left", x)
    scale = max(float(g.abs().max()) for g in expected[1].values() if g is not None)
    found = gradients(model, slices.swapped(networks, "left"), "left", x)
    for name, gradient in expected[1].items():
        if gradient is not None:
            assert float((found[1][name] - gradient).abs().max()) < 1e-5 * scale


def test_switched_off_outputs_are_sliced_too() -> None:
    model, _, x = problem("residual")
    sharing = sm.TaskRoutingSharing(keep=0.5, seed=1)
    networks = sharing.begin_epoch(0, model, sharing.start(model), [(x, labels())])
    assert networks is not None
    slices = sm.TaskSlices(model)
    expected = gradients(model, networks.swapped(model, "left"), "left", x)
    assert_close(gradients(model, slices.swapped(networks, "left"), "left", x), expected)
    assert (slices.share("left") or 1) < 0.6


def test_statistics_of_the_channels_that_a_task_computes_are_those_of_masked_execution() -> None:
    model, networks, x = problem("mlp")
    before = networks.detached()
    gradients(model, networks.swapped(model, "left"), "left", x)
    gradients(model, sm.TaskSlices(model).swapped(before, "left"), "left", x)
    kept = networks["left"].mask["encoder.1.weight"]
    assert 0 < int(kept.sum()) < len(kept)
    for name, expected in networks["left"].own_tensors.items():
        found = before["left"].own_tensors[name]
        assert expected is not None
        assert found is not None
        torch.testing.assert_close(*((t[kept] if t.ndim else t) for t in (found, expected)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bn", ["shared", "batch"])
def test_statistics_may_be_shared_or_those_of_the_batch(bn: str) -> None:
    model, networks, x = problem("mlp", bn=bn)
    slices = sm.TaskSlices(model)
    expected = gradients(model, networks.swapped(model, "left"), "left", x)
    assert_close(gradients(model, slices.swapped(networks, "left"), "left", x), expected)
    assert slices.share("left") is not None


def test_slices_follow_the_weights_the_masks_and_the_sizes_of_batches() -> None:
    model, networks, x = problem("residual")
    slices = sm.TaskSlices(model)
    for each, count in ((networks, 6), (networks, 4), (networks_of(model, x, keep=0.7, granularity="channel"), 6)):
        for p in model.parameters():
            p.data += 0.1
        expected = gradients(model, each.swapped(model, "left"), "left", x[:count])
        assert_close(gradients(model, slices.swapped(each, "left"), "left", x[:count]), expected)
    share = slices.share("left")
    assert share is not None
    assert share > 0.3


def test_a_slice_is_made_again_only_if_the_mask_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    compacted = NumberedModel.small

    def counted(own: NumberedModel, *args: Any) -> Any:
        made.append(args)
        return compacted(own, *args)

    monkeypatch.setattr(NumberedModel, "small", counted)
    model, networks, x = problem("mlp")
    slices = sm.TaskSlices(model)
    for each in (networks, networks, networks.detached()):
        gradients(model, slices.swapped(each, "left"), "left", x)
    assert len(made) == 1


def test_masks_that_keep_everything_run_whole_without_a_warning() -> None:
    model, _, x = problem("mlp")
    networks = sm.RandomSharing(keep=0.5, granularity="channel").start(model)
    slices = sm.TaskSlices(model)
    expected = gradients(model, networks.swapped(model, "left"), "left", x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradients(model, slices.swapped(networks, "left"), "left", x)
    assert_same_bits(found, expected)
    assert slices.share("left") is None


def assert_same_bits(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    for name, gradient in expected[1].items():
        assert gradient is None or torch.equal(found[1][name], gradient), name


class Drawing(nn.Module):
    """Layer that is skipped at random in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training and float(torch.rand(())) < 0.5 else x


class Counting(nn.Module):
    """Layer that counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x


def with_hook(model: sm.MultiTaskModel) -> None:
    model.get_submodule("encoder.0").register_forward_hook(lambda *_: None)


OBSTACLES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "single weights": (mlp, {"granularity": "weight"}, "drops no whole channel"),
    "gradients": (mlp, {"mask_applies_to": "gradients"}, "acts on gradients"),
    "drawn": (lambda: mlp(nn.Sequential, Drawing()), {}, "random numbers"),
    "written": (lambda: mlp(nn.Sequential, Counting()), {}, "writes to the buffer 'encoder.3.count'"),
    "hooks": (mlp, {}, "'encoder.0' has hooks"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_network_that_cannot_be_sliced_runs_masked_and_one_warning_says_why(obstacle: str) -> None:
    make, options, reason = OBSTACLES[obstacle]
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    model = model_of(make(), x)
    networks = networks_of(model, x, **{"granularity": "channel", **options})
    if obstacle == "hooks":
        with_hook(model)
    slices = sm.TaskSlices(model)
    for repeated in (False, True):
        before = torch.get_rng_state()
        expected = gradients(model, networks.swapped(model, "left"), "left", x)
        torch.set_rng_state(before)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = gradients(model, slices.swapped(networks, "left"), "left", x)
        said = [str(each.message) for each in caught if each.category is CompactionWarning]
        assert len(said) == (0 if repeated else 1)
        assert all(reason in each and "task 'left'" in each for each in said)
        assert_same_bits(found, expected)
        assert slices.share("left") is None


def test_soft_masks_run_whole() -> None:
    model, _, x = problem("mlp")
    factor = torch.rand(12, 4, dtype=torch.float64)
    networks = sm.TaskNetworks({task: TaskNetwork(weight_factors={"encoder.0.weight": factor}) for task in TASKS})
    with pytest.warns(CompactionWarning, match="its masks are soft"):
        found = gradients(model, sm.TaskSlices(model).swapped(networks, "left"), "left", x)
    assert_same_bits(found, gradients(model, networks.swapped(model, "left"), "left", x))


def test_dropout_draws_for_the_slice_and_leaves_zeros_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    model = model_of(mlp(nn.Sequential, nn.Dropout(0.5)), x)
    networks, slices = networks_of(model, x, granularity="channel"), sm.TaskSlices(model)
    losses = {gradients(model, slices.swapped(networks, "left"), "left", x)[0] for _ in range(3)}
    assert len(losses) == 3
    assert (slices.share("left") or 1) < 0.7
    model.eval()
    expected = gradients(model, networks.swapped(model, "left"), "left", x)
    assert_close(gradients(model, slices.swapped(networks, "left"), "left", x), expected)


def test_copies_and_pickles_made_inside_are_of_the_plain_model() -> None:
    model, networks, x = problem("mlp")
    slices = sm.TaskSlices(model)
    with slices.swapped(networks, "left"):
        model(x, tasks=("left",))
        copied, read = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    model.eval()
    for other in (copied, read):
        assert "forward" not in vars(other)
        assert torch.equal(other.eval()(x)["left"], model(x)["left"])
    again = pickle.loads(pickle.dumps(slices))
    assert again.share("left") is None


def test_an_error_inside_leaves_nothing_behind() -> None:
    model, networks, _ = problem("mlp")
    held = dict(vars(model))
    with pytest.raises(ZeroDivisionError), sm.TaskSlices(model).swapped(networks, "left"):
        raise ZeroDivisionError
    assert vars(model) == held


def test_several_tasks_of_one_network_are_computed_in_one_pass() -> None:
    model, networks, x = problem("mlp")
    slices = sm.TaskSlices(model)
    outputs = []
    for context in (networks.swapped(model, "left"), slices.swapped(networks, "left")):
        with context:
            outputs.append(model(x))
    assert list(outputs[0]) == list(outputs[1]) == list(TASKS)
    for task in TASKS:
        torch.testing.assert_close(outputs[1][task], outputs[0][task], rtol=1e-12, atol=1e-12)
    assert slices.share("right") is not None


class Tied(nn.Module):
    """Layers of which two have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.first.weight
        self.last = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(torch.relu(self.again(torch.relu(self.first(x))))))


def test_tied_weights_get_the_gradients_of_all_their_uses() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    model = model_of(Tied(), x)
    networks, slices = networks_of(model, x, granularity="channel"), sm.TaskSlices(model)
    expected = gradients(model, networks.swapped(model, "left"), "left", x)
    assert_close(gradients(model, slices.swapped(networks, "left"), "left", x), expected)
    assert slices.share("left") is not None
