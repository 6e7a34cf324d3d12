"""Networks read from files: a network alone, or that of one task of a bundle.

Damaged files, files of a newer version, and files that call what no network of ours calls are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from sparsemtl.compaction.graph_file import KIND, VERSION, built
from sparsemtl.compaction.recipes import Recipe
from sparsemtl.errors import CheckpointError, MaskError, ParameterError, unknown_name
from sparsemtl.storage.bits import unpack
from sparsemtl.storage.files import read_tensors

BUNDLE, BUNDLE_VERSION = "bundle", 1

_DAMAGES = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, RecursionError, MaskError)
"""Errors of reading a description that is no whole one."""


def load_network(path: str | Path, task: str | None = None) -> fx.GraphModule:
    """Read a network that `sm.export` or `sm.save_bundle` wrote as safetensors, as a plain module in eval mode.

    Args:
        path: the file.
        task: of a bundle, the task whose network to read.

    Raises:
        CheckpointError: if the file is missing, damaged, of a newer version, or calls what no network of ours calls.
        ParameterError: if the task is not one of the bundle's, or missing.

    Examples:
        >>> small = sm.compact(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> _ = sm.export(small, "small.safetensors")
        >>> again = sm.load_network("small.safetensors")
        >>> again(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    read, content, tensors = _opened(path)
    with _named(path):
        return read(json.loads(content), tensors, task)


def read_network(path: str | Path, task: str | None) -> fx.GraphModule:
    """Read a network as `load_network` does; the task is ignored where the file is no bundle."""
    read, content, tensors = _opened(path)
    with _named(path):
        return read(json.loads(content), tensors, task if read is _of_task else None)


def check_networks(path: str | Path) -> tuple[str, ...]:
    """Build every network of a file, and return the tasks of a bundle; () for a network alone.

    Raises:
        CheckpointError: as `load_network`.
    """
    read, text, tensors = _opened(path)
    with _named(path):
        content = json.loads(text)
        tasks = tuple(content["tasks"]) if read is _of_task else ()
        for task in tasks or (None,):
            read(content, tensors, task)
    return tasks


def _opened(path: str | Path) -> tuple[_Reader, str, dict[str, Tensor]]:
    """Return the reader of a file, its description, and its tensors, of which a network takes copies."""
    tensors, header = read_tensors(path, own=True, mapped=True)
    kind = header.get("kind", "")
    if kind not in _READERS or kind not in header:
        raise CheckpointError(f"{path} holds no network: `sm.export(network, 'name.safetensors')` writes one.")
    version, read = _READERS[kind]
    if header.get("version") != str(version):
        raise CheckpointError(
            f"{path} has version {header.get('version')} of the format, and this sparsemtl reads version {version}. "
            "Install the sparsemtl that wrote it, or a newer one."
        )
    return read, header[kind], tensors


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Name the file in errors, and turn those of damaged descriptions into ours."""
    try:
        yield
    except (CheckpointError, ParameterError) as error:
        raise type(error)(f"{path}: {error}") from None
    except _DAMAGES as error:
        raise CheckpointError(f"{path} holds no whole network: {error!r}. Export it again.") from None


def _only(content: Mapping[str, Any], tensors: Mapping[str, Tensor], task: str | None) -> fx.GraphModule:
    if task is not None:
        raise ParameterError(f"the file holds one network and no tasks, got task={task!r}. Leave `task` out.")
    return built(content, {name: tensor.clone() for name, tensor in tensors.items()})


def _of_task(content: Mapping[str, Any], tensors: Mapping[str, Tensor], task: str | None) -> fx.GraphModule:
    networks = content["tasks"]
    if task is None:
        raise ParameterError(f"the file is a bundle of the tasks {', '.join(networks)}. Name one: task=...")
    if task not in networks:
        raise ParameterError(unknown_name("task", task, networks))
    found = {
        name: tensors[place].clone() if isinstance(place, str) else _recipe(place, tensors).tensor()
        for name, place in networks[task]["tensors"].items()
    }
    return built(networks[task]["network"], found)


def _recipe(place: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Recipe:
    base, (rows, columns) = tensors[place["base"]], place["left"]
    dtype = getattr(torch, place["dtype"])
    if not isinstance(dtype, torch.dtype) or place["axis"] not in (0, 1):
        raise CheckpointError(f"{place['dtype']!r} or axis {place['axis']!r} is none of a weight's.")
    left = [_indices(rows, base.shape[0], tensors), _indices(columns, base.shape[1], tensors)]
    sizes = [size if index is None else len(index) for size, index in zip(base.shape, left, strict=False)]
    shape = torch.Size([*sizes, *base.shape[2:]])
    parts = {name: tensors[place[name]] for name in ("factor", "positions", "values") if place[name] is not None}
    if ("positions" in parts) != ("values" in parts):
        raise CheckpointError("entries of a weight stand without their positions, or positions without entries.")
    kept = None if place["kept"] is None else unpack(tensors[place["kept"]], shape)
    return Recipe(base, (left[0], left[1]), place["axis"], dtype, kept=kept, **parts)


def _indices(key: str | None, size: int, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return None if key is None else unpack(tensors[key], torch.Size([size])).nonzero().flatten()


_Reader = Callable[[Any, Mapping[str, Tensor], "str | None"], fx.GraphModule]
_READERS: dict[str, tuple[int, _Reader]] = {
    KIND: (VERSION, _only),
    BUNDLE: (BUNDLE_VERSION, _of_task),
}
"""Kind of file -> version that is read, function that builds the network."""
