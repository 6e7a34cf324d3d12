"""Every sharing method, criterion and architecture in every precision that a CPU has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import CRITERIA, Fisher
from sparsemtl.criteria.channels import channel_units
from sparsemtl.networks.norms import statistics_of
from sparsemtl.sharing import SHARING

pytestmark = pytest.mark.filterwarnings("ignore::sparsemtl.errors.LikelihoodWarning")

PRECISIONS = ["64-true", "bf16-true", "bf16-mixed"]
"""Precisions but single; in that, the contract of sharing trains every method."""
DTYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-true": torch.bfloat16}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "fisher": [{"warmup": 0}, {"warmup": 0, "granularity": "channel", "estimator": "efs"}],
    "pbfs": [{"warmup": 0, "criterion": criterion} for criterion in ("magnitude", "fisher", "gradient")],
    "group-lasso": [{"target_sparsity": 0.3, "reach_at": 1}],
    "group-mcp": [{"target_sparsity": 0.3, "reach_at": 1}],
    "l1": [{"target_sparsity": 0.3, "reach_at": 1}],
    "lottery": [{"iterations": 1, "iteration": 1, "epochs_per_iteration": 1, "target_sparsity": 0.5}],
}
CASES = [(name, options) for name in SHARING for options in SETTINGS.get(name, [{}])]


def tasks() -> list[sm.Task]:
    return [sm.Classification("kind", 3), sm.Regression("size")]


class Positions(nn.Module):
    """Adds a tensor that it makes in its forward, in torch's default dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(0, 1, x.shape[-1])


def encoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        Positions(),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def data(dtype: torch.dtype = torch.float32) -> list[Any]:
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = {"kind": torch.arange(8) % 3, "size": x.float().mean((1, 2, 3))}
    return [(x, targets)]


def trainer(model: sm.MultiTaskModel, precision: Any, sharing: sm.Sharing | None, folder: Path | None) -> sm.Trainer:
    """Trainer that measures no costs of networks; `test_costs` measures them in every precision."""
    epochs = 2 if sharing is None or sharing.is_selectable(1) else 3
    return sm.Trainer(
        model,
        sharing=sharing,
        epochs=epochs,
        precision=precision,
        accelerator="cpu",
        progress=False,
        folder=folder,
        measure_cost=False,
    )


@pytest.mark.parametrize(
    ("name", "options", "precision"),
    [
        pytest.param(name, options, precision, id=f"{name} {options} {precision}")
        for name, options in CASES
        for precision in (PRECISIONS if options == SETTINGS.get(name, [{}])[0] else ["bf16-true"])
    ],
)
def test_every_sharing_method_trains_tests_and_predicts(
    name: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    run = trainer(sm.SharedBottom(encoder(), tasks()), precision, SHARING.build(name, **options), tmp_path / "run")
    run.fit(data(), data())
    results = run.test(data())
    assert all(torch.tensor(result["loss"]).isfinite() for result in results.values())
    assert {len(output) for output in run.predict(data()[0][0]).values()} == {8}
    assert next(run.model.parameters()).dtype == DTYPES.get(precision, torch.float32)


def model_in(dtype: torch.dtype) -> sm.SharedBottom:
    torch.manual_seed(0)
    model = sm.SharedBottom(nn.Sequential(*(m for m in encoder() if not isinstance(m, Positions))), tasks())
    model(data()[0][0])
    return model.to(dtype)


@each("given", [torch.float32, torch.float64, torch.bfloat16])
@each("dtype", DTYPES.values())
@each("name", [*CRITERIA, "fisher, loop"])
def test_every_criterion_reads_inputs_of_any_precision(name: str, dtype: torch.dtype, given: torch.dtype) -> None:
    model = model_in(dtype)
    criterion = Fisher(path="loop", estimator="efs") if name == "fisher, loop" else None
    criterion = criterion or CRITERIA.build(name, **({"estimator": "efs"} if name == "fisher" else {}))
    scores = criterion.scores(model, data(given), list(model.tasks.values()))
    for score in scores["kind"].values():
        assert bool(score.isfinite().all())


@each("given", [torch.float32, torch.float64, torch.bfloat16])
@each("dtype", DTYPES.values())
def test_masks_of_channels_are_chosen_from_inputs_of_any_precision(dtype: torch.dtype, given: torch.dtype) -> None:
    model = model_in(dtype)
    masks = sm.fisher_masks(model, data(given), keep=0.5, granularity="channel", estimator="efs")
    assert 0.2 < masks.density() < 0.8


def test_a_half_model_is_scored_as_the_same_weights_in_single_precision() -> None:
    torch.manual_seed(0)
    model = sm.SharedBottom(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 5)), tasks())
    model(data()[0][0])
    model.bfloat16()
    half = Fisher(estimator="efs").scores(model, data(), list(model.tasks.values()))
    whole = Fisher(estimator="efs").scores(model.float(), data(), list(model.tasks.values()))
    for task, scores in whole.items():
        for name, score in scores.items():
            assert float((half[task][name] - score).abs().max()) <= 0.1 * float(score.max())


def test_losses_in_double_precision_are_computed_in_it() -> None:
    """An error of 1e-9 beside one is nothing in single precision."""
    seen: list[torch.dtype] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(output.dtype)
        return (output - target).square().mean()

    torch.manual_seed(0)
    model = sm.SharedBottom(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), [sm.Regression("size", loss=loss)])
    run = trainer(model, "64-true", None, None)
    run.fit(data(torch.float64), data(torch.float64))
    run.test(data(torch.float64))
    assert set(seen) == {torch.float64}
    assert run.predict(data()[0][0])["size"].dtype == torch.float64


ARCHITECTURES: dict[str, Callable[[], sm.MultiTaskModel]] = {
    "shared bottom": lambda: sm.SharedBottom(encoder(), tasks()),
    "single task": lambda: sm.SingleTask(encoder(), tasks()),
    "mmoe": lambda: sm.MMoE(encoder, tasks(), experts=2),
    "mtal": lambda: sm.MTAL(encoder(), tasks(), warmup=0),
}


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_with_heads_that_wait_for_their_width(name: str, precision: str) -> None:
    torch.manual_seed(0)
    run = trainer(ARCHITECTURES[name](), precision, None, None)
    run.fit(data(torch.float64), data(torch.float64))
    assert all(torch.tensor(result["loss"]).isfinite() for result in run.test(data()).values())


def test_recomputed_statistics_are_those_of_inputs_in_the_models_precision() -> None:
    torch.manual_seed(0)
    model = sm.SharedBottom(encoder(), tasks())
    run = trainer(model, "bf16-true", sm.FisherSharing(warmup=0, estimator="efs"), None)
    run.fit(data(), data())
    statistics = {n: t for n, t in statistics_of(model).items() if t.is_floating_point()}
    assert {tensor.dtype for tensor in statistics.values()} == {torch.bfloat16}
    assert "encoder.0.weight" in channel_units(model.float(), data()[0][0])
