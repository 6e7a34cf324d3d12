"""Group lasso and group MCP on heads and neurons: in the trainer, in configurations, and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import MaskError, ParameterError
from sparsemtl.sharing import SHARING

WIDTH, HEADS, INNER = 8, 4, 10
TASKS = [sm.Classification("a", 2), sm.Regression("b")]


class Attention(nn.Module):
    """Two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = WIDTH
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(1)


def network() -> sm.SharedBottom:
    torch.manual_seed(0)
    return sm.SharedBottom(Attention(), TASKS)


X = torch.randn(24, 3, WIDTH, generator=torch.Generator().manual_seed(0))
TARGETS = {"a": (X.mean((1, 2)) > 0).long(), "b": X[:, 0, 0]}
BATCHES = [(X[i : i + 8], {name: y[i : i + 8] for name, y in TARGETS.items()}) for i in (0, 8, 16)]
every_method = each("method", ["group-lasso", "group-mcp"])
every_kind = each(("kind", "count"), [("head", HEADS), ("neuron", INNER)])


def trained(method: str, kind: str, epochs: int = 2, folder: Path | None = None, **options: Any) -> sm.Trainer:
    options = {"target_sparsity": 0.5, "reach_at": 1, "keep_min": 1, **options}
    sharing = SHARING.build(method, granularity=kind, **options)
    trainer = sm.Trainer(network(), sharing=sharing, epochs=epochs, seed=0, progress=False, folder=folder)
    return trainer.fit(BATCHES, list(BATCHES))


@every_method
@every_kind
def test_a_target_counts_whole_units(method: str, kind: str, count: int) -> None:
    trainer = trained(method, kind)
    structures = sm.find_structures(network(), X[:2], kind)
    zero = 0
    for structure in structures.values():
        for unit in range(structure.count):
            by_part = [
                bool((trainer.model.get_parameter(p.name).movedim(p.axis, 0)[p.units == unit] == 0).all())
                for p in structure.parts
            ]
            assert all(by_part) or not any(by_part)
            zero += all(by_part)
    assert zero == round(0.5 * 2 * count)
    summary = trainer.sharing.summary(trainer.model, trainer.networks)
    assert summary["granularity"] == kind
    assert summary["group_sparsity"] == 0.5
    assert {name: layer["all"] for name, layer in summary["groups"].items()} == dict.fromkeys(structures, count)
    assert sum(layer["left"] for layer in summary["groups"].values()) == 2 * count - zero


@every_method
def test_without_a_penalty_it_is_dense_training_bit_for_bit(method: str) -> None:
    sparse = trained(method, "head", target_sparsity=None, reach_at=None, **{"lambda": 0.0})
    dense = sm.Trainer(network(), epochs=2, seed=0, progress=False).fit(BATCHES, list(BATCHES))
    for own, other in zip(sparse.model.parameters(), dense.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"target_sparsity": 0.75, "reach_at": 3}
    whole = trained("group-lasso", "head", epochs=4, **options)

    class Failing(sm.Callback):
        def on_epoch_end(self, rows: Any, improved: bool) -> None:
            if rows[0].epoch == 1:
                raise RuntimeError("killed")

    def make(*callbacks: sm.Callback) -> sm.Trainer:
        sharing = SHARING.build("group-lasso", granularity="head", keep_min=1, **options)
        where: dict[str, Any] = {"folder": tmp_path / "run", "callbacks": callbacks}
        return sm.Trainer(network(), sharing=sharing, epochs=4, seed=0, progress=False, **where)

    with pytest.raises(RuntimeError, match="killed"):
        make(Failing()).fit(BATCHES, list(BATCHES))
    resumed = make().fit(BATCHES, list(BATCHES), resume=True)
    for own, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert resumed.sharing.summary(resumed.model, resumed.networks) == whole.sharing.summary(
        whole.model, whole.networks
    )


def test_granularities_stand_in_configurations() -> None:
    from sparsemtl.runs.config import check

    complete = check({"sharing": {"name": "group-lasso", "granularity": "head"}})
    assert complete["sharing"]["granularity"] == "head"


def test_a_penalty_in_the_loss_acts_on_units_too() -> None:
    sharing = sm.GroupLassoSharing(lambda_=0.1, granularity="neuron", penalty_in_loss=True)
    model = network()
    networks = sharing.start(model)
    sharing.begin_epoch(0, model, networks, BATCHES)
    term = sharing.regularizer(model)
    assert term is not None
    assert term.item() == pytest.approx(sharing.shrink.penalty.value(model.named_parameters()).item())
    assert term.item() > 0


def test_models_without_units_and_frozen_units_are_refused() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * WIDTH, 4))
    plain = sm.SharedBottom(encoder, TASKS, {task.name: task.head(4) for task in TASKS})
    frozen = network()
    frozen.encoder.requires_grad_(False)
    for model, message in ((plain, "no attention heads were found"), (frozen, r"frozen|no attention heads")):
        trainer = sm.Trainer(model, sharing=sm.GroupLassoSharing(granularity="head"), epochs=1, progress=False)
        with pytest.raises((MaskError, ParameterError), match=message):
            trainer.fit(BATCHES, list(BATCHES))
