"""Costs of a run, measured and expected from one batch: time and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from statistics import median

from sparsemtl.networks.task_networks import TaskNetwork
from sparsemtl.tasks.batches import Group, Loaders, by_owner
from sparsemtl.training.checks.check import ExpectedTime
from sparsemtl.training.checks.memory import bytes_of, saved_tensors
from sparsemtl.training.evaluation.selection import Selection
from sparsemtl.training.mixing import steps_in_epoch
from sparsemtl.training.options import TrainingOptions, chooses_per_task
from sparsemtl.training.setup import RunParts, Setup
from sparsemtl.training.steps.step import TrainingStep

_STEPS, _STEPPING = 5, 1.0
"""Largest number of timed steps, and seconds after which no further one begins."""


def warm_up(step: TrainingStep, windows: Sequence[Sequence[Group]]) -> dict[str, float]:
    """Take a step on every window; return the weights of the balancer."""
    weights: dict[str, float] = {}
    for window in windows:
        weights |= step.step([window], "the check").weights
    return weights


def bytes_of_activations(step: TrainingStep, windows: Sequence[Sequence[Group]]) -> int | None:
    """Return the largest number of bytes that autograd keeps during a step; None if it cannot be counted.

    `torch.func` and compiled code inside the model may refuse the hooks that count.
    """
    try:
        with saved_tensors(step.model) as saved:
            for window in windows:
                step.step([window], "the check")
    except RuntimeError:
        return None
    return saved.peak


def step_seconds(step: TrainingStep, windows: Sequence[Sequence[Group]]) -> float:
    """Return the median time of a step, over the windows."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _STEPS and (not times or time.perf_counter() - began < _STEPPING):
        start = time.perf_counter()
        for window in windows:
            step.step([window], "the check")
        times.append((time.perf_counter() - start) / len(windows))
    return median(times)


def memory_of(parts: RunParts, setup: Setup, options: TrainingOptions) -> dict[str, int | None]:
    """Return part -> bytes, without the activations."""
    model, networks = parts.model, setup.step.networks
    trained = [p for p in model.parameters() if p.requires_grad]
    masks = [getattr(network, part.name) for network in networks.values() for part in fields(TaskNetwork)]
    found: dict[str, int | None] = {
        "weights": bytes_of([*model.parameters(), *model.buffers()]),
        "gradients": bytes_of(trained),
        "optimizer": bytes_of(setup.optimizer.state),
        "masks": bytes_of(masks),
    }
    if parts.balancer.combines_gradients:
        shared = {**model.shared_parameters(), **model.unmasked_parameters()}
        rows = 1 if parts.balancer.from_gramian else len(model.tasks)
        found["gradients per task"] = rows * bytes_of([p for p in shared.values() if p.requires_grad])
    if options["folder"] is None:
        kept = Selection(model, options["monitor"], apart=chooses_per_task(options, parts.sharing)).parts
        found["best model, kept in memory"] = len(kept) * (bytes_of(model.state_dict()) + bytes_of(masks))
    return found


def expected_time(
    options: TrainingOptions,
    train: Loaders,
    *,
    step: float,
    loading: float,
    validation: float | None,
    begin: float,
) -> ExpectedTime:
    """Return the time of an epoch and of the run, by the seconds of a step, of loading a batch, and of the rest."""
    batches = steps_in_epoch(train, options["mix"])
    loaders = len(by_owner(train)) if options["mix"] != "proportional" else 1
    epoch = None if batches is None else batches * (step + loaders * loading) + (validation or 0.0)
    total = None if epoch is None else options["epochs"] * epoch
    return ExpectedTime(step, loading, batches, validation, begin, epoch, total)
