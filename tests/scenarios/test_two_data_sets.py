"""Two data sets, each with labels of one task alone."""

from __future__ import annotations

import pytest
import torch
import walk
from torch import nn

import sparsemtl as sm
from sparsemtl.tasks.batches import Group

# ---- the user's code: 9 lines ----

x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
left = [(x[i : i + 4], (x[i : i + 4, 0] > 0).long()) for i in (0, 4)]  # 8 samples, in batches of 4
right = [(x[i : i + 8], x[i : i + 8, 1]) for i in (8, 16)]  # 16 other samples, in batches of 8
loaders = {"left": left, "right": right}
tasks = [sm.Classification("left", 2), sm.Regression("right")]


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    return sm.SharedBottom(encoder, tasks, {t.name: t.head(16) for t in tasks})


# ---- what must work ----


@pytest.mark.parametrize("method", walk.METHODS)
def test_training(method: str) -> None:
    walk.train(make, method, loaders)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training_in_a_plain_loop_on_a_batch_of_each(method: str) -> None:
    model, sharing = make(), walk.METHODS[method]()
    networks = sharing.start(model)
    optimizer = torch.optim.Adam([*model.parameters(), *networks.parameters()], lr=1e-2)
    step = sm.TrainingStep(model, optimizer, networks, sharing=sharing)
    for epoch in range(2):
        step.networks = sharing.begin_epoch(epoch, model, step.networks, loaders) or step.networks
        for (x_left, y_left), (x_right, y_right) in zip(left, right, strict=True):
            groups = [Group(x_left, {"left": y_left}, ("left",)), Group(x_right, {"right": y_right}, ("right",))]
            result = step.step([groups])
            assert set(result.losses) == {"left", "right"}
            assert all(loss == loss for loss in result.losses.values())


@pytest.mark.parametrize("task", ["left", "right"])
def test_fisher_information_of_a_task_is_that_of_its_own_data(task: str) -> None:
    own, labels = loaders[task][0]
    walk.check_fisher(make(), (own, {task: labels}), walk.rows, tasks=[task])


@pytest.mark.parametrize("method", walk.WHOLE)
def test_the_network_of_a_task_becomes_smaller(method: str) -> None:
    walk.check_whole(make, method, "neuron", loaders, "left", x[:4])


def test_units_whose_soft_mask_is_zero_leave_the_network() -> None:
    walk.check_soft(make, loaders, "left", x[:4])
