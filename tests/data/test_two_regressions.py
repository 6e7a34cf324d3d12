"""The rule of Ma et al. 2018, with what METHODS.md checked of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor

from sparsemtl.data import DATASETS, Split, TaskData
from sparsemtl.data.two_regressions import LENGTH, draw_functions
from sparsemtl.errors import ParameterError

COSINES = [-1.0, 0.0, 0.2, 0.5, 0.8, 1.0]
SMALL = {"train_size": 60, "validation_size": 9, "test_size": 8}


def build(**options: Any) -> TaskData:
    return DATASETS.build("two-regressions", **{**SMALL, **options})


def training(data: TaskData) -> Split:
    assert isinstance(data.train, Split)
    return data.train


def both(split: Split) -> Tensor:
    return torch.stack([split.targets["first"], split.targets["second"]])


@each("cosine", COSINES)
@each("dimension", [2, 100])
def test_the_weights_have_the_cosine_that_is_asked_for(cosine: float, dimension: int) -> None:
    one, other = draw_functions(cosine, dimension, torch.Generator().manual_seed(3)).weights
    assert one.norm().item() == pytest.approx(LENGTH)
    assert other.norm().item() == pytest.approx(LENGTH)
    assert torch.cosine_similarity(one, other, dim=0).item() == pytest.approx(cosine, abs=1e-6)


def test_the_values_are_those_of_the_rule_written_out() -> None:
    rule = draw_functions(0.4, 6, torch.Generator().manual_seed(1))
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for row, values in zip(x, rule(x), strict=True):
        for w, value in zip(rule.weights, values, strict=True):
            linear = sum(a * b for a, b in zip(w.tolist(), row.tolist(), strict=True))
            waves = [torch.sin(a * linear + b) for a, b in zip(rule.frequencies, rule.phases, strict=True)]
            assert value.item() == pytest.approx(linear + sum(w.item() for w in waves))


def test_with_correlation_one_and_no_noise_both_tasks_have_the_same_labels() -> None:
    first, second = both(training(build(correlation=1.0, noise=0.0)))
    assert torch.equal(first, second)
    first, second = both(training(build(correlation=1.0)))
    assert not torch.equal(first, second)


def test_the_noise_has_its_standard_deviation() -> None:
    clean, noisy = (both(training(build(noise=noise, train_size=4000, seed=2))) for noise in (0.0, 0.25))
    assert (noisy - clean).std().item() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(("cosine", "expected"), [(0.2, 0.15), (0.5, 0.40), (0.8, 0.68), (1.0, 0.89)])
def test_the_labels_correlate_as_in_the_paper(cosine: float, expected: float) -> None:
    """The correlation depends on the frequencies that are drawn (standard deviation 0.05 to 0.19): many seeds."""
    found = [
        torch.corrcoef(both(training(build(correlation=cosine, seed=seed, train_size=1000))))[0, 1]
        for seed in range(200)
    ]
    assert torch.stack(found).mean().item() == pytest.approx(expected, abs=0.03)


def test_parts_have_their_sizes_and_no_sample_in_common() -> None:
    data = build()
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [60, 9, 8]
    rows = {tuple(row.tolist()) for part in parts if isinstance(part, Split) for row in part.x}
    assert len(rows) == 77
    assert data.input_shape == (100,)


@pytest.mark.parametrize("correlation", [1.5, -1.01])
def test_a_cosine_out_of_range_is_refused(correlation: float) -> None:
    with pytest.raises(ParameterError, match=r"'correlation' parameter .* must be a float in \[-1, 1\]"):
        build(correlation=correlation)
