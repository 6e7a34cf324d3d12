"""Penalties on heads and neurons: groups over several parameters, as a loop over their entries has them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import ParameterError
from sparsemtl.networks.structures import Part, Structure
from sparsemtl.optim import (
    Grouping,
    GroupLasso,
    GroupMCP,
    ProximalAdamW,
    ProximalStep,
    layer_sparsity,
    total_sparsity,
)
from sparsemtl.optim.layers import unit_layers

WIDTH, HEADS, INNER = 8, 4, 6
TASKS = [sm.Classification("a", 2), sm.Regression("b")]


class Attention(nn.Module):
    """An encoder layer: attention and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = WIDTH
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, dropout=0.0, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def attention() -> tuple[sm.MultiTaskModel, Tensor]:
    torch.manual_seed(0)
    return sm.SharedBottom(Attention(), TASKS).double(), torch.randn(4, 3, WIDTH).double()


def perceptron() -> tuple[sm.MultiTaskModel, Tensor]:
    """Neurons of the second layer are made by entries that read neurons of the first."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, WIDTH))
    model = sm.SharedBottom(encoder, TASKS, {task.name: task.head(WIDTH) for task in TASKS})
    return model.double(), torch.randn(4, 5).double()


CASES: dict[str, tuple[Any, Any]] = {
    "heads": (attention, "head"),
    "feed-forward": (attention, "neuron"),
    "perceptron": (perceptron, "neuron"),
}
every_case = each("case", CASES)


def found(case: str) -> tuple[sm.MultiTaskModel, Tensor, dict[str, Structure]]:
    make, kind = CASES[case]
    model, x = make()
    return model, x, sm.find_structures(model, x, kind)


def gradients(model: sm.MultiTaskModel, x: Tensor) -> None:
    outputs = model(x)
    sum(output.square().sum() for output in outputs.values()).backward()


def slow_groups(structures: dict[str, Structure], model: nn.Module) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Every unit as the places of its entries: an entry that reads one unit and makes another belongs to the first."""
    reading = {structure.parts[-1].name for structure in structures.values()}
    for structure in structures.values():
        for unit in range(structure.count):
            group = []
            for part in structure.parts:
                if part is structure.parts[-1] or part.name not in reading:
                    for place in torch.ones_like(model.get_parameter(part.name)).nonzero().tolist():
                        if part.units[place[part.axis]] == unit:
                            group.append((part.name, tuple(place)))
            yield group


def entries(tensors: dict[str, Tensor], group: list[tuple[str, tuple[int, ...]]]) -> Tensor:
    return torch.stack([tensors[name][place] for name, place in group])


@every_case
def test_every_entry_is_in_one_group_at_most(case: str) -> None:
    model, _, structures = found(case)
    places = [place for group in slow_groups(structures, model) for place in group]
    assert len(places) == len(set(places))
    layers = list(unit_layers(structures, dict(model.named_parameters())))
    assert sum(p.numel() for layer in layers for p in layer.parameters) == len(places)


@every_case
def test_what_is_gathered_are_the_groups_and_is_written_back(case: str) -> None:
    model, _, structures = found(case)
    named = dict(model.named_parameters())
    expected = [sorted(entries(named, group).tolist()) for group in slow_groups(structures, model)]
    before = {name: p.detach().clone() for name, p in named.items()}
    gathered = []
    with torch.no_grad():
        for layer in Grouping(structures).layers(named):
            rows = layer.gather(layer.parameters)
            gathered += [sorted(row.tolist()) for row in rows]
            layer.scatter(rows)
            own = [name for name, p in named.items() if any(p is parameter for parameter in layer.parameters)]
            assert all(torch.equal(named[name], before[name]) for name in own)
            layer.scatter(rows + 1000)
    assert gathered == expected
    for name, p in named.items():
        inside = {place for group in slow_groups(structures, model) for own, place in group if own == name}
        for place in torch.ones_like(p).nonzero().tolist():
            assert float(p.detach()[tuple(place)] - before[name][tuple(place)]) == pytest.approx(
                1000 * (tuple(place) in inside)
            )


