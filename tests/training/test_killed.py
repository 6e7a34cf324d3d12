"""A process that is killed leaves a checkpoint that can be loaded, and going on from it ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from killed_runs import FEW, MOMENTS, OUTSIDE, OUTSIDE_STEP, step_of
from test_resume import assert_same_end

from sparsemtl.storage.files import read_tensors, read_tree
from sparsemtl.storage.metrics import read_metrics

fcntl = pytest.importorskip("fcntl", reason="processes are copied and signalled as POSIX has it")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SCRIPT = [sys.executable, str(Path(__file__).with_name("killed_runs.py"))]


def killed_at(moments: Iterable[str], factory: pytest.TempPathFactory, name: str) -> Path:
    """The folder of a whole run, and for each moment of what a kill left and of the run that went on from it.

    One process starts them all, whatever the number of pytest's workers.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "codes.json").exists():
            subprocess.run([*SCRIPT, str(folder), *moments], check=True, env=ENVIRONMENT)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were killed at few moments."""
    return killed_at(FEW, tmp_path_factory, "killed-runs")


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were killed at every moment."""
    return killed_at(MOMENTS, tmp_path_factory, "killed-runs-of-all-moments")


@pytest.mark.parametrize("moment", [*FEW, OUTSIDE])
def test_a_kill_leaves_a_whole_checkpoint(runs: Path, moment: str) -> None:
    assert_whole(runs, moment)


@pytest.mark.parametrize("moment", [*FEW, OUTSIDE])
def test_going_on_ends_like_the_run_that_was_never_killed(runs: Path, moment: str) -> None:
    assert_ends_alike(runs, moment)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_so_it_is_at_every_moment(all_runs: Path, moment: str) -> None:
    assert_whole(all_runs, moment)
    assert_ends_alike(all_runs, moment)


def assert_whole(runs: Path, moment: str) -> None:
    assert json.loads((runs / "codes.json").read_text())[moment] == [-signal.SIGKILL, 0]
    left = runs / f"{moment}.killed"
    last = read_tree(left / "checkpoints" / "last.safetensors")
    assert last["format"] == "sparsemtl-checkpoint-2"
    for path in left.rglob("*.safetensors"):
        read_tensors(path)
    if (left / "summary.json").exists():
        assert json.loads((left / "summary.json").read_text())["status"] == "trained"


def assert_ends_alike(runs: Path, moment: str) -> None:
    assert_same_end(runs / "whole", runs / moment)
    whole, resumed = (summary_of(runs / name) for name in ("whole", moment))
    assert whole == resumed
    assert whole["status"] == "finished"


@pytest.mark.slow
def test_the_moments_are_spread_over_the_whole_run(all_runs: Path) -> None:
    steps = {
        moment: read_tree(all_runs / f"{moment}.killed" / "checkpoints" / "last.safetensors")["progress"]["step"]
        for moment in MOMENTS
    }
    assert min(steps.values()) == 0
    assert max(steps.values()) == 15
    assert len(set(steps.values())) >= 5
    parts = [path for moment in MOMENTS for path in (all_runs / f"{moment}.killed").rglob("*.part")]
    assert len(parts) >= 2, "no kill fell into the writing of a file"


def summary_of(folder: Path) -> Mapping[str, Any]:
    """A summary without what differs from run to run: times and the name, which is the folder's."""
    summary: Mapping[str, Any] = json.loads((folder / "summary.json").read_text(), object_pairs_hook=_without_times)
    return {key: value for key, value in summary.items() if key != "name"}


def _without_times(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key not in ("seconds", "milliseconds")}


def kill_after(folder: Path, step: int, *command: str) -> None:
    """Start a run and kill it from outside once a checkpoint of this step is written."""
    process = subprocess.Popen([*command], env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while step_of(folder) < step:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline, "the run did not get as far as that"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_the_kill_from_outside_fell_into_the_middle_of_the_run(runs: Path) -> None:
    assert OUTSIDE_STEP <= step_of(runs / f"{OUTSIDE}.killed") < 15


@pytest.mark.slow
def test_a_run_killed_again_and_again_goes_on(runs: Path, tmp_path: Path) -> None:
    for step in (0, 2, 5, 7, 10, 12):
        kill_after(tmp_path, step, *SCRIPT, str(tmp_path), "once")
    subprocess.run([*SCRIPT, str(tmp_path), "once"], check=True, env=ENVIRONMENT)
    assert_same_end(runs / "whole", tmp_path)


@pytest.mark.slow
def test_a_run_of_the_command_line_killed_from_outside_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from sparsemtl.cli.main import main; main()"]
    config = tmp_path / "run.yaml"
    config.write_text(
        "data: digits\nencoder: {name: mlp, hidden: [32]}\nsharing: {name: fisher, keep: 0.5, samples: 64}\n"
        "training: {epochs: 3, batch_size: 32, checkpoint_every: 5, accelerator: cpu}\n"
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, "run", str(config), "--out", str(whole), "-q"], check=True, env=ENVIRONMENT)
    total = read_metrics(whole / "metrics.csv")[-1].step
    kill_after(cut, total // 2, *command, "run", str(config), "--out", str(cut), "-q")
    subprocess.run([*command, "resume", str(cut), "-q"], check=True, env=ENVIRONMENT)
    assert_same_end(whole, cut)
