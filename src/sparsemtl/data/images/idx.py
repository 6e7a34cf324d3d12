"""The idx format of MNIST and its relatives: a magic number, the sizes, the numbers, all big-endian."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsemtl.data.unpacking import largest
from sparsemtl.errors import DataError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Third byte of the magic number -> type of the numbers."""
_DENSEST = 1100
"""Upper bound of the bytes that one byte of gzip unpacks to (1032 at most)."""


def read_idx(path: Path, *, ndim: int) -> Tensor:
    """Read an idx file, gzipped if its name ends in .gz.

    Args:
        path: the file.
        ndim: expected number of dimensions: 3 for grey images, 1 for labels.

    Returns:
        The numbers, in the file's own type and shape.
    """
    begin = 4 * (1 + ndim)
    head = _content(path, begin)
    magic = head[:4]
    if len(head) < begin or magic[:2] != b"\0\0" or magic[2] not in DTYPES or magic[3] != ndim:
        raise DataError(
            f"{path} is not an idx file of {ndim} dimensions: it starts with 0x{magic.hex()}, "
            f"expected 0x000008{ndim:02x} for bytes."
        )
    dtype = np.dtype(DTYPES[magic[2]])
    sizes = np.frombuffer(head, ">u4", count=ndim, offset=4).tolist()
    announced = prod(sizes) * dtype.itemsize
    if path.suffix == ".gz" and announced > largest(path):
        raise DataError(
            f"{path} announces {announced:,} bytes, expected {largest(path):,} at most of a file with "
            f"{path.stat().st_size:,} packed bytes. Get it again; or unpack it yourself if you trust it."
        )
    most = min(announced, path.stat().st_size * _DENSEST)
    content = _content(path, begin + most + 1)  # no more than that, whatever a file unpacks to
    found = len(content) - begin
    if found != announced:
        follow = f"{found}"
        if found > announced:
            follow = f"at least {found}" if path.suffix == ".gz" else f"{path.stat().st_size - begin}"
        raise DataError(
            f"{path} is {'short' if found < announced else 'too long'}: its header announces "
            f"{' x '.join(map(str, sizes))} numbers in {announced} bytes, {follow} bytes follow."
        )
    numbers = np.frombuffer(content, dtype, offset=begin).reshape(sizes)
    return torch.from_numpy(numbers.astype(dtype.newbyteorder("=")))


def _content(path: Path, size: int) -> bytes:
    """Return the first bytes of a file, unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(size)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}. Remove it and get it again.") from None
