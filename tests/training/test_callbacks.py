"""What callbacks are told, and what those that we ship do with it."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparsemtl as sm
from sparsemtl.errors import MissingExtraError, ParameterError
from sparsemtl.storage.metrics import METRIC_COLUMNS, MetricRow, parse_metrics
from sparsemtl.training.callbacks import (
    CALLBACKS,
    Callback,
    CSVCallback,
    FitInfo,
    MLflowCallback,
    ProgressBar,
    StepInfo,
    TensorBoardCallback,
    WandbCallback,
)


def info(resume_at: int | None = None, folder: Path | None = None) -> FitInfo:
    config = {"seed": 3, "sharing": {"name": "fisher", "keep": 0.3}}
    return FitInfo("demo", folder, config, 2, {"a": "accuracy"}, resume_at)


def rows(step: int, count: int = 3, split: str = "train") -> list[MetricRow]:
    return [MetricRow(step // 10 + 1, step, split, "a", f"m{i}", step + i / 7) for i in range(count)]


def started(path: Path, resume_at: int | None = None) -> CSVCallback:
    callback = CSVCallback(path)
    callback.on_fit_start(info(resume_at))
    return callback


def logged(path: Path, steps: range) -> list[MetricRow]:
    """Write a file with rows of these steps."""
    callback = started(path)
    for step in steps:
        callback.on_epoch_end(rows(step), improved=False)
    return [row for step in steps for row in rows(step)]


def read(path: Path) -> list[MetricRow]:
    return parse_metrics(path.read_bytes())[0]


# ---- CSV ---------------------------------------------------------------------------------------------------------


def test_the_file_has_a_header_and_a_line_per_figure(tmp_path: Path) -> None:
    logged(tmp_path / "metrics.csv", range(1, 3))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == METRIC_COLUMNS
    assert lines[1] == ["1", "1", "train", "a", "m0", "1.0"]
    assert len(lines) == 1 + 6


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00\ufffd"), max_size=8)
figures = st.builds(
    MetricRow, st.integers(0, 9), st.integers(0, 99), text, text, text, st.floats(allow_nan=False) | st.integers(-9, 9)
)


@settings(deadline=None)
@given(st.lists(figures, max_size=6))
def test_what_is_logged_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, expected: list[MetricRow]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.csv"
    started(path).append(expected)
    assert read(path) == expected


def test_a_metrics_name_may_hold_a_comma_and_quotes(tmp_path: Path) -> None:
    row = MetricRow(1, 1, "validation", "a", 'top-1, "macro"', 0.5)
    started(tmp_path / "metrics.csv").append([row])
    started(tmp_path / "metrics.csv", resume_at=1).append([row])
    assert read(tmp_path / "metrics.csv") == [row, row]


def test_undefined_figures_are_read_back(tmp_path: Path) -> None:
    started(tmp_path / "metrics.csv").append([MetricRow(1, 1, "test", "a", "r2", math.nan)])
    assert math.isnan(read(tmp_path / "metrics.csv")[0].value)


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    logged(tmp_path / "metrics.csv", range(5))
    started(tmp_path / "metrics.csv")
    assert read(tmp_path / "metrics.csv") == []


@pytest.mark.parametrize("resume_at", [0, 1, 4, 9])
def test_resuming_drops_what_came_later(tmp_path: Path, resume_at: int) -> None:
    before = logged(tmp_path / "metrics.csv", range(1, 6))
    started(tmp_path / "metrics.csv", resume_at=resume_at)
    assert read(tmp_path / "metrics.csv") == [row for row in before if row.step <= resume_at]


def test_a_test_replaces_the_figures_of_an_earlier_test_and_resuming_drops_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    before = logged(path, range(1, 3))
    for _ in range(2):
        CSVCallback(path).on_test_end(rows(2, split="test"))
        assert read(path) == [*before, *rows(2, split="test")]
    started(path, resume_at=2)
    assert read(path) == before


def test_a_resumed_file_goes_on(tmp_path: Path) -> None:
    before = logged(tmp_path / "metrics.csv", range(1, 4))
    started(tmp_path / "metrics.csv", resume_at=2).append(rows(3))
    assert read(tmp_path / "metrics.csv") == before


def test_resuming_without_a_file_begins_one(tmp_path: Path) -> None:
    started(tmp_path / "new" / "metrics.csv", resume_at=3).append(rows(4))
    assert read(tmp_path / "new" / "metrics.csv") == rows(4)


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    before = logged(path, range(1, 3))
    whole = path.read_bytes()
    started(path, resume_at=2).append([MetricRow(1, 2, "train", "a", "loss", 0.123456789)])
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[: min(cut, len(line) - 1)])
    assert read(path) == before
    started(path, resume_at=2).append(rows(3))
    assert read(path) == [*before, *rows(3)]


def test_a_half_written_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    before = logged(path, range(1, 5))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        started(path, resume_at=2)
    assert read(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


# ---- TensorBoard -------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value), as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_a_curve_per_figure(tmp_path: Path) -> None:
    callback = TensorBoardCallback()
    callback.on_fit_start(info(folder=tmp_path))
    for step in (1, 2):
        train, run = MetricRow(1, step, "train", "a", "loss", step / 2), MetricRow(1, step, "run", "", "lr", 0.25)
        callback.on_epoch_end([train, run], improved=True)
    callback.on_fit_end()
    assert scalars(tmp_path / "tensorboard") == {"a/train/loss": [(1, 0.5), (2, 1.0)], "run/lr": [(1, 0.25), (2, 0.25)]}


def test_tensorboard_forgets_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    for resume_at, steps, sign in ((None, range(1, 6), 1), (3, range(4, 7), -1)):
        callback = TensorBoardCallback(folder=tmp_path)
        callback.on_fit_start(info(resume_at))
        for step in steps:
            callback.on_epoch_end([MetricRow(1, step, "train", "a", "loss", float(sign * step))], improved=False)
        callback.on_fit_end()
    assert scalars(tmp_path) == {"a/train/loss": [(1, 1), (2, 2), (3, 3), (4, -4), (5, -5), (6, -6)]}


def test_tensorboard_without_a_folder_is_refused() -> None:
    with pytest.raises(ParameterError, match="expected a `folder`, or a trainer with a run folder"):
        TensorBoardCallback().on_fit_start(info())


# ---- Weights & Biases, MLflow ------------------------------------------------------------------------------------


class Recorder:
    """Stands for a package: records every call, as (name, arguments, options)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.found: list[Any] = []

    def module(self, name: str, *functions: str) -> ModuleType:
        module = ModuleType(name)
        for function in functions:
            setattr(module, function, self._recorded(function))
        return module

    def _recorded(self, function: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((function, arguments, options))
            if function == "init":
                summary = SimpleNamespace(update=self._recorded("summary.update"))
                log, finish = self._recorded("log"), self._recorded("finish")
                return SimpleNamespace(log=log, finish=finish, summary=summary)
            return self.found if function == "search_runs" else None

        return call

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


def run_through(callback: Callback, run: FitInfo) -> None:
    """Call what the trainer calls for one epoch and a test."""
    callback.on_fit_start(run)
    callback.on_epoch_end(rows(4, 2, "validation"), improved=True)
    callback.on_fit_end()
    callback.on_test_end(rows(4, 1, "test"))
    callback.on_run_end()


def test_weights_and_biases_gets_the_configuration_and_all_figures(tmp_path, monkeypatch) -> None:
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", wandb.module("wandb", "init"))
    run = info(folder=tmp_path)
    run_through(WandbCallback(project="p", options={"tags": ["x"]}), run)
    (_, _, options), (_, (epoch,), at), (_, (test,), _), _ = wandb.calls
    assert wandb.names() == ["init", "log", "summary.update", "finish"]
    assert options["project"], options["name"] == ("p", "demo")
    assert options["config"] == run.config
    assert options["dir"] == str(tmp_path)
    assert options["tags"] == ["x"]
    assert options["resume"] is None
    assert (epoch, at) == ({"a/validation/m0": 4.0, "a/validation/m1": 4 + 1 / 7}, {"step": 4})
    assert test == {"a/test/m0": 4.0}


def test_weights_and_biases_goes_on_with_a_run_that_resumes(tmp_path, monkeypatch) -> None:
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", wandb.module("wandb", "init"))
    run_through(WandbCallback(), info(3, tmp_path))
    assert wandb.calls[0][2]["resume"] == "auto"


MLFLOW = (
    "set_tracking_uri",
    "set_experiment",
    "search_runs",
    "start_run",
    "log_params",
    "log_metrics",
    "end_run",
)


def test_mlflow_gets_the_configuration_and_all_figures(tmp_path, monkeypatch) -> None:
    mlflow = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow.module("mlflow", *MLFLOW))
    run_through(MLflowCallback(experiment="e", tracking_uri="u"), info(folder=tmp_path))
    assert mlflow.calls[:2] == [("set_tracking_uri", ("u",), {}), ("set_experiment", ("e",), {})]
    assert ("start_run", (), {"run_name": "demo", "tags": {"sparsemtl.folder": str(tmp_path)}}) in mlflow.calls
    params = {"seed": 3, "sharing.name": "fisher", "sharing.keep": 0.3}
    assert ("log_params", (params,), {}) in mlflow.calls
    epoch, test = (call for call in mlflow.calls if call[0] == "log_metrics")
    assert epoch == ("log_metrics", ({"a/validation/m0": 4.0, "a/validation/m1": 4 + 1 / 7},), {"step": 4})
    assert test == ("log_metrics", ({"a/test/m0": 4.0},), {"step": 4})
    assert mlflow.names()[-1] == "end_run"


