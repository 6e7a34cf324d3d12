"""Networks that nothing trains any more: no gradient, no statistics, no dropout, whatever the model around does."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sparsemtl.backbones import CNN, vgg5
from sparsemtl.backbones.stages import stages_of
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.errors import ParameterError
from sparsemtl.networks.frozen import Frozen, without_parameters


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2, bias=False)]
    return nn.Sequential(*layers)


def batch() -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def test_a_frozen_network_stays_in_eval_mode_in_a_model_that_trains() -> None:
    model = nn.Sequential(Frozen(network()), nn.Linear(2, 2)).train()
    assert model.training
    assert model[1].training
    assert not any(module.training for module in model[0].modules())
    assert not any(module.training for module in model.train(False).train().get_submodule("0").modules())


def test_a_frozen_network_gives_what_the_network_gives_in_eval_mode() -> None:
    expected = network().eval()(batch())
    frozen = Frozen(network()).train()
    assert torch.equal(frozen(batch()), expected)
    assert torch.equal(frozen(batch()), expected)  # neither dropout nor statistics


def test_training_around_a_frozen_network_moves_nothing_in_it() -> None:
    model = nn.Sequential(Frozen(network()), nn.Linear(2, 2)).train()
    before = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    head = model[1].weight.detach().clone()
    for _ in range(2):
        model(batch()).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model[1].weight, head)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model[0].state_dict().items())
    assert all(p.grad is None for p in model[0].parameters())


def test_gradients_pass_through_a_frozen_network_to_its_input() -> None:
    x = batch().requires_grad_()
    Frozen(network())(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_a_frozen_network_tells_what_the_network_tells_of_its_features() -> None:
    assert Frozen(CNN((1, 4, 4), widths=[5])).out_features == 5  # type: ignore[comparison-overlap]
    assert not hasattr(Frozen(network()), "out_features")


ENCODERS = {
    "a stack": network,
    "an encoder that tells": lambda: vgg5((3, 8, 8), width=2, fc=[6, 6], norm=True),
    "an encoder behind a stem": lambda: Stemmed(nn.Linear(3, 3), network()),
}


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_the_stages_of_a_frozen_network_are_its_own_and_together_the_network(make: Callable[[], nn.Module]) -> None:
    encoder = make()
    expected = stages_of(encoder)
    stages = stages_of(Frozen(encoder))
    assert list(stages) == list(expected)
    for name, stage in stages.items():
        assert list(map(id, stage.parameters())) == list(map(id, expected[name].parameters()))
    x = torch.randn(6, *(3, 8, 8) if "classifier" in dict(encoder.named_children()) else (3,))
    assert torch.equal(nn.Sequential(*stages.values())(x), Frozen(encoder)(x))


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_a_stage_stays_frozen_in_another_module(make: Callable[[], nn.Module]) -> None:
    for stage in stages_of(Frozen(make())).values():
        model = nn.Sequential(deepcopy(stage), nn.Linear(2, 2)).train()
        assert not any(module.training for module in model[0].modules())
        assert not any(parameter.requires_grad for parameter in model[0].parameters())


def test_a_frozen_network_that_cannot_be_cut_is_called_by_its_own_name() -> None:
    with pytest.raises(ParameterError, match=r"^Bilinear declares no stages"):
        stages_of(Frozen(nn.Bilinear(2, 2, 2)))


def test_the_network_is_not_copied() -> None:
    inner = network()
    assert Frozen(inner).network is inner
    assert not any(p.requires_grad for p in inner.parameters())


def test_a_deep_copy_of_a_frozen_network_is_frozen() -> None:
    copied = deepcopy(Frozen(network())).train()
    assert not any(module.training for module in copied.modules())
    assert not any(p.requires_grad for p in copied.parameters())


def test_a_network_without_parameters_computes_the_same_and_is_saved_the_same() -> None:
    own = network().eval()
    copied = without_parameters(own)
    assert not list(copied.parameters())
    assert torch.equal(copied(batch()), own(batch()))
    assert list(copied.state_dict())
    assert copied.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in copied.state_dict().items())


def test_a_bias_that_is_not_there_stays_away() -> None:
    last = without_parameters(network())[4]  # type: ignore[index]
    assert last.bias is None
    assert "bias" not in last.state_dict()


def test_a_network_without_parameters_has_nothing_in_common_with_its_model() -> None:
    own = network().eval()
    copied = without_parameters(own)
    expected = copied(batch())
    with torch.no_grad():
        for p in own.parameters():
            p.zero_()
    assert len(list(own.parameters())) == 5
    assert all(p.requires_grad for p in own.parameters())
    assert torch.equal(copied(batch()), expected)
    assert not expected.requires_grad


def test_a_network_without_parameters_takes_the_weights_of_its_model() -> None:
    copied = without_parameters(network())
    torch.manual_seed(5)
    other = network().apply(lambda layer: layer.reset_parameters() if isinstance(layer, nn.Linear) else None)
    copied.load_state_dict(other.state_dict())
    assert torch.equal(copied.eval()(batch()), other.eval()(batch()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_network_without_parameters_moves_with_its_model(dtype: torch.dtype) -> None:
    holder = nn.Module()
    holder.inner = without_parameters(nn.Linear(3, 2))
    assert holder.to(dtype).inner.weight.dtype == dtype
