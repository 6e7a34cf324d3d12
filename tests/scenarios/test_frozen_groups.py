"""Frozen layers, learning rates per group, and half precision in one run."""

from __future__ import annotations

import pytest
import torch
import walk
from torch import nn

import sparsemtl as sm

N = 24

# ---- the user's code: 11 lines ----

x = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
targets = {"kind": x[:, :3].argmax(1), "size": x.sum(1)}
tasks = [sm.Classification("kind", 3), sm.Regression("size")]


groups = [{"parameters": "encoder", "lr": 1e-4}]


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()
    )  # the first layer is frozen
    encoder[0].requires_grad_(False)
    return sm.SharedBottom(encoder, tasks, {t.name: t.head(16) for t in tasks})


# ---- what must work ----

batches = walk.batches_of(x, targets)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training(method: str) -> None:
    trainer = walk.train(make, method, batches, precision="bf16-mixed", parameter_groups=groups)
    rates = {p: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert rates[trainer.model.encoder[2].weight] == 1e-4
    assert rates[trainer.model.heads["kind"].weight] == 1e-3
    assert torch.equal(trainer.model.encoder[0].weight, make().encoder[0].weight)
    walk.plain_loop(make(), method, batches)


def test_fisher_information_equals_a_loop_over_samples() -> None:
    model = make()
    model.requires_grad_(True)
    walk.check_fisher(model, batches[0], walk.rows)


@pytest.mark.parametrize("method", walk.WHOLE)
def test_the_network_of_a_task_becomes_smaller(method: str) -> None:
    walk.check_whole(make, method, "neuron", batches, "kind", x[:4])


def test_units_whose_soft_mask_is_zero_leave_the_network() -> None:
    walk.check_soft(make, batches, "kind", x[:4])
