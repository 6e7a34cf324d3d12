"""A slow and obvious search finds no channel that compaction could have removed, but for the limits in the docs.

Channels that are added, multiplied or pooled are one group: they can only go together. A group can be removed if the
outputs stay as they are while all its channels are zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from compaction_toys import alive, assert_same_outputs, zeroed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

import sparsemtl as sm
from sparsemtl.compaction.graph.network import Select
from sparsemtl.compaction.rules import dense

Step = tuple[str, int, int, int]
MAPS = ("conv", "transposed", "depthwise", "norm", "cat", "gate", "max", "average", "flat")
KINDS = (*MAPS, "relu", "leaky", "sigmoid", "add", "linear")


class Drawn(nn.Module):
    """Operations on earlier results; the numbers of a step choose what it reads and how wide it is.

    Maps have 4 x 4 positions, vectors none. `linear` and `flat` make a vector, `gate` multiplies by one.
    """

    def __init__(self, steps: list[Step], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.steps: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleList()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.widths, self.maps = [4], [True]
        for kind, one, other, width in steps:
            self._add(kind, one % len(self.widths), other, width)
        self.head = nn.Linear(self.widths[-1], 2)
        self.map_head = nn.Conv2d(self.widths[self._last_map()], 2, 1)

    def _last_map(self) -> int:
        return max(place for place, is_map in enumerate(self.maps) if is_map)

    def _add(self, kind: str, one: int, other: int, width: int) -> None:
        read, is_map = self.widths[one], self.maps[one]
        kind = "linear" if kind in MAPS and not is_map else kind
        alike = [i for i, (w, m) in enumerate(zip(self.widths, self.maps, strict=True)) if (w, m) == (read, is_map)]
        others = [i for i, m in enumerate(self.maps) if m] if kind == "cat" else alike
        other = others[other % len(others)]
        layer, made = self._layer(kind, read, width), read
        if kind in ("conv", "transposed", "linear", "flat"):
            made = width
        elif kind == "cat":
            made = read + self.widths[other]
        self.layers.append(layer)
        self.steps.append((kind, one, other))
        self.widths.append(made)
        self.maps.append(is_map and kind not in ("linear", "flat"))

    @staticmethod
    def _layer(kind: str, read: int, width: int) -> nn.Module:
        kernel = 1 + 2 * (width % 2)
        makers: dict[str, Any] = {
            "conv": lambda: nn.Conv2d(read, width, kernel, padding=kernel // 2, bias=width > 2),
            "transposed": lambda: nn.ConvTranspose2d(read, width, 3, padding=1),
            "depthwise": lambda: nn.Conv2d(read, read, 3, padding=1, groups=read),
            "norm": lambda: nn.BatchNorm2d(read),
            "relu": nn.ReLU,
            "leaky": lambda: nn.LeakyReLU(0.3),
            "sigmoid": nn.Sigmoid,
            "gate": lambda: nn.Sequential(nn.Conv2d(read, width, 1), nn.LeakyReLU(), nn.Conv2d(width, read, 1)),
            "max": lambda: nn.MaxPool2d(3, 1, 1),
            "average": lambda: nn.AvgPool2d(3, 1, 1),
            "linear": lambda: nn.Linear(read, width),
            "flat": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16 * read, width)),
        }
        return makers[kind]() if kind in makers else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = [self.stem(x)]
        for layer, (kind, one, other) in zip(self.layers, self.steps, strict=True):
            first, second = found[one], found[other]
            if kind == "add":
                found.append(first + second)
            elif kind == "cat":
                found.append(torch.cat([first, second], 1))
            elif kind == "gate":
                found.append(first * torch.sigmoid(layer(first.mean((2, 3), keepdim=True))))
            elif kind == "linear":
                found.append(layer(first.mean((2, 3)) if first.ndim == 4 else first))
            else:
                found.append(layer(first))
        last = found[-1]
        return self.head(last.mean((2, 3)) if last.ndim == 4 else last), self.map_head(found[self._last_map()])


Channel = tuple[fx.Node, int]


class Groups:
    """Channels of the tensors in a graph that can only be removed together.

    Args:
        shapes: shape of every tensor.
    """

    def __init__(self, shapes: dict[fx.Node, torch.Size]) -> None:
        self.shapes = shapes
        self.parent: dict[Channel, Channel] = {}
        for node in shapes:
            self._couple(node)

    def find(self, channel: Channel) -> Channel:
        while (above := self.parent.get(channel, channel)) != channel:
            channel = above
        return channel

    def _join(self, one: Channel, other: Channel) -> None:
        self.parent[self.find(one)] = self.find(other)

    def _couple(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self.shapes]
        module = _module(node)
        makes = isinstance(module, (nn.Linear, Select)) or (isinstance(module, _ConvNd) and module.groups == 1)
        if isinstance(module, Select) and isinstance(_module(sources[0]), nn.Flatten):
            for entry, read in enumerate(module.index.tolist()):  # positions go with their channel
                self._join((sources[0], read), (node, entry))
        if makes or node.op in ("placeholder", "output"):
            return
        first = 0
        for source in node.args[0] if node.target is torch.cat else sources:
            count = self.shapes[source][1]
            spread = 1 if node.target is torch.cat else self.shapes[node][1] // count  # positions of flattened channels
            for entry in range(count * spread):
                self._join((source, entry // spread), (node, first + entry))
            first += count if node.target is torch.cat else 0

    def removable(self) -> Iterator[dict[fx.Node, list[int]]]:
        """Yield the groups that are no channels of inputs or outputs, node -> channels."""
        found: dict[Channel, dict[fx.Node, list[int]]] = defaultdict(lambda: defaultdict(list))
        for node, shape in self.shapes.items():
            for channel in range(shape[1]):
                found[self.find((node, channel))][node].append(channel)
        for group in found.values():
            interface = any(node.op == "placeholder" or _is_output(node) for node in group)
            if not interface:
                yield group


def _module(node: fx.Node) -> nn.Module | None:
    return node.graph.owning_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


class Zeroing(fx.Interpreter):
    """Interpreter that sets channels of some tensors to zero."""

    def __init__(self, graph: fx.GraphModule, zeros: dict[fx.Node, list[int]]) -> None:
        super().__init__(graph)
        self.zeros = zeros
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.ndim > 1:
            self.shapes[n] = value.shape
        if n in self.zeros:
            value = value.clone()
            value[:, self.zeros[n]] = 0
        return value


def left_over(small: fx.GraphModule, x: Tensor) -> list[dict[fx.Node, list[int]]]:
    """Groups of channels that a network does not need, but for one channel of a tensor of which it needs none.

    ReLU is replaced by an activation that lets negative numbers through: which channels it cuts off is not asked here.
    """
    for name, module in list(small.named_modules()):
        if isinstance(module, nn.ReLU):
            small.set_submodule(name, nn.LeakyReLU(0.1))
    plain = Zeroing(small, {})
    expected = plain.run(x)
    found = []
    for group in Groups(plain.shapes).removable():
        if min(plain.shapes[each][1] for node in group for each in (node, *node.users) if each in plain.shapes) > 1:
            outputs = Zeroing(small, group).run(x)
            if all(float((a - b).abs().max()) < 1e-9 for a, b in zip(expected, outputs, strict=True)):
                found.append(group)
    return found


steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9), st.integers(2, 4)), min_size=1, max_size=7
)


def check(plan: list[Step], seed: int, pattern: str, rate: float) -> None:
    model = zeroed(alive(Drawn(plan, seed), seed), pattern, rate, seed)
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with mock.patch.object(dense, "WORTH", 0):  # leave out whatever can be left out, also where it does not pay
        small = sm.compact(model, example_inputs=x)
    for one, other in zip(small(x), model(x), strict=True):
        assert float((one - other).detach().abs().max()) < 1e-10 * max(float(other.detach().abs().max()), 1)
    with torch.no_grad():
        left = left_over(small, x)
    assert not left, f"{left} of\n{small.graph}\n{small}"


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps, st.integers(0, 99), st.sampled_from(["inputs", "outputs", "both"]), st.sampled_from([0.3, 0.6, 0.9]))
def test_no_channel_is_left_that_could_be_removed(plan: list[Step], seed: int, pattern: str, rate: float) -> None:
    check(plan, seed, pattern, rate)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps, st.integers(0, 999), st.sampled_from(["inputs", "outputs", "both"]), st.sampled_from([0.3, 0.6, 0.9]))
def test_no_channel_is_left_that_could_be_removed_of_many(
    plan: list[Step], seed: int, pattern: str, rate: float
) -> None:
    check(plan, seed, pattern, rate)


def test_the_search_finds_what_a_rule_leaves_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense.Dense, "_columns", lambda rule, out: (rule.matrix() == rule.matrix()).any(2).any(0).cpu())
    with pytest.raises(AssertionError, match="stem"):
        check([("leaky", 0, 0, 2)], 0, "inputs", 0.6)


# ---- known limits: rows of the table in docs/tutorials/deploying.md ------------------------------------------------

IMAGES = torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def outputs_of(model: nn.Module, layer: str, x: Tensor = IMAGES) -> int:
    """Output channels of a layer in the compacted network, whose outputs are those of the model."""
    small = sm.compact(model, example_inputs=x)
    assert_same_outputs(small, model, x, tolerance=1e-10)
    return int(small.report.layer(layer).outputs[1])


class Sum(nn.Module):
    """Sum of two branches, which a third layer reads."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(3, width), nn.Linear(3, width)
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.one(x) + self.other(x))


