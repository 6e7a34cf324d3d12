"""Losses of unlike scale are named once, with what to do, where constant weights let one loss rule."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

import sparsemtl as sm
from sparsemtl.backbones import MLP
from sparsemtl.balancing import BALANCERS
from sparsemtl.data.base import TensorLoader
from sparsemtl.training.checks.loss_scales import LossScaleWarning, unlike_scales

TASKS = {"grade": sm.Regression("grade"), "pass": sm.Classification("pass", 2)}


def fit(scale: float, folder: Path, balancing: str = "mean") -> list[str]:
    """Notes of a run whose regression's labels are of this size."""
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    targets = {"grade": scale * x[:, 0], "pass": (x[:, 1] > 0).long()}
    loader = TensorLoader(x, targets, batch_size=16)
    model = sm.SharedBottom(MLP([4], hidden=[8]), list(TASKS.values()))
    balancer = BALANCERS.build(balancing)
    trainer = sm.Trainer(model, balancing=balancer, epochs=2, folder=folder, accelerator="cpu", progress=False)
    trainer.fit(loader, loader)
    trainer.test(TensorLoader(x, targets, batch_size=16))
    notes: list[str] = json.loads((folder / "summary.json").read_text())["notes"]
    return notes


def test_a_loss_that_outgrows_the_others_is_named_once_with_the_remedy(tmp_path: Path) -> None:
    said = r"of grade, .* of pass\. .*`scale: standard`.*`weight`.*uncertainty"
    with pytest.warns(LossScaleWarning, match=said) as caught:
        notes = fit(100.0, tmp_path)
    assert [str(one.message) for one in caught if one.category is LossScaleWarning] == notes


@pytest.mark.parametrize(
    ("scale", "balancing"), [(1.0, "mean"), (1.0, "sum"), (100.0, "uncertainty")], ids=["mean", "sum", "weighted"]
)
def test_nothing_is_said_of_like_losses_nor_where_they_are_weighted(
    tmp_path: Path, scale: float, balancing: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LossScaleWarning)
        assert fit(scale, tmp_path, balancing) == []


@pytest.mark.parametrize(
    ("losses", "weights", "named"),
    [
        ({"grade": 123.0, "pass": 0.8}, {}, True),
        ({"grade": 0.01, "pass": 0.8}, {}, True),
        ({"grade": 10.0, "pass": 0.8}, {}, False),
        ({"grade": 123.0, "pass": 0.8}, {"grade": 0.01, "pass": 1.0}, False),
        ({"grade": 123.0}, {}, False),
        ({"grade": 123.0, "pass": 0.0}, {}, False),
    ],
)
def test_the_ratio_of_weighted_losses_decides(losses: dict[str, float], weights: dict[str, float], named: bool) -> None:
    assert bool(unlike_scales(losses, weights, TASKS)) == named


def test_the_tasks_own_weights_count() -> None:
    tasks = {"grade": sm.Regression("grade", weight=0.01), "pass": TASKS["pass"]}
    assert unlike_scales({"grade": 123.0, "pass": 0.8}, {}, tasks) == ""
