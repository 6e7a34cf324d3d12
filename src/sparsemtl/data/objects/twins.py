"""Images that several tasks have: files that are equal, byte for byte, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

Key = Hashable
"""What equal files have in common."""


def twins(paths: Mapping[str, Sequence[str]]) -> dict[str, Key]:
    """Path -> a key that it has in common with equal files of other tasks; files without such are left out.

    Only files of one size are read, so the files of tasks that have nothing in common cost little.

    Args:
        paths: task -> its files; one that cannot be read is equal to none.
    """
    sized = _shared({task: {path: _size(path) for path in of} for task, of in paths.items()})
    return _shared({task: {p: _digest(p) for p in of if p in sized} for task, of in paths.items()})


def _shared(keys: Mapping[str, Mapping[str, Key | None]]) -> dict[str, Key]:
    """Path -> key, of keys that several tasks have."""
    tasks: dict[Key, set[str]] = defaultdict(set)
    for task, of_paths in keys.items():
        for key in of_paths.values():
            tasks[key].add(task)
    found = ((path, key) for of_paths in keys.values() for path, key in of_paths.items())
    return {path: key for path, key in found if key is not None and len(tasks[key]) > 1}


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _digest(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None