def test_limit_a_channel_of_a_sum_is_zero_in_one_branch_only() -> None:
    model = alive(Sum())
    with torch.no_grad():
        model.one.weight[:4], model.one.bias[:4] = 0, 0
    assert outputs_of(model, "one", IMAGES[:, :, 0, 0]) == 6
    assert sm.compact(model).report.layer("one").why == "constant outputs that stand beside others: 4"


def test_limit_a_channel_that_an_activation_always_cuts_off() -> None:
    torch.manual_seed(0)
    model = alive(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sigmoid(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)))
    with torch.no_grad():
        model[2].weight[0], model[2].bias[0] = -1, -1  # of positive numbers
    assert outputs_of(model, "2") == 5
    assert not model[:4](IMAGES)[:, 0].any()


def test_limit_effects_that_cancel() -> None:
    torch.manual_seed(0)
    model = alive(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[1].weight[:, 1] = -model[1].weight[:, 0]
    assert outputs_of(model, "0") == 6


def test_limit_single_positions_of_a_flattened_map() -> None:
    torch.manual_seed(0)
    model = alive(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2)))
    with torch.no_grad():
        model[2].weight[:, 1:16] = 0
    assert outputs_of(model, "0") == 4
    assert sm.compact(model).report.layer("2").inputs == (64, 64)


class Gated(nn.Module):
    """Gate of the network's own input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


def test_limit_channels_that_meet_the_networks_input() -> None:
    model = alive(Gated())
    with torch.no_grad():
        model.last.weight[:, 1:] = 0
    assert outputs_of(model, "gate") == 3


def test_limit_one_channel_stands_for_none() -> None:
    torch.manual_seed(0)
    model = alive(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sigmoid(), nn.Conv2d(6, 2, 1)))
    with torch.no_grad():
        model[2].weight[:] = 0
    assert outputs_of(model, "0") == 1
