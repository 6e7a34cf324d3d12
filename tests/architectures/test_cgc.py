from __future__ import annotations

import pytest
import torch
from expert_oracles import assert_same_model, batch, gradients, stack, tasks
from torch import nn

from sparsemtl.architectures import CGC, MMoE
from sparsemtl.errors import ParameterError


def heads() -> dict[str, nn.Module]:
    return {task.name: task.head(4) for task in tasks()}


def test_outputs_are_those_of_the_paper_written_out() -> None:
    torch.manual_seed(0)
    model = CGC(stack(4), tasks(), heads(), shared_experts=2, task_experts=2).double()
    (level,) = model.levels
    x = batch()
    for task, output in model(x).items():
        weights = (x @ level.gates[task].weight.T).softmax(1)
        experts = [*level.experts[task], *level.pools["pool1"]]
        features = sum(weights[:, k, None] * expert(x) for k, expert in enumerate(experts))
        torch.testing.assert_close(output, model.heads[task](features))


def test_without_own_experts_it_is_mmoe_bit_for_bit() -> None:
    model = CGC(stack(4), tasks(), heads(), shared_experts=3, task_experts=0).double()
    other = MMoE(stack(4), tasks(), heads(), experts=3).double()
    other.load_state_dict(model.state_dict())
    assert_same_model(model, other, batch())


def test_without_shared_experts_no_task_has_a_gradient_of_another() -> None:
    model = CGC(stack(4), tasks(), heads(), shared_experts=0, task_experts=2).double()
    assert model.independent
    for task in model.tasks:
        found = gradients(model, batch(), [task])
        assert {name for name, gradient in found.items() if gradient is not None} == set(model.task_parameters(task))


def test_an_expert_that_no_named_task_uses_is_not_run() -> None:
    model = CGC(stack(4), tasks(), heads()).double()
    ran: set[str] = set()
    for name, module in model.named_modules():
        if name.startswith("levels.0.experts.") and name.count(".") == 4:
            module.register_forward_hook(lambda *_, name=name: ran.add(name))
    model(batch(), tasks=["c", "a"])
    assert ran == {"levels.0.experts.a.0", "levels.0.experts.c.0"}


def test_without_any_expert_it_says_so() -> None:
    with pytest.raises(ParameterError, match="task 'a' has no expert"):
        CGC(stack(4), tasks(), shared_experts=0, task_experts=0)
