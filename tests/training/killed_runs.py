"""Runs in processes of their own that are killed, for `test_killed`.

python killed_runs.py FOLDER once      train in FOLDER, or go on there, slowly
python killed_runs.py FOLDER MOMENT... for every moment: train in FOLDER/MOMENT in a process that SIGKILLs itself
                                       then, keep what it left in FOLDER/MOMENT.killed, go on in another process;
                                       then the same for a process that is killed from outside
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.optim import fused
from sparsemtl.storage import files
from sparsemtl.storage.files import read_tree
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training.callbacks import CSVCallback

os.fsync = lambda handle: None  # a kill of the process loses nothing that was written


class Slow:
    """A loader that takes its time."""

    def __init__(self, loader: TensorLoader, seconds: float) -> None:
        self.loader, self.seconds = loader, seconds

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            time.sleep(self.seconds)
            yield batch


def data(seed: int, count: int, *, shuffle: bool = False) -> TensorLoader:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorLoader(x, {"a": x[:, :3].argmax(1), "b": x[:, 0]}, batch_size=8, shuffle=shuffle)


def train(folder: Path, *, seconds: float = 0.0) -> None:
    """Train and test, or go on with it: everything in one run that a checkpoint has to remember."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 8))
    trainer = sm.Trainer(
        sm.SharedBottom(encoder, [sm.Classification("a", 3), sm.Regression("b")]),
        sharing=sm.FisherSharing(keep=0.5, estimator="true", samples=16, update="average"),
        balancing="uncertainty",
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5),
        epochs=3,
        folder=folder,
        checkpoint_every=2,
        progress=False,
        accelerator="cpu",
    )
    resume = RunFolder(folder).last.exists()
    trainer.fit(Slow(data(1, 40, shuffle=True), seconds), data(2, 20), resume=resume)
    trainer.test(data(3, 20))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, number: int, what: Callable[..., None]) -> None:
    """At its `number`-th call, from 1, a function does `what` with its original and arguments, and dies."""
    original, calls = getattr(owner, name), count(1)

    def replaced(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            what(original, *arguments, **options)
            die()
        return original(*arguments, **options)

    setattr(owner, name, replaced)


def at_renaming(name: str, number: int, *, after: bool) -> None:
    """Die just before, or after, the file `name` takes its place for the `number`-th time."""
    original, calls = os.replace, count(1)

    def replaced(source: Any, target: Any) -> None:
        mine = Path(target).name == name and next(calls) == number
        if mine and not after:
            die()
        original(source, target)
        if mine:
            die()

    os.replace = replaced


def nothing(*_: Any, **__: Any) -> None:
    pass


def half_a_file(original: Callable[..., None], tensors: Any, path: Any, **options: Any) -> None:
    original(tensors, path, **options)
    os.truncate(path, os.path.getsize(path) // 2)


def rows_but_some_bytes(original: Callable[..., None], logger: CSVCallback, rows: Any) -> None:
    original(logger, rows)
    os.truncate(logger.path, logger.path.stat().st_size - 5)


MOMENTS: dict[str, Callable[[], None]] = {
    "in-the-first-step": lambda: at_call(fused.Adam, "step", 1, nothing),
    "in-a-step": lambda: at_call(fused.Adam, "step", 9, nothing),
    "while-validating": lambda: at_call(sm.Trainer, "_evaluate", 2, nothing),
    "half-a-checkpoint-written": lambda: at_call(files, "save_file", 6, half_a_file),
    "half-a-best-model-written": lambda: at_call(files, "save_file", 9, half_a_file),
    "before-a-checkpoint-takes-its-place": lambda: at_renaming("last.safetensors", 5, after=False),
    "after-a-checkpoint-took-its-place": lambda: at_renaming("last.safetensors", 5, after=True),
    "between-the-best-and-the-last": lambda: at_renaming("best.safetensors", 1, after=True),
    "half-a-row-logged": lambda: at_call(CSVCallback, "append", 2, rows_but_some_bytes),
    "before-the-model-is-written": lambda: at_renaming("model.safetensors", 1, after=False),
    "half-a-row-of-the-test-logged": lambda: at_call(CSVCallback, "append", 4, rows_but_some_bytes),
    "before-the-summary-is-final": lambda: at_renaming("summary.json", 2, after=False),
}

FEW = ["in-a-step", "half-a-checkpoint-written", "between-the-best-and-the-last", "half-a-row-of-the-test-logged"]
"""Moments of which the fast tests kill a run: a step, half a file, between two files, half a row."""

OUTSIDE = "from-outside"
"""A process that another one kills, once a checkpoint of `OUTSIDE_STEP` is written."""
OUTSIDE_STEP = 5


def in_a_process(work: Callable[[], None], meanwhile: Callable[[int], None] = lambda child: None) -> int:
    """Do the work in a copy of this process; returns its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    meanwhile(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(folder: Path, step: int, child: int) -> None:
    """Kill a process from outside once a checkpoint of this step is written; one that has ended is left alone."""
    deadline = time.monotonic() + 120
    while step_of(folder) < step and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)


def step_of(folder: Path) -> float:
    """The step of the last checkpoint of a run that may be going on."""
    last = RunFolder(folder).last
    return read_tree(last)["progress"]["step"] if last.exists() else -math.inf


def killed(folder: Path, moment: str) -> None:
    MOMENTS[moment]()
    train(folder)


def main(folder: Path, moments: list[str]) -> None:
    train(folder / "whole")  # here, so that what is imported on the way is there in the copies of this process
    codes: dict[str, list[int]] = {}
    for moment in moments:
        place = folder / moment
        first = in_a_process(partial(killed, place, moment))
        shutil.copytree(place, folder / f"{moment}.killed")
        codes[moment] = [first, in_a_process(partial(train, place))]
    place = folder / OUTSIDE
    first = in_a_process(partial(train, place, seconds=0.05), partial(kill_at, place, OUTSIDE_STEP))
    shutil.copytree(place, folder / f"{OUTSIDE}.killed")
    codes[OUTSIDE] = [first, in_a_process(partial(train, place))]
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    place, *arguments = sys.argv[1:]
    if arguments == ["once"]:
        train(Path(place), seconds=0.05)
    else:
        main(Path(place), arguments)
