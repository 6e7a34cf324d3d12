"""The report is a callback of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sparsemtl as sm
import sparsemtl.report.callback
from sparsemtl.errors import ParameterError, RecordWarning, missing_extra
from sparsemtl.report.callback import ReportCallback


def trainer(folder: Path | None) -> sm.Trainer:
    model = sm.SharedBottom(nn.Linear(2, 3), [sm.Regression("price")])
    options = {"epochs": 1, "accelerator": "cpu", "progress": False, "measure_cost": False}
    return sm.Trainer(model, folder=folder, callbacks=[ReportCallback()], **options)


def loader() -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    x = torch.arange(8.0).view(4, 2)
    return [(x, {"price": x.sum(1)})]


def test_the_report_is_written_once_the_run_was_tested(tmp_path: Path) -> None:
    training = trainer(tmp_path / "run").fit(loader(), loader())
    assert not (tmp_path / "run" / "report.html").exists()
    training.test(loader())
    assert "On test data" in (tmp_path / "run" / "report.html").read_text()


def test_without_a_run_folder_it_is_refused_before_training() -> None:
    with pytest.raises(ParameterError, match="expected a trainer with a run folder"):
        trainer(None).fit(loader(), loader())


def test_a_run_does_not_fail_for_want_of_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(folder: Path) -> Path:
        raise missing_extra("jinja2", "report", "A report")

    monkeypatch.setattr(sparsemtl.report.callback, "write_report", missing)
    with pytest.warns(RecordWarning, match=r"no report was written: A report needs 'jinja2'"):
        trainer(tmp_path / "run").fit(loader(), loader()).test(loader())
