"""Files of tensors, written at once. Nothing is ever unpickled.

`write_tree` writes any nest of dicts, lists, numbers, strings and tensors to one safetensors file, its structure as
JSON in the header: states of optimizers, schedulers and random generators fit in. Bool tensors take one bit per entry.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from sparsemtl.errors import CheckpointError
from sparsemtl.storage import checksums
from sparsemtl.storage.bits import pack, unpack
from sparsemtl.storage.mapped import MappedTensors
from sparsemtl.storage.text_files import replacing

OWN = "sparsemtl"
"""The only key of our files' metadata: safetensors would write several in any order, and equal files differ."""
_VERSION = 2
"""Version of our files that is written: one checksum over all bytes. Version 1, without a number, has one over the
tensors in order of their names."""


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write named tensors and a header of strings to a safetensors file at once, with a checksum over both."""
    distinct = _distinct(tensors)
    size = sum(tensor.nbytes for tensor in distinct.values())
    own = {"checksum": checksums.BLANK, "version": _VERSION, "header": dict(header)}
    with replacing(path, size) as aside:
        try:
            save_file(distinct, aside, metadata={OWN: json.dumps(own)})
        except SafetensorError as error:
            if found := _SYSTEM_ERROR.search(str(error)):  # Rust's text for what Python raises as an OSError
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
            raise
        checksums.fill_in(aside)


def _distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU that share no memory, which safetensors refuses; copies where needed."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in storages or plain.is_conj() or plain.is_neg():
            plain = plain.clone().resolve_conj().resolve_neg()
        storages.add(plain.untyped_storage().data_ptr())
        found[name] = plain
    return found


_SYSTEM_ERROR = re.compile(r"(?:\(os error|\bOs \{ code:) (\d+)")  # Rust's two texts; safetensors 0.4 has the second


def read_tensors(path: str | Path, *, own: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the header of a safetensors file.

    Args:
        path: the file.
        own: refuse a file of another library, which has no checksum.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    tensors, header, whole = _opened(path, _read, own=own)
    if not whole():
        raise CheckpointError(damaged(path))
    return dict(tensors), header


def map_tensors(path: str | Path) -> tuple[Mapping[str, Tensor], dict[str, str], Callable[[], bool]]:
    """Map one of our files into memory, without computing its checksum.

    Returns:
        the tensors, which are read from the file when they are asked for: to copy, as a writer may change the file; the
        header; a function that computes the checksum, and returns whether it matches.

    Raises:
        CheckpointError: if the file is missing, no safetensors file, or of another library.
    """
    return _opened(path, _mapped, own=True)


def damaged(path: str | Path) -> str:
    """Return the error for a file whose checksum does not match."""
    return f"{path} is damaged: its checksum does not match its content. Use another copy of it."


def _opened(
    path: str | Path, read: Callable[[Path], _Content], *, own: bool
) -> tuple[Mapping[str, Tensor], dict[str, str], Callable[[], bool]]:
    """Return the tensors and the header of a file, and what computes its checksum."""
    try:
        tensors, metadata, raw = read(Path(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except Exception as error:  # safetensors raises various errors for dtypes that torch lacks
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from None
    if OWN not in metadata and not any(map(_looks_like_own, metadata.values())):
        if own:
            raise CheckpointError(f"{path} was not written by sparsemtl, or is damaged: it has no checksum.")
        return tensors, metadata, lambda: True
    try:
        about = json.loads(metadata[OWN])
        header, checksum, version = about["header"], about["checksum"], about.get("version", 1)
        plain = all(isinstance(value, str) for value in header.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain:
        return tensors, {}, lambda: False
    if version == 1:
        return tensors, header, lambda: bool(checksum == checksums.of_tensors(tensors, header))
    if version != _VERSION:
        raise CheckpointError(
            f"{path} has version {version} of the format, and this sparsemtl reads 1 and {_VERSION}. Install the "
            "sparsemtl that wrote it, or use another copy: it may be damaged."
        )
    return tensors, header, lambda: bool(checksum == checksums.of_file(raw))


_Content = tuple[Mapping[str, Tensor], dict[str, str], "bytes | memoryview"]
"""Tensors of a file, its metadata, and all of its bytes."""


def _read(path: Path) -> _Content:
    content = path.read_bytes()  # in one read: a run may replace the file meanwhile
    return load(content), _metadata(content), content


def _mapped(path: Path) -> _Content:
    tensors = MappedTensors(path)
    return tensors, tensors.metadata, tensors.raw


def _looks_like_own(value: str) -> bool:
    """Return True if metadata are ours under a damaged key: one flipped bit must not make our file a foreign one."""
    return value.startswith('{"checksum": ')


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; its first eight bytes are the header's length."""
    end = 8 + int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8:end]).get("__metadata__", {})
    return metadata


def write_tree(path: str | Path, tree: Any) -> None:
    """Write a nest of dicts, lists, tuples, None, bools, numbers, strings and tensors at once."""
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_encode(tree, tensors))
    write_tensors(path, tensors, {"tree": skeleton})


def read_tree(path: str | Path) -> Any:
    """Read a file that `write_tree` wrote.

    Raises:
        CheckpointError: if the file is missing, damaged or of another kind.
    """
    tensors, header = read_tensors(path)
    if "tree" not in header:
        raise CheckpointError(f"{path} is not a checkpoint of sparsemtl: its header has no 'tree'.")
    try:
        return _decode(json.loads(header["tree"]), tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of sparsemtl: {error!r} in its header 'tree'.") from None


_PLAIN = frozenset({type(None), bool, int, float, str})


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if type(value) in _PLAIN:  # first, for the thousands of numbers in the states of random generators
        return value
    if isinstance(value, Tensor):
        key = f"t{len(tensors)}"
        if value.dtype == torch.bool:
            tensors[key] = pack(value.detach())
            return {"mask": [key, list(value.shape)]}
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__ if type(value) in (list, tuple) else "list": [_encode(v, tensors) for v in value]}
    if isinstance(value, (int, float, str)):
        return value
    raise CheckpointError(f"expected tensors, numbers and text in a checkpoint, got {type(value).__name__}.")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mask":
        key, shape = content
        return unpack(tensors[key], torch.Size(shape))
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    items = [_decode(item, tensors) for item in content]
    return {"list": list, "tuple": tuple}[kind](items)
