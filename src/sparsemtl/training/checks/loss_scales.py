"""Losses of unlike scale: under constant weights the largest trains the shared weights nearly alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsemtl.errors import SparseMTLWarning
from sparsemtl.sharing.sharing import TURNS
from sparsemtl.tasks import Regression, Task

if TYPE_CHECKING:
    from sparsemtl.training.evaluation.epoch_averages import EpochAverages
    from sparsemtl.training.steps.step import TrainingStep

_MOST_UNLIKE = 20.0
"""Ratio of the largest loss to the smallest, in the mean of the first epoch, from which it is named."""


class LossScaleWarning(SparseMTLWarning):
    """Warning that the scale of one loss is so large that it trains the shared weights nearly alone."""


def unlike_scales(
    losses: Mapping[str, float],
    weights: Mapping[str, float],
    tasks: Mapping[str, Task],
    *,
    when: str = "in the first epoch",
    ratio: float = _MOST_UNLIKE,
) -> str:
    """Return a note on losses of unlike scale, with what to do; "" if they are alike.

    Args:
        losses: task -> mean training loss, without the task's own weight.
        weights: task -> the balancer's constant weight; 1 for a task that is not named.
        tasks: the tasks, whose own weights count as well.
        when: what the losses are of.
        ratio: ratio of the largest loss to the smallest from which they are unlike.
    """
    weighted = {t: loss * tasks[t].weight * weights.get(t, 1.0) for t, loss in losses.items() if loss > 0}
    weighted = {task: loss for task, loss in weighted.items() if loss > 0}
    if len(weighted) < 2:
        return ""
    low, high = min(weighted, key=weighted.__getitem__), max(weighted, key=weighted.__getitem__)
    if weighted[high] <= ratio * weighted[low]:
        return ""
    scaled = isinstance(tasks[high], Regression)
    remedy = "bring its labels to mean 0 and standard deviation 1 (`scale: standard` in a table's targets), " * scaled
    return (
        f"losses of unlike scale {when}: {weighted[high]:.3g} of {high}, {weighted[low]:.3g} of {low}. The shared "
        f"weights learn mostly {high}: {remedy}give the tasks a `weight`, or choose a balancer that weights "
        "them, such as uncertainty."
    )


def warn_of_unlike_scales(step: TrainingStep, meter: EpochAverages) -> str:
    """Warn if one loss is so large that it trains the shared weights alone; return the note, "" if there is none.

    Args:
        step: the training step.
        meter: averages of the first epoch.
    """
    apart = step.networks.apart or step.update in TURNS
    if apart or not step.balancer.constant or not step.model.shared_parameters():
        return ""
    note = unlike_scales(meter.losses, meter.weights, step.tasks)
    if note:
        warnings.warn(note, LossScaleWarning, stacklevel=5)
    return note
