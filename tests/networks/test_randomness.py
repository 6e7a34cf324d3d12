from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsemtl.networks.randomness import fork_rng, random_state, restore_random_state, seed_everything
from sparsemtl.storage.files import read_tree, write_tree

Draw = Callable[[], object]

# The normal generators of Python and NumPy draw two values and keep one for the next call.
DRAWS: dict[str, Draw] = {
    "python": random.random,
    "python normal": lambda: random.gauss(0, 1),
    "numpy": lambda: float(np.random.rand()),
    "numpy normal": lambda: float(np.random.standard_normal()),
    "torch": lambda: torch.rand(3).tolist(),
    "torch normal": lambda: torch.randn(5).tolist(),
    "torch permutation": lambda: torch.randperm(20).tolist(),
}


def drawn(times: int = 3) -> list[object]:
    return [draw() for _ in range(times) for draw in DRAWS.values()]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32 + 5, -3])
def test_a_seed_decides_all_generators(seed: int) -> None:
    seed_everything(seed)
    first = drawn()
    seed_everything(seed)
    assert drawn() == first
    seed_everything(seed + 1)
    assert all(a != b for a, b in zip(drawn(), first, strict=True))


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_restored_state_repeats_what_came_after_it(times: int) -> None:
    seed_everything(1)
    drawn(times)
    state = random_state()
    expected = drawn()
    drawn(2)
    restore_random_state(state)
    assert drawn() == expected


def test_a_state_survives_a_file(tmp_path: Path) -> None:
    seed_everything(1)
    drawn(1)
    write_tree(tmp_path / "state", random_state())
    expected = drawn()
    restore_random_state(read_tree(tmp_path / "state"))
    assert drawn() == expected


def test_reading_the_state_draws_nothing_and_later_draws_do_not_change_it() -> None:
    seed_everything(2)
    expected = drawn()
    seed_everything(2)
    state = random_state()
    assert drawn() == expected
    restore_random_state(state)
    assert drawn() == expected


@pytest.mark.parametrize("name", DRAWS)
def test_draws_inside_preserved_leave_no_trace(name: str) -> None:
    seed_everything(3)
    drawn(1)
    state = random_state()
    expected = drawn()
    restore_random_state(state)
    with fork_rng():
        DRAWS[name]()
    assert drawn() == expected


def test_inside_preserved_the_generators_go_on_as_before() -> None:
    seed_everything(4)
    expected = drawn()
    seed_everything(4)
    with fork_rng():
        assert drawn() == expected
    assert drawn() == expected


@fork_rng()
def fail_after_seeding(seed: int) -> None:
    seed_everything(seed)
    raise KeyError


def test_an_error_inside_preserved_restores_the_generators_too() -> None:
    seed_everything(5)
    expected = drawn()
    seed_everything(5)
    with pytest.raises(KeyError):
        fail_after_seeding(6)
    assert drawn() == expected


def test_states_of_devices_that_are_not_there_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state, device)))
    restore_random_state({**random_state(), "cuda": ["first", "second", "third"]})
    assert restored == [("first", 0), ("second", 1)]
