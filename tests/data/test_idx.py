from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsemtl.data.images.idx import read_idx
from sparsemtl.errors import DataError

ToIdx = Callable[[Tensor], bytes]


@pytest.mark.parametrize("shape", [(7,), (5, 4, 3)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_was_written_is_read(shape: tuple[int, ...], suffix: str, tmp_path: Path, to_idx: ToIdx) -> None:
    numbers = torch.randint(256, shape, dtype=torch.uint8)
    path = tmp_path / f"numbers-idx-ubyte{suffix}"
    path.write_bytes(gzip.compress(to_idx(numbers)) if suffix else to_idx(numbers))
    assert torch.equal(read_idx(path, ndim=len(shape)), numbers)


@pytest.mark.parametrize(("code", "dtype"), [(0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_numbers_of_every_type_are_big_endian(code: int, dtype: str, tmp_path: Path) -> None:
    numbers = np.array([1, -2, 100], dtype=dtype)
    path = tmp_path / "numbers"
    path.write_bytes(struct.pack(">HBBI", 0, code, 1, 3) + numbers.tobytes())
    found = read_idx(path, ndim=1)
    assert found.tolist() == [1, -2, 100]
    assert found.element_size() == numbers.itemsize


@pytest.mark.parametrize("cut", [1, 20])
def test_a_short_file_is_named_with_its_sizes(cut: int, tmp_path: Path, to_idx: ToIdx) -> None:
    path = tmp_path / "short"
    path.write_bytes(to_idx(torch.zeros(3, 4, 5, dtype=torch.uint8))[:-cut])
    with pytest.raises(DataError, match=rf"short is short: its header announces 3 x 4 x 5 .* {60 - cut} bytes follow"):
        read_idx(path, ndim=3)


def test_a_long_file_is_named_with_its_sizes(tmp_path: Path, to_idx: ToIdx) -> None:
    path = tmp_path / "labels"
    path.write_bytes(to_idx(torch.zeros(3, dtype=torch.uint8)) + b"\0")
    with pytest.raises(
        DataError, match="labels is too long: its header announces 3 numbers in 3 bytes, 4 bytes follow"
    ):
        read_idx(path, ndim=1)


def test_labels_are_not_taken_for_images(tmp_path: Path, to_idx: ToIdx) -> None:
    path = tmp_path / "labels"
    path.write_bytes(to_idx(torch.zeros(30, dtype=torch.uint8)))
    with pytest.raises(
        DataError, match="labels is not an idx file of 3 dimensions: it starts with 0x00000801, expected 0x00000803"
    ):
        read_idx(path, ndim=3)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"\0\0\x08\x01\0\0", b"<html>not found</html>", b"\0\0\x07\x01\0\0\0\0"]
)
def test_another_format_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match="labels is not an idx file of 1 dimensions"):
        read_idx(path, ndim=1)


def test_a_truncated_or_damaged_gzip_is_named(tmp_path: Path, to_idx: ToIdx) -> None:
    whole = gzip.compress(to_idx(torch.randint(256, (500,), dtype=torch.uint8)))
    damaged = whole[:100] + bytes(byte ^ 0xFF for byte in whole[100:140]) + whole[140:]
    for name, content in (("cut.gz", whole[:-50]), ("damaged.gz", damaged), ("text.gz", b"<html>"), ("empty.gz", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not"):
            read_idx(path, ndim=1)