@pytest.mark.parametrize("known", [True, False])
def test_mlflow_goes_on_with_the_run_of_the_folder(tmp_path, monkeypatch, known) -> None:
    mlflow = Recorder()
    mlflow.found = [SimpleNamespace(info=SimpleNamespace(run_id="abc"))] if known else []
    monkeypatch.setitem(sys.modules, "mlflow", mlflow.module("mlflow", *MLFLOW))
    run_through(MLflowCallback(), info(3, tmp_path))
    (options,) = (options for name, _, options in mlflow.calls if name == "start_run")
    assert options.get("run_id") == ("abc" if known else None)
    assert ("log_params" in mlflow.names()) != known


def test_mlflow_gets_names_that_it_allows(monkeypatch) -> None:
    mlflow = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow.module("mlflow", *MLFLOW))
    callback = MLflowCallback()
    callback.on_fit_start(info())
    callback.on_epoch_end([MetricRow(1, 2, "validation", "a b", 'top-1, "macro"', 0.5)], improved=False)
    assert mlflow.calls[-1][1] == ({"a b/validation/top-1_ _macro_": 0.5},)


@pytest.mark.parametrize(
    ("callback", "module", "extra"),
    [
        (TensorBoardCallback(), "torch.utils.tensorboard", "tensorboard"),
        (WandbCallback(), "wandb", "wandb"),
        (MLflowCallback(), "mlflow", "mlflow"),
    ],
)
def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path, callback, module, extra) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs '{extra}': pip install 'sparsemtl\[{extra}\]'"):
        callback.on_fit_start(info(folder=tmp_path))


