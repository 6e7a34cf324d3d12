"""The folders of runs and studies, as a report reads them: summaries must be there, the rest may lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sparsemtl.errors import CheckpointError, MaskError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.storage.files import read_json, read_tree
from sparsemtl.study.results import Results, read_results

METRIC_COLUMNS = ("epoch", "step", "split", "task", "metric", "value")


@dataclass(frozen=True)
class RunFolder:
    """A finished or stopped run.

    Attributes:
        path: the folder.
        summary: `summary.json`.
        metrics: `metrics.csv`, columns `METRIC_COLUMNS`; empty if there is none. Rows of no task have "".
        config: the text of `config.yaml`, "" if there is none.
        environment: `environment.json`, empty if there is none.
    """

    path: Path
    summary: Mapping[str, Any]
    metrics: pd.DataFrame
    config: str
    environment: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Read a run folder.

        Raises:
            CheckpointError: if `summary.json` is missing, or a file is damaged.
        """
        environment = path / "environment.json"
        return cls(
            path,
            _mapping(path / "summary.json", "tasks"),
            _read_metrics(path / "metrics.csv"),
            _text(path / "config.yaml"),
            read_json(environment) if environment.is_file() else {},
        )

    @property
    def tasks(self) -> Mapping[str, Mapping[str, Any]]:
        """Task -> what the summary says of it, in order."""
        tasks: Mapping[str, Mapping[str, Any]] = self.summary["tasks"]
        return tasks

    @property
    def ended(self) -> datetime:
        """When the run ended: when its summary was written."""
        return datetime.fromtimestamp((self.path / "summary.json").stat().st_mtime)

    def curve(self, split: str, task: str, metric: str) -> pd.Series[float]:
        """A figure over time: epoch -> value, the mean where an epoch has several; gaps are left out."""
        m = self.metrics
        rows = m[(m["split"] == split) & (m["task"] == task) & (m["metric"] == metric)]
        return rows.dropna(subset=["value"]).groupby("epoch")["value"].mean()

    def masks(self) -> TaskMasks | None:
        """The masks that the run ended with, None for a dense run.

        Raises:
            CheckpointError: if the file is damaged.
        """
        path = self.path / "masks.safetensors"
        try:
            return TaskMasks.load(path) if path.is_file() else None
        except MaskError as error:
            raise CheckpointError(str(error)) from None

    def samples(self) -> Mapping[str, Any]:
        """Group -> its inputs `x` and, by task, targets and predictions; empty if the run kept none.

        Raises:
            CheckpointError: if the file is damaged.
        """
        path = self.path / "samples.safetensors"
        samples: Mapping[str, Any] = read_tree(path) if path.is_file() else {}
        return samples


@dataclass(frozen=True)
class StudyFolder:
    """A study, finished or not.

    Attributes:
        path: the folder.
        about: `study.json`.
        results: `results.csv`, in the order and with the baseline of `study.json`.
        runs: run id -> folder of every run that has ended, in the order of the results, then by name.
        unfinished: ids of the other runs.
        config: the text of `study.yaml`, "" if there is none.
    """

    path: Path
    about: Mapping[str, Any]
    results: Results
    runs: Mapping[str, RunFolder]
    unfinished: tuple[str, ...]
    config: str

    @classmethod
    def read(cls, path: Path) -> StudyFolder:
        """Read a study folder.

        Raises:
            CheckpointError: if `study.json` or `results.csv` is missing, or a file is damaged.
        """
        about = _mapping(path / "study.json", "name")
        frame = read_results(path / "results.csv")
        folders = sorted(folder for folder in (path / "runs").glob("*") if folder.is_dir())
        place = {run: i for i, run in enumerate(frame["run"].unique())} if "run" in frame else {}
        folders.sort(key=lambda folder: place.get(folder.name, len(place)))
        ended = {folder.name: (folder / "summary.json").is_file() for folder in folders}
        runs = {folder.name: RunFolder.read(folder) for folder in folders if ended[folder.name]}
        primary = {task: about["primary"] for run in runs.values() for task, about in run.tasks.items()}
        return cls(
            path,
            about,
            Results.of(frame, baseline=about.get("baseline"), methods=about.get("methods", ()), primary=primary),
            runs,
            tuple(name for name, done in ended.items() if not done),
            _text(path / "study.yaml"),
        )


def _mapping(path: Path, key: str) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or key not in value:
        raise CheckpointError(f"{path} is not a summary that sparsemtl wrote: {key!r} is missing.")
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _read_metrics(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame({column: pd.Series(dtype=object) for column in METRIC_COLUMNS})
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"task": str})
    except ValueError as error:  # pandas' own parser errors are ValueErrors
        raise CheckpointError(f"{path} is not a table of metrics: {error}.") from None
    for column in METRIC_COLUMNS:
        if column not in frame:
            raise CheckpointError(f"{path}: the column {column!r} is missing; found {', '.join(map(str, frame))}.")
    value = pd.to_numeric(frame["value"], errors="coerce").replace([float("inf"), float("-inf")], float("nan"))
    return frame.assign(task=frame["task"].fillna(""), value=value)
