"""Pruning to a budget: the compacted network costs at most what was allowed, and lost the units that mattered least."""

from __future__ import annotations

import math

import pytest
import torch
from sharing_toys import build, loader, own_loaders, run_epoch, trained
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.compaction.units import removable_units
from sparsemtl.errors import LabelError, MaskWarning, ParameterError
from sparsemtl.sharing.schedules import cubic
from sparsemtl.sharing.sharing import StepWeights
from sparsemtl.sharing.taylor import taylor_importance


def wide() -> sm.SharedBottom:
    """A model with a unit of the encoder that no task needs, and one of a head."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5), nn.Tanh())
    tasks = [sm.Classification("kind", 3), sm.MultiLabel("marks", 2), sm.Classification("side", 2)]
    heads = {t.name: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, t.outputs)) for t in tasks}
    return sm.SharedBottom(body, tasks, heads)


@pytest.mark.parametrize("macs", [0.2, 0.5])
def test_the_compacted_network_has_the_budget(macs: float) -> None:
    engine = trained(build("pruning", macs=macs), loader(), network=wide())
    small = sm.compact(engine.model, example_inputs=torch.rand(2, 6))
    assert small.report.macs is not None
    left = small.report.macs[1] / small.report.macs[0]
    assert macs - 0.1 < left <= macs
    assert small.report.verification.float64 < 1e-10


def test_a_budget_of_weights_is_kept() -> None:
    engine = trained(build("pruning", weights=0.4), loader(), network=wide())
    small = sm.compact(engine.model, example_inputs=torch.rand(2, 6))
    kept, whole = (
        sum(w.numel() for name, w in each.named_parameters() if name.endswith("weight"))
        for each in (small, engine.model)
    )
    assert 0.3 * whole < kept <= 0.4 * whole


class TwoPaths(nn.Module):
    """A stream that two convolutions and a shortcut read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 8, 3, padding=1)
        self.out_features = 8

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(self.two(torch.relu(x + self.one(x)))).mean((2, 3))


def test_per_reader_a_stream_keeps_channels_for_some_of_its_readers_and_the_budget() -> None:
    torch.manual_seed(0)
    network = sm.SharedBottom(TwoPaths(), [sm.Regression("a")])
    x = torch.rand(8, 2, 6, 6)
    sharing = build("pruning", macs=0.3, per_reader=True)
    engine = trained(sharing, [(x, {"a": x.mean((1, 2, 3))})], network=network, epochs=2)
    small = sm.compact(engine.model, example_inputs=x)
    assert small.report.macs is not None
    left = small.report.macs[1] / small.report.macs[0]
    ((_, _, said),) = sharing.metrics(engine.model, engine.networks)
    assert left == pytest.approx(said)
    assert 0.25 < left <= 0.3
    one, two = (getattr(network.encoder, name).weight.ne(0).flatten(2).any(2).any(0) for name in ("one", "two"))
    assert not torch.equal(one, two)


def test_importance_is_the_squared_sum_of_weight_times_gradient_over_all_readers() -> None:
    network = wide()
    units = removable_units(network, torch.rand(2, 6))
    task, data = network.tasks["kind"], loader(shuffle=False)
    found = taylor_importance(network, units, data, task, samples=24)
    expected = torch.zeros(units.count, dtype=torch.float64)
    for x, targets in data:
        network.zero_grad()
        task.loss(network(x)["kind"], targets["kind"]).backward()
        for unit in range(units.count):
            change = 0.0
            for layer in units.readers():
                weight = network.get_parameter(layer.weight)
                if weight.grad is not None:
                    change += float((weight * weight.grad).detach()[:, layer.reads == unit].double().sum())
            expected[unit] += change**2 / 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


def test_importance_reads_whole_batches_until_it_has_the_samples() -> None:
    network = wide()
    units = removable_units(network, torch.rand(2, 6))
    batches = list(loader(shuffle=False))
    task = network.tasks["side"]
    first = taylor_importance(network, units, batches[:2], task, samples=100)
    assert torch.equal(taylor_importance(network, units, batches, task, samples=9), first)
    with pytest.raises(LabelError, match="'side' has no labelled sample"):
        taylor_importance(network, units, [], task, samples=9)


