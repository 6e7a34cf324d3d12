"""Tuned settings, several studies at once, tables in LaTeX, and the command that compares."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pandas as pd
import pytest
from test_evidence import make_study
from typer.testing import CliRunner

from sparsemtl.cli.main import app
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.study.latex import to_latex
from sparsemtl.study.results import StudyResults, best_settings, tuned_settings
from sparsemtl.study.tables import primary_table


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("studies")
    return make_study(root / "x", "first"), make_study(root / "y", "second_set")


def tuned() -> StudyResults:
    """Two values of keep, each with two of lr: validation prefers lr 1 at keep 0.1, and lr 2 at keep 0.2."""
    best = {(0.1, 1): 0.9, (0.1, 2): 0.8, (0.2, 1): 0.6, (0.2, 2): 0.7}
    rows = [
        (
            f"f{keep}{lr}{seed}",
            "f",
            seed,
            keep,
            lr,
            split,
            "t",
            "accuracy",
            True,
            value if split == "validation" else 0.5,
        )
        for (keep, lr), value in best.items()
        for seed in (0, 1)
        for split in ("validation", "test")
    ]
    columns = ["run", "method", "seed", "sharing.keep", "optimizer.lr", "split", "task", "metric", "higher_is_better"]
    return StudyResults.of(pd.DataFrame(rows, columns=[*columns, "value"]), tuned=["optimizer.lr"])


def test_a_tuned_key_has_one_row_per_value_of_the_grid() -> None:
    assert list(tuned_settings(tuned()).settings.index) == ["f, keep 0.1, lr 1", "f, keep 0.2, lr 2"]
    assert list(best_settings(tuned()).settings.index) == ["f, keep 0.1, lr 1"]
    note = primary_table(tuned_settings(tuned())).note
    assert (
        note == "optimizer.lr of each row is the best on validation data, mean over seeds, of the values tried: 1, 2."
    )
    assert primary_table(tuned()).note == ""  # a table of all values


def test_a_tuned_key_must_be_in_the_grid() -> None:
    with pytest.raises(ParameterError, match=r"unknown key of the grid 'optimizer\.l'"):
        StudyResults.of(tuned().frame.drop(columns="setting"), tuned=["optimizer.l"])


def test_one_study_is_read_with_all_settings(folders: tuple[Path, Path]) -> None:
    results = StudyResults.read(folders[0])
    assert len(results.settings) == 9
    assert results.baseline == "stl"
    assert list(results.tuned) == ["optimizer.lr"]


def test_several_studies_are_data_sets_whose_methods_are_chosen_apart(folders: tuple[Path, Path]) -> None:
    results = StudyResults.read(*folders)
    assert list(results.settings.index) == ["stl", "mtl", "fisher"]
    assert results.tasks == ("first: a", "first: b", "second_set: a", "second_set: b")
    assert results.common == results.tasks
    alone = best_settings(StudyResults.read(folders[0]))
    whole, part = primary_table(results).figures.mean, primary_table(alone).figures.mean
    assert whole.loc["mtl", "first: a"] == part.loc["mtl, lr 0.1", "a"]
    assert results.friedman(baseline=True).blocks == 12
    assert {interval.seeds for interval in results.intervals()} == {3}


def test_studies_that_do_not_go_together_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="needs a study folder"):
        StudyResults.read()
    with pytest.raises(ParameterError, match="are both called 'first'"):
        StudyResults.read(folders[0], folders[0])
    with pytest.raises(ParameterError, match=r"no study has a method 'mlt' to compare with\. Known: stl, mtl, fisher"):
        StudyResults.read(*folders, baseline="mlt")
    other = make_study(tmp_path, "other")
    about = (other / "study.json").read_text().replace('"baseline": "stl"', '"baseline": "mtl"')
    (other / "study.json").write_text(about)
    with pytest.raises(ParameterError, match=r"the studies have different baselines: .*--baseline"):
        StudyResults.read(folders[0], other)
    assert StudyResults.read(folders[0], other, baseline="stl").baseline == "stl"
    with pytest.raises(CheckpointError, match=r"none does not exist; expected the folder of a study"):
        StudyResults.read(tmp_path / "none")


def test_a_table_by_another_metric(folders: tuple[Path, Path]) -> None:
    best = StudyResults.read(folders[0]).best()
    assert list(best.table("accuracy").metrics) == ["a"]
    with pytest.raises(ParameterError, match=r"unknown metric 'acuracy'\. Did you mean 'accuracy'"):
        best.table("acuracy")


def test_latex_has_rules_bold_best_values_and_escaped_names(folders: tuple[Path, Path]) -> None:
    lines = to_latex(primary_table(StudyResults.read(*folders))).splitlines()
    assert lines[1:5] == [
        r"\begin{tabular}{lrrrrrrr}",
        r"\toprule",
        r"  method & first: a & first: b & second\_set: a & second\_set: b & rank & $\Delta$m \% & seeds \\",
        r"   & " + r"accuracy $\uparrow$ & r2 $\uparrow$ & " * 2 + r"$\downarrow$ & $\uparrow$ &  \\",
    ]
    assert re.fullmatch(r"  fisher & \\textbf\{0\.7010\} \{\\scriptsize \$\\pm\$ 0\.0010\} .* & 3 \\\\", lines[-3])
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    columns = {line.count(" & ") for line in lines if line.endswith(r" \\")}
    assert columns == {7}


def run(*words: object) -> str:
    done = CliRunner().invoke(app, ["compare", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_command_prints_tables_tests_and_weak_points(folders: tuple[Path, Path], tmp_path: Path) -> None:
    text = run(*folders)
    for part in ("primary metrics", "t interval of its mean, paired by seed", "Wilcoxon signed-rank test"):
        assert part in text
    assert "weak" not in text
    assert "bootstrap" in run(folders[0], "--bootstrap", "--against", "mtl", "--level", "0.9")
    assert "end of its grid" in run(make_study(tmp_path, lrs=(0.01, 0.1)))


def test_the_command_prints_and_writes_every_format(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert run(folders[0], "-f", "markdown").startswith("| method | a accuracy ↑ |")
    assert r"\toprule" in run(folders[0], "--format", "latex")
    run(folders[0], "--format", "csv", "--baseline", "mtl", "--out", tmp_path)
    names = ("intervals", "pairs", "results")
    tables = {f"{name}.{ending}" for name in names for ending in ("csv", "md", "tex")}
    pictures = {f"{name}.{ending}" for name in ("gains", "profiles") for ending in ("pdf", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == tables | pictures
    rows = list(csv.DictReader(io.StringIO((tmp_path / "pairs.csv").read_text())))
    assert [row["second"] for row in rows] == ["fisher, lr 0.1"]
    (expected,) = StudyResults.read(folders[0], baseline="mtl").best().pairs()
    assert float(rows[0]["p (Holm)"]) == expected.holm  # not rounded
    assert r"  stl, lr 0.1 & $-7." in (tmp_path / "intervals.tex").read_text()


def test_the_command_refuses_other_formats(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ParameterError, match="unknown format 'html'"):
        run(folders[0], "--format", "html")
