"""Tasks that use each shared weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
from sparsemtl.training.steps.weight_users import WeightUsers


def counts(network: TaskNetwork, encoder: nn.Module) -> dict[str, Tensor]:
    """Counts for two tasks, one of which has this network, the other the model's."""
    model = sm.SharedBottom(encoder, [sm.Regression("a"), sm.Regression("b")])
    networks = TaskNetworks({"a": network, "b": TaskNetwork()})
    return WeightUsers(model, model.shared_parameters()).counts(networks)


def test_a_mask_a_soft_mask_and_a_masked_gradient_leave_weights_out() -> None:
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    parts: list[dict[str, Any]] = [
        {"weight_factors": {"encoder.weight": mask}},
        {"weight_factors": {"encoder.weight": mask * 0.3}},
        {"gradient_mask": {"encoder.weight": mask}},
    ]
    for part in parts:
        found = counts(TaskNetwork(**part), nn.Linear(2, 3))
        assert torch.equal(found["encoder.weight"], 1 + mask.long())
        assert found["encoder.bias"].tolist() == [2, 2, 2]


def test_output_channels_that_are_left_out_leave_their_weights_out() -> None:
    channels = torch.tensor([True, False, True])
    for encoder, axis in ((nn.Linear(2, 3), 0), (nn.Conv2d(2, 3, 3), 0), (nn.ConvTranspose2d(2, 3, 3), 1)):
        found = counts(TaskNetwork(output_factors={"encoder": channels}), encoder)
        assert found["encoder.bias"].tolist() == [2, 1, 2]
        assert found["encoder.weight"].movedim(axis, 0).flatten(1).unique(dim=1).flatten().tolist() == [2, 1, 2]


def test_a_tensor_of_a_tasks_own_takes_the_place_of_the_shared_one() -> None:
    found = counts(TaskNetwork(own_tensors={"encoder.bias": torch.zeros(3)}), nn.Linear(2, 3))
    assert found["encoder.bias"].tolist() == [1, 1, 1]
    assert bool((found["encoder.weight"] == 2).all())
