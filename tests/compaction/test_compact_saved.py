"""A compacted network can be put into a file, and is the same network in another process."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compaction_toys import alive, zeroed
from loops import each
from torch import Tensor, fx, nn

import sparsemtl as sm
from sparsemtl.backbones import CNN
from sparsemtl.errors import ParameterError
from sparsemtl.tasks import Classification

IMAGES = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CLASSES = {name: Classification(name, 3) for name in ("one", "two")}


class Annotated(nn.Module):
    """Types of its own, a buffer and a weight that the forward reads itself, an argument with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("shift", torch.rand(4, 1, 1))

    def forward(self, x: Any, mask: Tensor | None = None) -> "dict[str, Tensor]":  # noqa: UP037
        x = self.layers(x)
        return {"features": x * self.scale + self.shift, "sizes": x.new_ones(x.shape[0])}


class Typed(nn.Module):
    """Says of what type its input is, by an object."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 1)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.layer(x)


Typed.forward.__annotations__.update(x=type("Local", (Tensor,), {}), **{"return": Tensor})


def convolutions() -> nn.Module:
    return sm.SharedBottom(CNN((2, 12, 12), widths=[3, 4]), CLASSES.values())


def sequential() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "a task": (convolutions, {"task": "two"}),
    "all tasks": (convolutions, {}),
    "layers of torch": (sequential, {}),
    "a graph that torch traced": (lambda: fx.symbolic_trace(sequential()), {}),
    "a graph with annotations": (lambda: fx.symbolic_trace(Annotated()), {}),
    "annotations that are strings": (Annotated, {}),
    "annotations that no file knows": (Typed, {}),
    "a part that stays whole": (sequential, {"leaf_modules": ["2"]}),
}
Restore = Callable[[nn.Module], nn.Module]


def through_torch(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def through_pickle(module: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(module))
    return loaded


def small(case: str) -> nn.Module:
    torch.manual_seed(0)
    make, options = CASES[case]
    return sm.compact(zeroed(alive(make()), "both", 0.3), **options)


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@each("restore", [through_torch, through_pickle, copy.deepcopy])
@each("case", CASES)
def test_what_is_loaded_is_what_was_saved(case: str, restore: Restore) -> None:
    module = small(case)
    loaded = restore(module)
    assert_equal(loaded(IMAGES), module(IMAGES))
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert not any(part.training for part in loaded.modules())


@each("case", CASES)
def test_what_is_loaded_can_be_saved_compacted_and_exported(case: str) -> None:
    module = small(case)
    loaded = through_torch(through_torch(module))
    again = sm.compact(loaded)
    assert_equal(again(IMAGES), sm.compact(module)(IMAGES))
    assert sm.parameter_count(again) == sm.parameter_count(sm.compact(module))
    assert_equal(through_torch(again)(IMAGES), again(IMAGES))
    assert_equal(torch.export.export(loaded, (IMAGES,)).module()(IMAGES), module(IMAGES))


def test_what_is_loaded_still_refuses_batches_with_other_axes() -> None:
    with pytest.raises(ParameterError, match="compacted for batches with 4 axes"):
        through_torch(small("a task"))(IMAGES[0])


@pytest.mark.slow
def test_another_process_needs_nothing_but_the_file(tmp_path: Path) -> None:
    module, file, outputs = small("annotations that are strings"), tmp_path / "small.pt", tmp_path / "outputs.pt"
    torch.save((module, IMAGES), file)
    code = (
        "import sys, torch; module, x = torch.load(sys.argv[1], weights_only=False); torch.save(module(x), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(file), str(outputs)], check=True, cwd=tmp_path)
    assert_equal(torch.load(outputs), module(IMAGES))
