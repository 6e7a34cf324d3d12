"""Weights that a model computes before it runs are folded: pruned ones, normed ones, of torch's old and new kind."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from compaction_toys import alive, assert_same_outputs, widths
from loops import each
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import sparsemtl as sm

IMAGES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)))


def trained(model: nn.Module) -> nn.Module:
    """The model after a step, which leaves weights with a history."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()(IMAGES).square().mean().backward()
    optimizer.step()
    return model


def structured(model: nn.Module) -> None:
    prune.ln_structured(model[3], "weight", amount=0.5, n=2, dim=1)


def twice(model: nn.Module) -> None:
    structured(model)
    prune.random_unstructured(model[3], "weight", amount=2)
    prune.random_structured(model[0], "weight", amount=2, dim=0)
    prune.l1_unstructured(model[0], "bias", amount=1)


def over_a_norm(model: nn.Module) -> None:
    weight_norm(model[3])
    prune.ln_structured(model[3], "weight_v", amount=0.5, n=2, dim=1)


PRUNED: dict[str, Callable[[nn.Module], None]] = {
    "structured": structured,
    "twice": twice,
    "over a norm": over_a_norm,
}
NORMED: dict[str, Callable[[nn.Module], object]] = {
    "old weight norm": lambda model: weight_norm(model[3]),
    "old spectral norm": lambda model: spectral_norm(model[3]),
    "weight norm": lambda model: parametrizations.weight_norm(model[3]),
    "spectral norm": lambda model: parametrizations.spectral_norm(model[3]),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
@each("after_training", [False, True])
@each("kind", [*PRUNED, *NORMED])
def test_computed_weights_are_folded(kind: str, after_training: bool) -> None:
    model = network()
    {**PRUNED, **NORMED}[kind](model)
    if after_training and kind != "over a norm":  # whose hooks torch runs in the wrong order: the first pass is stale
        trained(model)
    before = copy.deepcopy(model.state_dict())
    expected_hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    small = sm.compact(model)
    model.eval()
    assert_same_outputs(small, model, IMAGES)
    if kind in PRUNED:
        (_, between), (read, _) = widths(small)
        assert between == read <= 4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [len(module._forward_pre_hooks) for module in model.modules()] == expected_hooks
    assert {name.rpartition(".")[2] for name in small.state_dict()} <= {"weight", "bias"}
    assert not any(module._forward_pre_hooks or module._state_dict_hooks for module in small.modules())


def test_a_pruned_multi_task_model_is_compacted_for_a_task() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
    model = sm.SharedBottom(encoder, [sm.Regression("a"), sm.Regression("b")])
    x = torch.randn(7, 5)
    model(x)
    prune.ln_structured(encoder[2], "weight", amount=0.5, n=2, dim=1)
    model(x)["a"].square().mean().backward()
    small = sm.compact(model, task="a")
    torch.testing.assert_close(small(x), model.eval()(x)["a"])
    assert small.report.layer("encoder.0").outputs == (8, 4)
