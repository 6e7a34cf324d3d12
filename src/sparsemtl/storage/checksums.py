"""Checksums of safetensors files, eight hexadecimal digits of a CRC-32 that stand in the file itself."""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparsemtl.storage.mapped import MappedTensors

BLANK = "00000000"
"""Digits in place of the checksum while it is computed."""
_MARK = b'{\\"checksum\\": \\"'
"""Bytes before the digits: safetensors writes metadata first, and escapes quotation marks in them."""


def fill_in(path: Path) -> None:
    """Replace the blank digits in a file by its checksum."""
    with path.open("rb+") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        file.seek(_place(content))
        file.write(of_file(content).encode())


def of_file(content: bytes | memoryview | mmap.mmap) -> str:
    """Return the checksum of all bytes of a file, its own digits taken as blank."""
    view, place = memoryview(content), _place(content)
    crc = zlib.crc32(view[:place])
    crc = zlib.crc32(BLANK.encode(), crc)
    return f"{zlib.crc32(view[place + len(BLANK) :], crc):08x}"


def _place(content: bytes | memoryview | mmap.mmap) -> int:
    """Return the position of the checksum's first digit in a file of ours."""
    end = 8 + int.from_bytes(content[:8], "little")
    return bytes(content[:end]).find(_MARK) + len(_MARK)


def of_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the checksum of files of version 1: of header, and of names, dtypes, shapes and bytes of the tensors."""
    crc = zlib.crc32(json.dumps(sorted(header.items())).encode())
    for name in sorted(tensors):
        dtype, shape, content = _content(tensors, name)
        crc = zlib.crc32(f"{name} {dtype} {tuple(shape)}".encode(), crc)
        crc = zlib.crc32(content, crc)
    return f"{crc:08x}"


def _content(tensors: Mapping[str, Tensor], name: str) -> tuple[torch.dtype, Sequence[int], memoryview]:
    """Return dtype, shape and bytes of a tensor."""
    if isinstance(tensors, MappedTensors):
        return tensors.content(name)
    tensor = tensors[name]
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().data
