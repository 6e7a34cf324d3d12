"""From a complete configuration to its model: encoder, heads, architecture."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.architectures.heads import stride_of, width_of
from sparsemtl.backbones import ENCODERS, load_torchvision
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.data import TaskData
from sparsemtl.errors import ConfigError, SparseMTLError
from sparsemtl.heads import HEADS
from sparsemtl.networks.frozen import Frozen
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.runs.pretraining import PretrainedNetwork


def make_model(
    config: Mapping[str, Any], data: TaskData, pretrained: PretrainedNetwork | None = None
) -> MultiTaskModel:
    """Make the model of a complete configuration from the present state of the generators.

    Args:
        config: the configuration.
        data: its data; the tasks, the shape of an input and the stem are read.
        pretrained: network of the pretraining run, if the configuration has one.

    Raises:
        ConfigError: if the network does not fit into memory.
    """
    with _memory_errors():
        return _model(config, data, _encoder(config, data, pretrained), pretrained)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise a ConfigError with advice if the memory for a network is used up."""
    try:
        yield
    except MemoryError:
        problem = "memory is used up"
    except RuntimeError as error:
        if isinstance(error, SparseMTLError) or not _NO_MEMORY.search(str(error)):
            raise
        problem = str(error).split("\n")[0]
    else:
        return
    raise ConfigError(
        f"the network does not fit into memory: {problem}. Make the widths of `encoder` and `architecture` smaller."
    )


_NO_MEMORY = re.compile(r"allocate memory|out of memory|calculation overflowed|[Ii]nvalid size|too large")


def _encoder(config: Mapping[str, Any], data: TaskData, pretrained: PretrainedNetwork | None) -> nn.Module:
    """Make the encoder with its initial weights, behind the stem of the data if they have one."""
    section = dict(config["encoder"])
    stem = data.stem() if data.stem is not None else None
    shape = data.input_shape if stem is None else (width_of(stem),)
    encoder = ENCODERS.build(section.pop("name"), shape, **section)
    whole = encoder if stem is None else Stemmed(stem, encoder)
    if config["pretrained"] is not None:
        load_torchvision(whole, config["pretrained"])
    if pretrained is not None:
        pretrained.load_encoder(whole)
    return Frozen(whole) if config["freeze"] else whole


def _model(
    config: Mapping[str, Any], data: TaskData, encoder: nn.Module, pretrained: PretrainedNetwork | None
) -> MultiTaskModel:
    """Make the architecture; its parameters `labels` and `source` are the training labels and the pretrained task."""
    section = dict(config["architecture"])
    name = section.pop("name")
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    heads = _heads(config["heads"], data, encoder)
    given: list[Any] = [data.labels()] if "labels" in parameters else []
    given += [pretrained and pretrained.source(encoder, _heads)] if "source" in parameters else []
    return ARCHITECTURES.build(name, encoder, list(data.tasks), heads, *given, **section)


def _heads(sections: Mapping[str, Any], data: TaskData, encoder: nn.Module) -> dict[str, nn.Module]:
    """Make the heads of a section `heads`: task -> head, for the tasks that it names.

    Raises:
        ConfigError: if there is no such head, or no such parameter of it.
    """
    heads = {}
    for task in data.tasks:
        if task.name in sections:
            section = sections[task.name]
            parameters = {"name": section} if isinstance(section, str) else dict(section)
            if "name" not in parameters:
                raise ConfigError(f"heads.{task.name}: expected the `name` of one of {', '.join(HEADS)}.")
            name = parameters.pop("name")
            heads[task.name] = HEADS.build(name, width_of(encoder), task.outputs, stride_of(encoder), **parameters)
    return heads
