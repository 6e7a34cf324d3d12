"""What every architecture promises; a new one enters these tests by one line of `MODELS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

from sparsemtl import (
    Classification,
    CompiledModel,
    MultiLabel,
    MultiTaskModel,
    RandomSharing,
    Regression,
    Task,
    TaskMasks,
    Trainer,
)
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters

MODELS: dict[str, dict[str, Any]] = {
    "shared-bottom": {},
    "single-task": {},
    "task-groups": {"groups": [["digit", "ink"], ["shape"]]},
    "cross-stitch": {},
    "nddr": {},
    "mtal": {},
    "auxiliary": {"align": "none"},
    "mmoe": {"experts": 3},
    "cgc": {},
    "ple": {},
    "pbfs": {"pools": [["digit", "shape"], ["shape", "ink"]]},
    "squeeze-excitation": {"reduction": 2},
}
"""Architecture -> its parameters for the tasks below."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-stitch, first stage": ("cross-stitch", {"after": ["2"]}),
    "cross-stitch, channels": ("cross-stitch", {"per_channel": True}),
    "nddr, shortcut": ("nddr", {"shortcut": True, "norm": False}),
    "auxiliary, shared": ("auxiliary", {"align": "none", "weights": "shared", "layers": ["3"]}),
    "auxiliary, frozen": ("auxiliary", {"align": "none", "weights": "frozen", "layers": ["3"]}),
    "mtal, at once": ("mtal", {"warmup": 0}),
    "task-groups, one": ("task-groups", {}),
    "cgc, apart": ("cgc", {"shared_experts": 0, "task_experts": 2}),
    "cgc, several": ("cgc", {"shared_experts": 2, "task_experts": 2}),
    "ple, apart": ("ple", {"shared_experts": 0}),
    "ple, shared": ("ple", {"shared_experts": 2, "task_experts": 0}),
    "squeeze-excitation, last layer": ("squeeze-excitation", {"after": ["3"]}),
    "pbfs, gate": ("pbfs", {"pools": [["digit", "ink"]], "pool_merge": "gate", "experts_per_pool": 2}),
}
"""The same with other parameters."""
VARIANTS = {**{name: (name, options) for name, options in MODELS.items()}, **OTHERS}
NEEDED: dict[str, dict[str, Any]] = {"auxiliary": {"align": "none"}}
"""What an architecture must be told for any tasks: those below have no classes to align."""
each_model = each("name", VARIANTS)
each_encoder = each("stacked", [False, True])


def tasks() -> list[Task]:
    return [Classification("digit", 4), MultiLabel("shape", 3), Regression("ink")]


def encoder(*, stacked: bool = False) -> nn.Module:
    """With a norm, experts run one after the other; stacks of linear layers run as one."""
    middle = nn.Identity() if stacked else nn.BatchNorm1d(6)
    return nn.Sequential(nn.Linear(5, 6), middle, nn.ReLU(), nn.Linear(6, 6))


def build(name: str, *given: Any) -> MultiTaskModel:
    architecture, options = VARIANTS[name]
    return ARCHITECTURES.build(architecture, *given, **options)


def model_of(name: str, *, stacked: bool = False) -> MultiTaskModel:
    torch.manual_seed(1)
    return deepcopy(_built(name, stacked))


@cache
def _built(name: str, stacked: bool) -> MultiTaskModel:
    torch.manual_seed(0)
    model = build(name, encoder(stacked=stacked), tasks())
    with torch.no_grad():
        model(batch())  # heads and gates infer their width
    return model


@contextmanager
def case(*names: object) -> Iterator[None]:
    """Names the case of a loop in which a test fails."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(f"case {', '.join(map(repr, names))}: {error}") from error


def batch() -> Tensor:
    return torch.linspace(-1, 1, 40).view(8, 5)


def trained(model: MultiTaskModel) -> dict[str, frozenset[str]]:
    """The users of the parameters that are trained."""
    return {name: tasks for name, tasks in model.parameter_tasks().items() if model.get_parameter(name).requires_grad}


def reached(model: MultiTaskModel, task: str) -> set[str]:
    """Names of the parameters to which the task's output has a gradient."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model(batch(), tasks=[task])[task].square().sum().backward()
    return {name for name, p in parameters.items() if p.grad is not None}


