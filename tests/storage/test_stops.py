"""A run that stopped leaves why: status and cause in its summary, the traceback beside it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsemtl.errors import ConfigError, ForwardError, NonFiniteError
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.stops import Cause, recorded_stop, remove_stop, traceback_file
from sparsemtl.storage.text_files import write_json


def folder_with(path: Path, summary: dict[str, Any] | None = None) -> RunFolder:
    """A run folder, with a summary if given."""
    folder = RunFolder(path / "run")
    if summary is not None:
        write_json(folder.summary, summary)
    return folder


def stopped(folder: RunFolder, error: BaseException, *, trains: bool = True) -> dict[str, Any] | None:
    """The summary after an error in the context, once training has begun; None if there is none."""

    def run() -> None:
        with recorded_stop(folder):
            if trains:
                write_json(folder.environment, {})
            raise error

    with pytest.raises(type(error)):
        run()
    return json.loads(folder.summary.read_text()) if folder.summary.exists() else None


def test_an_error_is_a_failure_with_its_cause_and_its_traceback(tmp_path: Path) -> None:
    folder, error = folder_with(tmp_path), NonFiniteError("the loss is nan.")
    assert stopped(folder, error) == {
        "name": "run",
        "status": "failed",
        "error": {
            "type": "NonFiniteError",
            "message": "the loss is nan.",
            "place": f"{__file__}, line {stopped.__code__.co_firstlineno + 7}, in run",
        },
    }
    assert folder.error_log.read_text().endswith("NonFiniteError: the loss is nan.\n")
    assert traceback_file(error) == traceback_file(pickle.loads(pickle.dumps(error))) == folder.error_log
    assert (folder.stop, folder.ended, folder.finished) == ("failed: NonFiniteError: the loss is nan.", False, False)


@pytest.mark.parametrize(
    ("error", "name"), [(KeyboardInterrupt(), "SIGINT"), (KeyboardInterrupt("SIGTERM"), "SIGTERM")]
)
def test_an_interruption_names_its_signal_and_has_no_traceback(
    tmp_path: Path, error: KeyboardInterrupt, name: str
) -> None:
    folder = folder_with(tmp_path)
    assert stopped(folder, error) == {"name": "run", "status": "interrupted", "signal": name}
    assert not folder.error_log.exists()
    assert folder.stop == f"was interrupted by {name}"


@pytest.mark.parametrize(
    ("error", "log"), [(ConfigError("no"), False), (KeyboardInterrupt(), False), (ZeroDivisionError(), True)]
)
def test_before_training_only_an_error_of_others_leaves_a_record(
    tmp_path: Path, error: BaseException, log: bool
) -> None:
    folder = folder_with(tmp_path)
    assert (stopped(folder, error, trains=False) is not None) == folder.error_log.exists() == log
    assert not folder.ended
    interrupted = {"name": "run", "status": "interrupted", "signal": "SIGINT"}
    earlier = folder_with(tmp_path / "other", interrupted)
    assert (stopped(earlier, error, trains=False) != interrupted) == log


def test_a_record_goes_when_the_run_goes_on_and_results_stay(tmp_path: Path) -> None:
    trained = {"name": "run", "status": "trained", "tasks": {"a": {}}}
    folder = folder_with(tmp_path, trained)
    summary = stopped(folder, ValueError("x"))
    assert summary is not None
    assert summary["error"].pop("place").endswith("in run")
    assert summary == {**trained, "status": "failed", "error": {"type": "ValueError", "message": "x"}}
    assert folder.ended
    remove_stop(folder)
    assert json.loads(folder.summary.read_text()) == trained
    assert not folder.error_log.exists()
    without = folder_with(tmp_path / "other")
    stopped(without, ValueError("x"))
    remove_stop(without)
    assert not without.summary.exists()


def test_the_summary_of_a_finished_run_stays(tmp_path: Path) -> None:
    finished = {"name": "run", "status": "finished", "tasks": {}}
    folder = folder_with(tmp_path, finished)
    assert stopped(folder, ValueError("no report")) == finished
    assert folder.error_log.exists()
    assert folder.finished


def test_a_full_disk_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = folder_with(tmp_path)
    monkeypatch.setattr("sparsemtl.storage.stops.write_text", full)
    monkeypatch.setattr("sparsemtl.storage.stops.write_json", full)
    with pytest.raises(ZeroDivisionError), recorded_stop(folder):
        raise ZeroDivisionError


def test_a_cause_without_text_is_its_class_and_memory_that_is_used_up_has_advice() -> None:
    assert str(Cause.of(ZeroDivisionError())) == "ZeroDivisionError"
    assert str(Cause.of(KeyError("pixels"))) == "KeyError: 'pixels' is missing"
    assert "use smaller batches" in str(Cause.of(MemoryError()))
    assert "use smaller batches" not in str(Cause.of(ForwardError("out of memory")))
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    text = str(Cause.of(error.value))
    assert "you tried to allocate" in text
    assert "use smaller batches" in text


def test_the_place_is_that_of_the_cause_in_code_of_the_users_own() -> None:
    def own() -> None:
        torch.ones(2).reshape(3)

    def failing() -> None:
        try:
            own()
        except RuntimeError as cause:
            raise ForwardError("module failed.") from cause

    with pytest.raises(ForwardError) as error:
        failing()
    assert Cause.of(error.value).place == f"{__file__}, line {own.__code__.co_firstlineno + 1}, in own"
