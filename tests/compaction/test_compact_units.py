"""Units are what compaction removes: their cost is the compacted network's, whichever of them are gone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.compaction.units import Units, removable_units


class Residual(nn.Module):
    """A residual stream of two blocks with a gate, a depthwise and a transposed convolution, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.end = nn.Conv2d(13, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.one(x))
        z = self.depthwise(x)
        z = z * self.excite(torch.relu(self.squeeze(z.mean((2, 3))))).sigmoid()[:, :, None, None]
        x = torch.relu(x + z)
        wide = nn.functional.interpolate(x, scale_factor=2.0)
        return self.end(torch.cat([self.up(x), wide], 1))


class Block(nn.Module):
    """A block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.feed(self.second(x))


class Turned(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as those of GPT-2 are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = x.size()[:-1] + (self.outputs,)  # noqa: RUF005
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class TurnedBlock(nn.Module):
    """Neurons that such layers make and read; the weights are square."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = Turned(12, 12), Turned(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu(self.wide(x)))


NETWORKS: dict[str, tuple[type[nn.Module], Tensor]] = {
    "residual": (Residual, torch.rand(2, 3, 6, 6)),
    "transformer": (Block, torch.rand(2, 5, 12)),
    "turned": (TurnedBlock, torch.rand(2, 5, 12)),
}


def remove(model: nn.Module, units: Units, left: Tensor) -> None:
    for layer in units.readers():
        gone = [bool(unit >= 0 and not left[unit]) for unit in layer.reads]
        with torch.no_grad():
            layer.columns(model.get_parameter(layer.weight))[gone] = 0.0


@pytest.mark.parametrize("per_reader", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_the_compacted_network_costs_what_the_units_that_are_left_cost(
    name: str, fraction: float, per_reader: bool
) -> None:
    torch.manual_seed(0)
    kind, x = NETWORKS[name]
    model = kind().eval()
    units = removable_units(model, x, per_reader=per_reader)
    left = torch.rand(units.count) < fraction
    if per_reader:  # a layer reads something
        left[[int(layer.reads.max()) for layer in units.readers()]] = True
    remove(model, units, left)
    small = sm.compact(model, example_inputs=x)
    assert small.report.macs == (units.cost(), pytest.approx(units.cost(left)))


@pytest.mark.parametrize(("name", "count"), [("residual", 8 + 6 + 4 + 5), ("transformer", 3 + 10), ("turned", 12)])
def test_streams_heads_and_neurons_are_one_unit_each(name: str, count: int) -> None:
    kind, x = NETWORKS[name]
    assert removable_units(kind().eval(), x).count == count


@pytest.mark.parametrize("name", NETWORKS)
def test_a_unit_saves_the_difference_of_the_costs(name: str) -> None:
    kind, x = NETWORKS[name]
    units = removable_units(kind().eval(), x)
    whole = torch.ones(units.count, dtype=torch.bool)
    savings = units.savings(whole)
    for unit in range(units.count):
        left = whole.clone()
        left[unit] = False
        twice = sum(
            layer.macs * float((layer.reads == unit).double().mean() * (layer.makes == unit).double().mean())
            for layer in units.layers
            if len(layer.reads)
        )
        assert float(savings[unit]) == pytest.approx(units.cost() - units.cost(left) + twice)


def test_units_of_all_tasks_include_those_of_heads() -> None:
    tasks = [sm.Classification("a", 3), sm.Regression("b")]
    heads = {"a": nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)), "b": nn.Linear(4, 1)}
    model = sm.SharedBottom(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), tasks, heads)
    assert removable_units(model, torch.rand(2, 5)).count == 6 + 4 + 7


def test_what_is_read_by_frozen_computed_or_unknown_parts_is_no_unit() -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    x = torch.rand(3, 4)
    frozen, computed, normed = network(), network(), network()
    frozen[2].weight.requires_grad_(False)
    nn.utils.parametrizations.weight_norm(computed[2])
    normed[1] = nn.LayerNorm(6)
    assert [removable_units(each, x).count for each in (network(), frozen, computed, normed)] == [11, 5, 5, 5]


def test_a_square_weight_of_zeros_is_read_on_the_axis_of_its_layer() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    def network(last: nn.Module) -> nn.Module:
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), last).eval()

    layers = (nn.Linear(4, 4), conv1d(4, 4), Turned(4, 4))
    found = [removable_units(network(last), torch.rand(2, 3, 5)) for last in layers]
    assert [[layer.transposed for layer in units.readers()] for units in found] == [[False], [True], []]


def test_units_count_one_sample_of_a_model_that_asks_for_several() -> None:
    class Asking(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if len(x) > 1 else x + 0)

    x = torch.rand(4, 5, 12)
    assert removable_units(Asking().eval(), x).cost() == sm.compact(Asking().eval(), example_inputs=x).report.macs[0]


def test_units_survive_their_state() -> None:
    units = removable_units(Residual().eval(), NETWORKS["residual"][1])
    again = Units.of_state(units.state())
    left = torch.rand(units.count) < 0.5
    assert (again.count, again.cost(left)) == (units.count, units.cost(left))
