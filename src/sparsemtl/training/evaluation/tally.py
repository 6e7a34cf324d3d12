"""Loss and metrics of a task, added up over the batches of a split."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsemtl.errors import LabelWarning, MetricWarning, ParameterError
from sparsemtl.tasks.metrics.compute_groups import hand_on_states, updated_metrics
from sparsemtl.tasks.task import Task
from sparsemtl.training.evaluation.task_metrics import keep_metrics, take_metrics

if TYPE_CHECKING:
    from torchmetrics.metric import Metric

_JOINED = 2**18
"""Number of outputs of a task, of several batches, by which its metrics are updated at once."""


class Tally:
    """Loss and metrics of a task over the batches of a split.

    Args:
        task: the task.
        device: device of the outputs.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task = task
        self._device = device
        self._metrics = take_metrics(task, device)
        self._updated = updated_metrics(self._metrics)
        self._joins = task.joins_batches
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._size = 0
        self._totals = dict.fromkeys(task.loss_names, 0.0)
        self._count = 0
        self._samples = 0
        self._broken: list[int] = []

    def add(self, output: Tensor, label: Tensor) -> None:
        """Add a batch. Batches wait for others where joining them changes no bit of the metrics."""
        if self._joins:
            output, label = output.clone(), label.clone()  # the loader, or a compiled model, may use the memory again
        self._waiting.append((output, label))
        self._size += output.numel()
        if self._size >= _JOINED or not self._joins:
            self._flush()

    def _flush(self) -> None:
        """Add the waiting batches to the loss and the metrics."""
        task, batches = self._task, self._waiting
        self._waiting, self._size = [], 0
        counts, complete = _known_counts(task, [label for _, label in batches])
        labelled = [batch for batch, count in zip(batches, counts, strict=True) if count]
        losses = [task.checked_losses(output, label, complete=complete) for output, label in labelled]
        values = iter([{name: loss.item() for name, loss in terms.items()} for terms in losses])
        joined = _joined(labelled)
        finite = joined is None or _is_finite(joined[0])
        for (output, label), count in zip(batches, counts, strict=True):
            if count:
                terms = next(values)
                if not finite:
                    wrong = _broken(output, task.known_outputs(label, output), terms["loss"])
                    self._broken += [self._samples + i for i in wrong]
                for name, loss in terms.items():
                    self._totals[name] += loss * count
                self._count += count
            self._samples += len(label)
        if joined is not None and not self._broken:
            task.update_metrics(self._updated, *joined)

    def results(self) -> dict[str, float]:
        """Return the mean loss and the metrics."""
        if self._waiting:
            self._flush()
        name = self._task.name
        results = dict.fromkeys([*self._totals, *self._metrics], float("nan"))
        if self._count and not self._broken:
            hand_on_states(self._metrics)
            results |= {loss: total / self._count for loss, total in self._totals.items()}
            results |= {m: _computed(name, m, metric) for m, metric in self._metrics.items()}
        else:
            _warn_of_nothing(name, self._broken, self._samples)
        for metric in self._updated.values():
            metric.reset()
        keep_metrics(self._task, self._device, self._metrics)
        return results


def _known_counts(task: Task, labels: Sequence[Tensor]) -> tuple[list[int], bool]:
    """Return the number of known labels of each batch, and True if all labels are known."""
    known = task.known(labels[0] if len(labels) == 1 else torch.cat(list(labels)))
    if bool(known.all()):
        per_sample = known[:1].numel()
        return [label.shape[0] * per_sample for label in labels], True
    return [int(part.sum()) for part in known.split([label.shape[0] for label in labels])], False


def _joined(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """Return outputs and labels of batches as those of one batch; None if there is no batch."""
    if len(batches) <= 1:
        return batches[0] if batches else None
    outputs, labels = zip(*batches, strict=True)
    return torch.cat(outputs), torch.cat(labels)


def _is_finite(output: Tensor) -> bool:
    """Return True if all outputs are finite: the least and the largest are, and are NaN if any is."""
    return all(math.isfinite(float(value)) for value in output.aminmax())


def _broken(output: Tensor, known: Tensor, loss: float) -> list[int]:
    """Return the positions in a batch of the samples with NaN or infinity among the outputs of known labels.

    Minus infinity is a prediction where the loss bears it: logits of classes that a model excludes.

    Args:
        output: (B, ...).
        known: which outputs a known label speaks of, broadcasts to `output`.
        loss: of the batch.
    """
    wrong = output.isnan() | (output == math.inf) if math.isfinite(loss) else ~output.isfinite()
    wrong = wrong & known.to(wrong.device)
    rows = wrong.flatten(1).any(1) if wrong.ndim > 1 else wrong
    return rows.nonzero().flatten().tolist()


def _warn_of_nothing(task: str, broken: Sequence[int], samples: int) -> None:
    if not broken:
        warnings.warn(f"task {task!r} has no labelled sample in this split.", LabelWarning, stacklevel=4)
        return
    warnings.warn(
        f"task {task!r}: the network computes NaN or infinity for {len(broken)} of {samples} samples of this split, "
        f"the first of them sample {broken[0]} (counted from 0). The task's loss and metrics are undefined. Check the "
        "inputs for NaN.",
        MetricWarning,
        stacklevel=4,
    )


def _not_distributed() -> bool:
    return False


def _computed(task: str, name: str, metric: Metric) -> float:
    for part in metric.modules():  # one process has all outputs: torchmetrics would wait for the others
        if getattr(part, "distributed_available_fn", _not_distributed) is not _not_distributed:
            part.distributed_available_fn = _not_distributed  # type: ignore[assignment]
    try:
        value = float(metric.compute())
    except ParameterError:  # the metric itself is wrong, whatever the split holds
        raise
    except ValueError as error:
        warnings.warn(f"task {task!r}: {name!r} is undefined on this split: {error}", LabelWarning, stacklevel=4)
        return float("nan")
    if math.isnan(value):
        warnings.warn(f"task {task!r}: {name!r} is undefined on this split: it is NaN.", MetricWarning, stacklevel=4)
    return value
