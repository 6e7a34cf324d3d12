"""The records of benchmarks: lines per row and seed that go on from session to session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from sparsemtl.runs.config import check
from sparsemtl.study.grid import read_study
from sparsemtl.study.results import read_results
from sparsemtl.study.runner import run_study

ROOT = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT))
    yield import_module("records")
    sys.modules.pop("records", None)


def lines(*rows: tuple[str, int, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["row", "seed", "settings", "error"])


def test_a_record_grows_by_seeds_and_a_new_line_replaces_its_seed(records: ModuleType, tmp_path: Path) -> None:
    records.update("pays/one", lines(("mtl", 0, "aa", 1.0), ("fisher, keep 0.1", 0, "bb", 2.0)), tmp_path)
    found = records.update("pays/one", lines(("mtl", 1, "aa", 3.0), ("mtl", 0, "aa", 1.5)), tmp_path)
    expected = lines(("mtl", 0, "aa", 1.5), ("mtl", 1, "aa", 3.0), ("fisher, keep 0.1", 0, "bb", 2.0))
    pd.testing.assert_frame_equal(found, expected)
    assert (tmp_path / "pays" / "one.csv").read_text().splitlines()[1] == "mtl,0,aa,1.5"


def test_the_same_lines_again_leave_the_file_as_it_is(records: ModuleType, tmp_path: Path) -> None:
    new = lines(("mtl", 0, "1e5", 1 / 3), ("NA", 1, "007", 2e-7))  # a fingerprint and a name that look like others
    records.update("one", new, tmp_path)
    before = (tmp_path / "one.csv").read_bytes()
    found = records.update("one", new, tmp_path)
    assert (tmp_path / "one.csv").read_bytes() == before
    records.update("one", found, tmp_path)
    assert (tmp_path / "one.csv").read_bytes() == before
    assert list(found["settings"]) == ["1e5", "007"]


def test_seeds_of_a_row_with_other_settings_are_refused(records: ModuleType, tmp_path: Path) -> None:
    records.update("one", lines(("mtl", 0, "aa", 1.0), ("mtl", 1, "aa", 1.0)), tmp_path)
    before = (tmp_path / "one.csv").read_bytes()
    with pytest.raises(records.RecordError, match=r"one.csv: row 'mtl' .* aa for seeds 1, bb for seeds 0.* Delete"):
        records.update("one", lines(("mtl", 0, "bb", 1.0)), tmp_path)
    assert (tmp_path / "one.csv").read_bytes() == before
    whole = records.update("one", lines(("mtl", 0, "bb", 1.0), ("mtl", 1, "bb", 2.0)), tmp_path)
    assert list(whole["settings"]) == ["bb", "bb"]


def test_a_line_that_is_new_twice_is_refused(records: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(records.RecordError, match="row 'mtl', seed 0, found two"):
        records.update("one", lines(("mtl", 0, "aa", 1.0), ("mtl", 0, "aa", 1.0)), tmp_path)
    assert not (tmp_path / "one.csv").exists()


def test_no_lines_leave_no_file(records: ModuleType, tmp_path: Path) -> None:
    assert not len(records.update("one", records.of_study(tmp_path, ["mse"]), tmp_path))
    assert not (tmp_path / "one.csv").exists()


def test_a_fingerprint_is_of_what_results_depend_on(records: ModuleType) -> None:
    config = check({"data": "clustered-regressions", "encoder": "mlp"})

    def changed(section: str, **values: Any) -> dict[str, Any]:
        return {**config, section: {**config[section], **values}}

    own = records.fingerprint(config)
    same = [
        {**config, "seed": 7, "label": "other"},
        changed("data", root="/elsewhere"),
        changed("training", threads=8),
        {**config, "of_a_later_version": None, "another": [], "a_third": 0},
    ]
    assert {records.fingerprint(each) for each in same} == {own}
    others = [changed("training", epochs=3), changed("optimizer", lr=0.5), changed("data", clusters=1)]
    assert len({own, *(records.fingerprint(each) for each in others)}) == 4
    here, there = ({**config, "start_from": f"/{name}/dense-0"} for name in ("a", "b"))
    assert records.fingerprint(here) == records.fingerprint(there) != own


def test_a_study_s_record_has_the_figures_of_its_results(records: ModuleType, tmp_path: Path) -> None:
    source = {
        "base": {
            "data": {"name": "clustered-regressions", "train_size": 32, "validation_size": 16, "test_size": 16},
            "encoder": {"name": "mlp", "hidden": [4]},
            "training": {"epochs": 1, "measure_cost": False},
        },
        "seeds": [0, 1],
        "methods": {"mtl": {}, "random, few": {"sharing": "random", "grid": {"sharing.keep": [0.3]}}},
    }
    file = tmp_path / "study.yaml"
    file.write_text(str(source))
    run_study(read_study(file), tmp_path / "study", run_reports=False)

    record = records.update(
        "study", records.of_study(tmp_path / "study", ["mse", "seconds"], lambda run: {"name": run.path.name}), tmp_path
    )
    assert list(dict.fromkeys(record["row"])) == ["mtl", "random, few, keep 0.3"]
    assert record.groupby("row")["settings"].nunique().eq(1).all()
    assert record["settings"].nunique() == 2
    key = ["method", "seed", "sharing.keep", "split", "task", "metric"]
    expected = read_results(tmp_path / "study" / "results.csv")
    expected = expected[expected["metric"].isin(["mse", "seconds"])].assign(task=lambda rows: rows["task"].fillna(""))
    both = records.long(record).merge(expected, on=key, suffixes=("", " expected"))
    assert len(both) == len(expected) == len(records.long(record))
    assert both["value"].to_numpy() == pytest.approx(both["value expected"].to_numpy(), rel=1e-5)
    assert (both["higher_is_better"] == both["higher_is_better expected"]).all()
    assert (both["name"] == both["run expected"]).all()
