"""Engines of a study: one contract, for processes of this machine and for Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparsemtl.errors import ConfigError, MissingExtraError, ParameterError
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.study import workers
from sparsemtl.study.calls import Lost
from sparsemtl.study.engines import LocalEngine
from sparsemtl.study.grid import read_study
from sparsemtl.study.ray_engine import RayEngine
from sparsemtl.study.runner import run_study

RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
ENGINES = [
    pytest.param(LocalEngine(2, retries=1), id="local"),
    pytest.param(RayEngine(retries=1), id="ray", marks=[RAY, pytest.mark.slow]),
]


def square(number: int) -> int:
    return number * number


def die_once(path: Path) -> str:
    """Kill the own process at the first call with a path."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die(path: Path) -> str:
    """Kill the own process at every call with a path whose name begins with "bad"."""
    if path.name.startswith("bad"):
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def fail(number: int) -> int:
    if number == 1:
        raise ConfigError("one")
    if number == 2:
        raise UnsentError(lambda: None)
    if number == 3:
        return {}["three"]
    time.sleep(0.02)
    return number


class UnsentError(Exception):
    """An error that cannot be pickled."""


@pytest.fixture(scope="module")
def forked_workers() -> None:
    """Fork workers from one server: each would import torch anew."""
    workers.prepare_workers()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_compute_every_item_and_survive_killed_processes(
    engine: Any, tmp_path: Path, forked_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))  # workers of Ray import this module, which pytest found
    with engine.open() as each:
        assert sorted(each(square, range(5))) == [(n, n * n) for n in range(5)]
        assert list(each(square, [])) == []
        assert dict(each(die_once, [tmp_path / "a", tmp_path / "b"])) == dict.fromkeys(
            [tmp_path / "a", tmp_path / "b"], "done"
        )
        names = ["good", "bad", "fine", "bad-too"]
        results = {path.name: result for path, result in each(die, [tmp_path / name for name in names])}
        assert {name: results[name] for name in ("good", "fine")} == {"good": "good", "fine": "fine"}
        for name in ("bad", "bad-too"):
            assert isinstance(results[name], Lost)
            assert results[name].reason.startswith("its process was")
        with pytest.raises(ConfigError, match=r"^one$"):
            list(each(fail, [0, 1, 4, 5]))
        with pytest.raises(Exception, match="UnsentError"):
            list(each(fail, [2]))
        with pytest.raises(KeyError) as caught:
            list(each(fail, [3]))
        assert 'return {}["three"]' in str(caught.value.__cause__)  # the worker's traceback


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_study_has_the_same_results_on_every_engine(
    engine: Any, study_file: Path, finished_study: Path, tmp_path: Path, forked_workers: None
) -> None:
    study = read_study(study_file, ["seeds=[0]"])
    assert run_study(study, tmp_path / "out", engine=engine, progress=False) == {}
    for run in study.runs:
        here, there = (
            json.loads((f / "runs" / run.name / "summary.json").read_text()) for f in (tmp_path / "out", finished_study)
        )
        assert here["tasks"] == there["tasks"]


def test_a_lost_run_is_a_failure_that_tables_and_report_name_and_that_is_resumed(
    study_file: Path, tmp_path: Path
) -> None:
    from sparsemtl.report import write_report

    study = read_study(study_file, ["seeds=[0]"])
    lost = study.runs[1].name
    out = tmp_path / "out"
    failures = run_study(study, out, engine=Losing(lost), progress=False)
    assert failures == {lost: "its process was killed by SIGKILL."}
    assert f"- {lost}: its process was killed by SIGKILL." in (out / "tables.md").read_text(encoding="utf-8")
    write_report(out)
    assert "no result: its process was killed by SIGKILL." in (out / "report.html").read_text(encoding="utf-8")
    assert run_study(study, out, progress=False) == {}
    assert StudyFolder(out).read_failures() == {}
    assert "SIGKILL" not in (out / "tables.md").read_text(encoding="utf-8")


class Losing(LocalEngine):
    """An engine that loses the run of one name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        object.__setattr__(self, "name", name)

    def _each(self, function: Any, items: Any) -> Any:
        for item in items:
            lost = item.name == self.name  # type: ignore[attr-defined]
            yield item, Lost("its process was killed by SIGKILL.") if lost else function(item)


def test_engines_refuse_numbers_that_are_out_of_range_and_two_engines_at_once(study_file: Path, tmp_path: Path) -> None:
    for make in (lambda: LocalEngine(0), lambda: LocalEngine(1, retries=-1), lambda: RayEngine(cpus_per_run=-1)):
        with pytest.raises(ParameterError, match="must be at least"):
            make()
    with pytest.raises(ParameterError, match="both 0"):
        RayEngine(cpus_per_run=0)
    with pytest.raises(ParameterError, match="expected `jobs` or `engine`, got `jobs=2`"):
        run_study(read_study(study_file), tmp_path, jobs=2, engine=LocalEngine(2))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r"`--engine ray` needs 'ray': pip install 'sparsemtl\[ray\]'"),
        RayEngine().open() as each,
    ):
        list(each(square, [1]))
