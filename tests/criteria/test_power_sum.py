"""Sums of powers whose products wait for more samples."""

from __future__ import annotations

import pytest
import torch

import sparsemtl as sm
from sparsemtl.criteria import Fisher, power_sum
from sparsemtl.criteria.power_sum import PowerSum

POWERS = {"square": lambda gradient: gradient.square(), "abs": lambda gradient: gradient.abs()}


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("sizes", [[3], [3, 4], [3, 4, 2, 1], [20], [3, 20, 2]])
@pytest.mark.parametrize("power", POWERS)
def test_products_of_single_positions_are_those_of_every_sample(
    power: str, sizes: list[int], waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power_sum, "_WAITED_FOR", 0 if waits else 2**40)
    monkeypatch.setattr(power_sum, "_ENOUGH", 8)
    sums = PowerSum(power, 2**20)  # type: ignore[arg-type]
    totals = [torch.ones(4, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)]
    truths = [total.clone() for total in totals]
    for size in sizes:
        right = torch.randn(size, 5, dtype=torch.float64)
        for total, truth in zip(totals, truths, strict=True):
            left = torch.randn(size, len(total), dtype=torch.float64)
            for n in range(size):
                truth += POWERS[power](left[n, :, None] * right[n])
            sums.outer_products(total, left, right)
    sums.flush()
    for total, truth in zip(totals, truths, strict=True):
        torch.testing.assert_close(total, truth, rtol=1e-12, atol=1e-12)
    sums.flush()
    torch.testing.assert_close(totals[0], truths[0], rtol=1e-12, atol=1e-12)


def test_factors_that_wait_are_copies() -> None:
    """A loader may reuse the memory of its batches, and autograd that of gradients."""
    total = torch.zeros(512, 512)
    sums = PowerSum("abs", 2**20)
    left, right = torch.rand(2, 512), torch.rand(2, 512)
    truth = left.T @ right
    sums.outer_products(total, left, right)
    assert not total.any()
    left.zero_(), right.zero_()
    sums.flush()
    torch.testing.assert_close(total, truth)


def test_scores_of_large_layers_do_not_depend_on_the_size_of_batches() -> None:
    torch.manual_seed(0)
    tasks = [sm.Classification("digit", 3), sm.Classification("parity", 2)]
    model = sm.SharedBottom(torch.nn.Linear(600, 512), tasks, {t.name: torch.nn.Linear(512, t.outputs) for t in tasks})
    x = torch.randn(150, 600)
    targets = {"digit": torch.randint(3, (150,)), "parity": torch.randint(2, (150,))}
    scores = []
    for size in (150, 64, 7):
        parts = zip(x.split(size), targets["digit"].split(size), targets["parity"].split(size), strict=True)
        loader = [(part, {"digit": digit, "parity": parity}) for part, digit, parity in parts]
        scores.append(Fisher(samples=140).scores(model, loader, tasks))
    for found in scores[1:]:
        for task in found:
            torch.testing.assert_close(found[task], scores[0][task], rtol=1e-5, atol=1e-10)
