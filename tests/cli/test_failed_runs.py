"""A run that fails on the command line: exit status, last lines, record in the folder, and the way on."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsemtl.cli.main import main
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.report import write_report
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.training import Trainer

LOSS = """
from pathlib import Path
from torch.nn.functional import cross_entropy

calls = []

def loss(outputs, targets):
    if Path("broken").exists():
        calls.append(1)
        if len(calls) > 5:
            return cross_entropy(outputs, targets) * {}["weight"]
    return cross_entropy(outputs, targets)
"""

Command = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def sparsemtl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, no_reports: None
) -> Iterator[Command]:
    """The command in an empty folder; it returns exit status and lines of the error stream."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def command(*words: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["sparsemtl", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        error = capsys.readouterr().err
        assert "Traceback (most recent call last)" not in error
        return int(ended.value.code or 0), error.splitlines()

    yield command
    for number, handler in before.items():
        signal.signal(number, handler)


def record(folder: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text())
    return summary


def test_an_error_in_code_of_the_users_own_is_named_with_its_place_and_the_run_goes_on_without_it(
    sparsemtl: Command, tiny: dict[str, Any], tmp_path: Path
) -> None:
    Path("own.py").write_text(LOSS)
    Path("r.yaml").write_text(dump_yaml({**tiny, "task_options": {"digit": {"loss": "own.py:loss"}}}))
    assert sparsemtl("run", "r.yaml", "-q", "--out", "whole")[0] == 0
    Path("broken").touch()
    code, lines = sparsemtl("run", "r.yaml", "-q", "--out", "r")
    assert code == 1
    assert lines[:2] == [
        "The run stopped. Once the cause is removed, resume it with `sparsemtl resume r`.",
        f"The traceback is in {Path('r/error.log')}.",
    ]
    assert lines[-2].startswith("ForwardError: ")
    assert "task 'digit': its loss failed on outputs of shape" in lines[-2]
    assert lines[-1] == f"It was raised in {tmp_path / 'own.py'}, line 11, in loss."
    assert "KeyError: 'weight'" in Path("r/error.log").read_text()
    assert (record("r")["status"], record("r")["error"]["type"]) == ("failed", "ForwardError")
    with pytest.raises(CheckpointError, match=r"the run in r failed: ForwardError: .*Go on with `sparsemtl resume r`"):
        write_report("r")
    assert " It failed: ForwardError: " in sparsemtl("run", "r.yaml", "--out", "r")[1][0]

    Path("broken").unlink()
    assert sparsemtl("resume", "r", "-q")[0] == 0
    assert record("r")["status"] == "finished"
    assert not Path("r/error.log").exists()
    assert Path("r/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_a_loss_that_becomes_infinite_ends_in_its_cause(sparsemtl: Command, tiny: dict[str, Any]) -> None:
    Path("r.yaml").write_text(dump_yaml({**tiny, "optimizer": {"name": "adam", "lr": 1e30}}))
    code, lines = sparsemtl("run", "r.yaml", "-q", "--out", "r")
    assert code == 1
    assert lines[-1].startswith("NonFiniteLossError: the loss of task ")
    assert f"{record('r')['error']['type']}: {record('r')['error']['message']}" == lines[-1]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_is_recorded_with_its_signal(
    sparsemtl: Command, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def interrupted(self: Trainer, *given: Any) -> None:
        signal.raise_signal(signal.Signals[name])

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    Path("r.yaml").write_text(dump_yaml(tiny))
    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    code, lines = sparsemtl("run", "r.yaml", "-q", "--out", "r")
    signal.signal(signal.SIGINT, before)
    assert (code, lines) == (128 + signal.Signals[name], ["Stopped. Resume with `sparsemtl resume r`."])
    assert record("r") == {"name": "r", "status": "interrupted", "signal": name}


def test_an_error_of_others_before_training_is_recorded_and_the_run_starts_anew_in_its_folder(
    sparsemtl: Command, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in a plugin")

    Path("r.yaml").write_text(dump_yaml(tiny))
    with monkeypatch.context() as patch:
        patch.setattr("sparsemtl.runs.run.make_trainer", failing)
        code, lines = sparsemtl("run", "r.yaml", "-q", "--out", "r")
    assert code == 1
    assert lines[:2] == [f"The traceback is in {Path('r/error.log')}.", "ZeroDivisionError: in a plugin"]
    assert record("r")["status"] == "failed"
    assert sparsemtl("run", "r.yaml", "-q", "--out", "r")[0] == 0
    assert record("r")["status"] == "finished"
    assert not Path("r/error.log").exists()


def test_a_mistake_that_comes_up_when_training_is_set_up_leaves_no_folder(
    sparsemtl: Command, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise ParameterError("no such accelerator.")

    Path("r.yaml").write_text(dump_yaml(tiny))
    monkeypatch.setattr(Trainer, "set_up", refusing)
    code, lines = sparsemtl("run", "r.yaml", "-q", "--out", "r")
    assert (code, lines[0]) == (1, "ParameterError: no such accelerator.")
    assert not Path("r").exists()


def test_an_error_without_a_run_has_its_traceback_in_a_temporary_file(
    sparsemtl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(path: Path) -> None:
        raise ZeroDivisionError("in a page")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sparsemtl.report.write_report", failing)
    code, lines = sparsemtl("report", "somewhere")
    (log,) = tmp_path.glob("sparsemtl-error-*.log")
    assert code == 1
    assert lines[:2] == [f"The traceback is in {log}.", "ZeroDivisionError: in a page"]
    assert log.read_text().startswith("Traceback (most recent call last)")
