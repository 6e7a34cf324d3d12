"""Runs with `execution="sliced"`: the weights of masked execution, in every precision, and resumed bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from states import assert_same, state_of
from training_toys import encoder, loader, tasks

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS
from sparsemtl.errors import CheckpointError, CompactionWarning, ParameterError
from sparsemtl.runs.run import run


def trainer(execution: str = "sliced", **options: Any) -> sm.Trainer:
    """Trains with masks that change before every epoch; the optimizer is one that enlarges no rounding error."""
    return sm.Trainer(
        sm.SharedBottom(encoder(norm=True), tasks()),
        sharing=sm.RandomSharing(keep=0.5, granularity="channel", update_every=1),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
        execution=execution,
        **{"epochs": 3, "progress": False, "accelerator": "cpu", **options},
    )


@pytest.mark.parametrize(
    ("balancing", "options"),
    [("mean", {}), ("uncertainty", {}), ("pcgrad", {}), ("mgda", {"gradients": "gramian"})],
    ids=["mean", "uncertainty", "pcgrad", "gramian"],
)
def test_a_sliced_run_ends_with_the_weights_of_a_masked_one(balancing: str, options: dict[str, Any]) -> None:
    data = [loader(seed=seed) for seed in (1, 2)]
    ends = []
    for execution in ("masked", "sliced"):
        done = trainer(execution, balancing=BALANCERS.build(balancing, **options), precision="64-true").fit(*data)
        ends.append((state_of(done.model), done.test(loader(seed=3))))
        if done.step.slices is not None:
            assert all(done.step.slices.share(task) is not None for task in done.model.tasks)
    for name, weight in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], weight, rtol=1e-10, atol=1e-10)
    assert ends[0][1]["a"]["loss"] == pytest.approx(ends[1][1]["a"]["loss"], rel=1e-10)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains_on_slices(precision: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompactionWarning)
        done = trainer(precision=precision, epochs=1).fit(loader(seed=1), loader(seed=2))
    assert done.step.slices is not None
    assert done.step.slices.share("a") is not None


class Killed(Exception):
    pass


class Dying:
    """A loader that dies before its n-th batch, counted over all epochs."""

    def __init__(self, batches: Any, left: int) -> None:
        self.batches, self.left = batches, left

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for batch in self.batches:
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


def test_a_resumed_run_ends_like_the_uninterrupted_one_and_under_the_same_execution_only(tmp_path: Path) -> None:
    options = {"checkpoint_every": 2}
    whole = trainer(folder=tmp_path / "whole", **options).fit(loader(seed=1), loader(seed=2))
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        trainer(folder=cut, **options).fit(Dying(loader(seed=1), 8), loader(seed=2))
    with pytest.raises(CheckpointError, match="execution"):
        trainer("masked", folder=cut, **options).fit(loader(seed=1), loader(seed=2), resume=True)
    resumed = trainer(folder=cut, **options).fit(loader(seed=1), loader(seed=2), resume=True)
    assert_same(state_of(resumed.model), state_of(whole.model))


def test_a_configuration_asks_for_slices(tmp_path: Path) -> None:
    config = {
        "data": {"name": "two-regressions", "train_size": 64, "validation_size": 64, "test_size": 64, "dimension": 8},
        "encoder": {"name": "mlp", "hidden": [16, 16]},
        "sharing": {"name": "random", "keep": 0.5, "granularity": "channel"},
        "training": {"epochs": 1, "execution": "sliced"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompactionWarning)
        run(config, tmp_path / "run", progress=False)
    loaded = sm.load_run(tmp_path / "run")
    assert loaded.config["training"]["execution"] == "sliced"


def test_an_unknown_execution_is_refused_by_name() -> None:
    with pytest.raises(ParameterError, match=r"'execution' parameter of Trainer must be .* Got 'slices'"):
        trainer("slices")
