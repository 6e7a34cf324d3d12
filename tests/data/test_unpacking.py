"""A small file that would unpack to gigabytes is refused before it fills the memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loops import each

from sparsemtl.data.images.idx import read_idx
from sparsemtl.data.images.pictures import read_array, read_picture
from sparsemtl.data.tables.formats import Dialect
from sparsemtl.data.tables.rows import read_rows
from sparsemtl.errors import DataError

ZEROS = bytes(50_000_000)
ALWAYS = 1_000_000


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow a megabyte, and 4 times the size beyond, so that the files of the tests are small."""
    monkeypatch.setattr("sparsemtl.data.unpacking.ALWAYS", ALWAYS)
    monkeypatch.setattr("sparsemtl.data.unpacking.RATIO", 4)


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail if the context allocates ten times the limit; lzma allocates blocks of its own."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * ALWAYS


def zipped(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, ZEROS)


BOMBS: dict[str, Callable[[Path], object]] = {
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(ZEROS, 1)),
    "a.csv.bz2": lambda path: path.write_bytes(bz2.compress(ZEROS, 1)),
    "a.csv.xz": lambda path: path.write_bytes(lzma.compress(ZEROS, preset=0)),
    "a.zip": lambda path: zipped(path, "a.csv"),
    "a.xlsx": lambda path: zipped(path, "xl/worksheets/sheet1.xml"),
}


@each("name", BOMBS)
def test_a_table_that_unpacks_to_more_than_the_limit_is_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bomb") / name
    BOMBS[name](path)
    (path.parent / "small.csv").write_text("a\n1\n")
    read_rows([path.parent / "small.csv"], Dialect())  # what this imports allocates more
    with little_memory(), pytest.raises(DataError, match=r"unpacks to more than [\d,]+ bytes.*Unpack it yourself"):
        read_rows([path], Dialect())


def test_a_table_of_the_usual_density_is_read_whatever_its_size(tmp_path: Path) -> None:
    lines = np.random.default_rng(0).integers(0, 10**6, 300_000)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"n\n" + b"\n".join(b"%d" % n for n in lines), 1))
    assert len(read_rows([path], Dialect()).frame) == len(lines)


def test_an_idx_file_that_announces_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBII", 0, 8, 2, 7, 700_000) + bytes(4_900_000)))
    with little_memory(), pytest.raises(DataError, match=r"announces 4,900,000 bytes, expected 1,000,000 at most"):
        read_idx(path, ndim=2)


def test_an_array_whose_header_promises_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3)))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(2, 3), }      ", b"(2, 300000000)}"))
    with little_memory(), pytest.raises(DataError, match=r"a.npy is not a whole \.npy file"):
        read_array(path)


@pytest.mark.parametrize("array", [np.zeros(0), np.float32(2.0), np.asfortranarray(np.arange(6.0).reshape(2, 3))])
def test_arrays_are_read_as_they_were_written(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    found = read_array(tmp_path / "a.npy")
    assert np.array_equal(found, array)
    assert found.flags.writeable
    assert type(found) is np.ndarray


def test_a_picture_of_more_pixels_than_pillow_allows_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(ZEROS[:1000]))
        + chunk(b"IEND", b"")
    )
    with little_memory(), pytest.raises(DataError, match="decompression bomb"):
        read_picture(path, rgb=True)
