"""One thread a process, and runs that several test modules look at: made once, never changed."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
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
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None  # prints the stack for later: 0.6 ms per `torch.manual_seed`
    settings.load_profile(config.getoption("--hypothesis-profile") or "few")


def pytest_collection_finish() -> None:
    """Leave modules and the ten thousand tests out of later garbage collections, which would look at all of them."""
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


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `measured`."""
    from sparsemtl.report import write_report
    from sparsemtl.runs.run import run

    folder = tmp_path_factory.mktemp("finished") / "run"
    run({**TINY, "sharing": {"name": "random", "keep": 0.5}}, folder, progress=False, finished=write_report)
    return folder


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six tiny runs."""
    path = tmp_path_factory.mktemp("study") / "tiny-study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_study(study_file: Path) -> Path:
    """The folder of `study_file`'s study, finished."""
    from sparsemtl.report import write_report
    from sparsemtl.study.grid import read_study
    from sparsemtl.study.runner import run_study

    folder = study_file.parent / "out"
    run_study(read_study(study_file), folder, progress=False)
    write_report(folder)
    return folder


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no report on the command line: drawing one takes longer than training a small run."""
    monkeypatch.setattr("sparsemtl.report.write_report", lambda path: Path(path) / "report.html")
