"""Training of any length holds memory, file handles and records flat: tensors and bytes are counted, not timed."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from loops import each
from members import is_installed, made_balancer
from torch import Tensor, nn
from training_toys import WIDTH, loader

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS
from sparsemtl.balancing.targets import Representation
from sparsemtl.storage.metrics import MetricRow, read_metrics

FEW = ("uncertainty", "mgda", "gradnorm", "dwa")
"""Balancers of each kind: learned weights, gradients, a layer's gradients, losses of earlier epochs."""


class Held(NamedTuple):
    """Live tensors, bytes of their storages, and open files."""

    tensors: int
    bytes: int
    files: int


def held() -> Held:
    gc.collect()
    tensors = [
        thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)
    ]  # none that is traced
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.layout is torch.strided
    }
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return Held(len(tensors), sum(storages.values()), files)


class Counting(sm.Callback):
    """Counts what is held at the end of every epoch."""

    def __init__(self) -> None:
        self.counts: list[Held] = []

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Count."""
        self.counts.append(held())


def counts_of(epochs: int, folder: Path | None = None, balancing: str = "mean") -> list[Held]:
    """What is held at the end of every epoch on one batch; balancers that read a representation train without masks."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4), nn.ReLU())
    model = sm.SharedBottom(encoder, [sm.Classification("a", 3), sm.Regression("b"), sm.Classification("c", 3)])
    batches = [(x, {**labels, "c": labels["a"]}) for x, labels in loader(8)]
    counting = Counting()
    balancer = made_balancer(balancing, 3)
    masked = sm.FisherSharing(keep=0.5, samples=8, estimator="true")
    trainer = sm.Trainer(
        model,
        sharing=sm.DenseSharing() if isinstance(balancer.gradient_target(model), Representation) else masked,
        balancing=balancer,
        epochs=epochs,
        folder=folder,
        progress=False,
        accelerator="cpu",
        callbacks=[counting],
    )
    trainer.fit(batches, list(batches))
    return counting.counts


def assert_flat(counts: Sequence[Held], first: int = 4) -> None:
    """What is held after the first times, which fill caches, never grows."""
    most = Held(*map(max, zip(*counts[:first], strict=True)))
    assert len(counts) > first
    for count in counts[first:]:
        assert all(now <= limit for now, limit in zip(count, most, strict=True)), (most, count)


@pytest.mark.usefixtures("collected")
@each("balancing", FEW)
def test_mask_updates_and_steps_hold_nothing(balancing: str) -> None:
    assert_flat(counts_of(8, balancing=balancing))


@pytest.mark.slow
@pytest.mark.usefixtures("collected")
@each("balancing", [name for name in BALANCERS if is_installed(name)])
def test_no_balancer_holds_anything(balancing: str) -> None:
    assert_flat(counts_of(20, balancing=balancing))


@pytest.mark.slow
@pytest.mark.usefixtures("collected")
def test_three_hundred_mask_updates_hold_memory_handles_and_the_size_of_a_record_flat(tmp_path: Path) -> None:
    assert_flat(counts_of(300, folder=tmp_path))
    rows = read_metrics(tmp_path / "metrics.csv")
    sizes = {sum(row.epoch == epoch for row in rows) for epoch in range(2, 301)}
    assert len(sizes) == 1, sizes
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        ".lock", ".sparsemtl.json", "config.yaml", "environment.json", "metrics.csv", "summary.json",
        "model.safetensors", "networks.safetensors", "last.safetensors", "best.safetensors",
    }  # fmt: skip


USES: dict[str, Callable[[sm.Trainer, Any], object]] = {
    "test": lambda trainer, data: trainer.test(data),
    "predict": lambda trainer, data: trainer.predict(next(iter(data))[0]),
    "compact": lambda trainer, data: trainer.compact("a", next(iter(data))[0]),
    "macs": lambda trainer, data: sm.macs(trainer.model, next(iter(data))[0]),
    "a copy per task": lambda trainer, data: trainer.network("a"),
}


@pytest.mark.usefixtures("collected")
def test_evaluation_and_compaction_hold_nothing() -> None:
    model = sm.SharedBottom(nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU()), [sm.Classification("a", 3)])
    trainer = sm.Trainer(model, sharing=sm.RandomSharing(keep=0.5), epochs=1, progress=False, accelerator="cpu")
    trainer.fit(loader(8), loader(8))
    data = loader(8)
    for use in USES.values():
        counts: list[Held] = []
        for _ in range(4):
            use(trainer, data)
            counts.append(held())
        assert_flat(counts, first=2)