# ---- the base ----------------------------------------------------------------------------------------------------


def test_callbacks_are_built_by_name_and_print_as_they_are_built() -> None:
    assert set(CALLBACKS) >= {"tensorboard", "wandb", "mlflow"}
    callback = CALLBACKS.build("wandb", project="p")
    assert repr(callback) == "WandbCallback(project='p', options=None)"
    assert repr(ProgressBar()) == "ProgressBar()"


# ---- the trainer -------------------------------------------------------------------------------------------------


class Recording(Callback):
    """Records its events, and draws a random number at each."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.rows: list[MetricRow] = []
        self.steps: list[StepInfo] = []
        self.info: FitInfo | None = None

    def _record(self, event: str) -> None:
        self.events.append(event)
        torch.rand(1)

    def on_fit_start(self, run: FitInfo) -> None:
        self.info = run
        self._record("fit_start")

    def on_step(self, step: StepInfo) -> None:
        self.steps.append(step)
        self.events.append("step")

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        self.rows += rows
        self._record("improved" if improved else "epoch_end")

    def on_fit_end(self) -> None:
        self._record("fit_end")

    def on_test_end(self, rows: Sequence[MetricRow]) -> None:
        self.rows += rows
        self._record("test_end")

    def on_run_end(self) -> None:
        self._record("run_end")


def loader(seed: int) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 8, 3, generator=generator)
    return [(batch, {"a": batch[:, 0], "b": batch.sum(1)}) for batch in x]


def trainer(callbacks: Sequence[Callback] = (), **options: Any) -> sm.Trainer:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 4))
    model = sm.SharedBottom(encoder, [sm.Regression("a"), sm.Regression("b")])
    given = {"epochs": 2, "progress": False, "accelerator": "cpu", "measure_cost": False, "callbacks": callbacks}
    return sm.Trainer(model, **{**given, **options})


def test_events_come_in_order_and_figures_are_those_of_the_file(tmp_path: Path) -> None:
    recording = Recording()
    training = trainer([recording], folder=tmp_path / "run", name="demo")
    training.fit(loader(0), loader(1)).test(loader(2))
    events = [event.replace("improved", "epoch_end") for event in recording.events]
    epoch = ["step"] * 2 + ["epoch_end"]
    assert events == ["fit_start", *epoch, *epoch, "fit_end", "test_end", "run_end"]
    assert recording.events[3] == "improved"
    assert recording.rows == read(tmp_path / "run" / "metrics.csv")
    assert recording.info is not None
    assert recording.info.primary == {"a": "r2", "b": "r2"}
    assert (recording.info.name, recording.info.folder, recording.info.resume_at) == ("demo", tmp_path / "run", None)
    assert [(step.epoch, step.batch) for step in recording.steps[::2]] == [(1, 1), (2, 1)]


def test_callbacks_do_not_change_the_run() -> None:
    weights = []
    for callbacks in ([], [Recording(), Recording()]):
        training = trainer(callbacks)
        training.fit(loader(0), loader(1))
        weights.append(training.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_callbacks_are_closed_after_an_error() -> None:
    class Failing(Callback):
        def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
            raise RuntimeError("full")

    recording = Recording()
    with pytest.raises(RuntimeError, match="full"):
        trainer([recording, Failing()]).fit(loader(0), loader(1))
    assert recording.events[-1] == "fit_end"


def test_the_progress_bar_prints_a_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(progress=True).fit(loader(0), loader(1))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch   1/2  a r2 ")
    assert lines[0].endswith("  *")
    assert "  b r2 " in lines[1]
