"""Masks of a pretrained encoder, and small networks by them, without training."""

from __future__ import annotations

import pytest
import torch
import walk
from torch import nn

import sparsemtl as sm

N = 24

# ---- the user's code: 15 lines ----

x = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
targets = {"kind": x[:, :3].argmax(1), "size": x.sum(1)}
batches = [(x[i : i + 8], {name: y[i : i + 8] for name, y in targets.items()}) for i in range(0, N, 8)]
tasks = [sm.Classification("kind", 3), sm.Regression("size")]


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())  # weights from elsewhere
    return sm.SharedBottom(encoder, tasks, {t.name: t.head(16) for t in tasks})


def masks_by(criterion: str, model: sm.MultiTaskModel, kind: walk.Kind) -> sm.TaskMasks:
    made = {
        "fisher": sm.criteria.Fisher(mask_all=True, estimator="sample"),
        "random": sm.criteria.Random(mask_all=True),
        "magnitude": sm.criteria.Magnitude(mask_all=True),
    }
    return sm.choose_masks(made[criterion], model, batches, keep=0.5, granularity=kind)


# ---- what must work ----


@pytest.mark.parametrize(("criterion", "kind"), [("fisher", "channel"), ("random", "neuron"), ("magnitude", "neuron")])
def test_it_is_masked_and_compacted(criterion: str, kind: walk.Kind) -> None:
    model = make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = masks_by(criterion, model, kind)
    for task in model.tasks:
        with masks.applied(model, task):
            expected = model(x)[task].detach()
        small = sm.compact(model, masks, task=task, example_inputs=x[:4])
        torch.testing.assert_close(small(x), expected)
        whole = sm.compact(model, task=task, example_inputs=x[:4])
        assert sm.parameter_count(small) < sm.parameter_count(whole)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_fisher_information_equals_a_loop_over_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)
