"""The frozen auxiliary network: what its layers give, what is remembered of it, and banks of its features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference_toys import CLASSES, LAYERS, encoder, images, reference
from torch import Tensor, nn
from torch.nn.functional import linear

from sparsemtl import Classification, Regression, Source
from sparsemtl.architectures.damtl.reference import ReferenceNetwork, Tap, tapped
from sparsemtl.errors import ParameterError
from sparsemtl.heads.linear import LinearHead


def by_hand(network: ReferenceNetwork, x: Tensor) -> dict[str, Tensor]:
    tensors = network.state_dict()

    def layer(name: str, features: Tensor) -> Tensor:
        return features @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    first = layer("encoder.1", x.flatten(1))
    second = layer("encoder.4", first.relu())
    return {"1": first, "4": second, "": layer("last", second.relu())}


def test_a_source_knows_the_last_layer_if_that_is_linear() -> None:
    task, last = Classification("all", 3), LinearHead(2, 3)
    assert Source(task, last).last is last
    assert Source(task, nn.Sequential(last)).last is None


def test_a_source_whose_head_has_not_learned_its_width_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"the head of task 'all' has no width and no weights yet"):
        Source(Classification("all", 3), Classification("all", 3).head())


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_source_whose_linear_head_has_other_outputs_than_classes_is_refused(outputs: int) -> None:
    task = Classification("all", 3)
    with pytest.raises(ParameterError, match=f"the head of task 'all' has {outputs} outputs, and the task 3 classes"):
        Source(task, nn.Linear(16, outputs))
    assert Source(task, nn.Sequential(nn.Linear(16, outputs))).last is None


@pytest.mark.parametrize("task", ["all", None, Regression("all")])
def test_a_source_whose_task_is_no_classification_is_refused(task: Any) -> None:
    with pytest.raises(ParameterError, match=r"a source needs its task, such as sm\.Classification"):
        Source(task, nn.Linear(16, 3))


def test_a_source_whose_head_is_no_module_is_refused() -> None:
    head: Any = torch.zeros(2)
    with pytest.raises(ParameterError, match="the head of task 'all': expected a module, got a Tensor"):
        Source(Classification("all", 2), head)


def test_taps_tell_what_layers_read_have_and_give() -> None:
    network, x = encoder(), images()
    with tapped({"first": network[1], "second": network[4]}) as taps:
        network(x)
    assert list(taps) == ["first", "second"]
    for tap, layer in zip(taps.values(), (network[1], network[4]), strict=True):
        assert tap.weight is layer.weight
        assert tap.bias is layer.bias
        assert torch.equal(tap.output, layer(tap.features))
    assert torch.equal(taps["first"].features, x.flatten(1))


def test_nothing_is_noted_behind_the_context() -> None:
    network = encoder()
    with pytest.raises(ZeroDivisionError), tapped({"first": network[1]}) as taps:
        raise ZeroDivisionError
    network(images())
    assert not taps
    assert not network[1]._forward_hooks


def test_a_tap_has_the_weight_that_the_layer_had_then() -> None:
    network, x = encoder(), images()
    with tapped({"first": network[1]}) as taps:
        torch.func.functional_call(network, {"1.weight": torch.ones(5, 6)}, (x,))
    assert torch.equal(taps["first"].weight, torch.ones(5, 6))


def test_a_head_on_maps_is_said_to_read_their_means() -> None:
    head, maps = LinearHead(3, 2), torch.randn(4, 3, 5, 5)
    with tapped({"": head}) as taps:
        head(maps)
    torch.testing.assert_close(taps[""].features, maps.mean((2, 3)))


def test_layers_that_read_sequences_are_refused_by_name() -> None:
    layer = nn.Linear(3, 2)
    message = r"layer 'mixer' reads features of shape \(4, 7, 3\).*`layers`"
    with pytest.raises(ParameterError, match=message), tapped({"mixer": layer}):
        layer(torch.zeros(4, 7, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_columns_of_a_tap_are_those_of_a_layer_of_some_outputs(bias: bool) -> None:
    layer, x, chosen = nn.Linear(3, 4, bias=bias), torch.randn(5, 3), torch.tensor([2, 0])
    tap = Tap(x, layer.weight, layer.bias if bias else None, layer(x)).columns(chosen)
    assert tap.features is x
    torch.testing.assert_close(tap.output, linear(x, tap.weight, tap.bias))
    assert torch.equal(tap.output, layer(x)[:, [2, 0]])


def test_a_reference_gives_what_its_fully_connected_layers_give() -> None:
    network, x = reference(), images()
    expected = by_hand(network, x)
    for _ in range(2):  # dropout is off
        found = network.train()(x)
        assert list(found) == ["1", "4", ""]
        for name, output in found.items():
            torch.testing.assert_close(output, expected[name])


def test_a_reference_without_a_last_layer_gives_the_others() -> None:
    assert list(reference(known=False)(images())) == ["1", "4"]


def test_nothing_in_a_reference_is_ever_trained() -> None:
    network = reference().train()
    assert not list(network.parameters())
    assert not any(module.training for module in network.modules())
    x = images().requires_grad_()
    assert not any(output.requires_grad for output in network(x).values())


def test_a_reference_is_a_copy() -> None:
    own, last, x = encoder(), LinearHead(3, CLASSES), images()
    network = ReferenceNetwork(own, LAYERS, last)
    before = network(x)
    with torch.no_grad():
        for p in (*own.parameters(), *last.parameters()):
            p.zero_()
    assert all(torch.equal(output, before[name]) for name, output in network(x).items())
    assert all(p.requires_grad for p in (*own.parameters(), *last.parameters()))


def test_a_reference_is_saved_with_its_weights() -> None:
    network, other, x = reference(), reference(), images()
    for tensor in other.buffers():
        tensor.normal_()
    assert not torch.equal(other(x)[""], network(x)[""])
    other.load_state_dict(network.state_dict())
    assert all(torch.equal(output, network(x)[name]) for name, output in other(x).items())


def test_a_head_that_waits_for_its_width_is_no_source() -> None:
    task = Classification("all", CLASSES)
    with pytest.raises(ParameterError, match="head of task 'all' has no width and no weights yet"):
        Source(task, task.head())
