"""`sparsemtl data check` says of tables what is there and whether it can be read; a configuration runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from table_files import lay_census, lay_movielens, lay_student, write
from typer.testing import CliRunner

from sparsemtl.cli import data as cli_data
from sparsemtl.data.check import inspect
from sparsemtl.runs.run import run

LAID: dict[str, Callable[[Path], object]] = {
    "census-income": lay_census,
    "student": lay_student,
    "movielens-100k": lay_movielens,
}


@pytest.mark.parametrize("name", LAID)
def test_what_is_there_can_be_read(name: str, tmp_path: Path) -> None:
    assert inspect(name, tmp_path).state == "absent"
    LAID[name](tmp_path)
    assert inspect(name, tmp_path).state == "there"
    result = CliRunner().invoke(cli_data.app, ["check", name, "--data-root", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "It can be read: " in result.output
    assert "not the whole data set" in result.output


@pytest.mark.parametrize("layout", ["official", "recbole"])
def test_either_layout_of_movielens_is_there(tmp_path: Path, layout: Any) -> None:
    lay_movielens(tmp_path, layout)
    assert inspect("movielens-100k", tmp_path).state == "there"


def test_a_configuration_of_a_few_lines_trains_on_a_users_table(tmp_path: Path) -> None:
    rows = [(n % 7, "ab"[n % 2], "yes" if n % 2 else "no", n % 7 / 2) for n in range(80)]
    path = write(tmp_path / "mine.csv", [("number", "letter", "answer", "size"), *rows])
    config = {
        "data": {"name": "table", "path": str(path), "targets": {"answer": "classification", "size": "regression"}},
        "encoder": {"name": "mlp", "hidden": [16]},
        "optimizer": {"name": "adam", "lr": 0.02},
        "training": {"epochs": 40, "batch_size": 16, "accelerator": "cpu"},
    }
    results = run(config, tmp_path / "run", progress=False)
    assert results["answer"]["accuracy"] == 1
    assert results["size"]["r2"] > 0.95
