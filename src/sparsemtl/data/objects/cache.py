"""Decoded images kept on disk: what was decoded and resized once is read from there in every later run."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsemtl.data.pictures import Array
from sparsemtl.errors import CheckpointError, DataError
from sparsemtl.storage.files import read_json, replacing, write_json

FORMAT = 3
"""Raised whenever the same files and options give other bytes: old ones then rest."""
_HEADER = struct.Struct("<II")
"""What stands before every image: its checksum, and a number that no empty place has."""
_THERE = 0x50495854


@dataclass(frozen=True)
class PictureCache:
    """A file with a place for every image of a listing, filled as images are decoded.

    Several processes may fill it at once: all write the same bytes. An image whose checksum does not fit, because a
    process was killed while it wrote or the file was damaged, counts as absent and is decoded again.

    Attributes:
        path: the file.
        size: bytes of one image.
        prints: the file of what the images are recognised by, whatever they were decoded to.
    """

    path: Path
    size: int
    prints: Path | None = None

    @classmethod
    def of(cls, folder: Path, paths: Sequence[str], options: str, size: int) -> PictureCache:
        """The cache of these files decoded with these options; files that were changed have another one.

        Raises:
            DataError: if a file is absent.
        """
        files = "".join(f"{path}\0{_state(path)}\n" for path in paths)
        return cls(
            folder / f"{_code([FORMAT, options], files)}.pictures", size, folder / f"{_code([FORMAT], files)}.npz"
        )

    def read(self, row: int) -> bytearray | None:
        """An image's bytes, if they are there."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(row * (_HEADER.size + self.size))
                record = bytearray(file.read(_HEADER.size + self.size))
        except OSError:
            return None
        if len(record) < _HEADER.size + self.size:
            return None
        checksum, there = _HEADER.unpack_from(record)
        content = record[_HEADER.size :]
        return content if there == _THERE and checksum == zlib.crc32(content) else None

    def write(self, row: int, content: bytes) -> None:
        """Put an image into its place.

        Raises:
            DataError: if the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            with os.fdopen(handle, "rb+", buffering=0) as file:
                file.seek(row * (_HEADER.size + self.size))
                file.write(_HEADER.pack(zlib.crc32(content), _THERE) + content)
        except OSError as error:
            raise self._unwritable(error) from None

    def broken(self) -> list[int] | None:
        """Rows of the images that cannot be decoded, if they were looked for."""
        try:
            rows: list[int] = read_json(self._broken)
            return rows
        except CheckpointError:
            return None

    def write_broken(self, rows: list[int]) -> None:
        """Keep which images cannot be decoded.

        Raises:
            DataError: if the file cannot be written.
        """
        try:
            write_json(self._broken, rows)
        except OSError as error:
            raise self._unwritable(error) from None

    def read_prints(self, count: int) -> tuple[Array, ...] | None:
        """Arrays of `count` rows that the images are recognised by, if they are there."""
        try:
            with np.load(self.prints or "", allow_pickle=False) as file:
                arrays = tuple(file[name] for name in file.files)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None
        return arrays if all(len(array) == count for array in arrays) else None

    def write_prints(self, *arrays: Array) -> None:
        """Keep what the images are recognised by.

        Raises:
            DataError: if the file cannot be written.
        """
        if self.prints is None:
            return
        try:
            with replacing(self.prints) as path, path.open("wb") as file:
                np.savez(file, *arrays)
        except OSError as error:
            raise self._unwritable(error) from None

    @property
    def _broken(self) -> Path:
        return self.path.with_suffix(".broken.json")

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"decoded images cannot be kept in {self.path.parent}: {error}. Let `root` or SPARSEMTL_DATA name a folder "
            "that can be written, or set `cache` to false."
        )


def _code(options: list[Any], files: str) -> str:
    return hashlib.sha256(f"{json.dumps(options)}{files}".encode()).hexdigest()[:24]


def _state(path: str) -> str:
    """What changes when a file does."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return f"{found.st_size} {found.st_mtime_ns}"
