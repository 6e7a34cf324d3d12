"""Runs of the command line that are killed at random moments and resumed, for `test_killed_commands`.

    python killed_commands.py FOLDER KILLS SEED

One process runs the command line once, so that all is imported, and forks a child per command, which calls `main` with
the words of the command line. A run is killed up to four times, by SIGKILL after a random part of the time that a whole
run takes, then ends. Written to FOLDER/outcome.json: the kills that met a running process, the runs, and what was wrong
with them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from sparsemtl import report
from sparsemtl.cli import main as command_line
from sparsemtl.errors import SparseMTLError
from sparsemtl.runs import run as _imported  # noqa: F401  # here, and not in every child
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.metrics import read_metrics
from sparsemtl.storage.run_folder import RunFolder

CONFIG = """
data: digits
encoder: {name: mlp, hidden: [8]}
sharing: {name: fisher, keep: 0.5, samples: 32, estimator: "true"}
training: {epochs: 2, batch_size: 128, checkpoint_every: 3, accelerator: cpu, measure_cost: false}
"""
report.write_report = lambda path: Path(path)  # drawing takes longer than training, and kills are to meet that
os.fsync = lambda handle: None  # a kill of the process loses nothing that was written
FILES = ("model.safetensors", "networks.safetensors", "samples.safetensors", "config.yaml")


def call(*words: str) -> int:
    """Run a command in this process; return its exit status."""
    sys.argv = ["sparsemtl", *words]
    try:
        command_line.main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        return 70
    return 0


def start(*words: str) -> int:
    """Run a command in a copy of this process; return its number."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        os._exit(call(*words))
    return child


def ended(child: int, seconds: float | None = None) -> int:
    """Return the exit status of a child, or minus the signal that ended it; kill it after some seconds if given."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def unreadable(folder: Path) -> list[str]:
    """Return what a kill left that cannot be read."""
    wrong = []
    for path in folder.rglob("*.safetensors"):
        if not path.name.startswith("."):
            try:
                read_tensors(path, own=True)
            except SparseMTLError as error:
                wrong.append(str(error))
    try:
        RunFolder(folder).read_metrics()
        _ = RunFolder(folder).finished
    except SparseMTLError as error:
        wrong.append(str(error))
    return wrong


def differences(whole: Path, run: Path) -> list[str]:
    """Return the files of a run that are not those of the run that was never killed."""
    wrong = [name for name in FILES if (whole / name).read_bytes() != (run / name).read_bytes()]
    rows = [[row for row in read_metrics(f / "metrics.csv") if row.name != "seconds"] for f in (whole, run)]
    return wrong + (["metrics.csv"] if rows[0] != rows[1] else [])


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill and resume runs until so many kills met one."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    config = folder / "run.yaml"
    config.write_text(CONFIG)
    whole = folder / "whole"
    if (code := call("run", str(config), "--out", str(whole), "-q")) != 0:
        raise SystemExit(f"the whole run ended with {code}")
    began = time.monotonic()
    code = ended(start("run", str(config), "--out", str(folder / "child"), "-q"))
    duration = time.monotonic() - began
    met, wrong, runs = 0, [f"the run in a child ended with {code}"] * (code != 0), 0
    wrong += [f"the run in a child: {name} differs" for name in differences(whole, folder / "child")]
    while met < kills:
        run = folder / f"run-{runs}"
        runs += 1
        for attempt in range(5):
            words = ("resume", str(run)) if RunFolder(run).begun else ("run", str(config), "--out", str(run))
            seconds = draw.uniform(0, 0.8 * duration) if attempt < 4 else None
            code = ended(start(*words, "-q"), seconds)
            met += code == -signal.SIGKILL
            wrong += [f"{run.name}, attempt {attempt}: {text}" for text in unreadable(run)]
            if code not in (0, -signal.SIGKILL):
                wrong.append(f"{run.name}, attempt {attempt}: {' '.join(words)} ended with {code}")
            if code == 0 or RunFolder(run).finished:
                break
        wrong += [f"{run.name}: {name} differs" for name in differences(whole, run)]
    (folder / "outcome.json").write_text(json.dumps({"kills": met, "runs": runs, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
