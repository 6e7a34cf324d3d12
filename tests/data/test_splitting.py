from __future__ import annotations

import pytest
import torch
from loops import each

from sparsemtl.data.splitting import hold_out, in_proportion, partition, shuffled
from sparsemtl.errors import DataError, ParameterError


@each("count", [5, 10, 101, 1797])
@each("shares", [(0.5, 0.5), (0.6, 0.2, 0.2), (0.34, 0.33, 0.33)])
def test_parts_are_disjoint_and_together_everything(count: int, shares: tuple[float, ...]) -> None:
    parts = partition(count, shares, seed=1)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(count))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - share * count) <= 1


def test_the_seed_alone_decides_the_order() -> None:
    state = torch.get_rng_state()
    assert torch.equal(shuffled(50, 7), shuffled(50, 7))
    assert not torch.equal(shuffled(50, 7), shuffled(50, 8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shares", [(0.5, 0.6), (0.5, 0.4), (1.2, -0.2), (1.0, 0.0)])
def test_shares_must_be_positive_and_add_up_to_one(shares: tuple[float, ...]) -> None:
    with pytest.raises(ParameterError, match="above 0 and add up to 1"):
        partition(100, shares, seed=0)


def test_a_part_without_a_sample_is_refused() -> None:
    with pytest.raises(DataError, match="4 samples are too few"):
        partition(4, [0.9, 0.1], seed=0)


def test_validation_is_the_end_of_the_order() -> None:
    train, held_out = hold_out(100, 0.1, seed=3)
    assert torch.equal(torch.cat([train, held_out]), shuffled(100, 3))
    assert len(held_out) == 10


def test_a_smaller_training_set_is_the_beginning_of_the_larger_one_with_validation_in_proportion() -> None:
    whole, whole_held_out = hold_out(100, 0.2, seed=3)
    train, held_out = hold_out(100, 0.2, seed=3, train_size=20)
    assert torch.equal(train, whole[:20])
    assert torch.equal(held_out, whole_held_out[-5:])


def test_at_least_one_sample_validates() -> None:
    assert in_proportion(1, 0.1) == 1
    assert in_proportion(54_000, 0.1) == 6_000


def test_more_training_samples_than_are_left_are_refused() -> None:
    assert len(hold_out(100, 0.1, seed=0, train_size=90)[0]) == 90
    with pytest.raises(DataError, match=r"train_size=91 is too large: of 100 samples 10 are held out .* leaves 90"):
        hold_out(100, 0.1, seed=0, train_size=91)
