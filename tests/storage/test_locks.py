"""One writer per folder, which is known as ours; workers end with their parent; one process per run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import sparsemtl as sm
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.runs.run import resume, run
from sparsemtl.storage.locks import CREATED, LOCK, locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.text_files import write_text
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.study.grid import read_study
from sparsemtl.study.runner import run_study

HOLDER = """
import sys, time
from sparsemtl.storage.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


WITHOUT_LOCKS = """
import errno, os
from filelock import FileLock
def acquire(self, timeout):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
FileLock.acquire = acquire
"""
"""A network file system that has no locks."""


@contextmanager
def held_elsewhere(folder: Path, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder's lock inside the context."""
    process = subprocess.Popen([sys.executable, "-c", before + HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def take(folder: Path) -> None:
    with locked(folder):
        pass


def test_a_second_process_is_refused_until_the_first_one_ends_and_killing_it_is_an_end(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(dump_yaml({"base": tiny, "methods": {"a": {}}, "seeds": [0]}), encoding="utf-8")
    folder = tmp_path / "run"
    with held_elsewhere(folder) as process:
        in_use = f"{folder} is in use: process {process.pid} writes there"
        for write in (
            lambda: take(folder),
            lambda: run(tiny, folder, progress=False),
            lambda: run_study(read_study(study), folder, progress=False),
            lambda: trainer(folder).fit(*loaders()),
        ):
            with pytest.raises(CheckpointError, match=in_use):
                write()
    assert run(tiny, folder, progress=False)


def test_on_a_file_system_without_locks_a_file_that_is_created_at_once_is_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    folder = tmp_path / "run"
    with held_elsewhere(folder, WITHOUT_LOCKS) as process:
        delete = f"process {process.pid} writes there.* If it was killed, delete {folder / CREATED}"
        with pytest.raises(CheckpointError, match=delete):
            take(folder)
    (folder / CREATED).unlink(missing_ok=True)  # as newer versions of filelock do for a process that is gone
    with locked(folder):
        assert (folder / CREATED).exists()
    assert not (folder / CREATED).exists()


def test_a_run_that_still_goes_on_is_not_said_to_have_stopped(tmp_path: Path, tiny: dict[str, Any]) -> None:
    RunFolder(tmp_path).save(RunFolder(tmp_path).last, {})
    with held_elsewhere(tmp_path), pytest.raises(CheckpointError, match="is in use"):
        run(tiny, tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="holds a run that stopped"):
        run(tiny, tmp_path, progress=False)


def test_the_holder_on_another_machine_is_named_with_it(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        mark = tmp_path / ".sparsemtl.json"
        mark.write_text(mark.read_text().replace(socket.gethostname(), "elsewhere"))
        with pytest.raises(CheckpointError, match=f"process {process.pid} on elsewhere writes there"):
            take(tmp_path)


def test_the_thread_that_holds_a_lock_may_take_it_again_and_no_other_one(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def other() -> None:
        try:
            take(tmp_path)
        except CheckpointError as error:
            errors.append(error)

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread of this process" in str(errors[0])
    take(tmp_path)


def test_what_killed_writers_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / ".summary.json.0a.part", tmp_path / "checkpoints" / ".last.safetensors.0a.part"]
    left += [tmp_path / "checkpoints" / ".tmpAb3dEf", tmp_path / ".report.html.0a.part"]
    kept = [tmp_path / "my.part", tmp_path / ".report.html.0b.part"]
    for path in (*left, *kept):
        path.write_text("half")
    os.utime(left[-1], (0, 0))  # a report is drawn without the lock: only an old left-over is one
    take(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_reader_needs_no_lock(finished_run: Path) -> None:
    from sparsemtl.cli.terminal import show_run

    with held_elsewhere(finished_run):
        show_run(finished_run)


# ---- whose folder ------------------------------------------------------------------------------------------------


def trainer(folder: Path, **options: Any) -> sm.Trainer:
    import torch

    torch.manual_seed(0)
    model = sm.SharedBottom(torch.nn.Sequential(torch.nn.Linear(6, 4)), [sm.Classification("a", 3)])
    return sm.Trainer(model, folder=folder, epochs=1, progress=False, accelerator="cpu", **options)


def loaders() -> tuple[Any, Any]:
    import torch

    from sparsemtl.data import TensorLoader

    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    return TensorLoader(x, {"a": x[:, :3].argmax(1)}, batch_size=8), TensorLoader(x, {"a": x[:, :3].argmax(1)})


@pytest.mark.parametrize("name", ["config.yaml", "report.html", "notes.txt", "metrics.csv"])
def test_a_folder_with_files_of_others_is_left_as_it_is(tmp_path: Path, tiny: dict[str, Any], name: str) -> None:
    folder, study = tmp_path / "theirs", tmp_path / "s.yaml"
    study.write_text(dump_yaml({"base": tiny, "methods": {"a": {}}, "seeds": [0]}), encoding="utf-8")
    write_text(folder / name, "mine")
    writers: list[Callable[[], object]] = [
        lambda: run(tiny, folder, progress=False),
        lambda: run_study(read_study(study), folder, progress=False),
        lambda: trainer(folder).fit(*loaders()),
    ]
    for write in writers:
        with pytest.raises(CheckpointError, match=str(folder)) as refused:
            write()
        assert name in str(refused.value)
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "mine"


def test_an_absent_or_empty_folder_and_hidden_files_are_fine(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "absent")
    refuse_foreign(tmp_path)
    (tmp_path / ".gitkeep").touch()
    refuse_foreign(tmp_path)


def test_a_folder_that_a_run_began_in_takes_a_new_one(tmp_path: Path) -> None:
    trainer(tmp_path).fit(*loaders())
    with pytest.raises(CheckpointError, match="overwrite=True"):
        trainer(tmp_path).fit(*loaders())
    trainer(tmp_path).fit(*loaders(), overwrite=True)


def test_a_copy_without_hidden_files_is_known_by_its_record(tmp_path: Path) -> None:
    trainer(tmp_path).fit(*loaders())
    for path in (tmp_path / LOCK, tmp_path / ".sparsemtl.json"):
        path.unlink()
    refuse_foreign(tmp_path)


def test_a_folder_of_which_only_the_pretraining_began_is_known(tmp_path: Path) -> None:
    trainer(tmp_path / "pretraining").fit(*loaders())
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    refuse_foreign(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        refuse_foreign(tmp_path)


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped in its second epoch."""
    train_epoch = sm.Trainer._train_epoch

    def stopping(self: Any, *given: Any) -> None:
        if self.position.epoch == 1:
            raise KeyboardInterrupt
        train_epoch(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(sm.Trainer, "_train_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, tmp_path / "run", progress=False)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("keep: 0.5", "keep: 0.25", "sharing.keep is 0.5 there and 0.25 here"),
        ("seed: 0\n", "seed: 1\n", "seed is 0 there and 1 here"),
        ("lr: ", "lr: 1", r"optimizer.lr is 0.\d+ there and 10.\d+ here"),
    ],
)
def test_a_run_does_not_go_on_under_another_configuration(stopped: Path, old: str, new: str, place: str) -> None:
    config = stopped / "config.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match=f"begun with other settings: {place}"):
        resume(stopped, progress=False)
    after = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    assert {name: after[name] for name in before if name != ".sparsemtl.json"} == {
        name: content for name, content in before.items() if name != ".sparsemtl.json"
    }
    config.write_text(text)
    assert resume(stopped, progress=False)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"optimizer": lambda p: __import__("torch").optim.Adam(p, lr=0.5)}, "optimizer.0.lr is 0.001 there and 0.5"),
        ({"clip_norm": 1.0}, "clip_norm is null there and 1.0 here"),
    ],
)
def test_a_trainer_does_not_go_on_under_other_settings(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    trainer(tmp_path).fit(*loaders())
    with pytest.raises(CheckpointError, match=place):
        trainer(tmp_path, **change).fit(*loaders(), resume=True)


# ---- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_one_of_several_processes_is_refused(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(dump_yaml({"base": tiny, "methods": {"a": {}}, "seeds": [0]}), encoding="utf-8")
    monkeypatch.setenv(name, "2")
    writers: list[Callable[[], object]] = [
        lambda: run(tiny, tmp_path / "run", progress=False),
        lambda: resume(tmp_path / "run", progress=False),
        lambda: run_study(read_study(study), tmp_path / "study", progress=False),
        lambda: trainer(tmp_path / "trainer").fit(*loaders()),
    ]
    for write in writers:
        with pytest.raises(ParameterError, match=f"{name}=2 in the environment"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]
    monkeypatch.setenv(name, "1")
    trainer(tmp_path / "trainer").fit(*loaders())


PARENT = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from workers import end_with_parent  # a copy: its package would import torch

if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, get_context("spawn"), initializer=end_with_parent)
    print(*{pool.submit(os.getpid).result() for _ in range(1)}, flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for a process in /proc")
def test_a_worker_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    shutil.copy(Path(sm.__file__).parent / "training" / "processes" / "workers.py", tmp_path)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while running(worker):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to take notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_mark_says_who_writes_and_goes_where_nothing_was_written(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        mark = json.loads((tmp_path / "new" / ".sparsemtl.json").read_text())
        assert (mark["pid"], mark["host"]) == (os.getpid(), socket.gethostname())
    take(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "new"):
        write_text(tmp_path / "new" / "config.yaml", "seed: 0")
    assert (tmp_path / "new" / ".sparsemtl.json").exists()
