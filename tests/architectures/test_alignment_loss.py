"""The three readings of "aligned class by class", against slow loops over the layers, the classes and the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from torch import Tensor, nn

from sparsemtl import Classification, Regression, Source
from sparsemtl.architectures.damtl.alignment import Kernel, conditional_mmd
from sparsemtl.architectures.damtl.alignment_loss import (
    AlignmentLoss,
    AlignmentSetup,
    FeatureAlignment,
    LayerAlignment,
    make_alignment_loss,
)
from sparsemtl.architectures.damtl.class_map import ClassMapping
from sparsemtl.architectures.damtl.reference import LAST, ReferenceNetwork, Tap, tapped
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError
from sparsemtl.heads.linear import LinearHead

LAYERS = ("0", "2")
AUXILIARY = Classification("all", 5)
SMALL = Classification("small", 3)
MAPS = {"in order": [0, 1, 2], "permuted": [3, 0, 4], "with gaps": [4, -1, 2], "two alike": [1, 1, 3], "none": [-1] * 3}
each_map = each("theirs", MAPS.values())
each_kernel = each("kernel", ["linear", "rbf"])
each_align = each("align", ["layer", "feature", "classic"])


def network(seed: int, outputs: int, *, bias: bool = True) -> tuple[nn.Sequential, LinearHead]:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias)]
    return nn.Sequential(*layers).double(), LinearHead(3, outputs, bias=bias).double()


def data(seed: int, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Samples with their classes; every fourth has none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[3::4] = -1
    return torch.randn(count, 4, generator=generator, dtype=torch.float64), labels


def rows(layer: nn.Module, chosen: Sequence[int] | None, features: Tensor) -> Tensor:
    """What a linear layer gives of every sample, computed one number at a time."""
    weight: Any = layer.weight
    bias: Any = layer.bias if layer.bias is not None else torch.zeros(len(weight), dtype=weight.dtype)
    indices = range(len(weight)) if chosen is None else chosen
    return torch.tensor(
        [[sum(a * b for a, b in zip(x, weight[i].tolist(), strict=True)) + bias[i].item() for i in indices]
         for x in features.tolist()], dtype=torch.float64,
    ).reshape(len(features), len(indices))  # fmt: skip


class Case:
    """An auxiliary network and a task's network of their own weights, on a batch."""

    def __init__(self, theirs: Sequence[int], *, bias: bool = True, seed: int = 0) -> None:
        self.theirs = list(theirs)
        self.own = [i for i, other in enumerate(theirs) if other >= 0]
        self.known = [other for other in theirs if other >= 0]
        self.mapping = ClassMapping(torch.tensor(theirs))
        self.big, self.last = network(1, 5, bias=bias)
        self.small, self.head = network(2, 3, bias=bias)
        self.x, self.classes = data(seed, 12, 3)
        self.bank_x, self.bank_classes = data(seed + 1, 30, 4)
        self.bank_classes[3::4] = 1  # the auxiliary task's samples all have one, but none is of class 4

    @property
    def reference(self) -> ReferenceNetwork:
        return ReferenceNetwork(self.big, LAYERS, self.last)

    def loss(self, align: Any, kernel: Kernel, **options: Any) -> AlignmentLoss:
        samples = TensorLoader(self.bank_x, self.bank_classes, batch_size=7)
        source = Source(AUXILIARY, self.last, samples)
        setup = AlignmentSetup({"small": SMALL}, {"small": self.mapping}, self.reference, source)
        loss = make_alignment_loss(align, kernel, setup, **{"per_class": 100, "megabytes": 1.0, **options})
        assert loss is not None
        return loss

    def taps(self) -> dict[str, Tap]:
        with tapped({**{name: self.small.get_submodule(name) for name in LAYERS}, LAST: self.head}) as taps:
            self.head(self.small(self.x))
        taps[LAST] = taps[LAST].columns(self.mapping.mapped)
        return taps

    def found(self, align: Any, kernel: Kernel, **options: Any) -> float:
        return self.loss(align, kernel, **options)(self.taps(), self.x, self.classes, self.mapping).item()

    def layers(self, encoder: nn.Sequential, last: nn.Module, x: Tensor, columns: list[int]) -> list[list[Tensor]]:
        """What every fully connected layer reads and gives, in one network."""
        first = rows(encoder[0], None, x)
        second = rows(encoder[2], None, first.tanh())
        return [[x, first], [first.tanh(), second], [second, rows(last, columns, second)]]

    def expected(self, align: str, kernel: Kernel) -> float:
        ours = self.layers(self.small, self.head, self.x, self.own)
        if align == "layer":
            inputs = [reads for reads, _ in ours]
            auxiliary = [(self.big[0], None), (self.big[2], None), (self.last, self.known)]
            theirs = [rows(layer, chosen, x) for (layer, chosen), x in zip(auxiliary, inputs, strict=True)]
        else:
            x = self.x if align == "feature" else self.bank_x
            theirs = [gives for _, gives in self.layers(self.big, self.last, x, self.known)]
        classes, their_classes = self.classes.tolist(), self.classes.tolist()
        if align == "classic":
            classes = [self.theirs[c] if c >= 0 else -1 for c in classes]
            their_classes = self.bank_classes.tolist()
        return sum(
            discrepancy(other, gives, their_classes, classes, kernel)
            for other, (_, gives) in zip(theirs, ours, strict=True)
        )


