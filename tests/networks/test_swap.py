"""Replaced tensors: only the module's own computation sees them, and only inside."""

from __future__ import annotations

import gc
import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any
from weakref import ref

import pytest
import torch
from loops import each
from torch import Tensor, nn

from sparsemtl.errors import MaskError
from sparsemtl.networks.swap import swap_tensors


class Tied(nn.Module):
    """One weight under three names, one module under two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.second(self.first(x)))


class Recurrent(nn.Module):
    def __init__(self, make: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.cells = make(4, 3, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x[:, None])[0]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 3),
    "nested": lambda: nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.BatchNorm1d(5), nn.ReLU()), nn.Linear(5, 2)),
    "tied": Tied,
    "rnn": lambda: Recurrent(nn.RNN),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
}
every_model = each("kind", MODELS)


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind]()


def inputs() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def halved(model: nn.Module) -> dict[str, Tensor]:
    """A replacement for every parameter, whose gradient at the original is half of its own."""
    return {name: p * 0.5 for name, p in model.named_parameters()}


def halved_copy(model: nn.Module) -> nn.Module:
    copy = deepcopy(model)
    with torch.no_grad():
        for p in copy.parameters():
            p.mul_(0.5)
    return copy


def entries(model: nn.Module) -> list[dict[str, Any]]:
    """What every module of a model holds, down to the identity of each object."""
    return [{name: id(value) for name, value in vars(module).items()} for module in model.modules()]


@every_model
def test_a_model_computes_with_the_replacements_and_only_inside(kind: str) -> None:
    model = model_of(kind).eval()
    dense, expected = model(inputs()), halved_copy(model)(inputs())
    with swap_tensors(model, halved(model)):
        assert torch.equal(model(inputs()), expected)
    assert torch.equal(model(inputs()), dense)
    assert not torch.equal(dense, expected)


@every_model
def test_gradients_go_through_the_replacements_to_the_originals(kind: str) -> None:
    model = model_of(kind)
    copy = halved_copy(model)
    copy(inputs()).square().sum().backward()
    with swap_tensors(model, halved(model)):
        model(inputs()).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.equal(p.grad, 0.5 * copy.get_parameter(name).grad), name


@every_model
def test_everything_that_lists_tensors_sees_the_originals_inside(kind: str) -> None:
    model = model_of(kind)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with swap_tensors(model, halved(model) | {name: torch.zeros_like(b) for name, b in buffers.items()}):
        assert all(p is parameters[name] for name, p in model.named_parameters())
        assert all(b is buffers[name] for name, b in model.named_buffers())
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert {id(p) for p in parameters.values()} == {
            id(p) for group in torch.optim.SGD(model.parameters(), lr=0.1).param_groups for p in group["params"]
        }


@every_model
def test_nothing_is_left_behind(kind: str) -> None:
    model = model_of(kind)
    before = entries(model)
    with swap_tensors(model, halved(model)):
        assert entries(model) != before
        with swap_tensors(model, halved(model)):
            model(inputs())
    assert entries(model) == before


@every_model
def test_an_error_inside_leaves_nothing_behind_either(kind: str) -> None:
    model = model_of(kind)
    before = entries(model)
    with pytest.raises(ZeroDivisionError), swap_tensors(model, halved(model)):
        raise ZeroDivisionError
    assert entries(model) == before


def test_an_unknown_name_is_an_error_and_what_was_replaced_before_it_is_put_back() -> None:
    model = model_of("nested")
    before = entries(model)
    with (
        pytest.raises(MaskError, match=r"Sequential: unknown parameter or buffer '7\.weight'"),
        swap_tensors(model, halved(model) | {"7.weight": torch.ones(1)}),
    ):
        pass
    assert entries(model) == before


def test_the_inner_context_wins_and_the_outer_one_comes_back() -> None:
    model = nn.Linear(2, 2, bias=False)
    one, two = torch.eye(2), 2 * torch.eye(2)
    x = torch.randn(3, 2)
    with swap_tensors(model, {"weight": one}):
        with swap_tensors(model, {"weight": two}):
            assert torch.equal(model(x), 2 * x)
        assert torch.equal(model(x), x)


def test_contexts_on_different_names_add_up() -> None:
    model = nn.Linear(2, 2)
    x = torch.randn(3, 2)
    with swap_tensors(model, {"weight": torch.eye(2)}), swap_tensors(model, {"bias": torch.ones(2)}):
        assert torch.equal(model(x), x + 1)


def copied(model: nn.Module) -> nn.Module:
    return deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@each("copy", [copied, pickled, saved])
@each("depth", [1, 2])
@every_model
def test_a_copy_made_inside_is_of_the_plain_model(
    kind: str, depth: int, copy: Callable[[nn.Module], nn.Module]
) -> None:
    model = model_of(kind).eval()
    dense, half = model(inputs()), halved_copy(model)(inputs())
    with swap_tensors(model, halved(model)):
        if depth == 1:
            twin = copy(model)
        else:
            with swap_tensors(model, {name: p * 0 for name, p in model.named_parameters()}):
                twin = copy(model)
        assert torch.equal(model(inputs()), half), "making a copy disturbed the context"
        assert torch.equal(twin(inputs()), dense)
    assert torch.equal(model(inputs()), dense)
    assert [set(vars(m)) for m in twin.modules()] == [set(vars(m)) for m in copy(model).modules()]
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}


@every_model
def test_a_copy_made_inside_learns_on_its_own(kind: str) -> None:
    model = model_of(kind)
    with swap_tensors(model, halved(model)):
        twin = deepcopy(model)
    twin(inputs()).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("assign", [False, True])
def test_weights_loaded_inside_are_the_models_own_afterwards(assign: bool) -> None:
    model, other = model_of("nested").eval(), model_of("nested").eval()
    nn.init.constant_(other[0].weight, 0.25)
    with swap_tensors(model, halved(model)):
        model.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(model(inputs()), other(inputs()))


def test_hooks_run_inside_and_those_set_inside_stay() -> None:
    model = nn.Linear(2, 2, bias=False)
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(3, 2)
    with swap_tensors(model, {"weight": torch.eye(2)}):
        model(x)
        model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(x)
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[1], x)
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["first.weight", "second.weight", "again.weight"])
def test_a_tensor_with_several_names_is_replaced_under_all_of_them(name: str) -> None:
    model = model_of("tied")
    copy = deepcopy(model)
    with torch.no_grad():
        copy.first.weight.fill_(0.5)
    with swap_tensors(model, {name: torch.full((4, 4), 0.5)}):
        assert torch.equal(model(inputs()), copy(inputs()))


def test_a_tensor_replaced_under_two_of_its_names_is_put_back() -> None:
    model = model_of("tied")
    before = entries(model)
    with swap_tensors(model, {"first.weight": torch.zeros(4, 4), "second.weight": torch.ones(4, 4)}):
        assert torch.equal(model.again.weight, torch.ones(4, 4))
    assert entries(model) == before


def test_buffers_are_replaced_and_updated_in_place_of_the_models_own() -> None:
    model = nn.BatchNorm1d(4)
    own = {name: buffer.clone() for name, buffer in model.named_buffers()}
    other = {name: buffer.clone() for name, buffer in model.named_buffers()}
    copy = deepcopy(model)
    copy(inputs())
    with swap_tensors(model, other):
        model(inputs())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, own[name])
        assert torch.equal(other[name], copy.get_buffer(name))
    assert other["num_batches_tracked"] == 1


def test_none_takes_a_tensor_away() -> None:
    model = nn.Linear(4, 3)
    with swap_tensors(model, {"bias": None}):
        assert torch.equal(model(inputs()), nn.functional.linear(inputs(), model.weight))
    assert model.bias is not None


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_inside(model: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), torch.compile(model, backend="eager"))


@pytest.mark.parametrize(
    "made", [lambda model: torch.compile(model, backend="eager"), compiled_in_place, compiled_inside]
)
def test_compiled_modules_are_refused(made: Callable[[nn.Module], nn.Module]) -> None:
    model = made(nn.Linear(4, 3))
    with pytest.raises(MaskError, match="a compiled module ignores replaced weights"), swap_tensors(model, {}):
        pass


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), torch.jit.script(nn.Linear(4, 3)))
    with pytest.raises(MaskError, match="RecursiveScriptModule is scripted; put masks on the plain module"):
        swap_tensors(model, {}).__enter__()


def test_a_context_entered_in_a_compiled_region_is_refused() -> None:
    model = nn.Linear(4, 3)

    @torch.compile(backend="eager", fullgraph=True)
    def run(x: Tensor) -> Tensor:
        with swap_tensors(model, {"weight": torch.zeros(3, 4)}):
            return model(x)

    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        run(inputs())


def test_functions_compiled_before_see_the_replacements() -> None:
    model = nn.Linear(4, 3)
    run = torch.compile(lambda x: model(x).square(), backend="eager")
    dense = run(inputs())
    for _ in range(2):
        with swap_tensors(model, halved(model)):
            half = run(inputs())
        assert torch.equal(half, halved_copy(model)(inputs()).square())
        assert torch.equal(run(inputs()), dense)


def test_functions_compiled_inside_forget_the_replacements() -> None:
    model = nn.Linear(4, 3)
    dense = model(inputs())
    with swap_tensors(model, halved(model)):
        run = torch.compile(lambda x: model(x), backend="eager")
        assert torch.equal(run(inputs()), halved_copy(model)(inputs()))
    assert torch.equal(run(inputs()), dense)


@pytest.mark.usefixtures("collected")
@every_model
def test_a_model_is_freed_after_its_use(kind: str) -> None:
    model = model_of(kind)
    with swap_tensors(model, halved(model)):
        model(inputs())
    modules = [ref(module) for module in model.modules()]
    del model
    gc.collect()
    assert not any(module() is not None for module in modules)


def test_a_tied_module_that_is_gone_is_left_out() -> None:
    model = Tied()
    with swap_tensors(model, halved(model)):
        pass
    del model.second
    gc.collect()
    with swap_tensors(model, {"first.weight": torch.zeros(4, 4)}):
        assert torch.equal(model.first(inputs()), model.first.bias.expand(len(inputs()), 4))
