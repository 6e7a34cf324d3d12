"""The suite of speed scripts, with scripts that take no time."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("suite", ROOT / "suite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "RECORD", tmp_path / "results" / "speed.json")
    monkeypatch.setattr(module, "PAGE", tmp_path / "results" / "speed.md")
    yield module
    sys.modules.pop("common", None)


def row(name: str, median: float, **changes: Any) -> dict[str, Any]:
    value = {"median": median, "low": median / 2, "high": median * 2}
    return {"name": name, "value": value, "goal": None, "unit": "", "at_least": False} | changes


def write(folder: Path, name: str, rows: list[dict[str, Any]], *, then: str = "") -> None:
    """A script that writes these rows."""
    text = f"""'''Speed of {name}.

    python benchmarks/{name}.py

A remark on {name}.
'''
import json, sys
if "--json" in sys.argv:
    open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps({rows!r}))
{then}
"""
    (folder / f"{name}.py").write_text(text)


def run(suite: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["suite.py", *arguments])
    return int(suite.main())


def test_all_rows_are_written_and_a_script_that_fails_is_named(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        "step_speed",
        [
            row("kept", 1.0, goal=1.1),
            row("missed", 2.0, goal=1.1),
            row("exact", 8.0, value=dict.fromkeys(["median", "low", "high"], 8.0)),
        ],
    )
    write(tmp_path, "bad_speed", [row("before", 3.0)], then="raise ValueError('it is broken')")
    growing = {"name": "by rows", "sizes": [10, 1000], "seconds": [0.5, 50], "megabytes": [1, 2], "remark": "it sorts"}
    write(tmp_path, "growth", [growing | {"time": 1.0, "memory": 0.15}])
    assert run(suite, monkeypatch) == 1
    page = (tmp_path / "results" / "speed.md").read_text()
    for text in (
        "1 of 2 goals are met",
        "## Speed of step_speed\n\n    python benchmarks/step_speed.py\n\nA remark on step_speed.",
        "| kept | 1.000 (0.500 - 2.000) | <= 1.1 | yes |",
        "| missed | 2.000 (1.000 - 4.000) | <= 1.1 | **no** |",
        "| exact | 8.000 | none set |  |",
        "| before | 3.000 (1.500 - 6.000) | none set |  |\n\n**`bad_speed.py` failed**: ValueError: it is broken",
        "| by rows | 10 / 1,000 | 0.5 / 50 | 1.00 | 1 / 2 | 0.15 | it sorts |",
    ):
        assert text in page
    write(tmp_path, "bad_speed", [row("before", 3.0)])
    assert run(suite, monkeypatch, "--only", "bad") == 0
    after = (tmp_path / "results" / "speed.md").read_text()
    assert "failed" not in after
    assert "| kept | 1.000" in after  # sections of other scripts stay


def test_a_script_that_takes_too_long_is_stopped_with_its_processes(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "LIMIT", {False: 3})
    child = "import time; time.sleep(600)"
    write(
        tmp_path,
        "slow_speed",
        [row("in time", 1.0)],
        then=f"import subprocess; subprocess.run([sys.executable, '-c', {child!r}])",
    )
    assert run(suite, monkeypatch) == 1  # returns though the child holds the pipe of messages
    page = suite.PAGE.read_text()
    assert "| in time | 1.000" in page
    assert "**`slow_speed.py` failed**: stopped after 3 s" in page


@pytest.mark.parametrize(
    ("unit", "at_least", "median", "same_cpu", "is_worse"),
    [
        ("", False, 1.09, True, False),
        ("", False, 1.11, False, True),
        ("", False, 0.5, True, False),
        ("x", True, 0.95, True, False),
        ("x", True, 0.9, False, True),
        ("s", False, 2.0, True, True),
        ("s", False, 2.0, False, False),
        ("GB", False, 2.0, False, True),
    ],
)
def test_rows_that_became_worse_are_named_where_figures_carry_over(
    suite: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unit: str,
    at_least: bool,
    median: float,
    same_cpu: bool,
    is_worse: bool,
) -> None:
    write(tmp_path, "step_speed", [row("one", 1.0, unit=unit, at_least=at_least), row("gone", 1.0)])
    assert run(suite, monkeypatch) == 0
    record = suite.RECORD.read_text()
    if not same_cpu:
        suite.RECORD.write_text(record.replace(json.dumps(suite.machine()["CPU"]), '"another"'))
    before = suite.RECORD.read_text()
    write(tmp_path, "step_speed", [row("one", median, unit=unit, at_least=at_least), row("new", 9.0)])
    assert run(suite, monkeypatch, "--quick") == int(is_worse)
    printed = capsys.readouterr().out
    assert ("WORSE: step_speed.py: one: 1" in printed) == is_worse
    assert ("not compared: one" in printed) == (unit == "s" and not same_cpu)
    assert "not compared: new" in printed
    assert suite.RECORD.read_text() == before  # a comparison writes nothing
