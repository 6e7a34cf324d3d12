"""One thread a process, and runs that several test modules look at: made once, never changed."""

from __future__ import annotations

import functools
import gc
import os
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import settings

TINY: dict[str, Any] = {
    "encoder": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 2, "batch_size": 256, "accelerator": "cpu"},
}
STUDY: dict[str, Any] = {
    "base": TINY,
    "seeds": [0, 1],
    "methods": {
        "stl": {"architecture": "single-task"},
        "random": {"sharing": "random", "grid": {"sharing.keep": [0.3, 0.6]}},
    },
}

settings.register_profile("few", max_examples=40)
settings.register_profile("thorough", max_examples=1000)


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread, as two workers that wait for each other's cores are ten times as slow, and wait for no disk."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # half of the time of a small run; no test survives a power failure
    keep_files_in_memory()
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None  # prints the stack for later: 0.6 ms per `torch.manual_seed`
    # Lightning Fabric reads the entry points of all installed packages whenever a trainer starts.
    metadata.entry_points = functools.cache(metadata.entry_points)
    settings.load_profile(config.getoption("--hypothesis-profile") or "few")
    gc.disable()  # what is imported and collected stays


def keep_files_in_memory() -> None:
    """Make temporary files in memory where Linux offers it: a disk is waited for when a file takes another's place."""
    try:
        found = os.statvfs("/dev/shm")
    except (AttributeError, OSError):
        return
    if found.f_bavail * found.f_frsize > 2**31 and not found.f_flag & os.ST_NOEXEC:  # tests load compiled kernels
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")


def pytest_collection_finish() -> None:
    """Leave modules and the thousands of tests out of later garbage collections, which would look at all of them."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture
def collected() -> None:
    """Leave what is alive now out of later garbage collections, for a test that asks for many of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def measured() -> dict[str, Any]:
    """A configuration that trains in a fraction of a second, and measures the costs of the networks as long again."""
    return {**TINY, "sharing": {"name": "random", "keep": 0.5}}


@pytest.fixture
def tiny(measured: dict[str, Any]) -> dict[str, Any]:
    """The same without measured costs."""
    return {**measured, "training": {**TINY["training"], "measure_cost": False}}


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder as `make` leaves it, of which each of pytest's workers has a copy."""
    base = factory.getbasetemp()
    common = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once" / name
    common.parent.mkdir(exist_ok=True)
    with FileLock(f"{common}.lock"):
        if not common.exists():
            make(common)
    return Path(shutil.copytree(common, factory.mktemp(f"copy-of-{name}") / name))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `measured`."""
    from sparsemtl.report import write_report
    from sparsemtl.runs.run import run

    config = {**TINY, "sharing": {"name": "random", "keep": 0.5}}
    return made_once(tmp_path_factory, "run", lambda folder: run(config, folder, progress=False, finished=write_report))


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six tiny runs."""
    path = tmp_path_factory.mktemp("study") / "tiny-study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_study(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `study_file`'s study, finished."""
    from sparsemtl.report import write_report
    from sparsemtl.study.grid import read_study
    from sparsemtl.study.runner import run_study

    def make(folder: Path) -> None:
        run_study(read_study(study_file), folder, progress=False)
        write_report(folder)

    return made_once(tmp_path_factory, "out", make)


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no report on the command line: drawing one takes longer than training a small run."""
    monkeypatch.setattr("sparsemtl.report.write_report", lambda path: Path(path) / "report.html")
