"""Cache of decoded images on disk, from which later runs read them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsemtl.data.images.pictures import Array
from sparsemtl.errors import CheckpointError, DataError
from sparsemtl.storage.files import read_tensors, write_tensors

FORMAT = 3
"""Version of the bytes that the same files and options give; files of other versions are ignored."""
_HEADER = struct.Struct("<II")
"""Header of every image: its checksum, and a number that no empty slot has."""
_PRESENT = 0x50495854


@dataclass(frozen=True)
class ImageCache:
    """File with a slot for every image of a listing, filled as images are decoded.

    Several processes may fill it at once: all write the same bytes. An image whose checksum does not fit, because a
    process was killed while it wrote or the file was damaged, counts as absent and is decoded again.

    Attributes:
        path: path of the file.
        size: bytes per image.
        fingerprints: file of the images' fingerprints, which do not depend on the size to which images are decoded.
    """

    path: Path
    size: int
    fingerprints: Path

    @classmethod
    def of(cls, folder: Path, paths: Sequence[str], options: str, size: int) -> ImageCache:
        """Return the cache of these files decoded with these options; changed files have another cache."""
        files = "".join(f"{path}\0{_state(path)}\n" for path in paths)
        name, common = _code([FORMAT, options], files), _code([FORMAT], files)
        return cls(folder / f"{name}.pictures", size, folder / f"{common}.safetensors")

    def read(self, row: int) -> bytearray | None:
        """Return the bytes of an image; None if they are absent."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(row * (_HEADER.size + self.size))
                record = bytearray(file.read(_HEADER.size + self.size))
        except OSError:
            return None
        if len(record) < _HEADER.size + self.size:
            return None
        checksum, present = _HEADER.unpack_from(record)
        content = record[_HEADER.size :]
        return content if present == _PRESENT and checksum == zlib.crc32(content) else None

    def write(self, row: int, content: bytes) -> None:
        """Write an image into its slot."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            with os.fdopen(handle, "rb+", buffering=0) as file:
                file.seek(row * (_HEADER.size + self.size))
                file.write(_HEADER.pack(zlib.crc32(content), _PRESENT) + content)
        except OSError as error:
            raise self._unwritable(error) from None

    def read_fingerprints(self, count: int) -> tuple[Array, Array] | None:
        """Return the digests and small images of `count` fingerprints; None if they are absent."""
        try:
            tensors, _ = read_tensors(self.fingerprints, own=True)
        except CheckpointError:
            return None
        digests, small = tensors["digests"].numpy(), tensors["small"].numpy()
        return (digests, small) if len(digests) == len(small) == count else None

    def write_fingerprints(self, digests: Array, small: Array) -> None:
        """Write the digests and small images of all fingerprints."""
        tensors = {"digests": torch.from_numpy(digests), "small": torch.from_numpy(small)}
        try:
            write_tensors(self.fingerprints, tensors, {})
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"decoded images cannot be kept in {self.path.parent}: {error}. Let `root` or SPARSEMTL_DATA name a folder "
            "that can be written, or set `cache` to false."
        )


def _code(options: list[Any], files: str) -> str:
    return hashlib.sha256(f"{json.dumps(options)}{files}".encode()).hexdigest()[:24]


def _state(path: str) -> str:
    """Return the size and time of a file, which change with its content."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return f"{found.st_size} {found.st_mtime_ns}"