def discrepancy(theirs: Tensor, ours: Tensor, their_classes: list[int], classes: list[int], kernel: Kernel) -> float:
    """Of one layer. Gaussian kernels are compared with loops in the tests of `alignment`."""
    if kernel == "rbf":
        return conditional_mmd(theirs, ours, torch.tensor(their_classes), torch.tensor(classes), kernel).item()
    total = 0.0
    for c in {c for c in classes if c >= 0} & set(their_classes):
        other = sum(row for row, found in zip(theirs, their_classes, strict=True) if found == c)
        own = sum(row for row, found in zip(ours, classes, strict=True) if found == c)
        total += (other / their_classes.count(c) - own / classes.count(c)).square().sum().item()
    return total


@each_map
@each_kernel
@each_align
@each("bias", [True, False])
def test_a_loss_is_what_loops_over_layers_and_classes_give(
    align: str, kernel: Kernel, theirs: list[int], bias: bool
) -> None:
    case = Case(theirs, bias=bias)
    assert case.found(align, kernel) == pytest.approx(case.expected(align, kernel), rel=1e-9)


@each_kernel
@each_align
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), theirs=st.lists(st.integers(-1, 4), min_size=3, max_size=3))
def test_it_is_for_any_batch_and_any_map(align: str, kernel: Kernel, seed: int, theirs: list[int]) -> None:
    case = Case(theirs, seed=seed)
    assert case.found(align, kernel) == pytest.approx(case.expected(align, kernel), rel=1e-9)


def test_a_classic_loss_leaves_out_classes_without_a_counterpart() -> None:
    assert Case([-1, -1, -1]).found("classic", "linear") == 0
    assert Case([-1, 2, -1]).found("classic", "linear") > 0
    assert Case([-1, 4, -1]).found("classic", "linear") == 0  # of which the auxiliary task has no sample
    assert Case([-1, -1, -1]).found("layer", "linear") > 0  # layers are compared on any class


@each_kernel
@each_align
def test_unlabelled_samples_add_nothing(align: str, kernel: Kernel) -> None:
    case = Case([3, -1, 0])
    before = case.found(align, kernel)
    case.x[3::4] += 1
    assert case.found(align, kernel) == pytest.approx(before, rel=1e-12)
    case.x[0] += 1
    assert case.found(align, kernel) != pytest.approx(before, rel=1e-6)


@each_kernel
@each_align
def test_a_batch_without_labels_is_at_distance_zero_and_draws_nowhere(align: str, kernel: Kernel) -> None:
    case = Case([3, -1, 0])
    found = case.loss(align, kernel)(case.taps(), case.x, torch.full_like(case.classes, -1), case.mapping)
    found.backward()
    assert found.item() == 0
    assert not any(p.grad is not None and p.grad.any() for p in (*case.small.parameters(), *case.head.parameters()))


@each_align
def test_only_the_tasks_network_is_drawn(align: str) -> None:
    case = Case([3, -1, 0])
    loss = case.loss(align, "linear")
    assert not list(loss.parameters())
    loss(case.taps(), case.x, case.classes, case.mapping).backward()
    assert all(p.grad is not None and p.grad.any() for p in case.small.parameters())
    weight = case.head.weight.grad
    assert weight is not None
    assert [bool(row.any()) for row in weight] == [True, False, True]  # of the last layer what has a counterpart


@each_kernel
def test_a_layer_loss_draws_a_network_that_is_the_auxiliary_one_nowhere(kernel: Kernel) -> None:
    case = Case([3, -1, 0])
    case.small.load_state_dict(case.big.state_dict())
    with torch.no_grad():
        for ours, theirs in zip((case.head.weight, case.head.bias), (case.last.weight, case.last.bias), strict=True):
            ours[[0, 2]] = theirs[[3, 0]]
    found = case.loss("layer", kernel)(case.taps(), case.x, case.classes, case.mapping)
    found.backward()
    gradients = [p.grad for p in (*case.small.parameters(), *case.head.parameters())]
    if kernel == "linear":
        assert found.item() == 0
        assert not any(gradient is not None and gradient.any() for gradient in gradients)
    assert abs(found.item()) < 1e-12
    assert all(gradient is None or gradient.abs().max() < 1e-12 for gradient in gradients)


def test_a_feature_loss_computes_the_auxiliary_network_once_a_sample() -> None:
    case = Case([3, -1, 0])
    loss = case.loss("feature", "linear")
    assert isinstance(loss, FeatureAlignment)
    first = loss(case.taps(), case.x, case.classes, case.mapping)
    assert len(loss.cache) == 12
    loss.reference.forward = None  # type: ignore[assignment, method-assign]
    assert torch.equal(loss(case.taps(), case.x, case.classes, case.mapping), first)


