"""Processes of a study are killed: the study loses a run at most, workers end with it, and its command resumes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import dump_yaml

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
COMMAND = [sys.executable, "-c", "from sparsemtl.cli.main import main; main()", "study", "s.yaml", "--out", "out"]


def write(folder: Path, tiny: Any, epochs: int) -> None:
    base = {**tiny, "training": {"epochs": epochs, "batch_size": 64, "measure_cost": False}}
    (folder / "s.yaml").write_text(dump_yaml({"base": base, "methods": {"a": {}}, "seeds": [0, 1, 2]}))


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, *options], cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def training(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    """Wait until runs have a checkpoint."""
    while len(list(folder.glob("out/runs/*/checkpoints/last.safetensors"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def workers(session: int) -> dict[int, str]:
    """Process -> working run of a study's session; processes that have ended do not count."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z" and int(path.name) != session:
            found[int(path.name)] = fields[0]
    return found


def writer_of(run: Path) -> int:
    pid: int = json.loads((run / ".sparsemtl.json").read_text())["pid"]
    return pid


def gone(session: int, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while workers(session) and time.monotonic() < end:
        time.sleep(0.2)
    return not workers(session)


def test_a_killed_worker_is_one_failed_run_and_the_same_command_resumes_it(tmp_path: Path, tiny: Any) -> None:
    write(tmp_path, tiny, epochs=40)
    process = started(tmp_path, "--jobs", "2", "--no-run-reports")
    training(tmp_path, process, 1)
    run = next(tmp_path.glob("out/runs/*/checkpoints/last.safetensors")).parents[1]
    os.kill(writer_of(run), signal.SIGKILL)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 1
    reason = f"{run.name}: its process was killed by SIGKILL, perhaps because memory was used up"
    assert f"No result of {reason}" in error
    assert "Traceback" not in error
    folder = StudyFolder(tmp_path / "out")
    assert list(folder.read_failures()) == [run.name]
    assert f"- {reason}" in folder.tables.read_text(encoding="utf-8")
    assert sum(other.finished for other in folder.run_folders()) == 2
    assert gone(process.pid)
    again = started(tmp_path, "--no-run-reports", "--retries", "0")
    again.communicate(timeout=600)
    assert again.returncode == 0
    assert all(other.finished for other in folder.run_folders())
    assert folder.read_failures() == {}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_workers_end_with_the_study_and_its_command_resumes_it(
    number: signal.Signals, status: int, tmp_path: Path, tiny: Any
) -> None:
    write(tmp_path, tiny, epochs=100_000)
    process = started(tmp_path, "--jobs", "2", "-q")
    training(tmp_path, process, 2)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status
    assert error == ("" if number == signal.SIGKILL else "Stopped. Resume with the same command.\n")
    assert gone(process.pid)
    resumed = started(tmp_path, "--jobs", "2", "-q")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/checkpoints/last.safetensors")}
    while all(path.stat().st_mtime_ns == time for path, time in before.items()):
        assert resumed.poll() is None, resumed.communicate()
        time.sleep(0.1)
    os.kill(resumed.pid, signal.SIGKILL)
    resumed.communicate()
    assert gone(resumed.pid)
