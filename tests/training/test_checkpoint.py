from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from states import assert_same, state_of
from torch import Tensor, nn
from training_toys import moved, shared

from sparsemtl.errors import CheckpointError
from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
from sparsemtl.storage.files import read_tree, write_tree
from sparsemtl.training.checkpoints.checkpoint import Randomness, check_fingerprint, fingerprint, restore, snapshot


class Counter:
    """The smallest part."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class OtherCounter(Counter):
    pass


def trained(optimizer: str, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = shared(norm=True)
    made = OPTIMIZERS.build(optimizer, [{"params": list(model.parameters())}], lr=0.1)
    for _ in range(steps):
        step(model, made)
    return model, made


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    sum(output.square().mean() for output in model(torch.ones(4, 6).cumsum(0)).values()).backward()
    optimizer.step()


def carried(state: Any, folder: Path) -> Any:
    """The state as it comes back from disk."""
    write_tree(folder / "state.safetensors", state)
    return read_tree(folder / "state.safetensors")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_model_and_optimizer_go_on_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    model, made = trained(optimizer)
    state = carried(snapshot(model, {"optimizer": made}, {"epoch": 3}), tmp_path)
    other, remade = trained(optimizer, steps=0)
    assert restore(state, other, {"optimizer": remade}, "here") == {"epoch": 3}
    for _ in range(3):
        step(model, made)
        step(other, remade)
    assert_same(state_of(other), state_of(model))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedules_go_on_where_they_were(scheduler: str, tmp_path: Path) -> None:
    options = {"constant": {"warmup": 6}, "step": {"every": 2}, "plateau": {"patience": 1}}.get(scheduler, {})

    def rates(schedule: Any, optimizer: torch.optim.Optimizer, epochs: range) -> list[float]:
        found = []
        for _ in epochs:
            optimizer.step()
            schedule.step(*([1.0] if scheduler == "plateau" else []))
            found.append(optimizer.param_groups[0]["lr"])
        return found

    _, made = trained("sgd", 0)
    schedule = SCHEDULERS.build(scheduler, made, 10, **options)
    rates(schedule, made, range(3))
    model, remade = trained("sgd", 0)
    again = SCHEDULERS.build(scheduler, remade, 10, **options)
    state = carried(snapshot(model, {"optimizer": made, "scheduler": schedule}, {}), tmp_path)
    restore(state, model, {"optimizer": remade, "scheduler": again}, "here")
    expected = rates(schedule, made, range(3, 9))
    assert rates(again, remade, range(3, 9)) == expected
    assert len(set(expected)) > 1


def drawn(generator: torch.Generator) -> list[Any]:
    """One number from each generator; Gaussians, whose second half NumPy and Python keep for later."""
    return [
        random.gauss(0, 1),
        float(np.random.randn()),
        torch.randn(3),
        torch.rand(3, generator=generator),
        random.random(),
    ]


@pytest.mark.parametrize("already", [0, 1, 5])
def test_every_generator_draws_again_what_it_drew(already: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    randomness = Randomness([generator])
    for _ in range(already):
        drawn(generator)
    state = carried(randomness.state_dict(), tmp_path)
    expected = [drawn(generator) for _ in range(3)]
    randomness.load_state_dict(state)
    assert_same([drawn(generator) for _ in range(3)], expected)
    assert not torch.equal(drawn(generator)[2], expected[0][2])


def test_loaders_with_other_generators_are_refused() -> None:
    state = Randomness([torch.Generator()]).state_dict()
    with pytest.raises(CheckpointError, match="made with 1 generators of loaders, the loaders given have 0"):
        Randomness([]).load_state_dict(state)


def test_a_fingerprint_is_names_and_shapes() -> None:
    assert fingerprint(nn.Linear(3, 2)) == {"weight": [2, 3], "bias": [2]}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 4), r"parameter 'weight' is \[2, 3\] there and \[4, 3\] here"),
        (nn.Linear(3, 2, bias=False), r"parameter 'bias' is \[2\] there and absent here"),
        (nn.Sequential(nn.Linear(3, 2)), r"parameter 'weight' is \[2, 3\] there and absent here"),
        (nn.Bilinear(3, 3, 2), r"parameter 'weight' is \[2, 3\] there and \[2, 3, 3\] here"),
    ],
)
def test_another_model_is_refused_by_the_first_parameter_that_differs(other: nn.Module, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"run/last was made for another model: {message}"):
        check_fingerprint(fingerprint(nn.Linear(3, 2)), other, "run/last")


def test_a_refused_checkpoint_leaves_the_model_alone() -> None:
    state = snapshot(shared("ab"), {}, {})
    model = shared("abc")
    before = state_of(model)
    with pytest.raises(CheckpointError, match=r"'heads\.c\.weight' is absent there and \[2, 5\] here"):
        restore(state, model, {}, "here")
    assert moved(before, state_of(model)) == set()


@pytest.mark.parametrize("state", [{}, {"format": "sparsemtl-checkpoint-0"}, [1, 2], "text", None])
def test_what_is_no_checkpoint_is_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="run/last is not a checkpoint of this version: format"):
        restore(state, shared(), {}, "run/last")


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({"a": Counter()}, {"a": OtherCounter()}, "its a is Counter there and OtherCounter here"),
        ({"a": Counter()}, {}, "its a is Counter there and absent here"),
        ({}, {"scheduler": Counter()}, "its scheduler is absent there and Counter here"),
    ],
)
def test_a_checkpoint_of_another_method_or_schedule_is_refused(there: Any, here: Any, message: str) -> None:
    model = shared()
    before, state = state_of(model), snapshot(shared(norm=False), there, {})
    with pytest.raises(CheckpointError, match=f"run/last was made by another run: {message}"):
        restore(state, model, here, "run/last")
    assert moved(before, state_of(model)) == set()


def test_parts_and_progress_come_back(tmp_path: Path) -> None:
    progress = {"epoch": 2, "seconds": 1.5, "start": {"numbers": torch.arange(3), "none": None}}
    state = carried(snapshot(shared(), {"one": Counter(3), "two": Counter(5)}, progress), tmp_path)
    parts = {"two": Counter(), "one": Counter()}
    assert_same(restore(state, shared(), parts, "here"), progress)
    assert (parts["one"].count, parts["two"].count) == (3, 5)


def test_a_snapshot_holds_parameters_and_buffers() -> None:
    model = shared(norm=True)
    kept = snapshot(model, {}, {})["model"]
    assert set(kept) == set(model.state_dict())
    assert all(isinstance(tensor, Tensor) for tensor in kept.values())
