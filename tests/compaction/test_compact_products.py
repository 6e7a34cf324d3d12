"""Products with bare matrices, squeezed and selected axes, slopes: exact, and without the channels of zero weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compaction_toys import assert_same_outputs, compacted
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.compaction.files.recipes import recipe_for

LEFT = 3
"""Hidden channels that are read."""


class Hidden(nn.Module):
    """Two layers of weights, (inputs, outputs), of whose hidden channels the second reads some.

    Args:
        between: maps (input, first weight, bias) to the hidden features, and these with the second weight to outputs.
        turned: the weights are (outputs, inputs).
    """

    def __init__(self, between: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], *, turned: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 8), (8, 2)))
        second[LEFT:] = 0
        self.first, self.second = (nn.Parameter((w.t() if turned else w).contiguous()) for w in (first, second))
        self.bias = nn.Parameter(torch.randn(8, generator=generator, dtype=torch.float64))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(x, self.first, self.bias, self.second)


PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], bool]] = {
    "operator": (lambda x, a, b, c: torch.relu(x @ a + b) @ c, False),
    "transposed": (lambda x, a, b, c: torch.matmul(torch.relu(b + x @ a.T), c.mT), True),
    "mm": (lambda x, a, b, c: torch.mm(torch.relu(torch.mm(x, a.transpose(0, 1)).add(b)), c.t()), True),
    "addmm": (lambda x, a, b, c: torch.relu(torch.addmm(b, x, a)) @ c, False),
    "scaled behind": (lambda x, a, b, c: torch.relu((x @ a) * b) @ c, False),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_bare_matrices_lose_channels_as_linear_layers_do(name: str) -> None:
    between, turned = PRODUCTS[name]
    model, x = Hidden(between, turned=turned), torch.randn(5, 4, dtype=torch.float64)
    small = compacted(model, x, example_inputs=x)
    assert sm.parameter_count(small) == LEFT * (4 + 2 + 1)
    assert sm.macs(small, x[:1]) == LEFT * (4 + 2)


def test_a_matrix_that_is_read_twice_and_a_product_from_the_left_stay() -> None:
    def between(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a @ torch.relu(x @ a + b).t() + (x @ a).sum()

    model, x = Hidden(between), torch.randn(5, 4, dtype=torch.float64)
    small = sm.compact(model, example_inputs=x)
    assert_same_outputs(small, model, x)
    assert torch.equal(small.get_parameter("first"), model.first)


def test_a_bare_matrix_is_a_recipe_of_a_bundle() -> None:
    model, x = Hidden(PRODUCTS["operator"][0]).float(), torch.randn(5, 4)
    small = sm.compact(model, example_inputs=x)
    for name in ("first", "second"):
        made = recipe_for(small.get_parameter(f"{name}.weight"), model.get_parameter(name), small.report.cuts[name])
        assert made is not None
        assert made.positions is None


class Views(nn.Module):
    """Convolution whose channels pass through a view to a linear layer that reads some of them."""

    def __init__(self, view: Callable[[Tensor], Tensor], read: int = 8) -> None:
        super().__init__()
        self.conv, self.slope, self.linear = nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Linear(read, 2)
        self.view = view
        with torch.no_grad():
            self.slope.weight.normal_()
            self.linear.weight[:, LEFT:] = 0
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.view(self.slope(self.conv(x))))  # type: ignore[no-any-return]


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "squeezed": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "squeezed at once": lambda x: x.mean((2, 3), keepdim=True).relu().squeeze((2, 3)),
    "moved": lambda x: torch.movedim(x, 1, -1),
    "selected": lambda x: x.select(3, 1).select(-1, 0),
    "narrowed elsewhere": lambda x: x.narrow(2, 0, 1).mean((2, 3)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_channels_are_followed_through_views(name: str) -> None:
    model, x = Views(VIEWS[name]), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    small = compacted(model, x, example_inputs=x)
    assert small.report.layer("conv").outputs == (8, LEFT)
    assert small.report.layer("slope").parameters == (8, LEFT)


def test_an_einsum_that_repeats_a_tensor_stays() -> None:
    def between(x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return torch.einsum("btc,btc->bc", rows, rows.mean(1, keepdim=True))

    model, x = Views(between), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    small = sm.compact(model, example_inputs=x)
    assert_same_outputs(small, model, x)
    assert_same_outputs(small, model, x[:1])


def test_channels_that_are_narrowed_away_go() -> None:
    model, x = Views(lambda x: x.narrow(1, 2, 4).mean((2, 3)), read=4), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    small = compacted(model, x, example_inputs=x)
    assert small.report.layer("conv").outputs == (8, LEFT)


def test_an_axis_that_is_one_on_the_example_alone_is_not_squeezed_away() -> None:
    model, x = Views(lambda x: F.avg_pool2d(x, 4).squeeze(-1).flatten(1)), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert compacted(model, x, example_inputs=x).report.layer("conv").outputs == (8, 8)


def test_constants_pass_slopes() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.PReLU(4), nn.Conv2d(4, 3, 1), nn.PReLU(), nn.Conv2d(3, 1, 1)).double()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[2].weight[:1] = 0
        for part in (model[0].bias, model[1].weight, model[2].bias, model[3].weight):
            part.copy_(torch.randn(part.shape).abs().neg())
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    small = compacted(model.eval(), x, example_inputs=x)
    assert [small.report.layer(name).outputs[1] for name in ("0", "2")] == [2, 2]


class Heads(nn.Module):
    """Attention whose queries, keys and values are taken from (3, heads, size) by numbers."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, width = heads, 4 * heads
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, 5)
        with torch.no_grad():
            self.write.weight[:, 4:] = 0
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        parts = self.read(x).reshape(*x.shape[:2], 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        made = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return self.write(made.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


@pytest.mark.parametrize("heads", [2, 3])
def test_two_or_three_heads_are_told_from_queries_keys_and_values(heads: int) -> None:
    x = torch.randn(2, 5, 4 * heads, dtype=torch.float64)
    assert compacted(Heads(heads), x, example_inputs=x).report.layer("read").heads == (heads, 1)


EINSUMS = ("bth,bth->bt", "bth,bth->bth", "bth,bt->bh", "bth,bh->bth", "bth,bts->btsh")


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsums_of_activations_are_products(equation: str) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 3)
            self.other = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            letters = equation.partition("->")[0].partition(",")[2]
            other = {"bth": self.one(x).sin(), "bt": x.mean(2), "bh": self.one(x)[:, 0], "bts": self.other(x)}[letters]
            return torch.einsum(equation, self.one(x).cos(), other)

    x = torch.randn(2, 5, 4, dtype=torch.float64)
    small = compacted(Product().double().eval(), x, example_inputs=x)
    assert not any("einsum" in str(node.target) for node in small.graph.nodes)
