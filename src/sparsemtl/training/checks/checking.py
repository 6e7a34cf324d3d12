"""Check before training: one batch through everything, on copies, with warnings about what would go wrong later."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from statistics import median
from typing import Any

from sparsemtl.errors import LabelWarning, MetricWarning, ParameterError, SparseMTLError, SparseMTLWarning
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.shared_coverage import left_out_parameters
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
from sparsemtl.sharing.sharing import TURNS
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
from sparsemtl.training.checks.check import ExpectedTime, MaskCoverage, TrainingCheck
from sparsemtl.training.checks.label_counts import Reading, count_labels
from sparsemtl.training.checks.loss_scales import unlike_scales
from sparsemtl.training.checks.memory import bytes_of, saved_tensors
from sparsemtl.training.checks.probe import Probes, probe_tasks
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.selection import Selection
from sparsemtl.training.evaluation.trained import Trained
from sparsemtl.training.mixing import steps_in_epoch
from sparsemtl.training.options import TrainingOptions, chooses_per_task
from sparsemtl.training.setup import RunParts, Setup, set_up
from sparsemtl.training.steps.step import TrainingStep

_READING = 2.0
"""Seconds in which labels of the training data are counted, and as many for validation data."""
_STEPS, _STEPPING = 5, 1.0
"""Largest number of timed steps, and seconds after which no further one begins."""
_UNLIKE = 100.0
"""Ratio of losses or gradients from which a warning names them; one batch is noisier than an epoch."""


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
    weights = _warm_up(setup.step, windows)
    activations = _activations(setup.step, windows)
    seconds = _step_seconds(setup.step, windows)
    validating, unlabelled = _validate(setup, validation)
    return TrainingCheck(
        probes,
        reading.counts,
        _memory(parts, setup, options) | {"activations": activations},
        _expected(options, train, seconds, reading.seconds, validating, begin),
        coverage,
        str(setup.device),
        (*failure, *_about_labels(probes, reading), *unlabelled, *_about_scales(setup.step, probes, weights)),
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


def _warm_up(step: TrainingStep, windows: Sequence[Sequence[Group]]) -> dict[str, float]:
    """Take a step on every window; return the weights of the balancer."""
    weights: dict[str, float] = {}
    for window in windows:
        weights |= step.step([window], "the check").weights
    return weights


def _activations(step: TrainingStep, windows: Sequence[Sequence[Group]]) -> int | None:
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


def _step_seconds(step: TrainingStep, windows: Sequence[Sequence[Group]]) -> float:
    """Return the median time of a step, over the windows."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _STEPS and (not times or time.perf_counter() - began < _STEPPING):
        start = time.perf_counter()
        for window in windows:
            step.step([window], "the check")
        times.append((time.perf_counter() - start) / len(windows))
    return median(times)


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


def _memory(parts: RunParts, setup: Setup, options: TrainingOptions) -> dict[str, int | None]:
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


def _expected(
    options: TrainingOptions,
    train: Loaders,
    step: float,
    loading: float,
    validation: float | None,
    begin: float,
) -> ExpectedTime:
    batches = steps_in_epoch(train, options["mix"])
    loaders = len(by_owner(train)) if options["mix"] != "proportional" else 1
    epoch = None if batches is None else batches * (step + loaders * loading) + (validation or 0.0)
    total = None if epoch is None else options["epochs"] * epoch
    return ExpectedTime(step, loading, batches, validation, begin, epoch, total)


def _about_labels(probes: Probes, reading: Reading) -> Iterator[str]:
    for probe in probes.tasks:
        count = reading.counts[probe.task]
        where = "the training data" if count.whole else f"the {count.samples:,} training samples that were read"
        if not count.known:
            yield f"task {probe.task!r} has no label in {where}. It is not trained without labels."
        elif not probe.known:
            known = f"{count.known:,} of {count.labels:,}"
            yield f"task {probe.task!r} has no label in the first batch; {known} labels are known in {where}."
        if absent := count.absent:
            more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
            yield (
                f"task {probe.task!r}: no label of class {', '.join(map(repr, absent[:_NAMED]))}{more} in {where}. "
                "Classes without samples are not learned."
            )


_NAMED = 5
"""Classes that a warning names."""


def _about_scales(step: TrainingStep, probes: Probes, weights: Mapping[str, float]) -> Iterator[str]:
    norms = {probe.task: probe.gradient_norm for probe in probes.tasks if probe.gradient_norm is not None}
    for task, norm in norms.items():
        if not norm:
            yield (
                f"task {task!r}: its loss has no gradient on the shared weights in the first batch. Does its head or "
                "its loss detach the features?"
            )
    if not (step.balancer.constant and step.update not in TURNS):
        return  # the balancer, or a step per task, brings them together
    losses = {probe.task: probe.loss for probe in probes.tasks if probe.loss is not None}
    note = unlike_scales(losses, weights, step.tasks, when="in the first batch", ratio=_UNLIKE)
    if note:
        yield note
        return
    scaled = {t: norm * step.tasks[t].weight * weights.get(t, 1.0) for t, norm in norms.items()}
    scaled = {task: norm for task, norm in scaled.items() if norm > 0 and math.isfinite(norm)}
    if scaled and max(scaled.values()) > _UNLIKE * min(scaled.values()):
        low, high = min(scaled, key=scaled.__getitem__), max(scaled, key=scaled.__getitem__)
        yield (
            f"gradients of unlike size on the shared weights in the first batch: norm {scaled[high]:.3g} of {high}, "
            f"{scaled[low]:.3g} of {low}. The shared weights learn mostly {high}: give the tasks a `weight`, or choose "
            "a balancer that combines gradients, such as mgda or pcgrad."
        )
