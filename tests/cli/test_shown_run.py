"""The table that a run prints when it has ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loops import each

from sparsemtl.cli.terminal import show_run

METRIC = {"primary": "r2", "validation": {"r2": 0.5}, "test": {"r2": None}}


@each("choice", [{}, {"size": "dense"}])
def test_the_network_that_auto_chose_stands_beside_its_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: dict[str, str]
) -> None:
    summary = {"tasks": {"size": METRIC}, "architecture": {"choice": choice}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    show_run(tmp_path)
    head, row, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", *(["network"] if choice else []), "metric", "validation", "test"]
    assert row.split() == ["size", *choice.values(), "r2", "0.5000", "–"]
