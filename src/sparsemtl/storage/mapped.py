"""Tensors of a safetensors file that are mapped into memory, each made when it is asked for.

A file of many tensors is opened in the time of reading its header, and one that is replaced meanwhile stays as it was.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Name of a dtype in safetensors -> dtype."""


class _Place(NamedTuple):
    """Dtype and shape of a tensor, and its first and last byte in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class MappedTensors(Mapping[str, Tensor]):
    """Tensors of a file by name.

    Args:
        path: the file.

    Attributes:
        metadata: strings of the file's header.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if the header does not describe the file.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch takes no read-only memory
        begin = 8 + int.from_bytes(self._bytes[:8], "little")
        header = json.loads(self._bytes[8:begin])
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._places = {name: _place(about, begin) for name, about in header.items()}
        if max((place.end for place in self._places.values()), default=begin) != len(self._bytes):
            raise ValueError("its tensors end before or behind its end")

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape, start, end = self._places[name]
        if start == end:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._bytes, dtype=dtype, count=math.prod(shape), offset=start).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def raw(self) -> memoryview:
        """All bytes of the file."""
        return memoryview(self._bytes)

    def content(self, name: str) -> tuple[torch.dtype, Sequence[int], memoryview]:
        """Return dtype, shape and bytes of a tensor."""
        dtype, shape, start, end = self._places[name]
        return dtype, shape, self.raw[start:end]


def _place(about: Mapping[str, Any], begin: int) -> _Place:
    """Return the place of a tensor in a file whose data begin at a byte."""
    dtype, shape = _DTYPES[about["dtype"]], tuple(map(int, about["shape"]))
    first, last = map(int, about["data_offsets"])
    if min((first, *shape)) < 0 or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} has bytes {first} to {last}")
    return _Place(dtype, shape, begin + first, begin + last)
