"""Metrics per task over a whole split, each computed with the task's own network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsemtl.errors import ForwardError, LabelError, LabelWarning, MetricWarning
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.batches import EMPTY, Group, Loaders, evaluation_groups, per_task
from sparsemtl.tasks.task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

Results = dict[str, dict[str, float]]
"""Task -> metric -> value; `loss` is among the metrics."""


@dataclass(frozen=True)
class Trained:
    """Trained model with the networks of its tasks.

    Attributes:
        model: the model.
        networks: the tasks' networks.
        module: callable in place of the model, such as Lightning Fabric's wrapper of it.
    """

    model: MultiTaskModel
    networks: TaskNetworks
    module: nn.Module

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Tasks of the model."""
        return self.model.tasks

    def outputs(self, group: Group) -> dict[str, Tensor]:
        """Return task -> output for one group, in one forward pass where one network serves all tasks."""
        together = [group.tasks] if self.networks.one_network else [(task,) for task in group.tasks]
        outputs: dict[str, Tensor] = {}
        for names in together:
            with self.networks.swapped(self.model, names[0]):
                outputs.update(self.module(group.x, tasks=names))
        return outputs


def evaluate(trained: Trained, loaders: Loaders, device: torch.device) -> Results:
    """Return the mean loss over the labels of the whole split and the metrics, per task.

    Undefined values are NaN, with a warning: all values of a task without a labelled sample, or with a labelled sample
    for which its network computes NaN or infinity; and a metric that cannot be computed.
    """
    tasks = trained.tasks
    metrics = {name: {m: metric.to(device) for m, metric in task.metrics().items()} for name, task in tasks.items()}
    totals = dict.fromkeys(tasks, 0.0)
    counts = dict.fromkeys(tasks, 0)
    samples = dict.fromkeys(tasks, 0)
    broken: dict[str, list[int]] = {name: [] for name in tasks}
    for name, output, target in outputs_of(trained, loaders, device):
        task = tasks[name]
        label = task.labels(target)
        count = int(task.known(label).sum())
        if count:
            loss = float(task.loss(output, target))
            broken[name] += [samples[name] + i for i in _broken(output, task.known_outputs(label, output), loss)]
            if not broken[name]:
                totals[name] += loss * count
                counts[name] += count
                task.update(metrics[name], output, target)
        samples[name] += len(label)
    results: Results = {}
    for name in tasks:
        if counts[name] and not broken[name]:
            results[name] = {"loss": totals[name] / counts[name]}
            results[name] |= {m: _computed(name, m, metric) for m, metric in metrics[name].items()}
        else:
            _warn_of_nothing(name, broken[name], samples[name])
            results[name] = dict.fromkeys(["loss", *metrics[name]], float("nan"))
    return results


def _broken(output: Tensor, known: Tensor, loss: float) -> list[int]:
    """Return the positions in a batch of the samples with NaN or infinity among the outputs of known labels.

    Minus infinity is a prediction where the loss bears it: logits of classes that a model excludes.

    Args:
        output: (B, ...).
        known: which outputs a known label speaks of, broadcasts to `output`.
        loss: of the batch.
    """
    finite = output.isfinite()
    if bool(finite.all()):
        return []
    wrong = output.isnan() | (output == math.inf) if math.isfinite(loss) else ~finite
    wrong = wrong & known.to(wrong.device)
    rows = wrong.flatten(1).any(1) if wrong.ndim > 1 else wrong
    return rows.nonzero().flatten().tolist()


def _warn_of_nothing(task: str, broken: Sequence[int], samples: int) -> None:
    if not broken:
        warnings.warn(f"task {task!r} has no labelled sample in this split.", LabelWarning, stacklevel=3)
        return
    warnings.warn(
        f"task {task!r}: the network computes NaN or infinity for {len(broken)} of {samples} samples of this split, "
        f"the first of them sample {broken[0]} (counted from 0). The task's loss and metrics are undefined. Check the "
        "inputs for NaN.",
        MetricWarning,
        stacklevel=3,
    )


def _computed(task: str, name: str, metric: Metric) -> float:
    try:
        value = float(metric.compute())
    except ValueError as error:
        warnings.warn(f"task {task!r}: {name!r} is undefined on this split: {error}", LabelWarning, stacklevel=3)
        return float("nan")
    if math.isnan(value):
        warnings.warn(f"task {task!r}: {name!r} is undefined on this split: it is NaN.", MetricWarning, stacklevel=3)
    return value


@torch.no_grad()
def outputs_of(trained: Trained, loaders: Loaders, device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (task, output, labels) batch by batch, in eval mode."""
    number, tasks = 0, trained.tasks
    for number, group in enumerate(evaluation_groups(loaders, tasks), start=1):
        with eval_mode(trained.module):
            on_device = group.to(device)
            try:
                outputs = trained.outputs(on_device)
            except ForwardError as error:
                raise error.at(f"evaluation, batch {number}") from error.__cause__
            for name, output in outputs.items():
                yield name, output, on_device.targets[tasks[name].target]
    if not number:
        raise LabelError(EMPTY.format(whose="loader to evaluate on"))


@torch.no_grad()
def sample_predictions(trained: Trained, loaders: Loaders, device: torch.device, count: int = 12) -> dict[str, Any]:
    """Return the first inputs of a split with targets and predictions, to be looked at.

    Returns:
        group ("all", or the task's name where tasks have data of their own) -> {"x": (n, ...), "tasks": {task:
        {"target": ..., "prediction": ...}}}.
    """
    samples: dict[str, Any] = {}
    tasks = trained.tasks
    for group in evaluation_groups(loaders, tasks):
        key = group.tasks[0] if per_task(loaders) else "all"
        if key not in samples and isinstance(group.x, Tensor):
            with eval_mode(trained.module):
                outputs = trained.outputs(group.to(device))
            first_axis = all(len(output) == len(group.x) for output in outputs.values())
            samples[key] = {
                "x": group.x[:count].cpu() if first_axis else torch.empty(0),  # no samples can be cut out to look at
                "tasks": {
                    name: {
                        "target": tasks[name].labels(group.targets)[:count].cpu(),
                        "prediction": tasks[name].predict(output)[:count].cpu(),
                    }
                    for name, output in outputs.items()
                },
            }
        if not per_task(loaders):
            break
    return samples
