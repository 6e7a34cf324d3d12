"""Check of a configuration: one batch through the run and its pretraining run, or through every candidate of
`sharing: auto`; nothing is trained or written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sparsemtl.errors import SparseMTLError
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.runs.auto_options import AUTO, adds_groups, training_rows
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.changes import PRETRAINING
from sparsemtl.runs.config import candidate_configs, check, groups_base, with_groups
from sparsemtl.runs.pretraining import stand_in
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training import Trainer
from sparsemtl.training.checks.check import TrainingCheck
from sparsemtl.training.processes.machine import use_threads


def check_config(config: Mapping[str, Any]) -> dict[str, TrainingCheck]:
    """Run one batch of a configuration's data through everything; see `Trainer.check`.

    Args:
        config: a configuration; it is checked and completed.

    Returns:
        "run" -> its check; with pretraining, "pretraining" -> that run's check before it. The encoder of the run itself
        starts untrained. With `sharing: auto`, "candidate NAME" -> its check, for every candidate; the candidate with
        groups of tasks is checked with the first and the second half of the tasks as groups.

    Raises:
        SparseMTLError: any error of the configuration, of its data, or of the first step.
    """
    checks: dict[str, TrainingCheck] = {}
    spec = RunSpec(check(config))
    with fork_rng(), use_threads(spec.config["training"]["threads"]):
        if spec.config[AUTO] is None:
            _check(spec, RunFolder("run"), "run", checks)
        else:
            for name, own in _candidates(spec).items():
                with _naming(name):
                    _check(RunSpec(own, spec.built), RunFolder("run"), f"candidate {name}", checks)
    return checks


def _candidates(spec: RunSpec) -> dict[str, dict[str, Any]]:
    """Return the configurations of all candidates."""
    configs = candidate_configs(spec.config, rows=training_rows(spec.data))
    tasks = [task.name for task in spec.data.tasks]
    base = groups_base(configs) if adds_groups(spec.config) else None
    if base is None or len(tasks) < 3:
        return configs
    return with_groups(configs, base, [tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]])


@contextmanager
def _naming(candidate: str) -> Iterator[None]:
    """Name the candidate in errors."""
    try:
        yield
    except SparseMTLError as error:
        error.args = (f"{error} (in candidate {candidate!r})",)
        raise


def _check(spec: RunSpec, folder: RunFolder, name: str, checks: dict[str, TrainingCheck]) -> Trainer:
    """Check a run after its pretraining run, add the results, and return the trainer, set up."""
    inner = PRETRAINING if name == "run" else f"{name}.{PRETRAINING}"
    pretrained = stand_in(spec, folder, lambda own, path: _check(own, path, inner, checks))
    trainer = make_trainer(spec.config, spec.data, folder.path, pretrained=pretrained, progress=False)
    train, validation, _ = spec.loaders()
    checks[name] = trainer.check(train, validation)
    trainer.set_up(train)
    return trainer
