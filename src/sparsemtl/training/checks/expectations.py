"""Warnings of a check: what the first batch and the labels let expect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from sparsemtl.sharing.sharing import TURNS
from sparsemtl.training.checks.label_counts import Reading
from sparsemtl.training.checks.loss_scales import unlike_scales
from sparsemtl.training.checks.probe import Probes
from sparsemtl.training.steps.step import TrainingStep

_NAMED = 5
"""Classes that a warning names."""
_UNLIKE = 100.0
"""Ratio of losses or gradients from which a warning names them; one batch is noisier than an epoch."""


def about_labels(probes: Probes, reading: Reading) -> Iterator[str]:
    """Yield what the labels of the first batch, and those that were read, let expect."""
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


def about_scales(step: TrainingStep, probes: Probes, weights: Mapping[str, float]) -> Iterator[str]:
    """Yield what losses and gradients of the first batch let expect, with the weights of the balancer."""
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