@pytest.mark.parametrize("change", ["loaded", "moved"])
def test_a_feature_loss_remembers_nothing_of_a_network_that_has_changed(change: str) -> None:
    case, other = Case([3, -1, 0]), Case([3, -1, 0])
    with torch.no_grad():
        other.last.weight.zero_()
    loss, changed = case.loss("feature", "linear"), other.loss("feature", "linear")
    first = loss(case.taps(), case.x, case.classes, case.mapping)
    if change == "loaded":
        loss.load_state_dict(changed.state_dict())
    else:
        loss.to(torch.float16).to(torch.float64)  # rounded on the way
    again = loss(case.taps(), case.x, case.classes, case.mapping)
    assert not torch.equal(again, first)
    if change == "loaded":
        assert torch.equal(again, changed(case.taps(), case.x, case.classes, case.mapping))


@each_kernel
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_taps_in_half_precision_are_compared_in_single(kernel: Kernel, half: torch.dtype) -> None:
    """In mixed precision layers are in single precision, what they read and give is not."""
    case = Case([3, -1, 0])
    for module in (case.big, case.last, case.small, case.head):
        module.float()
    case.x = case.x.float()
    taps = case.taps()
    halved = {
        name: tap._replace(features=tap.features.to(half), output=tap.output.to(half)) for name, tap in taps.items()
    }
    again = {
        name: tap._replace(features=tap.features.float(), output=tap.output.float()) for name, tap in halved.items()
    }
    loss = case.loss("layer", kernel)
    found = loss(halved, case.x, case.classes, case.mapping)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(again, case.x, case.classes, case.mapping))


def test_a_bank_has_as_many_samples_as_asked_for_if_distributions_are_compared_and_means_otherwise() -> None:
    case = Case([3, -1, 0])
    counts = torch.bincount(case.bank_classes, minlength=5)
    present = int((counts > 0).sum())
    assert len(case.loss("classic", "linear", per_class=2).reference_features.labels) == present  # type: ignore[union-attr, arg-type]
    assert len(case.loss("classic", "rbf", per_class=2).reference_features.labels) == 2 * present  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("align", ["layer", "feature", "classic"])
def test_a_loss_is_saved_with_what_it_needs(align: str) -> None:
    case, other = Case([3, -1, 0]), Case([3, -1, 0])
    with torch.no_grad():
        for p in (*other.big.parameters(), *other.last.parameters()):
            p.zero_()
    full, empty = case.loss(align, "linear"), other.loss(align, "linear")
    arguments = (case.taps(), case.x, case.classes, case.mapping)
    assert not torch.equal(empty(*arguments), full(*arguments))
    fresh = other.loss(align, "linear")
    fresh.load_state_dict(full.state_dict())
    assert torch.equal(fresh(*arguments), full(*arguments))


def test_a_layer_loss_keeps_the_fully_connected_layers_only() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    loss = LayerAlignment(ReferenceNetwork(encoder, ["2"], LinearHead(3, 5)), "linear")
    assert sum(tensor.numel() for tensor in loss.buffers()) == 8 * 3 + 3 + 3 * 5 + 5


def made(align: Any = "layer", **changes: Any) -> AlignmentLoss | None:
    """A loss of `Case`, something about which is changed."""
    case = Case([3, -1, 0])
    setup = AlignmentSetup(
        tasks={"small": SMALL},
        mappings={"small": case.mapping},
        reference=case.reference,
        source=Source(AUXILIARY, case.last, TensorLoader(case.bank_x, case.bank_classes)),
    )
    return make_alignment_loss(align, "linear", replace(setup, **changes), per_class=1, megabytes=1.0)


@each_align
def test_tasks_that_are_no_classifications_cannot_be_aligned(align: str) -> None:
    with pytest.raises(ParameterError, match="task 'size' is a Regression, and alignment compares classes"):
        made(align, tasks={"small": SMALL, "size": Regression("size")})
    assert made("none", tasks={"size": Regression("size")}) is None


@each_align
def test_a_task_without_a_layer_to_align_is_refused(align: str) -> None:
    case = Case([0, 1, 2])
    for reference in (ReferenceNetwork(case.big, [], None), ReferenceNetwork(case.big, [], case.last)):
        with pytest.raises(ParameterError, match="task 'small' has no fully connected layer to align"):
            made(align, reference=reference, mappings={})
    assert made(align, reference=ReferenceNetwork(case.big, [], case.last)) is not None


@pytest.mark.parametrize("lacking", ["source", "samples", "last layer"])
def test_the_classic_loss_needs_samples_and_classes_of_the_auxiliary_task(lacking: str) -> None:
    head, samples = Case([0, 1, 2]).last, TensorLoader(torch.zeros(2, 4), torch.tensor([0, 1]))
    source = {
        "source": None,
        "samples": Source(AUXILIARY, head),
        "last layer": Source(AUXILIARY, nn.Sequential(head), samples),
    }[lacking]
    with pytest.raises(ParameterError, match=r"align='classic' compares with the samples.*Give them in `source`"):
        made("classic", source=source)


def test_the_classic_loss_refuses_a_task_whose_classes_it_does_not_know() -> None:
    with pytest.raises(ParameterError, match=r"task 'small': its classes are not known.*align='classic'"):
        made("classic", mappings={})
