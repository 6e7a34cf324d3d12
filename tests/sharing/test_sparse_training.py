"""Sparse training: the same part of every neuron's weights is trained for all tasks, the rest stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import each
from sharing_toys import NAMES, OPTIMIZERS, build, loader, model, trained
from states import assert_same, state_of
from torch import nn

import sparsemtl as sm
from sparsemtl.criteria.neurons import largest_per_neuron
from sparsemtl.criteria.top_k import budget
from sparsemtl.sharing.masking import masks_of

LAYERS: dict[str, tuple[nn.Module, str]] = {
    "linear": (nn.Linear(5, 3), "weight"),
    "convolution": (nn.Conv2d(4, 6, 3), "weight"),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), "weight"),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), "weight"),
    "transposed grouped": (nn.ConvTranspose1d(4, 6, 3, groups=2), "weight"),
    "recurrent": (nn.LSTM(3, 2), "weight_ih_l0"),
}


def sources(layer: nn.Module, shape: tuple[int, ...], place: tuple[int, ...]) -> Any:
    """The neuron that a weight leads to, by hand."""
    if not isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return place[0]
    group = place[0] // (shape[0] // layer.groups)
    return group * shape[1] + place[1]


@each("name", LAYERS)
@each("keep", [0.01, 0.3, 0.6, 1.0])
def test_every_neuron_trains_its_largest_incoming_weights(name: str, keep: float) -> None:
    layer, parameter = LAYERS[name]
    weight = getattr(layer, parameter).detach().abs()
    mask = largest_per_neuron(weight, layer, keep)
    neurons: dict[Any, list[tuple[float, bool]]] = {}
    for place in torch.ones_like(weight).nonzero().tolist():
        neurons.setdefault(sources(layer, tuple(weight.shape), tuple(place)), []).append(
            (weight[tuple(place)].item(), bool(mask[tuple(place)]))
        )
    for incoming in neurons.values():
        count = budget(len(incoming), keep)
        assert sum(chosen for _, chosen in incoming) == count
        assert {value for value, chosen in incoming if chosen} == set(sorted(v for v, _ in incoming)[-count:])


def test_ties_go_to_the_lowest_index() -> None:
    mask = largest_per_neuron(torch.ones(2, 4), nn.Linear(4, 2), 0.5)
    assert mask.tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_not_selected_keeps_its_initial_bits_and_everything_else_is_trained(optimizer: str) -> None:
    before = state_of(model())
    engine = trained(build("sparse-training", keep=0.5), loader(), optimizer=optimizer)
    assert engine.update == "joint"
    masks = masks_of(engine.networks)
    assert all(torch.equal(masks.flat(NAMES[0]), masks.flat(task)) for task in NAMES)
    for name, p in engine.model.named_parameters():
        moved = p.detach() != before[name] if name in before else torch.ones_like(p, dtype=torch.bool)
        if name in masks["kind"]:
            assert not bool(moved[~masks["kind"][name]].any())
            assert bool(moved[masks["kind"][name]].any())
        elif "encoder" in name:
            assert bool(moved.any())


@pytest.mark.parametrize("balancing", ["mean", "aligned-mtl"])
def test_one_masked_backward_pass_equals_one_per_task(balancing: str) -> None:
    ends = [
        trained(
            build("sparse-training", keep=0.5, update=update, strict=False),
            loader(),
            optimizer="sgd",
            network=model(norm=False),
            balancing=balancing,
        )
        for update in ("joint", "average")
    ]
    for name, p in ends[0].model.named_parameters():
        torch.testing.assert_close(p, ends[1].model.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_the_gradient_is_masked_where_the_update_is_not_strict() -> None:
    before = state_of(model())
    plain = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    engine = trained(build("sparse-training", keep=0.5, strict=False), loader(), optimizer=plain)
    for name, mask in masks_of(engine.networks)["kind"].items():
        assert torch.equal(engine.model.get_parameter(name).detach()[~mask], before[name][~mask])


@pytest.mark.parametrize("select_by", ["neuron", "global", "random", "lowest"])
def test_ablations_train_as_many_weights(select_by: Any) -> None:
    network: Any = model()
    sharing = sm.SparseTrainingSharing(keep=0.5, select_by=select_by)
    masks = masks_of(sharing.begin_epoch(0, network, sharing.start(network), loader()))["kind"]  # type: ignore[arg-type]
    assert sum(int(mask.sum()) for mask in masks.values()) == 44
    weight, mask = network.encoder[0].weight.detach().abs(), masks["encoder.0.weight"]
    if select_by in ("neuron", "lowest"):
        assert mask.sum(1).tolist() == [3] * 8
        low, high = (weight[mask].view(8, 3), weight[~mask].view(8, 3))
        low, high = (low, high) if select_by == "lowest" else (high, low)
        assert bool((low.amax(1) <= high.amin(1)).all())
    again = masks_of(sharing.begin_epoch(0, network, sharing.start(network), loader()))["kind"]  # type: ignore[arg-type]
    assert_same(dict(masks), dict(again))
    assert sharing.begin_epoch(1, network, sharing.start(network), loader()) is None
