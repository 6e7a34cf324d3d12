"""Output factors: channels are switched off on the axis where they lie, for the task of the innermost context alone."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import MaskError
from sparsemtl.networks.outputs import fold_outputs, folded_weights
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks

ON = torch.tensor([True, False, True, False])
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, bool]] = {
    "linear": (lambda: nn.Linear(3, 4), (2, 3), 1, True),
    "linear on tokens": (lambda: nn.Linear(3, 4), (2, 5, 3), 2, True),
    "convolution": (lambda: nn.Conv2d(3, 4, 2), (2, 3, 5, 5), 1, True),
    "transposed convolution": (lambda: nn.ConvTranspose1d(3, 4, 2), (2, 3, 5), 1, True),
    "transposed convolution in groups": (lambda: nn.ConvTranspose1d(4, 4, 2, groups=2), (2, 4, 5), 1, False),
    "batch norm": (lambda: nn.BatchNorm1d(4), (6, 4), 1, True),
    "batch norm without scale": (lambda: nn.BatchNorm1d(4, affine=False), (6, 4), 1, False),
    "layer norm": (lambda: nn.LayerNorm(4), (2, 5, 4), 2, True),
    "activation": (nn.Tanh, (2, 4, 5), 1, False),
}


def network_of(layer: nn.Module) -> tuple[nn.Sequential, TaskNetworks]:
    factors = {"a": ON, "b": ~ON}
    return nn.Sequential(layer), TaskNetworks({t: TaskNetwork(output_factors={"0": f}) for t, f in factors.items()})


@each("kind", LAYERS)
def test_channels_are_zero_in_a_context_and_in_a_copy(kind: str) -> None:
    torch.manual_seed(0)
    make, shape, axis, folds = LAYERS[kind]
    model, networks = network_of(make().eval())
    x = torch.randn(shape)
    for task in networks:
        keep = networks[task].output_factors["0"]
        expected = model(x).movedim(axis, -1) * keep
        with networks.swapped(model, task):
            assert torch.equal(model(x).movedim(axis, -1), expected)
        made = networks.network(model, task)
        assert torch.equal(made(x).movedim(axis, -1), expected)
        assert torch.equal(pickle.loads(pickle.dumps(made))(x).movedim(axis, -1), expected)
        assert bool(made[0]._forward_hooks) != folds  # type: ignore[index]
        if not folds:
            with pytest.raises(
                MaskError, match=r"outputs of '0' is in no weight of that module. `network\(model, task\)`"
            ):
                networks.tensors(model, task)
    assert not model[0]._forward_hooks


def test_the_innermost_context_decides_and_the_one_around_it_again_behind_it() -> None:
    model, networks = network_of(nn.Linear(3, 4))
    x = torch.randn(2, 3)
    plain = model(x)
    with networks.swapped(model, "a"):
        with networks.swapped(model, "b"):
            assert torch.equal(model(x), plain * ~ON)
            copied = copy.deepcopy(model)
        assert torch.equal(model(x), plain * ON)
        assert torch.equal(copied(x), plain), "a copy made inside is of the plain model"
    assert torch.equal(model(x), plain)


def test_another_thread_does_not_see_the_network_of_a_task() -> None:
    model, networks = network_of(nn.Linear(3, 4))
    found: list[BaseException] = []

    def call() -> None:
        try:
            model(torch.randn(2, 3))
        except MaskError as error:
            found.append(error)

    with networks.swapped(model, "a"):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert "another thread computes with a task's network" in str(found[0])


def test_the_fused_transformer_layer_of_torch_computes_the_task_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True))
    networks = TaskNetworks({"a": TaskNetwork(output_factors={"0.linear1": ON})})
    x = torch.randn(2, 3, 4)
    with networks.swapped(model, "a"):
        expected = model.train()(x)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), expected)


def test_a_weight_of_two_modules_stays_whole() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    weights, left = folded_weights(model, {"0": ON})
    assert not weights
    assert list(left) == ["0"]
    x = torch.randn(2, 4)
    expected = model[1](model[0](x) * ON)
    fold_outputs(model, {"0": ON})
    assert torch.equal(model(x), expected)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("layer", "width", "message"),
    [
        (Pair(), 4, "an output factor acts on a tensor, and Pair returns a tuple"),
        (nn.Tanh(), 5, r"4 channels does not fit the output of Tanh, of shape \(2, 5\) with channels on axis 1"),
    ],
)
def test_an_output_that_no_factor_fits_is_refused(layer: nn.Module, width: int, message: str) -> None:
    model, networks = network_of(layer)
    with pytest.raises(MaskError, match=message), networks.swapped(model, "a"):
        model(torch.randn(2, width))


def test_a_module_that_the_model_lacks_is_refused_by_name() -> None:
    model, _ = network_of(nn.Tanh())
    networks = TaskNetworks({"a": TaskNetwork(output_factors={"7": ON})})
    with pytest.raises(MaskError, match=r"Sequential: .*'7'"), networks.swapped(model, "a"):
        pass


def test_factors_that_keep_everything_change_nothing() -> None:
    model, _ = network_of(nn.Linear(3, 4))
    networks = TaskNetworks({"a": TaskNetwork(output_factors={"0": torch.ones(4, dtype=torch.bool)})})
    with networks.swapped(model, "a"):
        assert not model[0]._forward_hooks


def test_masks_of_the_run_count_the_rows_of_the_units() -> None:
    tasks = [sm.Regression("a"), sm.Regression("b")]
    model = sm.SharedBottom(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), tasks)
    data = [(torch.randn(5, 3), {"a": torch.randn(5), "b": torch.randn(5)})]
    model(data[0][0])
    sharing = sm.TaskRoutingSharing(keep=0.5, seed=0)
    masks = sharing.begin_epoch(0, model, sharing.start(model), data).masks  # type: ignore[union-attr]
    assert masks is not None
    assert masks.count("a") == 2 * 3 + 2
    assert masks.size() == 4 * 3 + 4
