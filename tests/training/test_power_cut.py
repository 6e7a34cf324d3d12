"""A power cut loses what was not synchronised; the disk then holds a run that goes on as if nothing had been.

The disk is modelled exactly: a file has the content of its last fsync, and a folder the names of its last fsync. After
every fsync of a training, that is what a power cut could leave at the worst.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_same_end
from torch import nn

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.storage.files import read_tree
from sparsemtl.storage.metrics import read_metrics

if not Path("/proc/self/fd").is_dir():
    pytest.skip("open files are looked up in /proc", allow_module_level=True)


class Disk:
    """Content of a disk after a power cut, built from the calls of fsync.

    Args:
        root: a folder that is on the disk already, with nothing in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {root.stat().st_ino: {}}
        self.checkpoints: list[Path] = []

    def fsync(self, handle: int) -> None:
        """Note what is safe from now on."""
        status, path = os.fstat(handle), Path(os.readlink(f"/proc/self/fd/{handle}"))
        if stat.S_ISDIR(status.st_mode):
            self.names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
            if path.name == "checkpoints":
                self.checkpoints.append(self.restart(self.root.parent / f"cut-{len(self.checkpoints)}"))
        else:
            self.contents[status.st_ino] = path.read_bytes()

    def restart(self, target: Path) -> Path:
        """Write what a power cut now would leave into a folder."""
        self._write(self.root.stat().st_ino, target)
        return target

    def _write(self, node: int, target: Path) -> None:
        if node not in self.names:
            target.write_bytes(self.contents.get(node, b""))  # a name without content, as file systems leave it
            return
        target.mkdir()
        for name, child in self.names[node].items():
            self._write(child, target / name)


def data(seed: int, count: int, *, shuffle: bool = False) -> TensorLoader:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorLoader(x, {"a": x[:, :3].argmax(1), "b": x[:, 0]}, batch_size=8, shuffle=shuffle)


def train(folder: Path, **options: Any) -> None:
    torch.manual_seed(0)
    model = sm.SharedBottom(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), [sm.Classification("a", 3), sm.Regression("b")])
    trainer = sm.Trainer(
        model,
        sharing=sm.RandomSharing(keep=0.5),
        epochs=3,
        folder=folder,
        checkpoint_every=2,
        progress=False,
        accelerator="cpu",
    )
    trainer.fit(data(1, 24, shuffle=True), data(2, 8), **options)
    trainer.test(data(3, 8))


def test_rows_and_checkpoint_agree_after_a_power_cut_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk.fsync)
        train(root / "runs" / "a")  # two folders that are new
    train(tmp_path / "whole")
    for cut in disk.checkpoints:
        progress = read_tree(cut / "runs" / "a" / "checkpoints" / "last.safetensors")["progress"]
        rows = read_metrics(cut / "runs" / "a" / "metrics.csv") if progress["epoch"] else []
        assert {row.epoch for row in rows if row.split != "test"} >= set(range(1, progress["epoch"] + 1))
        assert all(row.step <= progress["logged_until"] for row in rows if row.epoch <= progress["epoch"])
    assert len(disk.checkpoints) > 6
    for cut in (*disk.checkpoints[1:-1:4], disk.restart(tmp_path / "end")):
        run = cut / "runs" / "a"
        train(run, resume=True)
        assert_same_end(tmp_path / "whole", run)
