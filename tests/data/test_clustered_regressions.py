"""Clustered regressions: what tasks of a cluster have in common, and others have not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsemtl.data import DATASETS, Split, TaskData
from sparsemtl.data.clustered_regressions import draw_functions
from sparsemtl.errors import ParameterError

SMALL = {"train_size": 30, "validation_size": 9, "test_size": 8}


def build(**options: Any) -> TaskData:
    return DATASETS.build("clustered-regressions", **{**SMALL, **options})


def labels(part: Any) -> Tensor:
    assert isinstance(part, Split)
    return torch.stack(list(part.targets.values()), dim=1)


def test_the_values_are_those_of_the_rule_written_out() -> None:
    rule = draw_functions(3, 2, 6, torch.Generator().manual_seed(1))
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for row, values in zip(x, rule(x), strict=True):
        for task, value in enumerate(values):
            cluster = task % 2
            read = [float(row @ rule.directions[cluster][:, i]) for i in range(2)]
            features = [
                torch.tanh(sum(read[i] * rule.mixtures[cluster, i, j] for i in range(2)) + rule.shifts[cluster, j])
                for j in range(8)
            ]
            raw = sum(float(weight * feature) for weight, feature in zip(rule.weights[task], features, strict=True))
            assert float(value) == pytest.approx(float((raw - rule.mean[task]) / rule.deviation[task]))


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_clusters_read_orthogonal_directions(clusters: int) -> None:
    rule = draw_functions(4, clusters, 20, torch.Generator().manual_seed(0))
    together = rule.directions.transpose(0, 1).reshape(20, -1)
    torch.testing.assert_close(together.T @ together, torch.eye(2 * clusters, dtype=torch.float64))
    x = torch.randn(5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = x + rule.directions[0][:, 0]  # along a direction of the first cluster
    changed = (rule(moved) - rule(x)).abs().amax(0) > 1e-9
    assert changed.tolist() == [task % clusters == 0 for task in range(4)]


def test_labels_are_standardised_and_only_those_of_the_test_are_free_of_noise() -> None:
    clean, noisy = (build(noise=noise, train_size=4000, test_size=4000, seed=2) for noise in (0.0, 0.5))
    assert labels(clean.test).std(0).tolist() == pytest.approx([1.0] * 4, abs=0.08)
    assert labels(clean.test).mean(0).tolist() == pytest.approx([0.0] * 4, abs=0.08)
    assert torch.equal(labels(clean.train) != labels(noisy.train), torch.ones(4000, 4, dtype=torch.bool))
    assert (labels(noisy.train) - labels(clean.train)).std().item() == pytest.approx(0.5, rel=0.05)
    assert isinstance(noisy.test, Split)
    rule = draw_functions(4, 2, 20, torch.Generator().manual_seed(2))
    torch.testing.assert_close(labels(noisy.test), rule(noisy.test.x.double()).float())


def test_a_seed_is_a_data_set() -> None:
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(labels(one.train), labels(same.train))
    assert not torch.equal(labels(one.train), labels(other.train))
    assert [task.name for task in build(tasks=2).tasks] == ["task0", "task1"]


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"`clusters` must be at most the number of tasks, 2. Got 3"):
        build(tasks=2, clusters=3)
    with pytest.raises(ParameterError, match=r"`dimension` must be at least 8 for 4 clusters. Got 7"):
        build(clusters=4, dimension=7)
