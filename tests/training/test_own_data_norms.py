"""Batch norms where each task has its own data: one task's inputs say nothing of the mean of another's."""

from __future__ import annotations

from typing import Any

import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm

CENTRES = {"near": 0.0, "far": 50.0}


def inputs(centre: float) -> Tensor:
    return centre + torch.randn(64, 4, generator=torch.Generator().manual_seed(int(centre)))


def loaders() -> dict[str, Any]:
    return {task: [(x, (x[:, 0] > centre).long())] for task, centre in CENTRES.items() for x in [inputs(centre)]}


def trained(sharing: sm.Sharing) -> sm.Trainer:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU())
    model = sm.SharedBottom(encoder, [sm.Classification(task, 2) for task in CENTRES])
    trainer = sm.Trainer(model, sharing=sharing, epochs=2, progress=False, accelerator="cpu")
    return trainer.fit(loaders(), loaders())


METHODS = {
    "dense": sm.DenseSharing,
    "dense, joint": lambda: sm.DenseSharing(update="joint"),
    "l1": lambda: sm.L1Sharing(linear=True),
    "disparse": sm.DiSparseSharing,
    "sparse training": sm.SparseTrainingSharing,
    "masked gradients": lambda: sm.RandomSharing(mask_applies_to="gradients"),
    "masks": sm.RandomSharing,
}


@each("name", METHODS)
def test_each_task_has_the_statistics_of_its_own_data(name: str) -> None:
    networks = trained(METHODS[name]()).networks
    for task, centre in CENTRES.items():
        own = networks[task].own_tensors["encoder.0.running_mean"]
        assert own is not None
        torch.testing.assert_close(own, inputs(centre).mean(0))


def test_the_model_itself_has_the_statistics_of_all_data_together() -> None:
    norm = trained(sm.DenseSharing()).model.get_submodule("encoder.0")
    assert isinstance(norm, nn.BatchNorm1d)
    own = [inputs(centre) for centre in CENTRES.values()]
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.cat(own).mean(0))
    within = torch.stack([x.var(0) for x in own]).mean(0)
    torch.testing.assert_close(norm.running_var, within + torch.stack([x.mean(0) for x in own]).var(0, correction=0))


def test_one_set_for_both_can_be_asked_for() -> None:
    trainer = trained(sm.DenseSharing(bn="shared"))
    assert not any(trainer.networks[task].own_tensors for task in CENTRES)


def test_with_one_loader_for_both_tasks_the_statistics_stay_shared() -> None:
    trainer = trained(sm.DenseSharing())
    x = inputs(0.0)
    trainer.fit([(x, {task: (x[:, 0] > 0).long() for task in CENTRES})], loaders(), overwrite=True)
    assert not trainer.networks["near"].own_tensors
