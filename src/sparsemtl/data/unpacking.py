"""Limits on what compressed files unpack to: a small file that would fill the memory is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsemtl.errors import DataError

ALWAYS = 2**30
"""Bytes that every file may unpack to."""
RATIO = 100
"""Bytes that one byte of a larger file may unpack to; text of equal lines reaches 1,000, tables of data 5 to 20."""
_OPEN: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def unpacked(path: Path) -> bytes:
    """Return the content of a file, unpacked if its name ends in .gz, .bz2 or .xz.

    Raises:
        DataError: if it unpacks to more than `largest`.
    """
    opener = _OPEN.get(path.suffix.lower())
    if opener is None:
        return path.read_bytes()
    most = largest(path)
    with opener(path) as file:
        content: bytes = file.read(most + 1)
    if len(content) > most:
        raise _too_large(path, "")
    return content


def unzipped(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a file inside a ZIP archive, cut to the length in its entry.

    Raises:
        DataError: if it is larger than `largest`.
    """
    if archive.getinfo(name).file_size > largest(path):
        raise _too_large(path, name)
    return archive.read(name)


def check_zip(path: Path) -> None:
    """Raise a DataError if the files of a ZIP archive, such as an Excel file, unpack to more than `largest`.

    Raises:
        DataError: if they do.
        zipfile.BadZipFile: if the file is no ZIP archive.
    """
    with zipfile.ZipFile(path) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > largest(path):
        raise _too_large(path, "")


def largest(path: Path) -> int:
    """Return how many bytes a file may unpack to: 1 GiB, or 100 times its size."""
    return max(ALWAYS, RATIO * path.stat().st_size)


def _too_large(path: Path, name: str) -> DataError:
    inside = f" ({name})" if name else ""
    return DataError(
        f"{path}{inside} unpacks to more than {largest(path):,} bytes, the most that is expected of a file with "
        f"{path.stat().st_size:,} packed bytes. Unpack it yourself if you trust it."
    )
