"""The table of a finished study: printed again without a check where nothing has changed, and only there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsemtl.cli import finished
from sparsemtl.cli.finished import command_digest, keep, recall
from sparsemtl.cli.study_table import PrintedTable
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.text_files import write_json
from sparsemtl.study.shown import RECORD, digest

TABLE = PrintedTable("accuracy", ["digit\n↑", "seeds"], [["stl", "0.5\n±0.1", "2"]], "A note.")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("training: {epochs: 1}\n")
    path = tmp_path / "small.yaml"
    path.write_text("base: base.yaml\nmethods: {stl: }\nseeds: [0, 1]\n")
    return path


@pytest.fixture
def folder(tmp_path: Path, file: Path) -> StudyFolder:
    """A study folder as after its command, without the files that the command does not read again."""
    folder = StudyFolder(tmp_path / "out")
    for run in (folder.run("stl_seed-0"), folder.run("stl_seed-1"), RunFolder(folder.pretraining / "seed-0")):
        write_json(run.summary, {"status": "finished"})
        run.config.write_text("seed: 0\n")
        run.report.write_text("report")
    write_json(folder.about, {"name": "small"})
    for path in (folder.config, folder.results, folder.tables, folder.table_figures, folder.report):
        path.write_text("text")
    write_json(folder.path / RECORD, {"tables": digest(folder), "report": digest(folder)})
    keep(folder, command_digest(file, [], []), ["stl_seed-0", "stl_seed-1"], TABLE)
    return folder


def test_a_finished_study_is_recalled(folder: StudyFolder, file: Path) -> None:
    assert recall(folder, command_digest(file, [], []), run_reports=True) == (2, TABLE)


CHANGES: dict[str, Callable[[StudyFolder, Path], object]] = {
    "study file": lambda folder, file: file.write_text(file.read_text() + "notes: more\n"),
    "base": lambda folder, file: (file.parent / "base.yaml").write_text("training: {epochs: 2}\n"),
    "no study file": lambda folder, file: file.unlink(),
    "wrong study file": lambda folder, file: file.write_text("methods: ["),
    "plugins": lambda folder, file: file.write_text("plugins: [a.py]\n" + file.read_text()),
    "configuration": lambda folder, file: folder.run("stl_seed-0").config.write_text("seed: 1\n"),
    "summary": lambda folder, file: write_json(folder.run("stl_seed-0").summary, {"status": "finished", "seconds": 1}),
    "unfinished": lambda folder, file: write_json(folder.run("stl_seed-0").summary, {"status": "running"}),
    "no summary": lambda folder, file: folder.run("stl_seed-1").summary.unlink(),
    "another run": lambda folder, file: write_json(folder.run("new").summary, {"status": "finished"}),
    "pretraining": lambda folder, file: write_json(RunFolder(folder.pretraining / "seed-0").summary, {}),
    "results": lambda folder, file: folder.results.write_text("other"),
    "no tables": lambda folder, file: folder.tables.unlink(),
    "no report": lambda folder, file: folder.report.unlink(),
    "no report of a run": lambda folder, file: folder.run("stl_seed-0").report.unlink(),
    "no report of pretraining": lambda folder, file: RunFolder(folder.pretraining / "seed-0").report.unlink(),
    "older report": lambda folder, file: write_json(folder.path / RECORD, {"tables": digest(folder), "report": "old"}),
    "damaged record": lambda folder, file: (folder.path / ".finished.json").write_text("{"),
    "foreign record": lambda folder, file: (folder.path / ".finished.json").write_text("[]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_not_after_a_change(folder: StudyFolder, file: Path, change: str) -> None:
    CHANGES[change](folder, file)
    assert recall(folder, command_digest(file, [], []), run_reports=True) is None


def test_it_is_not_with_other_words_or_other_code(
    folder: StudyFolder, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recall(folder, command_digest(file, ["training.epochs=2"], []), run_reports=True) is None
    assert command_digest(file, [], ["a.py"]) is None
    assert command_digest(file, ["plugins=[a.py]"], []) is None
    monkeypatch.setattr(finished, "entry_points", lambda group: ["one"])
    assert command_digest(file, [], []) is None
    monkeypatch.setattr(finished, "entry_points", lambda group: [])
    monkeypatch.setattr(finished, "_code", lambda: ["a.py 1 1"])
    assert recall(folder, command_digest(file, [], []), run_reports=True) is None


def test_reports_of_runs_are_not_needed_without_run_reports(folder: StudyFolder, file: Path) -> None:
    RunFolder(folder.pretraining / "seed-0").report.unlink()  # those of runs are part of what the tables show
    assert recall(folder, command_digest(file, [], []), run_reports=False) == (2, TABLE)


def test_its_command_prints_the_table_without_the_libraries_of_training(folder: StudyFolder, file: Path) -> None:
    code = (
        "import sys; from sparsemtl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'pandas', 'matplotlib', 'torchmetrics'} & set(sys.modules)"
    )
    words = ("study", str(file), "--out", str(folder.path))
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "2 of 2 runs are finished already.\n")
    title, *_, row, deviation, empty, note, tables, report = (line.strip() for line in done.stdout.splitlines())
    assert (title, row.split(), deviation, note) == ("accuracy", ["stl", "0.5", "2"], "±0.1", "A note.")
    assert (empty, tables, report) == ("", f"Tables: {folder.tables}", f"Report: {folder.report}")