def read(model: MultiTaskModel, task: str) -> set[str]:
    """Names of the parameters, trained or not, to which the task's output would have a gradient."""
    return reached(deepcopy(model).requires_grad_(), task)


def test_every_registered_architecture_is_tested_here() -> None:
    assert set(MODELS) == set(ARCHITECTURES)


def test_users_are_exactly_the_tasks_whose_output_a_parameter_reaches() -> None:
    for name, stacked in product(VARIANTS, [False, True]):
        with case(name, stacked):
            model = model_of(name, stacked=stacked)
            users = model.parameter_tasks()
            assert list(users) == [name for name, _ in model.named_parameters()]
            for task in model.tasks:
                assert read(model, task) == {name for name, its_tasks in users.items() if task in its_tasks}


def test_gradients_reach_exactly_the_parameters_that_a_task_uses_and_trains() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            for task in model.tasks:
                assert reached(model, task) == {name for name, its_tasks in trained(model).items() if task in its_tasks}
            assert not any(p.grad is not None for p in model.parameters() if not p.requires_grad)


def test_a_parameter_is_shared_with_or_without_masks_or_one_tasks_own() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            parts = [
                model.shared_parameters(),
                model.unmasked_parameters(),
                *(model.task_parameters(task) for task in model.tasks),
            ]
            found = {name: id(p) for part in parts for name, p in part.items()}
            assert found == {name: id(p) for name, p in model.named_parameters()}
            assert sum(len(part) for part in parts) == len(found)


def test_modules_of_a_name_are_those_of_the_model() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            parts = [
                model.shared_modules(),
                model.unmasked_modules(),
                *(model.task_modules(task) for task in model.tasks),
            ]
            for part in parts:
                assert all(model.get_submodule(name) is module for name, module in part.items())


def test_modules_of_which_every_task_has_a_copy_are_parts_of_its_own_modules() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            own = {
                id(part)
                for task in model.tasks
                for module in model.task_modules(task).values()
                for part in module.modules()
            }
            for copied, module in model.replicated_modules().items():
                assert model.get_submodule(copied) is module
                assert id(module) in own
            found = {
                task: [n for n in model.replicated_parameters() if n in model.task_parameters(task)]
                for task in model.tasks
            }
            assert len({len(names) for names in found.values()}) == 1
            assert sum(map(len, found.values())) == len(model.replicated_parameters())


def test_shared_and_own_parameters_agree_with_their_users() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            users = model.parameter_tasks()
            assert all(len(users[name]) > 1 for name in {**model.shared_parameters(), **model.unmasked_parameters()})
            for task in model.tasks:
                assert all(users[name] == {task} for name in model.task_parameters(task))


def test_a_model_is_independent_if_no_parameter_that_is_trained_has_two_users() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            assert model.independent == all(len(users) == 1 for users in trained(model).values())
            assert model.independent == (not any(p.requires_grad for p in model.shared_parameters().values()))
            assert model.requires_grad_().independent == (not model.shared_parameters())


def test_a_model_that_never_trained_has_no_terms_of_its_own_to_add_or_to_tell() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            assert list(model.metrics()) == []
            assert all(model.penalty(task, torch.zeros(8, dtype=torch.long)) is None for task in model.tasks)


def test_learning_rates_are_multiplied_for_parameters_that_are_there() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            assert model.lr_factors.keys() <= dict(model.named_parameters()).keys()


def test_every_task_gets_an_output_of_its_width_in_the_order_asked() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            assert {t: tuple(o.shape) for t, o in model(batch()).items()} == {
                "digit": (8, 4),
                "shape": (8, 3),
                "ink": (8, 1),
            }
            assert list(model(batch())) == ["digit", "shape", "ink"]
            assert list(model(batch(), tasks=("ink", "digit"))) == ["ink", "digit"]
            assert model(batch(), tasks=[]) == {}


def test_asking_for_fewer_tasks_does_not_change_their_outputs() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name).eval()
            together = model(batch())
            for task in model.tasks:
                assert torch.equal(model(batch(), tasks=[task])[task], together[task])


