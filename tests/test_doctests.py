"""The examples in docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path
from typing import Annotated, TypedDict

import pytest
import torch
from torch import nn
from typing_extensions import Doc, Unpack

import sparsemtl
import sparsemtl.backbones

TYPES = {"Annotated": Annotated, "Doc": Doc, "TypedDict": TypedDict, "Unpack": Unpack}
NAMES = {"torch": torch, "nn": nn, "sm": sparsemtl, **TYPES} | {
    name: getattr(package, name) for package in (sparsemtl, sparsemtl.backbones) for name in package.__all__
}
"""What a reader of the documentation has imported."""


def examples() -> list[doctest.DocTest]:
    """Every docstring with an example that is not marked `+SKIP`."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [module.name for module in pkgutil.walk_packages(sparsemtl.__path__, "sparsemtl.")]
    found = [test for name in names for test in finder.find(importlib.import_module(name), extraglobs=NAMES)]
    return [test for test in found if not all(doctest.SKIP in example.options for example in test.examples)]


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_the_example_gives_what_it_says(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where examples may write
    torch.manual_seed(0)
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.attempted == sum(doctest.SKIP not in line.options for line in example.examples)
    assert not result.failed, "".join(report)


def test_the_examples_of_the_foundation_are_among_them() -> None:
    owners = {example.name.rpartition(".")[2] for example in EXAMPLES}
    assert owners >= {"TaskMasks", "SharedBottom", "SingleTask", "MLP", "CNN", "load_torchvision"}


def test_an_example_that_lies_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "lie", None, None)
    with pytest.raises(AssertionError, match="Expected"):
        test_the_example_gives_what_it_says(lie, tmp_path, monkeypatch)
