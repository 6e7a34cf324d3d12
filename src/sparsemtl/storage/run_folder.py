"""The run folder: where everything about a run lies, under which name."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sparsemtl.errors import CheckpointError
from sparsemtl.storage.files import read_json, read_tree, write_json, write_text, write_tree


class RunFolder:
    """Paths and whole writes of a run folder.

    Args:
        path: the folder; it is made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.model = self.path / "model.safetensors"
        self.masks = self.path / "masks.safetensors"
        self.norms = self.path / "norms.safetensors"
        self.samples = self.path / "samples.safetensors"
        self.report = self.path / "report.html"
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.tensorboard = self.path / "tensorboard"
        self.pretraining = self.path / "pretraining"

    def best(self, part: str) -> Path:
        """Checkpoint of the best epoch, of the whole model ("all") or of a task chosen apart."""
        name = "best" if part == "all" else f"best-{part}"
        return self.path / "checkpoints" / f"{name}.safetensors"

    def network(self, task: str) -> Path:
        """Weights of a task's own network, where `model`, `masks` and `norms` do not tell them."""
        return self.path / "networks" / f"{task}.safetensors"

    def before(self, config: Mapping[str, Any]) -> RunFolder:
        """Folder of the run before this one; in a study, one for all runs before which the same is run.

        Args:
            config: that run's complete configuration.
        """
        study = Path(os.path.abspath(self.path)).parent.parent
        if not (study / "study.json").exists():
            return RunFolder(self.pretraining)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]
        return RunFolder(study / "pretraining" / f"seed-{config['seed']}-{digest}")

    @property
    def begun(self) -> bool:
        """There is something to go on from: a checkpoint, or the run before this one."""
        return self.last.exists() or self.pretraining.exists()

    @property
    def finished(self) -> bool:
        """The run ended and its summary is written."""
        summary = read_json(self.summary) if self.summary.exists() else {}
        if not isinstance(summary, dict):
            raise CheckpointError(f"{self.summary} is not a summary that sparsemtl wrote. Delete it to go on.")
        return summary.get("status") == "finished"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the exact configuration."""
        from sparsemtl.storage.yaml_text import dump_yaml

        write_text(self.config, dump_yaml(config))

    def read_config(self) -> dict[str, Any]:
        """Read the configuration.

        Raises:
            CheckpointError: if the folder has none.
            ConfigError: if it is damaged.
        """
        from sparsemtl.storage.yaml_text import read_yaml

        if not self.config.exists():
            raise CheckpointError(f"{self.path} is not a run folder: it has no config.yaml.")
        return read_yaml(self.config)

    def write_environment(self, machine: Mapping[str, str], *, seed: int | None) -> None:
        """Write what the run runs on: packages, platform, `machine` and torch's present number of threads."""
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
        """Write a checkpoint whole: a kill leaves the one before."""
        write_tree(path, tree)

    def load(self, path: Path) -> Any:
        """Read a checkpoint."""
        return read_tree(path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
