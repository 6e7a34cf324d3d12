"""The discrepancy of two sets of features, against loops over classes and pairs that anyone can read."""

from __future__ import annotations

from math import exp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from torch import Tensor
from torch.nn.functional import linear

from sparsemtl.architectures.damtl.alignment import BANDWIDTHS, Kernel, conditional_mmd, layer_discrepancy

KERNELS: tuple[Kernel, ...] = ("linear", "rbf")
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_half = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def sets(seed: int, first: int = 7, second: int = 5, width: int = 3) -> Sets:
    """Two sets of features with their classes, some of which are in one set only, and some of which are none."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(first + second, width, generator=generator, dtype=torch.float64)
    classes = torch.randint(-2, 4, (first + second,), generator=generator)
    return features[:first], features[first:], classes[:first], classes[first:]


def of_class(features: Tensor, classes: Tensor, wanted: int) -> list[list[float]]:
    return [row for row, found in zip(features.tolist(), classes.tolist(), strict=True) if found == wanted]


def squared_distance(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def slow_linear(groups: list[tuple[list[list[float]], list[list[float]]]]) -> float:
    return sum(squared_distance(mean(ours), mean(theirs)) for ours, theirs in groups)


def slow_rbf(groups: list[tuple[list[list[float]], list[list[float]]]]) -> float:
    everything = [row for group in groups for rows in group for row in rows]
    apart = sorted(d for a in everything for b in everything if (d := squared_distance(a, b)) > 0)
    median = apart[(len(apart) - 1) // 2] if apart else 1.0

    def similarity(rows: list[list[float]], others: list[list[float]]) -> float:
        pairs = [squared_distance(a, b) for a in rows for b in others]
        return sum(exp(-d / (factor * median)) for d in pairs for factor in BANDWIDTHS) / len(pairs)

    return sum(
        similarity(ours, ours) + similarity(theirs, theirs) - 2 * similarity(ours, theirs) for ours, theirs in groups
    )


def slow(first: Tensor, second: Tensor, first_classes: Tensor, second_classes: Tensor, kernel: Kernel) -> float:
    common = {c for c in first_classes.tolist() if c >= 0} & set(second_classes.tolist())
    groups = [(of_class(first, first_classes, c), of_class(second, second_classes, c)) for c in common]
    return slow_linear(groups) if kernel == "linear" else slow_rbf(groups)


@each_kernel
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), first=st.integers(1, 9), second=st.integers(1, 9), width=st.integers(1, 4))
def test_it_is_what_loops_over_classes_and_pairs_give(
    kernel: Kernel, seed: int, first: int, second: int, width: int
) -> None:
    given_sets = sets(seed, first, second, width)
    assert conditional_mmd(*given_sets, kernel).item() == pytest.approx(slow(*given_sets, kernel), abs=1e-10)


@each_kernel
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_it_is_never_negative_and_the_same_both_ways_and_in_any_order(kernel: Kernel, seed: int) -> None:
    first, second, ours, theirs = sets(seed)
    found = conditional_mmd(first, second, ours, theirs, kernel).item()
    assert found >= -1e-12
    assert conditional_mmd(second, first, theirs, ours, kernel).item() == pytest.approx(found, abs=1e-12)
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randperm(7, generator=generator), torch.randperm(5, generator=generator)
    mixed = conditional_mmd(first[one], second[other], ours[one], theirs[other], kernel)
    assert mixed.item() == pytest.approx(found, abs=1e-12)


@each_kernel
@pytest.mark.parametrize("label", [-1, -100, 9], ids=["none", "ignored", "in one set only"])
def test_samples_without_a_class_in_both_sets_add_nothing_whatever_they_are(kernel: Kernel, label: int) -> None:
    first, second, ours, theirs = sets(0)
    strange = torch.tensor([[float("nan"), 1e300, 3.0]], dtype=torch.float64)
    more = torch.cat([first[:2], strange, first[2:]]).requires_grad_()
    classes = torch.cat([ours[:2], torch.tensor([label]), ours[2:]])
    found = conditional_mmd(more, second, classes, theirs, kernel)
    assert torch.equal(found, conditional_mmd(first, second, ours, theirs, kernel))
    found.backward()
    assert more.grad is not None
    assert more.grad.isfinite().all()
    assert more.grad.any()
    assert not more.grad[2].any()


@each_kernel
def test_sets_without_a_class_in_common_are_at_distance_zero(kernel: Kernel) -> None:
    features = torch.randn(4, 3, requires_grad=True)
    found = conditional_mmd(
        features, features.detach(), torch.tensor([0, 1, -1, -1]), torch.tensor([2, 3, 2, -1]), kernel
    )
    found.backward()
    assert found.shape == ()
    assert found.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_equal_sets_are_at_distance_exactly_zero_with_a_linear_kernel_and_draw_nowhere() -> None:
    features = torch.randn(9, 4, requires_grad=True)
    classes = torch.arange(9) % 3
    found = conditional_mmd(features, features.detach(), classes, classes)
    found.backward()
    assert found.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_equal_sets_are_at_distance_zero_with_gaussian_kernels_but_for_rounding() -> None:
    features = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    classes = torch.arange(9) % 3
    found = conditional_mmd(features, features.detach(), classes, classes, "rbf")
    found.backward()
    assert abs(found.item()) < 1e-14
    assert features.grad is not None
    assert features.grad.abs().max() < 1e-14


def test_gaussian_kernels_see_a_spread_that_means_do_not_show() -> None:
    narrow, wide = torch.tensor([[-1.0], [1.0]]), torch.tensor([[-5.0], [5.0]])
    classes = torch.zeros(2, dtype=torch.long)
    assert conditional_mmd(narrow, wide, classes, classes).item() == 0
    assert conditional_mmd(narrow, wide, classes, classes, "rbf").item() > 0.1


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_gaussian_kernels_follow_the_scale_of_the_features(scale: float) -> None:
    first, second, ours, theirs = sets(3)
    expected = conditional_mmd(first, second, ours, theirs, "rbf")
    torch.testing.assert_close(conditional_mmd(scale * first, scale * second, ours, theirs, "rbf"), expected)


def test_samples_that_are_all_the_same_have_no_median_distance() -> None:
    same, classes = torch.ones(3, 2, requires_grad=True), torch.zeros(3, dtype=torch.long)
    found = conditional_mmd(same, torch.ones(2, 2), classes, classes[:2], "rbf")
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert same.grad is not None
    assert not same.grad.any()


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_a_linear_kernel_are_right(seed: int) -> None:
    first, second, ours, theirs = sets(seed)
    inputs = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(lambda one, other: conditional_mmd(one, other, ours, theirs), inputs)


def test_gradients_of_gaussian_kernels_are_right_for_a_bandwidth_that_is_no_part_of_them() -> None:
    """The median is taken as a constant, so it is held where gradients are checked: by pairs that do not move."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    moving = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 1] * 6)
    distances = torch.cdist(torch.cat([moving, still, still]), torch.cat([moving, still, still])).square()
    median = distances[distances > 0].median()
    held = torch.cdist(still, still).square()
    assert torch.isclose(held, median).any()  # by a pair of those that stay

    def discrepancy(features: Tensor) -> Tensor:
        return conditional_mmd(
            torch.cat([features, still]), still, torch.cat([torch.tensor([0, 1]), classes]), classes, "rbf"
        )

    assert torch.autograd.gradcheck(discrepancy, moving.requires_grad_())


