from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from expert_oracles import assert_same_model, batch, gradients, stack, tasks
from torch import Tensor, nn

from sparsemtl.architectures import CGC, PLE, MMoE
from sparsemtl.backbones import CNN, MLP, resnet18
from sparsemtl.errors import ParameterError


def heads(width: int = 4) -> dict[str, nn.Module]:
    return {task.name: task.head(width) for task in tasks()}


@pytest.mark.parametrize(("shared", "own"), [(1, 1), (2, 3), (0, 2)])
def test_one_level_is_cgc_bit_for_bit(shared: int, own: int) -> None:
    model = PLE(stack(6, 4), tasks(), heads(), levels=1, shared_experts=shared, task_experts=own).double()
    other = CGC(stack(6, 4), tasks(), heads(), shared_experts=shared, task_experts=own).double()
    other.load_state_dict(model.state_dict())
    assert_same_model(model, other, batch())


def test_one_level_without_own_experts_is_mmoe_bit_for_bit() -> None:
    model = PLE(stack(4), tasks(), heads(), levels=1, shared_experts=3, task_experts=0).double()
    other = MMoE(stack(4), tasks(), heads(), experts=3).double()
    other.load_state_dict(model.state_dict())
    assert_same_model(model, other, batch())


def weighted(gate: nn.Linear, x: Tensor, features: Sequence[Tensor]) -> Tensor:
    weights = (x @ gate.weight.T).softmax(1)
    return torch.stack([weights[:, k, None] * feature for k, feature in enumerate(features)]).sum(0)


def test_the_shared_path_goes_through_a_gate_over_all_experts_below_the_top() -> None:
    torch.manual_seed(0)
    model = PLE(stack(6, 4), tasks(), heads(), shared_experts=2, task_experts=2).double()
    own, shared = dict.fromkeys(model.tasks, batch()), batch()
    for level in model.levels:
        pool = [expert(shared) for expert in level.pools["pool1"]]
        private = {task: [expert(own[task]) for expert in level.experts[task]] for task in model.tasks}
        own = {task: weighted(level.gates[task], own[task], [*private[task], *pool]) for task in model.tasks}
        if level.shared_gate is not None:
            shared = weighted(level.shared_gate, shared, [*pool, *(f for task in model.tasks for f in private[task])])
    assert [level.shared_gate is None for level in model.levels] == [False, True]
    torch.testing.assert_close(model(batch()), {task: model.heads[task](own[task]) for task in model.tasks})


def test_through_it_a_task_trains_the_lower_experts_of_others_but_not_the_upper() -> None:
    model = PLE(stack(6, 4), tasks(), heads()).double()
    reached = {name for name, gradient in gradients(model, batch(), ["a"]).items() if gradient is not None}
    assert {name for name in reached if ".experts.b." in name} == {
        "levels.0.experts.b.0.0.weight",
        "levels.0.experts.b.0.0.bias",
    }
    assert not any(".gates.b" in name for name in reached)


def test_three_levels_train_the_gates_of_others_as_well() -> None:
    model = PLE(stack(6, 5, 4), tasks(), heads(), levels=3).double()
    users = model.parameter_tasks()
    assert users["levels.0.gates.b.weight"] == {"a", "b", "c"}
    assert users["levels.1.gates.b.weight"] == {"b"}
    assert users["levels.1.experts.b.0.0.weight"] == {"a", "b", "c"}
    assert set(model.unmasked_modules()) >= {"levels.0.shared_gate", "levels.1.shared_gate", "levels.0.gates.b"}


def test_without_shared_experts_no_task_has_a_gradient_of_another() -> None:
    model = PLE(stack(6, 4), tasks(), heads(), shared_experts=0).double()
    assert model.independent
    assert all(level.shared_gate is None for level in model.levels)
    for task in model.tasks:
        found = gradients(model, batch(), [task])
        assert {name for name, gradient in found.items() if gradient is not None} == set(model.task_parameters(task))


def test_an_encoder_is_cut_in_levels_of_as_many_stages() -> None:
    model = PLE(MLP((5,), hidden=[9, 8, 7, 6, 4], dropout=0.1), tasks(), levels=2)
    layers = [
        [layer.out_features for layer in level.pools["pool1"][0].modules() if isinstance(layer, nn.Linear)]
        for level in model.levels
    ]
    assert layers == [[9, 8], [7, 6, 4]]
    assert all(head.in_features == 4 for head in model.heads.values())


def test_a_path_through_first_experts_is_the_encoder() -> None:
    encoder = resnet18((3, 16, 16), stem="cifar", width=2).eval()
    model = PLE(encoder, tasks(), levels=3).eval()
    x = torch.rand(2, 3, 16, 16)
    features = x
    for level in model.levels:
        features = level.pools["pool1"][0](features)
    assert torch.equal(features, encoder(x))
    assert model(x)["a"].shape == (2, 3)


def test_convolutional_encoders_can_be_cut() -> None:
    model = PLE(CNN((1, 8, 8), widths=[4, 6]), tasks())
    assert model(torch.rand(3, 1, 8, 8))["c"].shape == (3, 2)


def test_a_list_says_what_every_level_is_made_from() -> None:
    model = PLE([lambda: stack(6), stack(3, reads=6), stack(4, reads=3)], tasks(), levels=1)
    assert [level.pools["pool1"][0][0].out_features for level in model.levels] == [6, 3, 4]
    assert model(batch().float())["a"].shape == (7, 3)


def test_too_many_levels_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"PLE with 3 levels needs an encoder of at least 3 stages, found 2"):
        PLE(stack(6, 4), tasks(), levels=3)


def test_an_encoder_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"LSTM declares no stages.*`stages\(\)`"):
        PLE(nn.LSTM(5, 4), tasks())
