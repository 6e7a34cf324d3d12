"""One writer per folder: a lock that ends with its process, and a mark that identifies our folders.

The lock is `filelock`'s: the operating system releases it when the process ends, for whatever reason. On a network file
system without locks it is a file that is created atomically. Readers need no lock, because every file is replaced at
once.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from sparsemtl.errors import CheckpointError
from sparsemtl.storage.disk import make_folder, storage_errors
from sparsemtl.storage.run_folder import REPORT, RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.text_files import write_json

LOCK = ".lock"
CREATED = ".lock.created"
"""Lock on file systems without locks: a file that is created by one process only."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
MARK = ".sparsemtl.json"
"""File in every folder of ours; it names the last writer."""
_STALE = 3600.0
"""Seconds after which a half-written report counts as left over: reports alone are written without the lock."""


@dataclass
class _Holder:
    """Thread of this process that holds a folder's lock."""

    thread: int
    count: int = 0


_held: dict[Path, _Holder] = {}
_guard = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder inside the context; the folder is made, and half-written files are removed.

    The thread that holds a lock may acquire it again.

    Raises:
        CheckpointError: if another process or thread holds it, naming the folder and the holder.
        StorageError: if the disk is full.
    """
    path = Path(folder).resolve()
    thread = threading.get_ident()
    with _guard:
        holder = _held.get(path)
        if holder is not None and holder.thread != thread:
            raise CheckpointError(_in_use(Path(folder), "another thread of this process"))
        nested = holder is not None
    if nested:
        yield
        return
    before = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    make_folder(Path(folder))
    with _file_lock(path, Path(folder)):
        _held[path] = _Holder(thread)
        try:
            write_json(path / MARK, {"sparsemtl": 1, "pid": os.getpid(), "host": socket.gethostname()})
            _remove_parts(path)
            yield
        finally:
            _held.pop(path, None)
            if before is None or MARK not in before:
                _leave_no_trace(path, before)


def _leave_no_trace(path: Path, before: set[str] | None) -> None:
    """Remove lock and mark if nothing else was written, so that a run that fails at once leaves the folder unchanged.

    Args:
        path: the folder.
        before: names of its entries before; None if there was no folder.
    """
    if {entry.name for entry in path.iterdir()} - {LOCK, CREATED, MARK} != (before or set()) - {LOCK, CREATED}:
        return
    with suppress(OSError):  # Windows removes no file that is open
        for name in (MARK, LOCK):
            (path / name).unlink(missing_ok=True)
        if before is None:
            path.rmdir()


@contextmanager
def _file_lock(path: Path, shown: Path) -> Iterator[None]:
    try:
        lock = _acquired(FileLock(path / LOCK))
    except Timeout:
        raise CheckpointError(_in_use(shown, _last_writer(path))) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        lock = _created_lock(path, shown)
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: BaseFileLock) -> BaseFileLock:
    with storage_errors(Path(lock.lock_file)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flock not supported")  # filelock creates the file then, as we do
        lock.acquire(timeout=0)
    return lock


def _created_lock(path: Path, shown: Path) -> BaseFileLock:
    """Return a lock that is a file of its own, created atomically: for network file systems without locks.

    The file stays if its process is killed. Newer versions of `filelock` then remove it on the same machine; on another
    one nobody can know whether the process still runs.

    Raises:
        CheckpointError: if the file is there.
    """
    try:
        return _acquired(SoftFileLock(path / CREATED))
    except Timeout:
        raise CheckpointError(
            f"{_in_use(shown, _last_writer(path))} If it was killed, delete {shown / CREATED}: the file system has no "
            "locks that end with their process."
        ) from None


def _in_use(folder: Path, holder: str) -> str:
    return f"{folder} is in use: {holder} writes there. Wait until it has ended, or use another folder."


def _last_writer(path: Path) -> str:
    """Return the name of the process that holds a folder's lock, for messages."""
    mark = _json(path / MARK)
    if "pid" not in mark:
        return "another process"
    here = mark.get("host") == socket.gethostname()
    return f"process {mark['pid']}" + ("" if here else f" on {mark.get('host')}")


def _json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is none or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _remove_parts(folder: Path) -> None:
    """Remove half-written files of killed writers from the folders of one run; the caller holds the lock."""
    for inner in RunFolder(folder).folders:
        for part in (*inner.glob(".*.part"), *inner.glob(".tmp??????")):  # ours, and those of safetensors
            try:
                if not part.name.startswith(f".{REPORT}.") or time.time() - part.stat().st_mtime > _STALE:
                    part.unlink()
            except OSError:
                continue


def _is_ours(folder: Path) -> bool:
    """Return True if a run or a study has written to a folder: it has the mark or, in a copy without marks, a record.

    A run that was killed in its pretraining may have the record of the pretraining run alone.
    """
    if "sparsemtl" in _json(folder / MARK):
        return True
    run = RunFolder(folder)
    if {run.pretraining.name} <= _visible(folder) <= {run.config.name, run.pretraining.name}:
        return _is_ours(run.pretraining)
    versions = _json(run.environment).get("versions")
    return (isinstance(versions, dict) and "sparsemtl" in versions) or "baseline" in _json(StudyFolder(folder).about)


def _visible(folder: Path) -> set[str]:
    """Return the names of a folder's entries that are not hidden; none if there is no folder."""
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} if folder.is_dir() else set()


def refuse_foreign(folder: Path) -> None:
    """Raise if a folder holds files of others. Hidden files do not count: version control and desktops leave them.

    Raises:
        CheckpointError: if the folder is neither absent, empty nor ours; it names the first file.
    """
    if not folder.is_dir() or _is_ours(folder):
        return
    found = sorted(name for name in _visible(folder) if not _is_ours(folder / name))
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise CheckpointError(
            f"{folder} holds {found[0]!r}{more}, which sparsemtl did not write there. Use an empty folder, or one that "
            "does not exist yet."
        )
