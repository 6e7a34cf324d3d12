"""Experts that run as one give what a plain loop gives, read the weights of the moment, and leave nobody out."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from expert_oracles import WIDTH, as_one_only, batch, gradients, one_after_the_other, stack, tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from torch import Tensor, nn

from sparsemtl import TaskMasks
from sparsemtl.architectures import CGC, PLE, MMoE
from sparsemtl.architectures.copies import copies, reinitialized
from sparsemtl.backbones import CNN, MLP, SegNet, resnet18
from sparsemtl.errors import ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters

ALIKE: dict[str, Callable[[], nn.Module]] = {
    "one layer": lambda: stack(4),
    "three layers": lambda: stack(4, 6, 3),
    "no activation behind": lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(), nn.Linear(4, 3)),
    "no bias": lambda: nn.Sequential(nn.Linear(WIDTH, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)),
    "bare layer": lambda: nn.Linear(WIDTH, 4),
    "nested": lambda: nn.Sequential(stack(4), nn.Identity(), nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.2))),
    "mlp": lambda: MLP((WIDTH,), hidden=[6, 4], dropout=0.0),
    "idle dropout": lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(0.0), nn.ReLU(inplace=True)),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: MLP((WIDTH,), hidden=[6, 4], norm=True),
    "prelu": lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.PReLU()),
    "activation first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, 4)),
    "no weights": lambda: nn.ReLU(),
}


def cgc(make: Callable[[], nn.Module]) -> CGC:
    torch.manual_seed(0)
    model = CGC(make, tasks(), shared_experts=2, task_experts=2)
    model(batch().float())
    return model.double()


def assert_as_in_a_loop(model: nn.Module, x: Tensor, chosen: list[str] | None = None) -> None:
    with as_one_only():
        together, found = model(x, tasks=chosen), gradients(model, x, chosen)
    with one_after_the_other():
        apart, expected = model(x, tasks=chosen), gradients(model, x, chosen)
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-12)
    assert {name for name, g in found.items() if g is None} == {name for name, g in expected.items() if g is None}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@each("chosen", [None, ["b"], ["c", "a"]])
@each("kind", ALIKE)
def test_experts_that_run_as_one_give_outputs_and_gradients_of_a_loop(kind: str, chosen: list[str] | None) -> None:
    assert_as_in_a_loop(cgc(ALIKE[kind]), batch(), chosen)


@settings(deadline=None, max_examples=25)
@given(
    shared=st.integers(0, 4),
    own=st.integers(0, 3),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    count=st.integers(0, 6),
)
def test_they_do_for_any_number_of_experts_layers_and_samples(
    shared: int, own: int, widths: list[int], count: int
) -> None:
    if shared + own < 1 or shared + 3 * own < 2:
        return
    model = CGC(stack(*widths), tasks(), shared_experts=shared, task_experts=own)
    model(batch().float())
    assert_as_in_a_loop(model.double(), batch(count))


@each("chosen", [None, ["b"]])
@each(("shared", "own"), [(1, 1), (2, 2), (3, 0), (0, 2)])
def test_so_do_levels_whose_experts_read_different_inputs(shared: int, own: int, chosen: list[str] | None) -> None:
    torch.manual_seed(0)
    model = PLE(stack(4, 6, 3), tasks(), levels=3, shared_experts=shared, task_experts=own)
    model(batch().float())
    assert_as_in_a_loop(model.double(), batch(), chosen)


@pytest.mark.parametrize("kind", OTHERS)
def test_experts_that_are_no_stack_of_linear_layers_run_in_a_loop(kind: str) -> None:
    model = cgc(OTHERS[kind])
    with one_after_the_other():
        expected = model.eval()(batch())
    found = model(batch())
    assert all(torch.equal(found[task], output) for task, output in expected.items())


def test_experts_of_different_kinds_run_in_a_loop() -> None:
    kinds = iter([stack(4), nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh()), stack(6, 4)])
    model = MMoE(lambda: next(kinds), tasks(), experts=3).double()
    with one_after_the_other():
        expected = model(batch())
    assert all(torch.equal(model(batch())[task], output) for task, output in expected.items())


def test_images_are_folded_before_experts_that_fold_them() -> None:
    model = MMoE(MLP((1, 2, 3), hidden=[4]), tasks(), experts=3)
    x = torch.randn(5, 1, 2, 3)
    with as_one_only():
        found = model(x)
    with one_after_the_other():
        torch.testing.assert_close(found, model(x))


def test_layers_on_the_last_axis_of_a_sequence_run_in_a_loop() -> None:
    model = MMoE(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), tasks(), experts=3)
    model.levels[0].gates = nn.ModuleDict({task: nn.Linear(6, 3, bias=False) for task in model.tasks})
    x = torch.randn(5, 2, 3)
    with one_after_the_other():
        expected = model(x)
    assert all(torch.equal(model(x)[task], output) for task, output in expected.items())


def test_masked_weights_stand_in_for_those_of_every_expert() -> None:
    model = cgc(ALIKE["three layers"])
    parameters = maskable_parameters(model)
    generator = torch.Generator().manual_seed(0)
    masks = TaskMasks(
        {t: {n: torch.rand(p.shape, generator=generator) < 0.4 for n, p in parameters.items()} for t in model.tasks}
    )
    for task in model.tasks:
        with masks.applied(model, task), as_one_only():
            together, found = model(batch(), tasks=[task]), gradients(model, batch(), [task])
        with masks.applied(model, task), one_after_the_other():
            apart, expected = model(batch(), tasks=[task]), gradients(model, batch(), [task])
        torch.testing.assert_close((together, found), (apart, expected), rtol=1e-9, atol=1e-12)
        for name, mask in masks[task].items():
            gradient = found[name]
            assert gradient is not None
            assert not gradient[~mask].any()
        assert any(bool(found[name].any()) for name in masks[task])  # type: ignore[union-attr]


def test_a_hook_on_a_layer_of_an_expert_is_called() -> None:
    model = cgc(ALIKE["mlp"])
    expected = model(batch())
    for place in [
        model.levels[0].pools["pool1"][0],
        model.levels[0].pools["pool1"][1].layers,
        model.levels[0].experts["a"][1].layers[1],
        model.levels[0].gates["b"],
    ]:
        calls: list[object] = []
        handle = place.register_forward_hook(lambda *call, calls=calls: calls.append(call))
        torch.testing.assert_close(model(batch()), expected)
        handle.remove()
        assert len(calls) == 1
    with as_one_only():
        model(batch())


def test_a_forward_put_on_one_layer_is_called() -> None:
    model = cgc(ALIKE["three layers"])
    before = model(batch())["a"]
    layer = model.levels[0].pools["pool1"][0][0]
    layer.forward = lambda x: 0 * nn.Linear.forward(layer, x)
    assert not torch.allclose(model(batch())["a"], before)


def test_dropout_drops_every_experts_numbers_apart_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(WIDTH, 50), nn.Dropout(0.25))
    model = MMoE(encoder, tasks("b"), {"b": nn.Identity()}, experts=2, fresh=False).double()
    with torch.no_grad():
        model.levels[0].gates["b"].weight.zero_()  # a half of each
        whole = model.eval()(batch(200))["b"]
        with as_one_only():
            dropped = model.train()(batch(200))["b"]
    kept = dropped / whole * 0.75 * 2
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-6)
    shares = [float((kept.round() == number).double().mean()) for number in (0, 1, 2)]
    assert shares == pytest.approx([1 / 16, 6 / 16, 9 / 16], abs=0.02)


def test_experts_that_drop_differently_run_in_a_loop() -> None:
    kinds = iter([nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(p)) for p in (0.0, 0.9)])
    model = MMoE(lambda: next(kinds), tasks("b"), {"b": nn.Identity()}, experts=2).double()
    assert float((model(batch(100))["b"] == 0).double().mean()) == 0


# ---- how experts are made ------------------------------------------------------------------------------------------

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP((6,), hidden=[5, 4], norm=True),
    "cnn": lambda: CNN((1, 8, 8), widths=[4, 6]),
    "resnet": lambda: resnet18((3, 32, 32), width=2),
    "segnet": lambda: SegNet((3, 32, 32), width=2),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_are_drawn_anew_from_the_distribution_of_a_new_network(name: str) -> None:
    torch.manual_seed(0)
    model = BACKBONES[name]()
    drawn = reinitialized(deepcopy(model))
    for parameter, p in model.state_dict().items():
        other = drawn.state_dict()[parameter]
        if p.numel() > 1 and p.std() > 0:
            assert not torch.equal(p, other), parameter
            assert 0.3 < float(other.std() / p.std()) < 3 or p.numel() < 20, parameter
        else:
            assert torch.equal(p, other), parameter


@pytest.mark.parametrize("name", ["resnet", "segnet"])
def test_a_network_that_learned_is_as_new_afterwards(name: str) -> None:
    model = BACKBONES[name]()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    reinitialized(model)
    assert not any(bool((tensor == 7).any()) for tensor in model.state_dict().values())


def test_the_first_copy_is_the_network_given_and_the_others_are_drawn() -> None:
    given = stack(4)
    first, second, third = (next(made) for made in [copies(given, fresh=True)] for _ in range(3))
    assert torch.equal(first[0].weight, given[0].weight)
    assert first[0].weight is not given[0].weight
    assert not torch.equal(second[0].weight, given[0].weight)
    assert not torch.equal(second[0].weight, third[0].weight)


def test_copies_may_begin_as_equals() -> None:
    model = CGC(stack(4), tasks(), fresh=False)
    experts = [model.levels[0].pools["pool1"][0], *(own[0] for own in model.levels[0].experts.values())]
    assert all(torch.equal(expert[0].weight, experts[0][0].weight) for expert in experts)
    assert len({id(expert[0].weight) for expert in experts}) == 4


class Own(nn.Module):
    """A module whose parameter nobody knows how to draw."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def test_a_module_that_cannot_be_drawn_anew_is_named() -> None:
    with pytest.raises(ParameterError, match=r"weights of Own, which has no `reset_parameters`, .*fresh=False"):
        reinitialized(nn.Sequential(nn.Linear(3, 3), Own()))
    with pytest.raises(ParameterError, match="whose weights are parametrized"):
        reinitialized(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))


def test_a_lazy_network_is_an_expert_too() -> None:
    model = MMoE(nn.Sequential(nn.LazyLinear(4), nn.ReLU()), tasks(), experts=3)
    model(batch().float())
    weights = [expert[0].weight for expert in model.levels[0].pools["pool1"]]
    assert not torch.equal(weights[0], weights[1])
    with as_one_only():
        model(batch().float())
