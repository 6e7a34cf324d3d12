"""Check before training: one batch through everything, on copies, with warnings about what would go wrong later."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparsemtl.errors import LabelWarning, MetricWarning, ParameterError, SparseMTLError, SparseMTLWarning
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.shared_coverage import left_out_parameters
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.batches import (
    Group,
    Loaders,
    by_owner,
    check_loaders,
    first_batch,
    first_groups,
    number_of_batches,
    per_task,
    preserve_loader_state,
)
from sparsemtl.training.checks.check import MaskCoverage, TrainingCheck
from sparsemtl.training.checks.costs import bytes_of_activations, expected_time, memory_of, step_seconds, warm_up
from sparsemtl.training.checks.expectations import about_labels, about_scales
from sparsemtl.training.checks.label_counts import count_labels
from sparsemtl.training.checks.probe import probe_tasks
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.trained import Trained
from sparsemtl.training.options import TrainingOptions
from sparsemtl.training.setup import RunParts, Setup, set_up
from sparsemtl.training.steps.step import TrainingStep

_READING = 2.0
"""Seconds in which labels of the training data are counted, and as many for validation data."""


def check_training(
    parts: RunParts, options: TrainingOptions, train: Loaders, validation: Loaders | None
) -> TrainingCheck:
    """Check a run on one batch; see `Trainer.check`."""
    check_loaders(train, parts.model.tasks)
    if validation is not None:
        check_loaders(validation, parts.model.tasks)
    with fork_rng(), preserve_loader_state(train), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _check(_copied(parts), options, train, validation)
    ours = [str(w.message) for w in caught if issubclass(w.category, SparseMTLWarning)]
    for other in caught:
        if not issubclass(other.category, SparseMTLWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return replace(found, warnings=tuple(dict.fromkeys([*found.warnings, *ours])))


def _copied(parts: RunParts) -> RunParts:
    """Return copies of everything that training changes."""
    try:
        model, sharing, balancer = copy.deepcopy((parts.model, parts.sharing, parts.balancer))
    except Exception as error:
        raise ParameterError(
            "the check runs on a copy of the model, the sharing method and the balancer, and `copy.deepcopy` cannot "
            f"copy them: {error}"
        ) from error
    return replace(parts, model=model, sharing=sharing, balancer=balancer)


def _check(parts: RunParts, options: TrainingOptions, train: Loaders, validation: Loaders | None) -> TrainingCheck:
    reading = count_labels(train, parts.model.tasks, limit=_READING)
    setup = set_up(parts, options, train)
    groups = list(first_groups(train, setup.step.tasks))
    with setup.default_dtype():
        begin, failure = _begin(parts, setup.step, groups, own_data=per_task(train))
    probes = probe_tasks(setup.step, groups)
    coverage = _coverage(parts.model, setup.step.networks)
    windows = [[group] for group in groups] if options["mix"] == "proportional" else [groups]
    weights = warm_up(setup.step, windows)
    activations = bytes_of_activations(setup.step, windows)
    seconds = step_seconds(setup.step, windows)
    validating, unlabelled = _validate(setup, validation)
    return TrainingCheck(
        probes,
        reading.counts,
        memory_of(parts, setup, options) | {"activations": activations},
        expected_time(options, train, step=seconds, loading=reading.seconds, validation=validating, begin=begin),
        coverage,
        str(setup.device),
        (*failure, *about_labels(probes, reading), *unlabelled, *about_scales(setup.step, probes, weights)),
    )


def _begin(parts: RunParts, step: TrainingStep, groups: Sequence[Group], *, own_data: bool) -> tuple[float, list[str]]:
    """Begin the first epoch with one batch as all data; return the seconds that it took, and warnings.

    If it fails and a task has no label in this batch, the whole data may have some: the failure becomes a warning.
    """
    one: Any = {group.tasks[0]: [(group.x, group.targets)] for group in groups}
    labels = ((step.tasks[name], group.targets) for group in groups for name in group.tasks)
    labelled = all(bool(task.labelled(task.labels(targets)).any()) for task, targets in labels)
    began = time.perf_counter()
    try:
        changed = parts.sharing.begin_epoch(
            0, parts.model, step.networks, one if own_data else [(groups[0].x, groups[0].targets)]
        )
    except SparseMTLError as error:
        if labelled:
            raise
        return 0.0, [f"an epoch could not begin with the first batch alone, in which a task has no label: {error}"]
    parts.model.begin_epoch(0)
    step.networks = step.networks if changed is None else changed
    return time.perf_counter() - began, []


def _validate(setup: Setup, validation: Loaders | None) -> tuple[float | None, list[str]]:
    """Evaluate one batch; return the expected time for all of them, and warnings."""
    if validation is None:
        return None, []
    step = setup.step
    with preserve_loader_state(validation):
        reading = count_labels(validation, step.tasks, limit=_READING)
        first: Any = {owner: [first_batch(loader, owner)] for owner, loader in by_owner(validation).items()}
    one = first if per_task(validation) else first[None]
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelWarning)  # one batch may lack what the split has
        warnings.simplefilter("ignore", MetricWarning)
        evaluate(Trained(step.model, step.networks, setup.module), one, setup.device)
    seconds = time.perf_counter() - began
    unlabelled = [
        f"task {name!r} has no label in the validation data{'' if count.whole else ' that were read'} "
        f"({count.samples:,} samples). A model is chosen by its labels there."
        for name, count in reading.counts.items()
        if not count.known
    ]
    batches = [number_of_batches(loader) for loader in by_owner(validation).values()]
    known = [count for count in batches if count is not None]
    if len(known) < len(batches):
        return None, unlabelled
    return sum(known) * (seconds / len(batches) + reading.seconds), unlabelled


def _coverage(model: MultiTaskModel, networks: TaskNetworks) -> MaskCoverage:
    shared = model.shared_parameters()
    masks = networks.kept(shared)
    listed = None if masks is None else masks.left_out
    reasons = left_out_parameters(model) if listed is None else {name: why for name, (_, why) in listed.items()}
    masked = {name: shape.numel() for name, shape in masks.shapes().items()} if masks else {}
    outputs = next(iter(networks.values())).output_factors
    why = "the sharing method does not mask it" if masks else "the sharing method masks no weights"
    return MaskCoverage(
        {**masked, **{f"outputs of {name}": factor.numel() for name, factor in outputs.items()}},
        {name: reasons.get(name, why) if masks else why for name in shared if name not in masked},
        {task: masks.density(task) for task in masks} if masks else {},
    )
