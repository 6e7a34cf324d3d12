"""Check of a configuration: one batch through the run and its pretraining run; nothing is trained or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemtl.networks.randomness import fork_rng
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.changes import PRETRAINING
from sparsemtl.runs.config import check
from sparsemtl.runs.pretraining import stand_in
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training import Trainer
from sparsemtl.training.check import TrainingCheck
from sparsemtl.training.machine import use_threads


def check_config(config: Mapping[str, Any]) -> dict[str, TrainingCheck]:
    """Run one batch of a configuration's data through everything; see `Trainer.check`.

    Args:
        config: a configuration; it is checked and completed.

    Returns:
        "run" -> its check; with pretraining, "pretraining" -> that run's check before it. The encoder of the run itself
        starts untrained.

    Raises:
        SparseMTLError: any error of the configuration, of its data, or of the first step.
    """
    checks: dict[str, TrainingCheck] = {}
    spec = RunSpec(check(config))
    with fork_rng(), use_threads(spec.config["training"]["threads"]):
        _check(spec, RunFolder("run"), "run", checks)
    return checks


def _check(spec: RunSpec, folder: RunFolder, name: str, checks: dict[str, TrainingCheck]) -> Trainer:
    """Check a run after its pretraining run, add the results, and return the trainer, set up."""
    inner = PRETRAINING if name == "run" else f"{name}.{PRETRAINING}"
    pretrained = stand_in(spec, folder, lambda own, path: _check(own, path, inner, checks))
    trainer = make_trainer(spec.config, spec.data, folder.path, pretrained=pretrained, progress=False)
    train, validation, _ = spec.loaders()
    checks[name] = trainer.check(train, validation)
    trainer.set_up(train)
    return trainer