def test_asking_for_fewer_tasks_changes_their_outputs_by_rounding_only_where_experts_run_as_one() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name, stacked=True)
            together = model(batch())
            for task in model.tasks:
                torch.testing.assert_close(model(batch(), tasks=[task])[task], together[task], rtol=1e-5, atol=1e-6)


def test_a_task_that_is_asked_for_twice_is_answered_as_if_once() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name).eval()
            twice = model(batch(), tasks=["ink", "ink"])
            assert torch.equal(twice["ink"], model(batch(), tasks=["ink"])["ink"])


def test_a_state_dict_restores_the_outputs() -> None:
    for name in VARIANTS:
        with case(name):
            model, other = model_of(name), model_of(name)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn_like(p))
            assert not torch.equal(model.eval()(batch())["ink"], other.eval()(batch())["ink"])
            other.load_state_dict(model.state_dict())
            for task, output in model(batch()).items():
                assert torch.equal(other(batch())[task], output)


ASKS: dict[str, Callable[[MultiTaskModel], object]] = {
    "forward": lambda model: model(batch(), tasks=["digits"]),
    "task_modules": lambda model: model.task_modules("digits"),
    "task_parameters": lambda model: model.task_parameters("digits"),
    "check_task": lambda model: model.check_task("digits"),
}


def test_a_task_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    message = r"unknown task 'digits'\. Did you mean 'digit'\? Known: digit, ink, shape"
    for name in VARIANTS:
        model = model_of(name)
        for asked, ask in ASKS.items():
            with case(name, asked), pytest.raises(ParameterError, match=message):
                ask(model)


def test_heads_of_ones_own_take_the_place_of_default_ones() -> None:
    for name in VARIANTS:
        with case(name):

            class Doubled(nn.Sequential):
                """An empty container, which is false in Python."""

                def forward(self, features: Tensor) -> Tensor:
                    self.read = features
                    return 2 * features[:, :4]

            head = Doubled()
            model = build(name, encoder(), tasks(), {"digit": head})
            with torch.no_grad():
                model(batch())
            assert model.task_parameters("ink").keys() >= {"heads.ink.weight"}
            assert not any(name.startswith("heads.digit") for name in model.parameter_tasks())
            output = model.eval()(batch())["digit"]
            assert torch.equal(output, 2 * head.read[:, :4])


def test_a_head_of_two_tasks_is_refused() -> None:
    for name in ARCHITECTURES:
        with case(name):
            head = nn.Linear(6, 1)
            with pytest.raises(ParameterError, match="heads: tasks 'a' and 'b' were given the same parameters"):
                ARCHITECTURES.build(
                    name, encoder(), [Regression("a"), Regression("b")], {"a": head, "b": head}, **NEEDED.get(name, {})
                )


def test_two_tasks_of_one_name_are_refused() -> None:
    for name in ARCHITECTURES:
        with case(name), pytest.raises(ParameterError, match=r"task names must differ, \['a'\]"):
            ARCHITECTURES.build(name, encoder(), [Regression("a"), Regression("a")], **NEEDED.get(name, {}))


def test_one_task_alone_is_a_model_as_well() -> None:
    for name in ARCHITECTURES:
        with case(name):
            model = ARCHITECTURES.build(name, encoder(), [Regression("a")], **NEEDED.get(name, {}))
            assert model(batch())["a"].shape == (8, 1)
            assert set(model.parameter_tasks().values()) == {frozenset({"a"})}


def test_a_head_of_an_unknown_task_is_refused() -> None:
    for name in VARIANTS:
        with case(name), pytest.raises(ParameterError, match=r"heads: unknown task 'ing'\. Did you mean 'ink'\?"):
            build(name, encoder(), tasks(), {"ing": nn.Linear(6, 1)})


def test_it_runs_as_torch_runs_any_module_functionally() -> None:
    for name, stacked in product(VARIANTS, [False, True]):
        with case(name, stacked):
            model = model_of(name, stacked=stacked).eval()
            doubled = {name: 2 * p for name, p in model.named_parameters()}
            found = torch.func.functional_call(model, doubled, (batch(),))
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(2)
            for task, output in model(batch()).items():
                assert torch.equal(found[task], output)


