"""The study folder: its files, by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemtl.errors import CheckpointError
from sparsemtl.storage.run_folder import REPORT, RunFolder
from sparsemtl.storage.text_files import read_json, write_json
from sparsemtl.storage.wrong_folder import ABOUT, RUNS, wrong_folder


class StudyFolder:
    """Paths of a study folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.about = self.path / ABOUT
        self.config = self.path / "study.yaml"
        self.failures = self.path / "failures.json"
        self.results = self.path / "results.csv"
        self.search = self.path / "search.log"
        self.tables = self.path / "tables.md"
        self.table_figures = self.path / "tables.csv"
        self.report = self.path / REPORT
        self.runs = self.path / RUNS
        self.pretraining = self.path / "pretraining"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @classmethod
    def of_run(cls, run: RunFolder) -> StudyFolder | None:
        """Return the folder of the study that a run belongs to; None for a run of its own."""
        folder = cls(Path(os.path.abspath(run.path)).parent.parent)
        return folder if folder.exists else None

    @property
    def exists(self) -> bool:
        """True if the folder is a study's."""
        return self.about.is_file()

    def run(self, name: str) -> RunFolder:
        """Return the folder of a run of the study."""
        return RunFolder(self.runs / name)

    def run_folders(self) -> list[RunFolder]:
        """Return the folders of all runs that began, by name."""
        return [RunFolder(path) for path in sorted(self.runs.glob("*")) if path.is_dir()]

    def read_about(self) -> dict[str, Any]:
        """Read `study.json`: name, methods in their order, baseline, keys of the grid, and notes.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        if not self.exists:
            raise wrong_folder(self.path, "a study")
        about = read_json(self.about)
        if not isinstance(about, dict) or "name" not in about:
            raise CheckpointError(f"{self.about} is not a study's record that sparsemtl wrote: 'name' is missing.")
        return about

    def read_failures(self) -> dict[str, str]:
        """Read name -> reason of the runs without a result, as of the last time that the study was run.

        Raises:
            CheckpointError: if the file is damaged.
        """
        failures = read_json(self.failures) if self.failures.is_file() else {}
        if not isinstance(failures, dict):
            raise CheckpointError(f"{self.failures} is not a record that sparsemtl wrote. Delete it.")
        return failures

    def write_failures(self, failures: Mapping[str, str]) -> None:
        """Write the reasons of the runs without a result; without any there is no file."""
        if failures:
            write_json(self.failures, dict(failures))
        else:
            self.failures.unlink(missing_ok=True)

    @property
    def has_results(self) -> bool:
        """True if `results.csv` has a row below its head."""
        return self.results.is_file() and self.results.read_text(encoding="utf-8").count("\n") > 1
