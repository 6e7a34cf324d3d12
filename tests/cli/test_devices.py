"""`sparsemtl run --devices`, as a user starts it, and by torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsemtl.cli.run import process_changes
from sparsemtl.errors import ConfigError
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.study.grid import read_study
from sparsemtl.study.runner import run_study

TINY: dict[str, Any] = {
    "data": {"name": "two-regressions", "train_size": 200, "validation_size": 50, "test_size": 50, "dimension": 8},
    "encoder": {"name": "mlp"},
    "sharing": {"name": "random", "keep": 0.5},
    "training": {"epochs": 2, "batch_size": 64, "accelerator": "cpu", "measure_cost": False},
}


@pytest.mark.slow
def test_two_processes_write_one_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(dump_yaml(TINY), encoding="utf-8")
    run = ["-m", "sparsemtl", "run", "tiny.yaml", "--quiet"]
    by_fabric = [sys.executable, *run, "--devices", "2", "--out", "fabric"]
    by_torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *run, "--out", "torchrun"]
    for command in (by_fabric, by_torchrun):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        assert "GLOBAL_RANK" not in done.stderr  # --quiet
        assert done.stdout.count("Report:") == 1  # one process alone writes on the screen
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("fabric", "torchrun"))
    assert first["status"] == "finished"
    assert first["tasks"] == second["tasks"]
    lines = (tmp_path / "fabric" / "metrics.csv").read_text().splitlines()
    assert len(set(lines)) == len(lines)


def test_options_are_keys_of_the_section_training() -> None:
    changes = ["training.devices=2", "training.strategy=ddp", "training.num_nodes=3"]
    assert process_changes(2, "ddp", 3) == changes
    assert process_changes(None, None, None) == []


def test_a_study_has_one_process_per_run(tmp_path: Path) -> None:
    study = tmp_path / "s.yaml"
    base = {**TINY, "training": {**TINY["training"], "devices": 2}}
    study.write_text(dump_yaml({"base": base, "methods": {"a": {}}, "seeds": [0]}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"training\.devices: expected 1 in a study, got 2\. .* `--jobs N`"):
        run_study(read_study(study), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
