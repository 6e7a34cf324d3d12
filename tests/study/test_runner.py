"""A study runs what is not finished yet, and its tables say what the runs' summaries say."""

from __future__ import annotations

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sparsemtl.data import DATASETS
from sparsemtl.errors import ConfigError
from sparsemtl.runs import run as runs
from sparsemtl.storage.locks import MARK, locked
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml
from sparsemtl.study import runner, workers
from sparsemtl.study.calls import call
from sparsemtl.study.costs import cost_rows
from sparsemtl.study.grid import Study, read_study
from sparsemtl.study.record import study_results
from sparsemtl.study.results import StudyResults
from sparsemtl.study.runner import run_study
from sparsemtl.training import Trainer
from sparsemtl.training.processes.machine import use_threads


@pytest.fixture
def copied_study(finished_study: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    shutil.copytree(finished_study, folder)
    return folder


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that are really run, in order."""
    names: list[str] = []
    real = runner.run

    def counted(config: Mapping[str, Any], folder: Path, **options: Any) -> Any:
        names.append(Path(folder).name)
        return real(config, folder, **options)

    monkeypatch.setattr(runner, "run", counted)
    return names


def study_of(folder: Path, **source: Any) -> Study:
    path = folder / "some.yaml"
    path.write_text(dump_yaml(source), encoding="utf-8")
    return read_study(path)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(folder: Path) -> list[dict[str, str]]:
    """The rows of a study, without times."""
    times = ("seconds", "milliseconds", "uncompacted_milliseconds")
    return [row for row in rows(folder) if row["metric"] not in times]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_results_are_the_figures_of_the_runs_summaries(study_file: Path, finished_study: Path) -> None:
    expected = []
    for run in read_study(study_file).runs:
        summary = json.loads((finished_study / "runs" / run.name / "summary.json").read_text())
        head = [run.name, run.method, str(run.seed), str(run.values.get("sharing.keep", ""))]
        for task, entry in summary["tasks"].items():
            for split in ("validation", "test"):
                for metric, value in entry[split].items():
                    expected.append([*head, split, task, metric, str(entry["directions"][metric]), str(value)])
        for metric, value in cost_rows(summary):
            if "milliseconds" not in metric:
                expected.append([*head, "cost", "", metric, "False", str(value)])
    assert [list(row.values()) for row in figures(finished_study)] == expected


def test_every_run_is_that_of_its_own_configuration(study_file: Path, finished_study: Path) -> None:
    for run in read_study(study_file).runs:
        assert read_yaml(finished_study / "runs" / run.name / "config.yaml") == run.config


def test_the_tables_have_one_section_a_metric_with_every_setting(finished_study: Path) -> None:
    sections = (finished_study / "tables.md").read_text(encoding="utf-8").split("\n## ")
    names = [section.splitlines()[0] for section in sections[1:]]
    scored = dict.fromkeys(row["metric"] for row in figures(finished_study) if row["split"] != "cost")
    assert names == ["primary metrics", *scored, "cost"]
    for section in sections[1:-1]:
        settings = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")][2:]
        assert settings == ["stl", "random, keep 0.3", "random, keep 0.6"]
        assert "rank ↓" in section
        assert "Δm % ↑" in section


def test_the_study_and_its_report_are_left_in_the_folder(study_file: Path, finished_study: Path) -> None:
    about = json.loads((finished_study / "study.json").read_text())
    assert about == {
        "name": "tiny-study",
        "baseline": "stl",
        "methods": ["stl", "random"],
        "grid": ["sharing.keep"],
        "notes": [],
    }
    again = {run.name: run.config for run in read_study(finished_study / "study.yaml").runs}
    assert again == {run.name: run.config for run in read_study(study_file).runs}
    assert "random, keep 0.6" in (finished_study / "report.html").read_text(encoding="utf-8")


def test_the_results_know_their_order_baseline_and_primary_metrics(finished_study: Path) -> None:
    results = study_results(StudyFolder(finished_study))
    assert isinstance(results, StudyResults)
    assert list(results.settings.index) == ["stl", "random, keep 0.3", "random, keep 0.6"]
    assert results.baseline == "stl"
    assert results.primary == {"digit": "accuracy", "parity": "accuracy", "shape": "accuracy", "slant": "r2"}


def test_a_finished_study_runs_nothing_and_says_the_same(study_file: Path, copied_study: Path, ran: list[str]) -> None:
    before = files(copied_study)
    assert run_study(read_study(study_file), copied_study, progress=False) == {}
    assert ran == []
    after = files(copied_study)
    del before[copied_study / MARK], after[copied_study / MARK]  # names the process that made it
    assert after == before


def test_a_study_that_grew_runs_only_what_is_new(study_file: Path, copied_study: Path, ran: list[str]) -> None:
    before = figures(copied_study)
    run_study(read_study(study_file, ["seeds=[0, 1, 2]"]), copied_study, progress=False)
    assert ran == ["stl_seed-2", "random_keep-0.3_seed-2", "random_keep-0.6_seed-2"]
    assert [row for row in figures(copied_study) if row["seed"] != "2"] == before
    assert len(figures(copied_study)) == len(before) * 3 // 2


def test_a_study_that_shrank_shows_only_what_it_has(study_file: Path, copied_study: Path, ran: list[str]) -> None:
    run_study(read_study(study_file, ["seeds=[1]"]), copied_study, progress=False)
    assert ran == []
    assert {row["seed"] for row in rows(copied_study)} == {"1"}


def test_a_study_that_was_cut_short_goes_on_to_the_same_results(
    study_file: Path, finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, train_epoch, epochs = read_study(study_file, ["seeds=[0]"]), Trainer._train_epoch, list[int]()

    def counted(self: Trainer, *given: Any) -> None:
        if len(epochs) == 5:  # the second epoch of the third run
            raise KeyboardInterrupt
        epochs.append(self.position.epoch)
        train_epoch(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", counted)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path / "out", progress=False)
        assert sum(RunFolder(folder).finished for folder in (tmp_path / "out" / "runs").iterdir()) == 2
        epochs.append(-1)
        run_study(study, tmp_path / "out", progress=False)
    assert epochs == [0, 1, 0, 1, 0, -1, 1]
    assert figures(tmp_path / "out") == [row for row in figures(finished_study) if row["seed"] == "0"]


def test_keys_on_which_no_result_depends_may_change(study_file: Path, copied_study: Path) -> None:
    before = files(copied_study)
    changes = ["data.root=elsewhere", "training.threads=1", "training.checkpoint_every=7", "training.accelerator=cpu"]
    assert run_study(read_study(study_file, changes), copied_study, progress=False) == {}
    now = files(copied_study)
    assert not [path for path in now if now[path] != before.get(path) and "runs" in path.parts]


def test_a_changed_study_is_refused_before_anything_is_touched(study_file: Path, copied_study: Path) -> None:
    before = files(copied_study)
    with pytest.raises(
        ConfigError, match=r"runs/stl_seed-0 holds a run of another .*: training\.epochs is 2 there and 3"
    ):
        run_study(read_study(study_file, ["training.epochs=3"]), copied_study, progress=False)
    assert files(copied_study) == before


def test_of_many_changes_a_few_are_said(study_file: Path, copied_study: Path) -> None:
    changes = ["training.epochs=3", "training.batch_size=1", "training.patience=4", "optimizer.lr=1", "tasks=[digit]"]
    with pytest.raises(
        ConfigError, match=r" is 2 there and 3 here, and 2 more\. Use another --out, or delete that folder"
    ):
        run_study(read_study(study_file, changes), copied_study, progress=False)


def test_a_run_that_diverges_is_left_out_and_the_study_goes_on(tmp_path: Path, tiny: Any) -> None:
    grid = {"optimizer.lr": [1e30, 0.001]}
    study = study_of(tmp_path, base=tiny, methods={"a": {}}, seeds=[0], grid=grid)
    failures = run_study(study, tmp_path / "out", progress=False)
    assert list(failures) == ["a_lr-1e+30_seed-0"]
    assert "the loss of task" in failures["a_lr-1e+30_seed-0"]
    assert {row["run"] for row in rows(tmp_path / "out")} == {"a_lr-0.001_seed-0"}
    assert "a, lr 0.001" in (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")


def test_a_run_whose_masks_become_empty_is_left_out_likewise(tmp_path: Path, tiny: Any) -> None:
    masks = {"name": "soft-masks", "linear": True}
    methods = {"all gone": {"sharing": {**masks, "lambda": 1e6}}, "whole": {"sharing": masks}}
    failures = run_study(study_of(tmp_path, base=tiny, methods=methods, seeds=[0]), tmp_path / "out", progress=False)
    assert list(failures) == ["all-gone_seed-0"]
    assert "has nothing left after epoch 1" in failures["all-gone_seed-0"]
    assert {row["run"] for row in rows(tmp_path / "out")} == {"whole_seed-0"}


def test_a_study_of_which_every_run_diverges_has_no_tables(tmp_path: Path, tiny: Any) -> None:
    study = study_of(tmp_path, base=tiny, methods={"a": {"optimizer": {"lr": 1e30}}}, seeds=[0, 1])
    assert list(run_study(study, tmp_path / "out", progress=False)) == ["a_seed-0", "a_seed-1"]
    assert rows(tmp_path / "out") == []
    assert not (tmp_path / "out" / "tables.md").exists()


def test_a_run_whose_checkpoint_is_damaged_fails_alone(tmp_path: Path, tiny: Any) -> None:
    study, out = study_of(tmp_path, base=tiny, methods={"a": {}}, seeds=[0, 1]), tmp_path / "out"
    run_study(study, out, progress=False, run_reports=False)
    damaged, other = (RunFolder(out / "runs" / f"a_seed-{seed}") for seed in (0, 1))
    damaged.summary.unlink()
    damaged.last.write_bytes(b"not a checkpoint")
    shutil.rmtree(other.path)
    failures = run_study(study, out, progress=False, run_reports=False)
    assert list(failures) == ["a_seed-0"]
    assert "last.safetensors" in failures["a_seed-0"]
    assert other.finished


def test_any_other_error_ends_the_study_and_names_the_run(tmp_path: Path, tiny: Any) -> None:
    study = study_of(tmp_path, base=tiny, methods={"a": {}, "b": {"tasks": ["digitt"]}}, seeds=[0])
    with pytest.raises(ConfigError, match=r"unknown task 'digitt'.* \(in run b_seed-0 of the study\)$"):
        run_study(study, tmp_path / "out", progress=False)
    assert RunFolder(tmp_path / "out" / "runs" / "a_seed-0").finished


def test_a_warm_up_that_is_too_long_is_said_before_anything_is_run(tmp_path: Path, tiny: Any) -> None:
    study = study_of(tmp_path, base=tiny, methods={"a": {}, "b": {"sharing": {"name": "fisher", "warmup": 2}}})
    with pytest.raises(ConfigError, match=r"sharing 'fisher' would still be .* after 2 epochs.* \(in run b_seed-0 of"):
        run_study(study, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_values_that_are_lists_or_sections_have_columns_too(tmp_path: Path, tiny: Any) -> None:
    grid = {"encoder.hidden": [[4], [4, 4]], "sharing": [{"name": "random", "keep": 0.5}]}
    run_study(study_of(tmp_path, base=tiny, methods={"a": {}}, seeds=[0], grid=grid), tmp_path / "out", progress=False)
    values = {(row["encoder.hidden"], row["sharing"]) for row in rows(tmp_path / "out")}
    assert values == {("[4]", "random (keep 0.5)"), ("[4, 4]", "random (keep 0.5)")}


def test_progress_is_told_on_the_error_stream_one_line_a_run(
    study_file: Path,
    copied_study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(runner, "_run_one", lambda job: None)
    run_study(read_study(study_file, ["seeds=[0, 3]"]), copied_study)
    out, error = capsys.readouterr()
    assert out == ""
    assert error.splitlines() == [
        "3 of 6 runs are finished already.",
        "[1/3] stl_seed-3",
        "[2/3] random_keep-0.3_seed-3",
        "[3/3] random_keep-0.6_seed-3",
    ]


def test_side_by_side_every_run_is_run_once_and_its_failure_is_its_own(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, ran = read_study(study_file), []

    def fake(run: Any) -> str | None:
        ran.append(run.name)
        return f"{run.name} diverged" if run.config["seed"] else None

    monkeypatch.setattr(runner, "_run_one", fake)
    failures = run_study(study, tmp_path, engine=Threads(), progress=False)
    assert sorted(ran) == sorted(run.name for run in study.runs)
    assert failures == {run.name: f"{run.name} diverged" for run in study.runs if run.seed}


class Threads:
    """An engine of threads, which sees what is patched in this process."""

    in_turn = False

    @contextmanager
    def open(self) -> Iterator[Any]:
        with ThreadPoolExecutor(4) as pool:
            yield lambda function, items: (pair for pair in zip(items, pool.map(function, items), strict=True))


def test_an_error_side_by_side_ends_the_study(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Any) -> str | None:
        raise ConfigError(run.name)

    monkeypatch.setattr(runner, "_run_one", fail)
    with pytest.raises(ConfigError, match="seed"):
        run_study(read_study(study_file), tmp_path, engine=Threads(), progress=False)


@pytest.mark.slow
def test_jobs_side_by_side_end_in_the_same_results(
    study_file: Path, finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(study_file, ["grid.optimizer.lr=[1e-3, 1e30]", "seeds=[0]"])
    with use_threads(3):
        failures = run_study(study, tmp_path / "out", jobs=2, progress=False, finished=mark)
    assert sorted(failures) == sorted(run.name for run in study.runs if run.values["optimizer.lr"] == 1e30)
    found = [
        {key: row[key] for key in ("method", "sharing.keep", "task", "metric", "value")}
        for row in figures(tmp_path / "out")
    ]
    alone = [{key: row[key] for key in found[0]} for row in figures(finished_study) if row["seed"] == "0"]
    assert found == alone
    for folder in (tmp_path / "out" / "runs").iterdir():
        assert json.loads((folder / "environment.json").read_text())["threads"] == 1
        assert (folder / "marked").exists() == (folder.name not in failures)
    assert (tmp_path / "out" / "marked").exists()


def mark(folder: Path) -> None:
    """Leave a file in a folder; called in the processes of a study."""
    (folder / "marked").touch()


@pytest.mark.slow
def test_an_interrupt_ends_all_jobs_at_once_and_without_a_traceback(tmp_path: Path, tiny: Any) -> None:
    tiny["training"] = {"epochs": 100_000, "batch_size": 16}
    study_of(tmp_path, base=tiny, methods={"a": {}}, seeds=[0, 1, 2])
    command = [sys.executable, "-c", "from sparsemtl.cli.main import main; main()", "study", "some.yaml", "--jobs", "2"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored where pytest runs under nohup
    )
    while len(list(tmp_path.glob("runs/some/runs/*/checkpoints/last.safetensors"))) < 2:
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to this process and to its workers
    out, error = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert error == "Stopped. Resume with the same command.\n"


def draw(folder: Path) -> None:
    """Stand in for `write_report`."""
    (folder / "report.html").write_text("drawn", encoding="utf-8")


def test_reports_are_drawn_at_the_end_and_those_that_are_there_are_kept(study_file: Path, copied_study: Path) -> None:
    study, drawn = read_study(study_file, ["seeds=[1]"]), list[str]()

    def noted(folder: Path) -> None:
        drawn.append(folder.name)
        draw(folder)

    run_study(study, copied_study, progress=False, finished=noted)
    assert drawn == [*(run.name for run in study.runs), "study"]
    before = files(copied_study)
    run_study(study, copied_study, progress=False, finished=noted)
    assert len(drawn) == 4
    assert files(copied_study) == before
    (copied_study / "runs" / "stl_seed-1" / "report.html").unlink()
    run_study(study, copied_study, progress=False, finished=noted)
    assert drawn[4:] == ["stl_seed-1"]  # the study's page has the same links as before
    (copied_study / "report.html").unlink()
    run_study(study, copied_study, progress=False, finished=noted)
    assert drawn[5:] == ["study"]
    shutil.rmtree(copied_study / "runs" / "stl_seed-0")
    run_study(read_study(study_file), copied_study, progress=False, finished=noted)
    assert drawn[6:] == ["stl_seed-0", "random_keep-0.3_seed-0", "random_keep-0.6_seed-0", "study"]


def test_without_reports_of_runs_only_the_study_has_one(study_file: Path, copied_study: Path) -> None:
    run_study(read_study(study_file), copied_study, progress=False, finished=draw, run_reports=False)
    assert [path.parent for path in copied_study.rglob("report.html")] == [copied_study]


def test_tables_and_report_follow_what_they_show(study_file: Path, copied_study: Path) -> None:
    study, drawn = read_study(study_file), list[Path]()
    run_study(study, copied_study, progress=False, finished=draw)
    tables = (copied_study / "tables.md").read_bytes()
    (copied_study / "tables.md").unlink()
    summary = copied_study / "runs" / "stl_seed-0" / "summary.json"
    summary.write_text(summary.read_text().replace('"accuracy": 0.', '"accuracy": 0.0'))
    run_study(study, copied_study, progress=False)  # draws no report, which is then out of date
    assert (copied_study / "tables.md").read_bytes() != tables
    run_study(study, copied_study, progress=False, finished=drawn.append)
    assert drawn == [copied_study]


def test_data_are_read_once_by_runs_with_the_same_data(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = list[int](), type(DATASETS).build

    def counted(registry: Any, name: str, /, *given: Any, **parameters: Any) -> Any:
        if registry is DATASETS:
            built.append(parameters["seed"])
        return build(registry, name, *given, **parameters)

    monkeypatch.setattr(type(DATASETS), "build", counted)
    methods = {"a": {}, "b": {"sharing": "dense"}}
    tiny["training"]["epochs"] = 1
    study = study_of(tmp_path, base=tiny, methods=methods, seeds=[0], grid={"data.seed": [7, 8]})
    run_study(study, tmp_path / "out", progress=False)
    assert built == [7, 8]
    assert runner._data_with("").keys() == set()  # nothing is kept in memory
    for run in study.runs:
        alone = runs.run(run.config, tmp_path / "alone" / run.name, progress=False)
        summary = json.loads((tmp_path / "out" / "runs" / run.name / "summary.json").read_text())
        assert {task: entry["test"] for task, entry in summary["tasks"].items()} == alone


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """Undo the freeze of the tests."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def test_a_run_leaves_no_garbage_and_the_objects_of_the_application_alone(unfrozen: None) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    def make(count: int) -> Any:
        return weakref.ref(Cycle())

    gc.collect()
    before = weakref.ref(Cycle())
    for number in (1, 2):
        assert call(make, number)() is None
        assert gc.get_freeze_count() == 0
    gc.collect()
    assert before() is None
    gc.freeze()
    frozen = gc.get_freeze_count()
    call(make, 1)
    assert gc.get_freeze_count() >= frozen > 0


def test_workers_are_forked_only_if_a_server_was_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(workers, "_prepared", False)
    monkeypatch.setattr("multiprocessing.forkserver.set_forkserver_preload", lambda names: None)
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: started.append("server"))
    assert workers.worker_context().get_start_method() == "spawn"
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/nvidiactl")
    workers.prepare_workers()
    assert (started, workers.worker_context().get_start_method()) == ([], "spawn")
    monkeypatch.setattr("os.path.exists", lambda path: False)
    monkeypatch.setattr("sys.platform", "linux")
    workers.prepare_workers()
    assert (started, workers.worker_context().get_start_method()) == (["server"], "forkserver")


def test_a_study_whose_seeds_had_one_split_says_how_it_is_resumed(tmp_path: Path, tiny: Any) -> None:
    study = study_of(tmp_path, base=tiny, methods={"a": {}}, seeds=[1])
    before = {**study.runs[0].config, "data": {**study.runs[0].config["data"], "seed": 0}}
    with locked(tmp_path / "out"):
        StudyFolder(tmp_path / "out").run("a_seed-1").write_config(before)
    with pytest.raises(ConfigError, match=r"data\.seed is 0 there and null here.*`data\.seed=0` resumes such a study"):
        run_study(study, tmp_path / "out", progress=False)
