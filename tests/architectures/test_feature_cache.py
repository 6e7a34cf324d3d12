"""What is remembered of a frozen network: computed once a sample, in no more room than is given."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from reference_toys import images, reference
from torch import Tensor

from sparsemtl.architectures.damtl.feature_cache import FeatureCache, _fingerprints


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
    x, remembered, network = images(), FeatureCache(1), Counting(reference())
    alone = [network.network(x[i : i + 1]) for i in range(10)]
    for batch in batches:
        expected = {name: torch.cat([alone[i][name] for i in batch]) for name in alone[0]}
        assert_equal(remembered(network, x[batch]), expected)
    seen = {i for batch in batches for i in batch}
    assert network.samples == network.batches == len(remembered) == len(seen)


def test_a_sample_is_known_by_its_content_wherever_it_lies() -> None:
    x, remembered, network = images(), FeatureCache(1), Counting(reference())
    remembered(network, x)
    remembered(network, x.clone().flip(0))
    remembered(network, x.transpose(1, 2).contiguous().transpose(1, 2))
    assert network.samples == 10


@pytest.mark.parametrize("room", [1, 3, 7])
def test_no_more_is_remembered_than_there_is_room_for(room: int) -> None:
    x, network = images(), Counting(reference())
    size = nbytes(network.network(x[:1]))
    remembered = FeatureCache(room * size / 2**20)
    for _ in range(3):
        found = remembered(network, x)
        for name, output in network.network(x).items():
            torch.testing.assert_close(found[name], output)
    assert len(remembered) == room
    assert network.batches == room + 1 + 3  # each alone until one finds no room, then all in one
    before = network.samples
    remembered(network, x[:room])
    assert network.samples == before


def test_room_for_less_than_one_answer_takes_none() -> None:
    x, network = images(), Counting(reference())
    remembered = FeatureCache((nbytes(network.network(x[:1])) - 1) / 2**20)
    remembered(network, x)
    assert len(remembered) == 0


def test_what_is_forgotten_is_computed_again_and_leaves_its_room() -> None:
    x, network = images(), Counting(reference())
    remembered = FeatureCache(2 * nbytes(network.network(x[:1])) / 2**20)
    remembered(network, x)
    remembered.clear()
    assert len(remembered) == 0
    before = network.samples
    remembered(network, x[5:7])
    assert network.samples == before + 2
    assert len(remembered) == 2


def test_without_room_batches_are_computed_as_they_are() -> None:
    x, network, remembered = images(), Counting(reference()), FeatureCache(0)
    assert_equal(remembered(network, x), network.network(x))
    remembered(network, x)
    assert (network.batches, network.samples, len(remembered)) == (2, 20, 0)


def test_nests_of_tensors_are_computed_as_they_are() -> None:
    remembered = FeatureCache(1)
    found = remembered(lambda pair: {"sum": pair[0] + pair[1]}, (images(), images()))
    assert torch.equal(found["sum"], 2 * images())
    assert not len(remembered)


def test_a_copy_has_forgotten_and_has_as_much_room() -> None:
    x, network = images(), Counting(reference())
    remembered = FeatureCache(2 * nbytes(network.network(x[:1])) / 2**20)
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


@each("dtype", DTYPES)
def test_samples_that_differ_anywhere_have_other_fingerprints(dtype: torch.dtype) -> None:
    width = 40
    one = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(0))
    flipped = (one + torch.eye(width, dtype=torch.long)) % 2  # one value each
    x = torch.cat([one.unsqueeze(0), flipped, one.flip(0).unsqueeze(0), 1 - one.unsqueeze(0)]).to(dtype)
    found = _fingerprints(x)
    assert len(set(found)) == len(x.unique(dim=0)) == width + 3
    assert _fingerprints(x.flip(0)) == found[::-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_smallest_difference_counts(dtype: torch.dtype) -> None:
    one = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = one.clone()
    other[0, 2, 7, 7] = torch.nextafter(other[0, 2, 7, 7], torch.tensor(2, dtype=dtype))
    assert len(set(_fingerprints(torch.cat([one, other])))) == 2


def test_samples_of_other_shapes_are_others_even_if_all_are_zero() -> None:
    shapes = [(1,), (2,), (1, 2), (2, 1), (3, 4), (4, 3), (2, 6)]
    assert len({_fingerprints(torch.zeros(1, *shape))[0] for shape in shapes}) == len(shapes)


def test_a_fingerprint_is_drawn_without_touching_the_generator() -> None:
    state = torch.get_rng_state()
    _fingerprints(images())
    assert torch.equal(torch.get_rng_state(), state)
