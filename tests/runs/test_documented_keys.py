"""Mappings that the documentation of a parameter shows are taken by that parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from loops import each
from torch import nn

import sparsemtl as sm
from sparsemtl.architectures import ARCHITECTURES, PBFS
from sparsemtl.balancing import BALANCERS
from sparsemtl.data import DATASETS
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.registry.registry import Registry
from sparsemtl.sharing import SHARING

REGISTRIES: tuple[Registry[Any], ...] = (ARCHITECTURES, BALANCERS, DATASETS, SHARING)


def examples() -> Iterator[tuple[Registry[Any], str, str, str]]:
    """Every mapping in back quotes in what is said of a registered class's parameter."""
    for registry in REGISTRIES:
        for name in registry:
            for parameter in parameters_of(registry[name]).values():
                for text in re.findall(r"`(\{[^`]*\})`", parameter.meaning):
                    yield registry, name, parameter.name, text


EXAMPLES = list(examples())


@each(("registry", "name", "parameter", "text"), EXAMPLES)
def test_a_documented_mapping_is_accepted(registry: Registry[Any], name: str, parameter: str, text: str) -> None:
    assert registry is SHARING, "an example of this kind is to be built here"
    registry.build(name, **{parameter: yaml.safe_load(text)}).start(pooled("income", "married"))


def pooled(*names: str) -> PBFS:
    """The architecture that sharing methods of the same name prune, for tasks of these names."""
    tasks = [sm.Classification(name, 2) for name in names]
    heads = {task.name: task.head(4) for task in tasks}
    return PBFS(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), tasks, heads, pools=[names])


def test_there_are_such_examples() -> None:
    assert ("pbfs", "target_sparsity") in {(name, parameter) for _, name, parameter, _ in EXAMPLES}