@pytest.mark.slow
@each_encoder
@each_model
def test_it_is_compiled_as_a_whole_dense_and_masked(name: str, stacked: bool) -> None:
    model = model_of(name, stacked=stacked)
    if VARIANTS[name][0] in ("mtal", "squeeze-excitation"):
        with pytest.raises(torch._dynamo.exc.Unsupported):  # a trainer refuses them at its start
            CompiledModel(model, backend="eager")(batch())
        return
    parameters = maskable_parameters(model)
    kept = {n: torch.arange(p.numel()).view(p.shape) % 2 == 0 for n, p in parameters.items()}
    masks = TaskMasks(dict.fromkeys(model.tasks, kept)) if parameters else None
    run = CompiledModel(model, backend="aot_eager")
    for task in model.tasks:
        for masked in [False, *([True] if masks else [])]:
            found = []
            for call in (model, run):
                model.zero_grad()
                with masks.applied(model, task) if masked else nullcontext():
                    output = call(batch(), tasks=(task,))[task]
                    output.square().sum().backward()
                gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                found.append((output.detach(), gradients))
            torch.testing.assert_close(found[0], found[1])


def test_a_deep_copy_computes_the_same_and_shares_nothing() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name).eval()
            copy = deepcopy(model)
            before = model(batch())
            with torch.no_grad():
                for p in model.parameters():
                    p.zero_()
            assert all(torch.equal(copy(batch())[task], output) for task, output in before.items())


def test_masked_weights_are_zeros_to_the_tasks_that_mask_them() -> None:
    for name, stacked in product(VARIANTS, [False, True]):
        with case(name, stacked):
            model = model_of(name, stacked=stacked).eval()
            parameters = maskable_parameters(model)
            if not parameters:
                assert model.independent
                continue
            generator = torch.Generator().manual_seed(0)
            masks = TaskMasks(
                {
                    t: {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in parameters.items()}
                    for t in model.tasks
                }
            )
            for task in model.tasks:
                zeroed = deepcopy(model)
                with torch.no_grad():
                    for parameter, mask in masks[task].items():
                        zeroed.get_parameter(parameter).mul_(mask)
                with masks.applied(model, task):
                    output = model(batch(), tasks=[task])[task]
                assert torch.equal(output, zeroed(batch(), tasks=[task])[task])
                used = any(task in model.parameter_tasks()[parameter] for parameter in parameters)
                assert torch.equal(output, model(batch(), tasks=[task])[task]) != used


def test_no_mask_is_ever_put_on_what_mixes_the_streams() -> None:
    for name in VARIANTS:
        with case(name):
            model = model_of(name)
            masked = maskable_parameters(model, mask_all=True)
            assert not masked.keys() & model.unmasked_parameters().keys()
            assert not any(part in name for name in masked for part in ("gate", "mixers"))


PAIRS = [(False, False), (True, True)], [(False, True), (True, False)]
"""Encoder and training, dense or masked; each model has one of the two, so that all pairs of values occur."""
TRAINED = [(name, *pair) for number, name in enumerate(VARIANTS) for pair in PAIRS[number % 2]]


@each(("name", "stacked", "masked"), TRAINED)
def test_it_trains_dense_and_with_masks(name: str, stacked: bool, masked: bool) -> None:
    x = batch()
    targets = {"digit": torch.arange(8) % 4, "shape": (x[:, :3] > 0).float(), "ink": x.sum(1)}

    def data() -> TensorLoader:
        return TensorLoader(x, targets, batch_size=4)

    torch.manual_seed(0)
    model = build(name, encoder(stacked=stacked), tasks())  # heads and gates still wait for their width
    options: dict[str, Any] = {"sharing": RandomSharing(keep=0.5)} if masked and model.shared_modules() else {}
    Trainer(model, epochs=1, accelerator="cpu", progress=False, monitor="loss", **options).fit(data(), data())
    assert all(bool(p.isfinite().all()) for p in model.parameters())