@every_case
def test_a_penalty_is_the_sum_over_units_with_the_root_of_their_size(case: str) -> None:
    model, _, structures = found(case)
    named = dict(model.named_parameters())
    groups = [entries(named, group) for group in slow_groups(structures, model)]
    lasso = sum(0.3 * math.sqrt(len(group)) * float(group.detach().norm()) for group in groups)
    value = GroupLasso(strength=0.3, granularity=structures).value(named)
    assert value.item() == pytest.approx(lasso, rel=1e-12)
    value.backward()  # it is differentiable, to every entry of a group
    name, place = next(iter(slow_groups(structures, model)))[0]
    group = groups[0]
    slope = 0.3 * math.sqrt(len(group)) * float(named[name].detach()[place]) / float(group.detach().norm())
    assert float(named[name].grad[place]) == pytest.approx(slope)


def after_step(model: sm.MultiTaskModel, x: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    gradients(model, x)
    optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@every_case
@each("kind", ["sgd", "adam", "own rates", "mixed"])
@each("penalty", ["lasso", "mcp"])
def test_a_step_is_the_proximal_map_over_all_parameters_of_a_unit(case: str, kind: str, penalty: str) -> None:
    """The optimality condition d / lr (z - x) + R'(z) = 0 holds over the whole group, or the group is zero."""
    model, x, structures = found(case)
    named = dict(model.named_parameters())
    if kind == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(named.values(), lr=0.1)
    elif kind == "adam":
        optimizer = torch.optim.Adam(named.values(), lr=0.01)
    else:
        biases = [p for name, p in named.items() if p.ndim == 1]
        groups = [{"params": biases, "lr": 0.002}, {"params": [p for p in named.values() if p.ndim > 1]}]
        optimizer = torch.optim.Adam(groups, lr=0.01, eps=1e-6)
    own = after_step(model, x, optimizer)
    if kind == "mixed":  # no second moment of one parameter, as after another optimizer
        optimizer.state.pop(model.get_parameter(next(iter(structures.values())).parts[-1].name))
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    metric = {}
    for name, p in named.items():
        moment = optimizer.state.get(p, {}).get("exp_avg_sq")
        diagonal = torch.ones_like(p) if moment is None else moment.sqrt() + optimizer.param_groups[-1]["eps"]
        metric[name] = diagonal / rates[p]
    made = GroupLasso(strength=1.0, granularity=structures)
    critical = ProximalStep(made).critical_strength(optimizer, named.items())
    strength = float(critical.quantile(0.4))
    gamma = 50.0
    options = {"strength": strength, "granularity": structures}
    made = GroupLasso(**options) if penalty == "lasso" else GroupMCP(**options, gamma=gamma)
    ProximalStep(made)(optimizer, named.items())
    zero, inside = 0, set()
    for number, group in enumerate(slow_groups(structures, model)):
        inside.update(group)
        before, after, d = entries(own, group), entries(named, group).detach(), entries(metric, group)
        weight = strength * math.sqrt(len(group))
        if not after.any():
            zero += 1
            assert float((d * before).norm()) <= weight * (1 + 1e-9) or penalty == "mcp"
            assert float(critical[number]) <= strength * (1 + 1e-9) or penalty == "mcp"
        elif (size := float(after.norm())) <= gamma * weight or penalty == "lasso":
            slope = weight - (0 if penalty == "lasso" else size / gamma)
            torch.testing.assert_close(d * (after - before), -slope * after / size, rtol=1e-6, atol=1e-8 * weight)
        else:
            assert torch.equal(after, before)
    assert zero > 0
    for name, p in named.items():
        for place in torch.ones_like(p).nonzero().tolist():
            if (name, tuple(place)) not in inside:
                assert float(p.detach()[tuple(place)]) == float(own[name][tuple(place)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_case
def test_a_unit_becomes_zero_in_any_precision_and_with_torchs_kernel(case: str, dtype: torch.dtype) -> None:
    model, x, structures = found(case)
    model, x = model.to(dtype), x.to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    after_step(model, x, optimizer)
    made = GroupLasso(strength=1.0, granularity=structures)
    critical = ProximalStep(made).critical_strength(optimizer, model.named_parameters())
    strength = float(critical.sort().values[: len(critical) // 2 + 1][-2:].mean())
    ProximalStep(GroupLasso(strength=strength, granularity=structures))(optimizer, model.named_parameters())
    sparsity = total_sparsity(model.named_parameters(), Grouping(structures))
    assert sparsity.zero_groups == int((critical <= strength).sum())
    assert sparsity.groups == len(critical) == sum(structure.count for structure in structures.values())


def test_a_unit_consists_of_its_trained_parts_if_its_reader_is_among_them() -> None:
    model, x, structures = found("heads")
    (layer,) = structures
    bias = model.get_parameter("encoder.layer.self_attn.in_proj_bias").requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    own = after_step(model, x, optimizer)
    strong = GroupLasso(strength=1e3, granularity=structures)
    with pytest.warns(sm.errors.MaskWarning, match=r"out_proj.weight': every group \(granularity head\) is zero"):
        ProximalStep(strong)(optimizer, model.named_parameters())
    assert not model.get_parameter(layer).any()
    assert torch.equal(bias, own["encoder.layer.self_attn.in_proj_bias"])
    model, x, _ = found("heads")
    model.get_parameter(layer).requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    own = after_step(model, x, optimizer)
    ProximalStep(strong)(optimizer, model.named_parameters())
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


def test_a_rate_of_zero_keeps_a_parameter_out_of_the_units() -> None:
    model, x, structures = found("feed-forward")
    (layer,) = structures
    named = dict(model.named_parameters())
    still = named.pop("encoder.layer.linear1.weight")
    optimizer = torch.optim.Adam([{"params": [still], "lr": 0.0}, {"params": list(named.values())}], lr=0.1)
    before = after_step(model, x, optimizer)["encoder.layer.linear1.weight"]
    with pytest.warns(sm.errors.MaskWarning, match="every group"):
        ProximalStep(GroupLasso(strength=1e3, granularity=structures))(optimizer, model.named_parameters())
    assert torch.equal(still, before)
    assert not model.get_parameter(layer).any()


def test_an_optimizer_with_a_proximal_step_takes_units_by_name() -> None:
    model, x, structures = found("heads")
    penalty = GroupLasso(strength=0.05, granularity=structures, keep_min=1)
    optimizer = ProximalAdamW(model.named_parameters(), lr=0.01, penalty=penalty)
    plain, _, _ = found("heads")
    adamw = torch.optim.AdamW(plain.parameters(), lr=0.01, eps=1e-6)
    shrink = ProximalStep(penalty)
    for _ in range(3):
        optimizer.zero_grad()
        adamw.zero_grad()
        gradients(model, x)
        gradients(plain, x)
        optimizer.step()
        adamw.step()
        shrink(adamw, plain.named_parameters())
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other)
    state = copy.deepcopy(optimizer.state_dict())
    assert "granularity" not in state["param_groups"][0]["penalty"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["penalty"].strength == penalty.strength
    assert optimizer.param_groups[0]["penalty"].granularity.keys() == structures.keys()
    with pytest.raises(ParameterError, match="Pass the named parameters"):
        ProximalAdamW(model.parameters(), penalty=penalty)


def test_sparsity_is_counted_per_layer_by_whole_units() -> None:
    model, _, structures = found("perceptron")
    first, second = structures
    with torch.no_grad():
        model.get_parameter(first)[:, 2] = 0
        model.get_parameter("encoder.0.weight")[2] = 0
        model.get_parameter("encoder.0.bias")[2] = 0
        model.get_parameter(second)[:, 1] = 0  # the bias is not zero
    layers = layer_sparsity(model.named_parameters(), Grouping(structures))
    assert {name: (own.groups, own.zero_groups) for name, own in layers.items()} == {first: (6, 1), second: (7, 0)}


def test_wrong_units_are_refused() -> None:
    model, x, structures = found("heads")
    with pytest.raises(ParameterError, match=r"granularity=sm.find_structures\(model, x, 'head'\)"):
        GroupLasso(strength=0.1, granularity="head")
    with pytest.raises(ParameterError, match="no parameter has the name of a part of the heads"):
        GroupLasso(strength=0.1, granularity=structures).value(model.encoder.named_parameters())
    uneven = {"w": Structure("head", 2, (Part("w", 1, torch.tensor([0, 0, 1])),))}
    with pytest.raises(ParameterError, match=r"as many positions for each of 2 units, got \[2, 1\]"):
        GroupLasso(strength=0.1, granularity=uneven)
    gradients(model, x)
    optimizer = torch.optim.SGD([model.get_parameter(next(iter(structures)))], lr=0.1)
    with pytest.raises(ParameterError, match=r"in_proj_weight is not among the parameters of SGD"):
        ProximalStep(GroupLasso(strength=0.1, granularity=structures))(optimizer, model.named_parameters())
