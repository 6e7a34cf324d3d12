"""The run folder: paths of a run's files, readers of them, and writers of its configuration and environment."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

from sparsemtl.errors import CheckpointError
from sparsemtl.storage.metrics import MetricRow, read_metrics
from sparsemtl.storage.text_files import read_json, write_json, write_text
from sparsemtl.storage.wrong_folder import CONFIG, wrong_folder
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml

REPORT = "report.html"
"""Name of the report in the folder of a run or a study."""

STOPPED = ("failed", "interrupted")
"""Values of `status` in the summary of a run that stopped before its end, see `sparsemtl.storage.stops`."""


class RunFolder:
    """Paths, writers and readers of a run folder.

    Args:
        path: the folder; it is made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / CONFIG
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.model = self.path / "model.safetensors"
        self.inputs = self.path / "inputs.json"
        self.networks = self.path / "networks.safetensors"
        self.samples = self.path / "samples.safetensors"
        self.report = self.path / REPORT
        self.error_log = self.path / "error.log"
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.tensorboard = self.path / "tensorboard"
        self.pretraining = self.path / "pretraining"
        self.candidates = self.path / "candidates"
        self.choice = self.path / "choice.json"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def best(self, part: str) -> Path:
        """Return the checkpoint of the best epoch of `part`: "all", or a task that is selected on its own."""
        name = "best" if part == "all" else f"best-{part}"
        return self.path / "checkpoints" / f"{name}.safetensors"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that hold files of the run."""
        return self.path, self.last.parent

    @property
    def begun(self) -> bool:
        """True if the run can be resumed: it has a checkpoint, or its pretraining or its candidates began."""
        return self.last.exists() or self.pretraining.exists() or self.candidates.exists()

    @property
    def ended(self) -> bool:
        """True if the run has a summary with results: it finished, or it was trained."""
        return self.summary.is_file() and (not self.stop or "tasks" in read_json(self.summary))

    @property
    def stop(self) -> str:
        """Why the run stopped before its end: "was interrupted by SIGTERM", "failed: ValueError: ..."; else ""."""
        try:
            summary = read_json(self.summary)
            if summary["status"] == "interrupted":
                return f"was interrupted by {summary['signal']}"
            if summary["status"] == "failed":
                return f"failed: {summary['error']['type']}: {summary['error']['message']}".removesuffix(": ")
        except (CheckpointError, LookupError, TypeError):
            pass
        return ""

    @property
    def finished(self) -> bool:
        """True if the run finished and its summary is final."""
        summary = read_json(self.summary) if self.summary.exists() else {}
        if not isinstance(summary, dict):
            raise CheckpointError(
                f"{self.summary} is not a summary that sparsemtl wrote. Delete it to start the run anew."
            )
        return summary.get("status") == "finished"

    def remove_results(self) -> None:
        """Remove what an earlier run has written at its end, and its best models: a new run replaces it."""
        best = self.last.parent.glob("best*.safetensors")
        results = (self.summary, self.model, self.networks, self.choice, self.samples, self.report, self.error_log)
        for path in (*results, *best):
            path.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the complete configuration."""
        write_text(self.config, dump_yaml(config))

    def read_config(self) -> dict[str, Any]:
        """Read the configuration.

        Raises:
            CheckpointError: if the folder has none.
            ConfigError: if it is damaged.
        """
        if not self.config.exists():
            raise wrong_folder(self.path, "a run")
        return read_yaml(self.config)

    def read_summary(self) -> dict[str, Any]:
        """Read the summary.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        summary = read_json(self.summary)
        if not isinstance(summary, dict) or "tasks" not in summary:
            if self.stop:
                raise CheckpointError(f"the run in {self.path} has no results. It {self.stop}")
            raise CheckpointError(f"{self.summary} is not a summary that sparsemtl wrote: 'tasks' is missing.")
        return summary

    def read_metrics(self) -> list[MetricRow]:
        """Read the figures that were logged; none if there is no file.

        Raises:
            CheckpointError: if the file is no table of metrics.
        """
        return read_metrics(self.metrics) if self.metrics.is_file() else []

    def read_environment(self) -> dict[str, Any]:
        """Read versions and machine; empty if there is no file.

        Raises:
            CheckpointError: if the file is damaged.
        """
        environment = read_json(self.environment) if self.environment.is_file() else {}
        return environment if isinstance(environment, dict) else {}

    def read_samples(self) -> Mapping[str, Any]:
        """Read the samples of the test: group -> inputs `x` and, per task, targets and predictions; empty without.

        Raises:
            CheckpointError: if the file is damaged.
        """
        samples: Mapping[str, Any] = self.load(self.samples) if self.samples.is_file() else {}
        return samples

    def read(self) -> RunRecord:
        """Read the record of a run that ended.

        Raises:
            CheckpointError: if the summary is missing, or a file is damaged.
        """
        config = self.config.read_text(encoding="utf-8") if self.config.is_file() else ""
        return RunRecord(self, self.read_summary(), tuple(self.read_metrics()), config, self.read_environment())

    def write_environment(self, machine: Mapping[str, str], *, seed: int | None) -> None:
        """Write the versions of packages, the platform, `machine` and torch's present number of threads."""
        import torch

        packages = (
            "sparsemtl",
            "torch",
            "lightning-fabric",
            "torchmetrics",
            "torchjd",
            "numpy",
            "safetensors",
        )
        write_json(
            self.environment,
            {
                "versions": {
                    "python": platform.python_version(),
                    **{name: _version(name) for name in packages},
                },
                "platform": platform.platform(),
                **machine,
                "threads": torch.get_num_threads(),
                "seed": seed,
            },
        )

    def save(self, path: Path, tree: Any) -> None:
        """Write a checkpoint at once: a kill leaves the previous one or the new one."""
        from sparsemtl.storage.files import write_tree  # imports torch, which a look at a finished study does not need

        write_tree(path, tree)

    def load(self, path: Path) -> Any:
        """Read a checkpoint."""
        from sparsemtl.storage.files import read_tree

        return read_tree(path)


@dataclass(frozen=True)
class RunRecord:
    """Record of a run that ended; made by `RunFolder.read`.

    Attributes:
        folder: the run folder.
        summary: content of `summary.json`.
        metrics: rows of `metrics.csv`; empty without it.
        config: text of `config.yaml`; "" without it.
        environment: content of `environment.json`; empty without it.
    """

    folder: RunFolder
    summary: Mapping[str, Any]
    metrics: tuple[MetricRow, ...]
    config: str
    environment: Mapping[str, Any]

    @property
    def tasks(self) -> Mapping[str, Mapping[str, Any]]:
        """Task -> its entry in the summary, in order."""
        tasks: Mapping[str, Mapping[str, Any]] = self.summary["tasks"]
        return tasks

    @property
    def time(self) -> datetime:
        """Time at which the run ended: its summary was written then."""
        return datetime.fromtimestamp(self.folder.summary.stat().st_mtime)

    def curve(self, split: str, task: str, name: str) -> dict[int, float]:
        """Return a figure over time: epoch -> value.

        Where an epoch has several values, it is their mean; values that are not finite are left out.
        """
        values: dict[int, list[float]] = {}
        for row in self.metrics:
            if (row.split, row.task, row.name) == (split, task, name) and math.isfinite(row.value):
                values.setdefault(row.epoch, []).append(row.value)
        return {epoch: fmean(values[epoch]) for epoch in sorted(values)}


@cache  # reading it takes a millisecond, and a study has many runs
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
