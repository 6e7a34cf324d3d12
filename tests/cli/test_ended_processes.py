"""Two real processes of one run, of which one dies, hangs or is interrupted: the other one says so, and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sparsemtl.storage.yaml_text import dump_yaml

pytestmark = pytest.mark.slow

LONG: dict[str, Any] = {
    "data": {"name": "two-regressions", "train_size": 200, "validation_size": 50, "test_size": 50, "dimension": 8},
    "encoder": {"name": "mlp"},
    "training": {"epochs": 100_000, "batch_size": 64, "accelerator": "cpu", "measure_cost": False, "devices": 2},
}
HANGING = """
import sys, time
import torch, torch.distributed as dist
import sparsemtl as sm

class Hanging(list):
    def __iter__(self):
        for number, batch in enumerate(list.__iter__(self)):
            if number == 4 and dist.is_initialized() and dist.get_rank() == 1:
                time.sleep(600)
            yield batch

x = torch.randn(48, 4)
batches = [(part, {"size": part.sum(1)}) for part in x.split(8)]
model = sm.SharedBottom(torch.nn.Linear(4, 3), [sm.Regression("size")], heads={"size": torch.nn.Linear(3, 1)})
trainer = sm.Trainer(model, devices=2, accelerator="cpu", process_timeout=30, folder="run", progress=False, epochs=2)
trainer.fit(Hanging(batches), batches[:2])
"""


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A run with two processes that has begun to train, and the pids of both; none of them outlives the context."""
    (folder / "long.yaml").write_text(dump_yaml(LONG), encoding="utf-8")
    command = [sys.executable, "-m", "sparsemtl", "run", "long.yaml", "--quiet", "--out", "run"]
    first = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(lambda: len((folder / "run" / "metrics.csv").read_text().splitlines()) > 20, first)
        found = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True, check=True)
        yield first, [first.pid, *map(int, found.stdout.split())]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)


def wait_for(is_there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 900
    while time.monotonic() < until:
        try:
            if is_there():
                return
        except OSError:
            pass
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    raise AssertionError("it did not begin in a quarter of an hour")


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def end_of(first: subprocess.Popen[str], pids: list[int], folder: Path) -> tuple[str, dict[str, Any]]:
    """What the processes printed and the summary, after all have ended, within a minute."""
    printed = "".join(first.communicate(timeout=300))
    wait_for_all = time.monotonic() + 300
    while not all(map(ended, pids)):
        assert time.monotonic() < wait_for_all
        time.sleep(0.2)
    assert "Traceback" not in printed
    assert (folder / "run" / "checkpoints" / "last.safetensors").exists()
    return printed, json.loads((folder / "run" / "summary.json").read_text())


def test_a_process_that_is_killed_is_named_by_the_first(tmp_path: Path) -> None:
    with started(tmp_path) as (first, pids):
        os.kill(pids[1], signal.SIGKILL)
        printed, summary = end_of(first, pids, tmp_path)
    assert first.returncode == 1
    assert summary["status"] == "failed"
    message = rf"Process 1 \(pid {pids[1]}\) was killed by SIGKILL"
    assert re.search(message, summary["error"]["message"])
    assert re.search(message, printed.strip().splitlines()[-1])


def test_a_first_process_that_is_killed_is_named_by_the_other(tmp_path: Path) -> None:
    with started(tmp_path) as (first, pids):
        os.kill(pids[0], signal.SIGKILL)
        printed = "".join(first.communicate(timeout=300))  # the pipe is closed when both have ended
    assert "Process 0, which connects the others, has ended" in printed or "the first process of this run" in printed


@pytest.mark.parametrize("to", ["all", "the first"])
def test_processes_end_in_order_when_they_are_terminated(tmp_path: Path, to: str) -> None:
    with started(tmp_path) as (first, pids):
        for pid in pids if to == "all" else pids[:1]:
            os.kill(pid, signal.SIGTERM)
        printed, summary = end_of(first, pids, tmp_path)
    assert first.returncode == 143
    assert (summary["status"], summary["signal"]) == ("interrupted", "SIGTERM")
    assert printed.count("Resume with") == 1
    assert "ProcessError" not in printed


def test_a_process_that_hangs_is_named_after_the_timeout(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING, encoding="utf-8")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "hanging.py"], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode != 0
    assert time.monotonic() - began < 390
    assert re.search(
        r"Process 1 \(pid \d+ on .*\) does not answer: it is at exchange \d+, this one at \d+", done.stderr
    )
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
