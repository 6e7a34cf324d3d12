"""Networks read from files: a network alone, or that of one task of a bundle.

Damaged files, files of a newer version, and files that call what no network of ours calls are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from sparsemtl.compaction.files.graph_file import KIND, VERSION, built
from sparsemtl.compaction.files.recipes import Recipe
from sparsemtl.errors import CheckpointError, MaskError, ParameterError, unknown_name
from sparsemtl.storage.bits import check_packed, unpack
from sparsemtl.storage.files import damaged, map_tensors

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
    return _used(path, lambda read, content, tensors: read(content, tensors, task))


def read_network(path: str | Path, task: str | None) -> fx.GraphModule:
    """Read a network as `load_network` does; the task is ignored where the file is no bundle."""
    return _used(path, lambda read, content, tensors: read(content, tensors, task if read is _of_task else None))


def tasks_of(path: str | Path) -> tuple[str, ...]:
    """Return the tasks of a bundle, () for the file of one network.

    Raises:
        CheckpointError: as `load_network`.
    """
    return _used(path, lambda read, content, _: tuple(content["tasks"]) if read is _of_task else ())


def check_networks(path: str | Path) -> tuple[str, ...]:
    """Build every network of a file, and return the tasks of a bundle; () for a network alone.

    Raises:
        CheckpointError: as `load_network`.
    """

    def check(read: _Reader, content: Any, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
        tasks = tuple(content["tasks"]) if read is _of_task else ()
        for task in tasks or (None,):
            read(content, tensors, task)
        return tasks

    return _used(path, check)


_Found = TypeVar("_Found")


def _used(path: str | Path, use: Callable[[_Reader, Any, Mapping[str, Tensor]], _Found]) -> _Found:
    """Return what a function makes of a file's reader, description and tensors, of which it takes copies.

    The checksum is computed beside it, in a thread, since it takes about as long.
    """
    tensors, header, whole = map_tensors(path)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(whole)
        error = None
        try:
            found = _applied(path, header, tensors, use)
        except Exception as raised:  # of a damaged file, whatever comes of it
            error = raised
        if not checked.result():
            raise CheckpointError(damaged(path))
    if error is not None:
        raise error
    return found


def _applied(
    path: str | Path,
    header: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    use: Callable[[_Reader, Any, Mapping[str, Tensor]], _Found],
) -> _Found:
    kind = header.get("kind", "")
    if kind not in _READERS or kind not in header:
        raise CheckpointError(f"{path} holds no network: `sm.export(network, 'name.safetensors')` writes one.")
    version, read = _READERS[kind]
    if header.get("version") != str(version):
        raise CheckpointError(
            f"{path} has version {header.get('version')} of the format, and this sparsemtl reads version {version}. "
            "Install the sparsemtl that wrote it, or a newer one."
        )
    with _named(path):
        return use(read, json.loads(header[kind]), tensors)


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
    places = networks[task]["tensors"]

    def made(place: Any) -> Tensor:
        return tensors[place].clone() if isinstance(place, str) else _recipe(place, tensors).tensor()

    found = {name: made(place) for name, place in places.items()}
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
    kept = None if place["kept"] is None else tensors[place["kept"]]
    if kept is not None:
        check_packed(kept, shape)
    return Recipe(base, (left[0], left[1]), place["axis"], dtype, kept=kept, **parts)


def _indices(key: str | None, size: int, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return None if key is None else unpack(tensors[key], torch.Size([size])).nonzero().flatten()


_Reader = Callable[[Any, Mapping[str, Tensor], "str | None"], fx.GraphModule]
_READERS: dict[str, tuple[int, _Reader]] = {
    KIND: (VERSION, _only),
    BUNDLE: (BUNDLE_VERSION, _of_task),
}
"""Kind of file -> version that is read, function that builds the network."""
