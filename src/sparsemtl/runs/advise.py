"""Advice for a configuration: a brief training of the plain shared network, measured, and the rules' suggestions."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from sparsemtl.data import TaskData
from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.runs.advice import Advice, TaskFacts, advice_of
from sparsemtl.runs.auto_options import AUTO
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.changes import merge
from sparsemtl.runs.config import check
from sparsemtl.runs.spec import RunSpec
from sparsemtl.training import Trainer
from sparsemtl.training.checks.check import TrainingCheck, time_text
from sparsemtl.training.checks.loss_scales import unlike_scales
from sparsemtl.training.choosing.affinity import task_affinity
from sparsemtl.training.processes.launch import refuse_several
from sparsemtl.training.processes.machine import use_threads

EPOCHS = 5
"""Epochs of the brief training, if the configuration has as many."""


def advise(config: Mapping[str, Any], *, epochs: int | None = None, keep: float = 0.1, progress: bool = True) -> Advice:
    """Measure the tasks of a configuration in a brief training, and suggest what to try first, with reasons.

    The plain shared network is trained: `architecture: shared-bottom` with `sharing: dense`, on all training data, with
    the optimizer, encoder and heads of the configuration. Nothing is written.

    Args:
        config: a configuration; it is checked and completed.
        epochs: epochs of the brief training; by default 5, or those of the configuration if it has fewer.
        keep: fraction of the weights, in (0, 1], that the masks keep whose overlap is measured; the rules are for 0.1.
        progress: print the expected time to standard error beforehand, and show a live bar.

    Raises:
        SparseMTLError: any error of the configuration, of its data, or of the training.
        ConfigError: if the encoder has no trained weights that tasks could share.
    """
    complete = check(config)
    if epochs is not None and epochs < 1:
        raise ParameterError(f"`epochs` must be at least 1, got {epochs}.")
    spec = RunSpec(_plain(complete, epochs or min(EPOCHS, complete["training"]["epochs"])))
    began = time.perf_counter()
    with fork_rng(), use_threads(spec.config["training"]["threads"]):
        refuse_several(spec.config["training"], "advise")
        trainer = make_trainer(spec.config, spec.data, None, progress=progress)
        weights = sum(p.numel() for p in maskable_parameters(trainer.model).values() if p.requires_grad)
        if not weights:
            raise ConfigError(
                "advise: expected an encoder with trained weights that tasks share; this one has none, so that nothing "
                "is to be shared. Is it frozen (`freeze: true`)?"
            )
        train, validation, _ = spec.loaders()
        checked = trainer.check(train, validation)
        if progress:
            print(_time_note(trainer, checked.time.total), file=sys.stderr)
        trainer.fit(train, validation)
        affinity = task_affinity(trainer.model, train, keep=keep) if len(trainer.model.tasks) > 1 else None
    losses = affinity.losses if affinity and trainer.balancer.constant else {}
    return advice_of(
        TaskFacts(
            config=complete,
            rows={task: _rows(spec.data, task, checked) for task in trainer.model.tasks},
            weights=weights,
            affinity=affinity,
            scales=unlike_scales(losses, {}, trainer.model.tasks, when="after the brief training") if losses else "",
            vectors=len(spec.data.input_shape) == 1 and complete["encoder"]["name"] == "mlp",
            epochs=trainer.epochs,
            seconds=time.perf_counter() - began,
        )
    )


def _plain(complete: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """Return the configuration of the brief training."""
    base = {key: value for key, value in complete.items() if key not in (AUTO, "name", "label")}
    training: dict[str, Any] = {
        "epochs": epochs,
        "choose_after": 0,
        "patience": None,
        "callbacks": [],
        "tensorboard": False,
    }
    changes = {
        "architecture": {"name": "shared-bottom"},
        "sharing": {"name": "dense"},
        "pretraining": None,
        "start_from": None,
        "training": {**training, "measure_cost": False},
    }
    return check(merge(base, changes), where="the configuration of the brief training")


def _time_note(trainer: Trainer, seconds: float | None) -> str:
    expected = "" if seconds is None else f", about {time_text(seconds)}"
    return f"advise: trains the plain shared network for {trainer.epochs} epochs{expected}, then measures its tasks."


def _rows(data: TaskData, task: str, checked: TrainingCheck) -> int:
    """Return the number of training samples with a label of a task: by the share of known labels that were read."""
    part = data.train[task] if isinstance(data.train, Mapping) else data.train
    count = checked.counts[task]
    return round(len(part) * count.known / max(count.labels, 1))
