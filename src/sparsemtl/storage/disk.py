"""Synchronisation of folders, and errors of a full disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsemtl.errors import StorageError

_FULL = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EFBIG: "the file would be larger than the system allows (see `ulimit -f`)",
    getattr(errno, "EDQUOT", -1): "the disk quota is used up",
}
"""Number of a system error of a full disk -> its meaning."""


@contextmanager
def storage_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Raise the system's error of a full disk as a `StorageError` that names the file; other errors pass.

    Args:
        path: the file to write.
        size: its size in bytes, if known.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be written: {_FULL[error.errno]}. {_space(path, size)}") from None


def _space(path: Path, size: int | None) -> str:
    needed = "" if size is None else f"It needs {_bytes(size)}; "
    try:
        free = f"{_bytes(shutil.disk_usage(path.parent).free)} are free in {path.parent}"
    except OSError:
        free = f"see what is free in {path.parent}"
    sentence = f"{needed}{free}."
    return f"{sentence[0].upper()}{sentence[1:]} Free some space, or use another folder; no file was damaged."


def _bytes(size: int) -> str:
    return f"{size:,} bytes" if size < 10**6 else f"{size / 10**6:,.1f} MB"


def sync_folder(folder: Path) -> None:
    """Synchronise a folder with the disk, so that a renamed file survives a power failure under its new name.

    Raises:
        OSError: if the disk is full, for `storage_errors`.
    """
    if os.name == "nt":
        return  # folders cannot be opened there
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # some network file systems refuse; the file itself is written
        if error.errno in _FULL:
            raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and synchronise each with the disk: a file is safe only if its folder is.

    Raises:
        StorageError: if the disk is full.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for each in missing:
            sync_folder(each.parent)
