"""A disk that is full from any write of a run on: the error says so, files stay whole, and the run goes on later."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from sparsemtl.errors import StorageError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.runs.run import run
from sparsemtl.storage import files
from sparsemtl.storage.files import read_tensors, read_tree
from sparsemtl.storage.metrics import parse_metrics
from sparsemtl.storage.yaml_text import read_yaml


class Disk:
    """Disk that is full from its n-th change on: new files and names, the first bytes of each write, fsync.

    A write that fails has written half of its bytes.

    Args:
        root: the folder that is on the disk.
        room: number of changes that it has room for.
    """

    def __init__(self, root: Path, room: int) -> None:
        self._root = str(root)
        self._room = room
        self.changes = 0

    def holds(self, path: Any) -> bool:
        return isinstance(path, (str, Path)) and str(path).startswith(self._root)

    def change(self) -> None:
        self.changes += 1
        if self.changes > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def checked(self, function: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        """The function, which fails where it changes a full disk."""

        def call(*given: Any, **options: Any) -> Any:
            if changes(*given, **options):
                self.change()
            return function(*given, **options)

        return call

    def open(self, path: Any, mode: str = "r", *given: Any, **options: Any) -> Any:
        file = _open(path, mode, *given, **options)
        return _File(file, self) if self.holds(path) and set(mode) & set("wax+") else file

    def save_file(self, tensors: Any, path: Any, **options: Any) -> None:
        _save_file(tensors, path, **options)
        try:
            self.change()
        except OSError as error:
            os.truncate(path, os.path.getsize(path) // 2)
            raise SafetensorError(f"I/O error: No space left on device (os error {error.errno})") from None

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Inside the context, what is under the root is on this disk."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", self.open)
            patch.setattr(files, "save_file", self.save_file)
            patch.setattr(os, "fsync", self.checked(os.fsync, lambda handle: True))
            patch.setattr(os, "mkdir", self.checked(os.mkdir, lambda path, *_, **__: self.holds(path)))
            patch.setattr(os, "replace", self.checked(os.replace, lambda one, other: self.holds(other)))
            created = lambda path, flags, *_, **__: self.holds(path) and flags & os.O_CREAT and not os.path.exists(path)  # noqa: E731
            patch.setattr(os, "open", self.checked(os.open, created))
            yield


_open, _save_file = io.open, files.save_file


class _File:
    """File that is open for writing; its first write changes the disk."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk, self._new = file, disk, True

    def write(self, content: Any) -> int:
        if self._new:
            self._new = False
            try:
                self._disk.change()
            except OSError:
                self._file.write(content[: len(content) // 2])
                with suppress(OSError):
                    self._file.flush()
                raise
        return int(self._file.write(content))

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".yaml": read_yaml,
    ".log": Path.read_text,
    ".csv": lambda path: parse_metrics(path.read_bytes()),
}


def assert_whole(folder: Path) -> None:
    """No file is half-written, and nothing is left beside them."""
    for path in folder.rglob("*"):
        assert ".part" not in path.name
        if path.suffix == ".safetensors":
            (read_tree if path.parent.name == "checkpoints" else read_tensors)(path)
        elif path.suffix in READERS and path.name != ".sparsemtl.json":
            found = READERS[path.suffix](path)
            assert path.suffix != ".csv" or found[1] == 0


def content(folder: Path) -> dict[str, Any]:
    """What a run ends with, but for times."""
    summary = json.loads((folder / "summary.json").read_text())
    rows, _ = parse_metrics((folder / "metrics.csv").read_bytes())
    return {
        "model": (folder / "model.safetensors").read_bytes(),
        "networks": {task: str(n) for task, n in TaskNetworks.load(folder / "networks.safetensors").items()},
        "tasks": summary["tasks"],
        "status": summary["status"],
        "rows": [row for row in rows if row.name != "seconds"],
    }


def check(tmp_path: Path, tiny: dict[str, Any], every: int) -> None:
    built: dict[str, Any] = {}

    def train(folder: Path) -> None:
        run(tiny, folder, resume=True, progress=False, built=built)

    whole = Disk(tmp_path, 10**9)
    with whole.mounted():
        train(tmp_path / "whole" / "run")
    expected = content(tmp_path / "whole" / "run")
    assert whole.changes > 40
    for room in range(0, whole.changes, every):
        folder = tmp_path / str(room) / "run"
        with Disk(folder.parent, room).mounted(), pytest.raises(StorageError, match="no space is left on the disk"):
            train(folder)
        if folder.exists():
            assert_whole(folder)
        train(folder)
        assert content(folder) == expected, room


def test_a_full_disk_loses_nothing(tmp_path: Path, tiny: dict[str, Any]) -> None:
    check(tmp_path, tiny, every=23)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_loses_nothing(tmp_path: Path, tiny: dict[str, Any]) -> None:
    check(tmp_path, tiny, every=1)