@each_half
@each_kernel
def test_half_precision_is_computed_in_single(kernel: Kernel, half: torch.dtype) -> None:
    first, second, ours, theirs = sets(1)
    first, second = (300 * first).to(half), (300 * second).to(half)  # squares of which float16 does not hold
    found = conditional_mmd(first, second, ours, theirs, kernel)
    assert found.dtype == torch.float32
    assert found.isfinite()
    assert torch.equal(found, conditional_mmd(first.float(), second.float(), ours, theirs, kernel))


Layer = tuple[Tensor, Tensor | None]


def layer(seed: int, *, bias: bool, dtype: torch.dtype = torch.float64) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, generator=generator, dtype=dtype)
    return weight, torch.randn(4, generator=generator, dtype=dtype) if bias else None


@each("other_bias", [True, False])
@each("bias", [True, False])
@each("seed", range(4))
def test_the_closed_form_is_the_distance_of_what_the_two_layers_give(seed: int, bias: bool, other_bias: bool) -> None:
    features, _, classes, _ = sets(seed)
    ours, theirs = layer(1, bias=bias), layer(2, bias=other_bias)
    outputs = linear(features, *ours), linear(features, *theirs)
    torch.testing.assert_close(
        layer_discrepancy(features, classes, ours, theirs), conditional_mmd(*outputs, classes, classes)
    )


@pytest.mark.parametrize("bias", [True, False])
def test_equal_layers_are_at_distance_exactly_zero_and_draw_nowhere(bias: bool) -> None:
    features, _, classes, _ = sets(0)
    weight, shift = layer(1, bias=bias)
    inputs = [t.clone().requires_grad_() for t in (features, weight, shift) if t is not None]
    found = layer_discrepancy(inputs[0], classes, (inputs[1], inputs[2] if bias else None), (weight, shift))
    found.backward()
    assert found.item() == 0
    assert all(t.grad is not None and not t.grad.any() for t in inputs)


def test_gradients_of_the_closed_form_are_right() -> None:
    features, _, classes, _ = sets(2)
    theirs = layer(2, bias=True)
    weight, bias = layer(1, bias=True)
    assert bias is not None
    inputs = (features.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, w, b: layer_discrepancy(f, classes, (w, b), theirs), inputs)


@pytest.mark.parametrize("label", [-1, -100])
def test_samples_without_a_class_add_nothing_to_the_closed_form(label: int) -> None:
    features, _, classes, _ = sets(0)
    more = torch.cat([torch.full((1, 3), float("inf"), dtype=torch.float64), features])
    labels = torch.cat([torch.tensor([label]), classes])
    ours, theirs = layer(1, bias=True), layer(2, bias=True)
    found = layer_discrepancy(more, labels, ours, theirs)
    assert torch.equal(found, layer_discrepancy(features, classes, ours, theirs))
    assert layer_discrepancy(features, torch.full((7,), label), ours, theirs).item() == 0


@each_half
def test_the_closed_form_is_computed_in_single(half: torch.dtype) -> None:
    features, _, classes, _ = sets(1)
    features = (300 * features).to(half)
    ours, theirs = layer(1, bias=True, dtype=half), layer(2, bias=True, dtype=half)
    found = layer_discrepancy(features, classes, ours, theirs)
    exact = [(weight.float(), None if bias is None else bias.float()) for weight, bias in (ours, theirs)]
    assert found.dtype == torch.float32
    assert found.isfinite()
    assert torch.equal(found, layer_discrepancy(features.float(), classes, *exact))
