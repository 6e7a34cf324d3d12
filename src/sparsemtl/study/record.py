"""Record of a study: its results and the records of its runs, read from the study folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemtl.storage.run_folder import RunRecord
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.study.reading import study_results
from sparsemtl.study.results import StudyResults


@dataclass(frozen=True)
class StudyRecord:
    """Record of a study, finished or not; made by `StudyRecord.read`.

    Attributes:
        folder: the study folder.
        about: content of `study.json`.
        results: the results, in the order and with the baseline of `study.json`.
        runs: name -> record of every run that ended, in the order of the results, then by name.
        unfinished: names of the runs that began and did not end.
        failures: name -> reason of the runs without a result, as of the last time that the study was run.
        config: text of `study.yaml`; "" without it.
    """

    folder: StudyFolder
    about: Mapping[str, Any]
    results: StudyResults
    runs: Mapping[str, RunRecord]
    unfinished: tuple[str, ...]
    failures: Mapping[str, str]
    config: str

    @classmethod
    def read(cls, path: str | Path) -> StudyRecord:
        """Read a study folder.

        Raises:
            CheckpointError: if `study.json` or `results.csv` is missing, or a file is damaged.
        """
        folder = StudyFolder(path)
        results = study_results(folder)
        index = {run: i for i, run in enumerate(results.frame["run"].unique())}
        runs = sorted(folder.run_folders(), key=lambda run: index.get(run.path.name, len(index)))
        return cls(
            folder,
            folder.read_about(),
            results,
            {run.path.name: run.read() for run in runs if run.ended},
            tuple(run.path.name for run in runs if not run.ended),
            folder.read_failures(),
            folder.config.read_text(encoding="utf-8") if folder.config.is_file() else "",
        )
