"""Costs of a run are those counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.networks.task_networks import dense_networks
from sparsemtl.training.costs import RunCost, measure_costs

DEAD = (0, 2, 5)
"""Channels of the first convolution that the second one does not read."""


class Encoder(nn.Module):
    """Two convolutions on images of 6x6, then the mean over positions."""

    out_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 5, 3, padding=1)
        with torch.no_grad():
            self.second.weight[:, list(DEAD)] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3))


def first(channels: int) -> int:
    return 36 * channels * 3 * 9


def second(channels: int) -> int:
    return 36 * 5 * channels * 9


def weights(channels: int) -> int:
    return (channels * 3 * 9 + channels) + (5 * channels * 9 + 5)


HEADS = {"a": 5 * 4, "b": 5 * 2}
"""Multiply-adds of the heads."""
HEAD_WEIGHTS = {"a": 5 * 4 + 4, "b": 5 * 2 + 2}
TASKS = (sm.Classification("a", 4), sm.Classification("b", 2))


def labelled(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 3, 6, 6, generator=generator)
    return x, {task.name: torch.randint(0, task.outputs, (20,), generator=generator) for task in TASKS}


def per_task_loaders(count: int = 20) -> dict[str, Any]:
    return {task.name: [(x[:count], y[task.name][:count])] for task in TASKS for x, y in [labelled(1)]}


def measured(model: sm.MultiTaskModel, loaders: Any = None, *, one_network: bool = True) -> RunCost:
    name, tensor = next(iter(model.named_parameters()))
    own = {task: {name: tensor.detach().clone()} for task in model.tasks}
    networks = dense_networks(model, model.tasks, {} if one_network else own)
    cost = measure_costs(model, networks, [labelled(0)] if loaders is None else loaders)
    assert cost is not None
    return cost


def test_one_network_for_all_tasks_costs_one_pass_with_all_heads() -> None:
    cost = measured(sm.SharedBottom(Encoder(), TASKS))
    assert [network.tasks for network in cost.networks] == [("a", "b")]
    assert cost.batch_size == 16
    whole, small = cost.uncompacted, cost.compacted
    assert whole.encoder_macs == first(8) + second(8)
    assert whole.macs == first(8) + second(8) + sum(HEADS.values())
    assert whole.weights == weights(8) + sum(HEAD_WEIGHTS.values())
    assert small.encoder_macs == first(5) + second(5)
    assert small.macs == first(5) + second(5) + sum(HEADS.values())
    assert small.weights == weights(5) + sum(HEAD_WEIGHTS.values())
    assert whole.milliseconds > 0
    assert small.milliseconds > 0


def test_networks_of_single_tasks_cost_their_sum() -> None:
    cost = measured(sm.SingleTask(Encoder(), TASKS))
    assert [network.tasks for network in cost.networks] == [("a",), ("b",)]
    assert [n.uncompacted.macs for n in cost.networks] == [first(8) + second(8) + HEADS[task] for task in "ab"]
    assert [n.compacted.macs for n in cost.networks] == [first(5) + second(5) + HEADS[task] for task in "ab"]
    assert cost.compacted.macs == 2 * (first(5) + second(5)) + sum(HEADS.values())
    assert cost.compacted.weights == 2 * weights(5) + sum(HEAD_WEIGHTS.values())
    assert cost.compacted.milliseconds == sum(n.compacted.milliseconds for n in cost.networks)


def test_tasks_with_networks_of_their_own_in_one_model_pay_for_a_pass_each() -> None:
    cost = measured(sm.SharedBottom(Encoder(), TASKS), one_network=False)
    assert [network.tasks for network in cost.networks] == [("a",), ("b",)]
    assert cost.uncompacted.macs == 2 * (first(8) + second(8)) + sum(HEADS.values())
    assert cost.uncompacted.weights == 2 * weights(8) + sum(HEAD_WEIGHTS.values())


def test_tasks_with_inputs_of_their_own_pay_for_a_pass_each_but_share_the_weights() -> None:
    cost = measured(sm.SharedBottom(Encoder(), TASKS), per_task_loaders())
    assert cost.compacted.macs == 2 * (first(5) + second(5)) + sum(HEADS.values())
    assert cost.uncompacted.weights == weights(8) + sum(HEAD_WEIGHTS.values())
    assert cost.compacted.weights == weights(5) + sum(HEAD_WEIGHTS.values())


class Undecided(Encoder):
    """An encoder that no tracer can follow."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return super().forward(-x)
        return super().forward(x)


def test_where_compaction_fails_the_uncompacted_cost_stands_with_the_reason() -> None:
    cost = measured(sm.SharedBottom(Undecided(), TASKS))
    (network,) = cost.networks
    assert network.failure
    assert network.compacted == network.uncompacted
    assert cost.compacted.macs == first(8) + second(8) + sum(HEADS.values())


def test_inputs_that_cannot_be_cut_are_measured_whole() -> None:
    class Nested(Encoder):
        def forward(self, x: Any) -> Tensor:
            return super().forward(x["image"])

    x, targets = labelled(0)
    cost = measured(sm.SharedBottom(Nested(), TASKS), [({"image": x}, targets)])
    assert cost.batch_size == 20
    assert not cost.networks[0].failure
    assert cost.uncompacted.macs == first(8) + second(8) + sum(HEADS.values())


def test_measuring_draws_no_random_number_and_changes_no_weight() -> None:
    model = sm.SharedBottom(Encoder(), TASKS).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = torch.utils.data.TensorDataset(labelled(0)[0], labelled(0)[1]["a"])
    loaders = {name: torch.utils.data.DataLoader(data, 4, shuffle=True) for name in "ab"}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    measured(model, loaders)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_no_batch_means_no_cost() -> None:
    model = sm.SharedBottom(Encoder(), TASKS)
    assert measure_costs(model, dense_networks(model, model.tasks), []) is None


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_a_run_records_its_cost_in_every_precision(tmp_path: Path, precision: Any) -> None:
    trainer = sm.Trainer(
        sm.SharedBottom(Encoder(), TASKS), epochs=1, folder=tmp_path, progress=False, precision=precision
    )
    trainer.fit([labelled(0)], [labelled(1)])
    trainer.test([labelled(2)])
    cost = json.loads((tmp_path / "summary.json").read_text())["cost"]
    assert cost["uncompacted"]["macs"] == first(8) + second(8) + sum(HEADS.values())
    assert cost["threads"] == torch.get_num_threads()


def test_a_run_that_is_not_to_be_measured_records_no_cost(tmp_path: Path) -> None:
    trainer = sm.Trainer(
        sm.SharedBottom(Encoder(), TASKS), epochs=1, folder=tmp_path, progress=False, measure_cost=False
    )
    trainer.fit([labelled(0)], [labelled(1)])
    trainer.test([labelled(2)])
    assert json.loads((tmp_path / "summary.json").read_text())["cost"] is None
