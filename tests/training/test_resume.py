"""A run killed anywhere and resumed ends bit for bit equal to the one that was never stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest
import torch
from states import assert_same
from torch import nn

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.storage.files import read_tensors, read_tree
from sparsemtl.storage.metrics import read_metrics

METHODS = {
    "dense": lambda: sm.DenseSharing(),
    "in turns": lambda: sm.DenseSharing(update="alternate", bn="per_task"),
    "random": lambda: sm.RandomSharing(keep=0.5),
    "pbfs": lambda: sm.PBFSSharing(warmup=0, reach_at=2, update_every_steps=3, target_sparsity=0.8),
    "pbfs by gradients": lambda: sm.PBFSSharing(warmup=1, reach_at=3, update_every_steps=2, criterion="gradient"),
    "soft masks": lambda: sm.SoftMaskSharing(linear=True, lambda_=0.3, init="uniform"),
    "group lasso": lambda: sm.GroupLassoSharing(linear=True, target_sparsity=0.5, reach_at=2),
    "fisher": lambda: sm.FisherSharing(keep=0.5, estimator="true", samples=20),
    "fisher gradient": lambda: sm.FisherSharing(keep=0.5, estimator="true", samples=20, mask_applies_to="gradients"),
}


MOMENTS = [
    *(("fisher", moment) for moment in (3, 5, 8, 12, 19)),
    *zip((method for method in METHODS if method != "fisher"), cycle((8, 19))),
]
"""Method, and batches after which its loader dies: in and after a first epoch, which is dense under `fisher`, on a
checkpoint and behind one; for other methods, one of two moments in turn."""
OTHERS = [(method, moment) for method in METHODS for moment in (8, 19) if (method, moment) not in MOMENTS]


class Killed(Exception):
    pass


class Dying:
    """A loader that dies before its n-th batch, counted over all epochs."""

    def __init__(self, loader: TensorLoader, batches: int) -> None:
        self.loader, self.left = loader, batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


def loaders() -> tuple[TensorLoader, TensorLoader]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 6, generator=generator)
    targets = {"a": torch.randint(0, 3, (60,), generator=generator), "b": x[:, 0] * 2}
    train = TensorLoader(x[:40], {t: v[:40] for t, v in targets.items()}, batch_size=8, shuffle=True)
    return train, TensorLoader(x[40:], {t: v[40:] for t, v in targets.items()}, batch_size=20)


def trainer(folder: Path, method: str, single: bool = False) -> sm.Trainer:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 8))
    tasks = [sm.Classification("a", 3), sm.Regression("b")]
    model = (sm.SingleTask if single else sm.SharedBottom)(encoder, tasks)
    return sm.Trainer(
        model,
        sharing=METHODS[method](),
        epochs=4,
        folder=folder,
        checkpoint_every=2,
        progress=False,
        accelerator="cpu",
        scheduler=sm.optim.Schedule("cosine", per_step=True, warmup=3) if single else None,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function (method, single=False) -> folder of a run that was never stopped, trained once."""

    @cache
    def folder(method: str, single: bool = False) -> Path:
        folder: Path = tmp_path_factory.mktemp("whole") / "run"
        trainer(folder, method, single).fit(*loaders())
        return folder

    return folder


@pytest.mark.parametrize(
    ("method", "died_after"), [*MOMENTS, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_a_resumed_run_ends_like_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: Callable[..., Path], method: str, died_after: int
) -> None:
    train, validation = loaders()
    # Choosing masks reads the training data too: the loader dies in there as well as between steps.
    with pytest.raises(Killed):
        trainer(tmp_path / "cut", method).fit(Dying(train, died_after), validation)
    train, validation = loaders()
    trainer(tmp_path / "cut", method).fit(train, validation, resume=True)
    assert_same_end(uninterrupted(method), tmp_path / "cut")


@pytest.mark.parametrize("died_after", [5, 13])
def test_independent_tasks_and_a_schedule_over_steps_resume_too(
    tmp_path: Path, uninterrupted: Callable[..., Path], died_after: int
) -> None:
    train, validation = loaders()
    with pytest.raises(Killed):
        trainer(tmp_path / "cut", "dense", single=True).fit(Dying(train, died_after), validation)
    train, validation = loaders()
    trainer(tmp_path / "cut", "dense", single=True).fit(train, validation, resume=True)
    assert_same_end(uninterrupted("dense", single=True), tmp_path / "cut")


def assert_same_end(whole: Path, cut: Path) -> None:
    expected, _ = read_tensors(whole / "model.safetensors")
    found, _ = read_tensors(cut / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    last, resumed = (read_tree(folder / "checkpoints" / "last.safetensors") for folder in (whole, cut))
    assert_same(last["model"], resumed["model"])
    assert_same(last["parts"], resumed["parts"])
    rows = [[row for row in read_metrics(f / "metrics.csv") if row.name != "seconds"] for f in (whole, cut)]
    assert rows[0] == rows[1]
    if (whole / "networks.safetensors").exists():
        one, other = (TaskNetworks.load(folder / "networks.safetensors") for folder in (whole, cut))
        for task, network in one.items():
            for part in fields(network):
                mine, theirs = getattr(network, part.name), getattr(other[task], part.name)
                assert list(mine) == list(theirs)
                assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
