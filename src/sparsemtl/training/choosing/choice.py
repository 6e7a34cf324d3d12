"""Choice of a network per task, by rows that trained none of them: values, standard errors and the rule."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from statistics import NormalDist, stdev
from typing import Any

import torch
from torch import Tensor

from sparsemtl.errors import ParameterError, SelectionError
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.tasks.batches import Loaders
from sparsemtl.training.evaluation.evaluate import outputs_of, results_of
from sparsemtl.training.evaluation.metric_facts import metric_facts
from sparsemtl.training.evaluation.trained import Trained

BLOCKS = 20
"""Largest number of blocks of rows, over which differences vary."""


@dataclass(frozen=True)
class MetricGain:
    """Difference of two networks in a metric; positive is better.

    Attributes:
        metric: name of the metric, the task's primary one.
        value: difference on all rows.
        error: standard error by the jackknife over blocks of rows; 0 with fewer than two.
        blocks: number of blocks.
    """

    metric: str
    value: float
    error: float
    blocks: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the t-interval of the difference."""
        half = _t_quantile((1 + level) / 2, max(self.blocks - 1, 1)) * self.error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Choice:
    """Network that was chosen for a task.

    Attributes:
        candidate: the chosen candidate.
        baseline: the best dense candidate.
        best: the best candidate, of which the chosen one is within a standard error.
        gain: of the chosen candidate over the baseline, on the rows that made the choice.
        values: candidate that was trained to the end -> metric on these rows.
    """

    candidate: str
    baseline: str
    best: str
    gain: MetricGain
    values: Mapping[str, float]


def signed_value(model: MultiTaskModel, task: str, metrics: Mapping[str, float]) -> float:
    """Return the primary metric, larger is better; -inf where undefined."""
    facts = metric_facts(model.tasks[task])
    value = metrics[facts.primary] * (1 if facts.directions[facts.primary] else -1)
    return value if math.isfinite(value) else -math.inf


@dataclass(frozen=True)
class BlockScores:
    """Primary metric of a task by one network, larger is better.

    Attributes:
        whole: on all rows.
        blocks: per block of rows, the pseudo-values of the jackknife: of a metric that is a mean, the block's own mean.
            Not finite where undefined.
    """

    whole: float
    blocks: Sequence[float]


class ChoiceRows:
    """Rows of a split, whole and in blocks.

    Args:
        loaders: the loaders.
        tasks: names of the tasks.

    Raises:
        ParameterError: if there are fewer than two batches.
    """

    def __init__(self, loaders: Loaders, tasks: Iterable[str]) -> None:
        self._blocks: list[Loaders]
        if isinstance(loaders, Mapping):
            parts = {task: _blocks_of([deepcopy(batch) for batch in loaders[task]]) for task in tasks}
            count = min(map(len, parts.values()))
            self._blocks = [{task: blocks[number] for task, blocks in parts.items()} for number in range(count)]
        else:
            self._blocks = list(_blocks_of([deepcopy(batch) for batch in loaders]))
        if len(self._blocks) < 2:
            raise ParameterError(
                "the rows that choose a network must come in at least two batches, over which the standard error is "
                "computed; ten or more are better. Use a smaller `batch_size` for them."
            )

    @torch.no_grad()
    def scores(self, trained: Trained) -> dict[str, BlockScores]:
        """Return task -> primary metric of a trained model, on all rows and per block."""
        device = placement(trained.model)[0]
        blocks = [_outputs(trained, block, device) for block in self._blocks]
        every = list(chain.from_iterable(blocks))
        whole = _values(trained, every, device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a metric may be undefined without a block
            without = [
                _values(trained, chain.from_iterable(block for block in blocks if block is not left), device)
                for left in blocks
            ]
        count = len(blocks)
        return {
            task: BlockScores(value, [count * value - (count - 1) * others[task] for others in without])
            for task, value in whole.items()
        }


def _outputs(trained: Trained, block: Loaders, device: torch.device) -> list[tuple[str, Tensor, Tensor]]:
    """Return task, outputs and labels of every batch, copied."""
    with closing(outputs_of(trained, block, device)) as outputs:
        return [(task, output.clone(), label.clone()) for task, output, label in outputs]


def _values(trained: Trained, outputs: Iterable[tuple[str, Tensor, Tensor]], device: torch.device) -> dict[str, float]:
    """Return task -> primary metric, larger is better."""
    results = results_of(trained.tasks, outputs, device)
    return {task: signed_value(trained.model, task, metrics) for task, metrics in results.items()}


def _blocks_of(batches: Sequence[Any]) -> list[list[Any]]:
    """Return at most `BLOCKS` lists of batches in turn."""
    count = min(BLOCKS, len(batches))
    return [list(batches[number::count]) for number in range(count)]


def gain_of(model: MultiTaskModel, task: str, one: BlockScores, other: BlockScores) -> MetricGain:
    """Return the difference of two networks of a task."""
    pairs = zip(one.blocks, other.blocks, strict=True)
    differences = [a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return MetricGain(metric_facts(model.tasks[task]).primary, one.whole - other.whole, error, len(differences))


def choose_networks(
    scores: Mapping[str, Mapping[str, BlockScores]], finished: Mapping[str, Trained], dense: Collection[str]
) -> dict[str, Choice]:
    """Return task -> the simplest network within a standard error of the best, and no worse than the best dense one.

    Args:
        scores: candidate, from the simplest to the most complex -> task -> its scores on the rows.
        finished: candidate -> its model and networks.
        dense: names of the dense candidates.

    Raises:
        SelectionError: if the metric that judges a task is undefined for every dense candidate.
    """
    model = next(iter(finished.values())).model
    choices = {}
    for task in model.tasks:
        whole = {name: found[task].whole for name, found in scores.items()}
        best = max(whole, key=lambda name: whole[name])  # the first, which is the simplest, among equals
        baseline = max((name for name in whole if name in dense), key=lambda name: whole[name])
        if whole[baseline] == -math.inf:
            raise SelectionError(
                f"task {task!r}: {metric_facts(model.tasks[task]).primary!r} of every dense candidate is undefined on "
                "the rows that choose its network. Check the validation data, or choose by another metric (`primary`)."
            )

        def near(name: str, task: str = task, best: str = best) -> bool:
            behind = gain_of(model, task, scores[best][task], scores[name][task])
            return behind.value <= behind.error

        chosen = next(name for name in whole if whole[name] >= whole[baseline] and near(name))
        gain = gain_of(model, task, scores[chosen][task], scores[baseline][task])
        sign = 1 if _is_better_high(model, task) else -1
        choices[task] = Choice(chosen, baseline, best, gain, {name: sign * value for name, value in whole.items()})
    return choices


def _is_better_high(model: MultiTaskModel, task: str) -> bool:
    facts = metric_facts(model.tasks[task])
    return facts.directions[facts.primary]


def _t_quantile(p: float, freedom: int) -> float:
    """Return a quantile of Student's t-distribution, to about three digits from 5 degrees of freedom on."""
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