def test_what_was_removed_stays_at_zero_and_the_rest_is_trained() -> None:
    sharing = build("pruning", macs=0.4, warmup=1)
    engine = trained(sharing, loader(), network=wide(), epochs=2)
    units = removable_units(engine.model, torch.rand(2, 6))
    zero = [
        layer.columns(engine.model.get_parameter(layer.weight)).flatten(1).eq(0).all(1) for layer in units.readers()
    ]
    before = [each.clone() for each in zero]
    run_epoch(engine, loader(seed=2), 2)
    for layer, gone in zip(units.readers(), before, strict=True):
        columns = layer.columns(engine.model.get_parameter(layer.weight)).flatten(1)
        assert bool(columns[gone].eq(0).all())
        assert bool(columns[~gone].ne(0).any(1).all())
    assert any(bool(each.any()) for each in before)


def test_the_budget_follows_the_schedule_epoch_by_epoch() -> None:
    sharing = build("pruning", macs=0.3, warmup=1, reach_at=4)
    engine = trained(sharing, loader(), network=wide(), epochs=1)
    for epoch in range(1, 6):
        run_epoch(engine, loader(), epoch)
        ((_, _, left),) = sharing.metrics(engine.model, engine.networks)
        allowed = 1 - 0.7 * cubic(min((epoch - 1) / 3, 1))
        assert allowed - 0.1 < left <= allowed
    assert [sharing.is_selectable(epoch) for epoch in range(6)] == [False] * 4 + [True] * 2


def test_every_layer_keeps_a_unit() -> None:
    with pytest.warns(MaskWarning, match="asks for 1e-06"):
        engine = trained(build("pruning", macs=1e-6), loader(), network=wide())
    assert all(rows["left"] >= 1 for rows in engine.sharing.summary(engine.model, engine.networks)["units"].values())
    assert all(math.isfinite(float(out.detach().sum())) for out in engine.model(torch.rand(2, 6)).values())


def test_data_of_its_own_per_task_is_read_by_its_task() -> None:
    engine = trained(build("pruning", macs=0.5), own_loaders(), network=wide())
    ((_, _, left),) = engine.sharing.metrics(engine.model, engine.networks)
    assert left <= 0.5


def test_a_budget_that_cannot_be_reached_is_said_before_training_goes_on() -> None:
    network = wide()
    network.encoder[2].weight.requires_grad_(False)  # the neurons in front of it stay, and those of heads are few
    sharing = build("pruning", macs=0.1)
    with pytest.warns(MaskWarning, match=r"17 channels, heads and neurons .* at least 0\.\d+ .* asks for 0\.1"):
        sharing.begin_epoch(0, network, sharing.start(network), loader())


def test_a_schedule_that_ends_in_its_warmup_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"`reach_at` must come after the warm-up of 3 epochs"):
        build("pruning", warmup=3, reach_at=2)


def test_lambda_shrinks_the_channels_that_every_layer_reads_and_leaves_removed_ones_at_zero() -> None:
    network = wide()
    sharing = sm.PruningSharing(macs=0.6, lambda_=0.4)
    sharing.begin_epoch(0, network, sharing.start(network), loader())
    units = removable_units(network, torch.rand(2, 6))
    network.zero_grad()
    sum(output.square().sum() for output in network(torch.rand(2, 6)).values()).backward()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    sharing.after_step(network, sharing.start(network), optimizer, StepWeights(regularizer=0.5))
    left = sharing.state_dict()["left"]
    read = {layer.weight: layer for layer in units.readers()}
    assert {"encoder.2.weight", "heads.kind.0.weight"} < set(read)
    for name, parameter in network.named_parameters():
        expected = before[name]
        if name in read:
            shift = 0.1 * 0.5 * 0.4 * math.sqrt(len(expected))
            expected = expected * (1 - shift / expected.norm(dim=0)).clamp_min(0) * left[read[name].reads]
        torch.testing.assert_close(parameter.detach(), expected)


def test_a_penalty_of_any_strength_leaves_a_channel_in_every_layer() -> None:
    engine = trained(sm.PruningSharing(macs=0.5, lambda_=1e3), loader(), network=wide())
    small = sm.compact(engine.model, example_inputs=torch.rand(2, 6))
    assert all(rows["left"] >= 1 for rows in engine.sharing.summary(engine.model, engine.networks)["units"].values())
    assert all(layer.outputs[1] >= 1 for layer in small.report.layers)
