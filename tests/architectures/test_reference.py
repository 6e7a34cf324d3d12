"""The frozen auxiliary network: what its layers give, what is remembered of it, and banks of its features."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear

from sparsemtl import Classification, Source
from sparsemtl.architectures.reference import Bank, Reference, Remembered, Tap, fingerprints, tapped
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError
from sparsemtl.heads.linear import LinearHead

CLASSES = 4
LAYERS = ("1", "4")


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3), nn.ReLU())


def reference(*, known: bool = True) -> Reference:
    return Reference(encoder(), LAYERS, LinearHead(3, CLASSES) if known else None)


def images(count: int = 10, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))


def by_hand(network: Reference, x: Tensor) -> dict[str, Tensor]:
    tensors = network.state_dict()

    def layer(name: str, features: Tensor) -> Tensor:
        return features @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    first = layer("encoder.1", x.flatten(1))
    second = layer("encoder.4", first.relu())
    return {"1": first, "4": second, "": layer("last", second.relu())}


def test_a_source_knows_the_last_layer_if_that_is_linear() -> None:
    task, last = Classification("all", 3), LinearHead(2, 3)
    assert Source(task, last).last is last
    assert Source(task, nn.Sequential(last)).last is None


def test_a_source_whose_head_has_not_learned_its_width_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"the head of task 'all' has not learned its width yet"):
        Source(Classification("all", 3), Classification("all", 3).head())


def test_taps_tell_what_layers_read_have_and_give() -> None:
    network, x = encoder(), images()
    with tapped({"first": network[1], "second": network[4]}) as taps:
        network(x)
    assert list(taps) == ["first", "second"]
    for tap, layer in zip(taps.values(), (network[1], network[4]), strict=True):
        assert tap.weight is layer.weight
        assert tap.bias is layer.bias
        assert torch.equal(tap.output, layer(tap.features))
    assert torch.equal(taps["first"].features, x.flatten(1))


def test_nothing_is_noted_behind_the_context() -> None:
    network = encoder()
    with pytest.raises(ZeroDivisionError), tapped({"first": network[1]}) as taps:
        raise ZeroDivisionError
    network(images())
    assert not taps
    assert not network[1]._forward_hooks


def test_a_tap_has_the_weight_that_the_layer_had_then() -> None:
    network, x = encoder(), images()
    with tapped({"first": network[1]}) as taps:
        torch.func.functional_call(network, {"1.weight": torch.ones(5, 6)}, (x,))
    assert torch.equal(taps["first"].weight, torch.ones(5, 6))


def test_a_head_on_maps_is_said_to_read_their_means() -> None:
    head, maps = LinearHead(3, 2), torch.randn(4, 3, 5, 5)
    with tapped({"": head}) as taps:
        head(maps)
    torch.testing.assert_close(taps[""].features, maps.mean((2, 3)))


def test_layers_that_read_sequences_are_refused_by_name() -> None:
    layer = nn.Linear(3, 2)
    message = r"layer 'mixer' reads features of shape \(4, 7, 3\).*`layers`"
    with pytest.raises(ParameterError, match=message), tapped({"mixer": layer}):
        layer(torch.zeros(4, 7, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_columns_of_a_tap_are_those_of_a_layer_of_some_outputs(bias: bool) -> None:
    layer, x, chosen = nn.Linear(3, 4, bias=bias), torch.randn(5, 3), torch.tensor([2, 0])
    tap = Tap(x, layer.weight, layer.bias if bias else None, layer(x)).columns(chosen)
    assert tap.features is x
    torch.testing.assert_close(tap.output, linear(x, tap.weight, tap.bias))
    assert torch.equal(tap.output, layer(x)[:, [2, 0]])


def test_a_reference_gives_what_its_fully_connected_layers_give() -> None:
    network, x = reference(), images()
    expected = by_hand(network, x)
    for _ in range(2):  # dropout is off
        found = network.train()(x)
        assert list(found) == ["1", "4", ""]
        for name, output in found.items():
            torch.testing.assert_close(output, expected[name])


def test_a_reference_without_a_last_layer_gives_the_others() -> None:
    assert list(reference(known=False)(images())) == ["1", "4"]


def test_nothing_in_a_reference_is_ever_trained() -> None:
    network = reference().train()
    assert not list(network.parameters())
    assert not any(module.training for module in network.modules())
    x = images().requires_grad_()
    assert not any(output.requires_grad for output in network(x).values())


def test_a_reference_is_a_copy() -> None:
    own, last, x = encoder(), LinearHead(3, CLASSES), images()
    network = Reference(own, LAYERS, last)
    before = network(x)
    with torch.no_grad():
        for p in (*own.parameters(), *last.parameters()):
            p.zero_()
    assert all(torch.equal(output, before[name]) for name, output in network(x).items())
    assert all(p.requires_grad for p in (*own.parameters(), *last.parameters()))


def test_a_reference_is_saved_with_its_weights() -> None:
    network, other, x = reference(), reference(), images()
    for tensor in other.buffers():
        tensor.normal_()
    assert not torch.equal(other(x)[""], network(x)[""])
    other.load_state_dict(network.state_dict())
    assert all(torch.equal(output, network(x)[name]) for name, output in other(x).items())


class Counting:
    """A network that counts the samples that it computes, and in how many batches."""

    def __init__(self, network: Callable[[Any], dict[str, Tensor]]) -> None:
        self.network, self.samples, self.batches = network, 0, 0

    def __call__(self, x: Any) -> dict[str, Tensor]:
        self.samples, self.batches = self.samples + len(x), self.batches + 1
        return self.network(x)


def nbytes(answer: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in answer.values())


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert list(left) == list(right)
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@settings(deadline=None, max_examples=20)
@given(batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=5))
def test_every_sample_is_computed_once_and_alone_whatever_the_batches_are(batches: list[list[int]]) -> None:
    x, remembered, network = images(), Remembered(1), Counting(reference())
    alone = [network.network(x[i : i + 1]) for i in range(10)]
    for batch in batches:
        expected = {name: torch.cat([alone[i][name] for i in batch]) for name in alone[0]}
        assert_equal(remembered(network, x[batch]), expected)
    seen = {i for batch in batches for i in batch}
    assert network.samples == network.batches == len(remembered) == len(seen)


def test_a_sample_is_known_by_its_content_wherever_it_lies() -> None:
    x, remembered, network = images(), Remembered(1), Counting(reference())
    remembered(network, x)
    remembered(network, x.clone().flip(0))
    remembered(network, x.transpose(1, 2).contiguous().transpose(1, 2))
    assert network.samples == 10


@pytest.mark.parametrize("room", [1, 3, 7])
def test_no_more_is_remembered_than_there_is_room_for(room: int) -> None:
    x, network = images(), Counting(reference())
    size = nbytes(network.network(x[:1]))
    remembered = Remembered(room * size / 2**20)
    for _ in range(3):
        found = remembered(network, x)
        for name, output in network.network(x).items():
            torch.testing.assert_close(found[name], output)
    assert len(remembered) == room
    assert network.batches == room + 3  # each alone as long as there is room, then all in one
    before = network.samples
    remembered(network, x[:room])
    assert network.samples == before


def test_room_that_one_answer_would_fill_to_overflowing_takes_one_at_most() -> None:
    x, network = images(), Counting(reference())
    remembered = Remembered((nbytes(network.network(x[:1])) - 1) / 2**20)
    remembered(network, x)
    assert len(remembered) <= 1


def test_without_room_batches_are_computed_as_they_are() -> None:
    x, network, remembered = images(), Counting(reference()), Remembered(0)
    assert_equal(remembered(network, x), network.network(x))
    remembered(network, x)
    assert (network.batches, network.samples, len(remembered)) == (2, 20, 0)


def test_nests_of_tensors_are_computed_as_they_are() -> None:
    remembered = Remembered(1)
    found = remembered(lambda pair: {"sum": pair[0] + pair[1]}, (images(), images()))
    assert torch.equal(found["sum"], 2 * images())
    assert not len(remembered)


def test_a_copy_has_forgotten_and_has_as_much_room() -> None:
    x, network = images(), Counting(reference())
    remembered = Remembered(2 * nbytes(network.network(x[:1])) / 2**20)
    remembered(network, x)
    copied = deepcopy(remembered)
    assert (len(remembered), len(copied)) == (2, 0)
    copied(network, x[5:])
    assert len(copied) == 2
    assert len(remembered) == 2


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_that_differ_anywhere_have_other_fingerprints(dtype: torch.dtype) -> None:
    width = 40
    one = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(0))
    flipped = (one + torch.eye(width, dtype=torch.long)) % 2  # one value each
    x = torch.cat([one.unsqueeze(0), flipped, one.flip(0).unsqueeze(0), 1 - one.unsqueeze(0)]).to(dtype)
    found = fingerprints(x)
    assert len(set(found)) == len(x.unique(dim=0)) == width + 3
    assert fingerprints(x.flip(0)) == found[::-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_smallest_difference_counts(dtype: torch.dtype) -> None:
    one = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = one.clone()
    other[0, 2, 7, 7] = torch.nextafter(other[0, 2, 7, 7], torch.tensor(2, dtype=dtype))
    assert len(set(fingerprints(torch.cat([one, other])))) == 2


def test_samples_of_other_shapes_are_others_even_if_all_are_zero() -> None:
    shapes = [(1,), (2,), (1, 2), (2, 1), (3, 4), (4, 3), (2, 6)]
    assert len({fingerprints(torch.zeros(1, *shape))[0] for shape in shapes}) == len(shapes)


def test_a_fingerprint_is_drawn_without_touching_the_generator() -> None:
    state = torch.get_rng_state()
    fingerprints(images())
    assert torch.equal(torch.get_rng_state(), state)


def auxiliary() -> Classification:
    return Classification("all", CLASSES, target="label")


def samples(labels: Tensor | None = None, *, named: bool = True, batch_size: int = 7) -> TensorLoader:
    labels = torch.tensor([0, 2, 2, 0, 1, 2, 2, 0, 2, 1]) if labels is None else labels
    return TensorLoader(images(len(labels)), {"label": labels} if named else labels, batch_size=batch_size)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_a_bank_of_means_has_the_mean_over_all_samples_of_every_class_that_has_any(
    named: bool, batch_size: int
) -> None:
    network = reference()
    features, classes = Bank(network, samples(named=named, batch_size=batch_size), auxiliary(), 0)()
    assert classes.tolist() == [0, 1, 2]  # of class 3 there is no sample
    everything = network(images())
    for name, of_layer in features.items():
        for row, members in enumerate([[0, 3, 7], [4, 9], [1, 2, 5, 6, 8]]):
            torch.testing.assert_close(of_layer[row], everything[name][members].mean(0))


@pytest.mark.parametrize("each", [1, 2, 4, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_a_bank_of_samples_has_the_first_of_every_class(each: int, batch_size: int) -> None:
    network = reference()
    features, classes = Bank(network, samples(batch_size=batch_size), auxiliary(), each)()
    labels = samples().targets["label"].tolist()  # type: ignore[call-overload]
    chosen = [i for i, label in enumerate(labels) if labels[:i].count(label) < each]
    assert classes.tolist() == [labels[i] for i in chosen]
    everything = network(images())
    for name, of_layer in features.items():
        torch.testing.assert_close(of_layer, everything[name][chosen])


@pytest.mark.parametrize("each", [0, 2])
def test_samples_without_a_class_are_not_in_a_bank(each: int) -> None:
    network, labels = reference(), torch.tensor([0, -100, 2, 0, -100, 2])
    features, classes = Bank(network, samples(labels), auxiliary(), each)()
    kept = TensorLoader(images(6)[labels >= 0], labels[labels >= 0])
    expected, expected_classes = Bank(network, kept, auxiliary(), each)()
    assert torch.equal(classes, expected_classes)
    for name, of_layer in features.items():
        torch.testing.assert_close(of_layer, expected[name])


@pytest.mark.parametrize("each", [0, 2])
@pytest.mark.parametrize("empty", [[], [(images(2), torch.full((2,), -100))]], ids=["no batch", "no label"])
def test_a_bank_of_nothing_is_refused(each: int, empty: list[Any]) -> None:
    with pytest.raises(ParameterError, match="the auxiliary task has no samples"):
        Bank(reference(), empty, auxiliary(), each)


def test_a_label_that_the_auxiliary_task_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="label 4 is not one of the classes"):
        Bank(reference(), samples(torch.tensor([0, 4])), auxiliary(), 2)


@pytest.mark.parametrize("each", [0, 2])
def test_a_bank_is_saved_with_its_model(each: int) -> None:
    network = reference()
    bank, other = Bank(network, samples(), auxiliary(), each), Bank(network, samples(), auxiliary(), each)
    for tensor in other.buffers():
        tensor.zero_()
    other.load_state_dict(bank.state_dict())
    assert_equal(other()[0], bank()[0])
    assert torch.equal(other()[1], bank()[1])
    assert not list(bank.parameters())


def test_a_head_that_waits_for_its_width_is_no_source() -> None:
    task = Classification("all", CLASSES)
    with pytest.raises(ParameterError, match="head of task 'all' has not learned its width"):
        Source(task, task.head())
