"""Metrics per task over a whole split, each computed with the task's own network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsemtl.errors import ForwardError, LabelError, LabelWarning, MetricWarning, ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.batches import EMPTY, Group, Loaders, evaluation_groups, per_task
from sparsemtl.tasks.metrics.compute_groups import hand_on_states, updated_metrics
from sparsemtl.tasks.nests import map_tensors, to_device
from sparsemtl.tasks.processes import Processes
from sparsemtl.tasks.shards import NO_BATCH, processes_of, sharded
from sparsemtl.tasks.task import Task
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.task_metrics import keep_metrics, take_metrics

if TYPE_CHECKING:
    from torchmetrics.metric import Metric

_JOINED = 2**18
"""Number of outputs of a task, of several batches, by which its metrics are updated at once."""
_CHUNK_BATCHES, _CHUNK_BYTES = 32, 2**24
"""Most batches, and bytes of their inputs, that are held while one network after another reads them."""


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


@torch.no_grad()
def evaluate(trained: Trained, loaders: Loaders, device: torch.device) -> Results:
    """Return the mean loss over the labels of the whole split and the metrics, per task.

    Undefined values are NaN, with a warning: all values of a task without a labelled sample, or with a labelled sample
    for which its network computes NaN or infinity; and a metric that cannot be computed.
    """
    processes = processes_of(loaders)
    if processes.several:
        return _evaluated_together(trained, loaders, device, processes)
    with closing(outputs_of(trained, loaders, device)) as outputs:
        return results_of(trained.tasks, outputs, device)


def _evaluated_together(trained: Trained, loaders: Loaders, device: torch.device, processes: Processes) -> Results:
    """Return the results of several processes, each of which computes the outputs of its batches.

    The first process reads all outputs in the order of the loader, so that its results are those of one process.
    """
    outputs = _outputs_of_all(trained, loaders, device, processes)
    try:
        results = results_of(trained.tasks, outputs, device) if processes.is_first else Results()
    finally:
        for _ in outputs:  # also after an error, since the other processes send theirs
            pass
    return processes.from_first(lambda: results)


def _outputs_of_all(
    trained: Trained, loaders: Loaders, device: torch.device, processes: Processes
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the outputs of all processes in the first one, and nothing in the others."""
    parts = sharded(loaders)
    apart: Mapping[str, Any] = parts if isinstance(parts, Mapping) else {"": parts}
    nothing: dict[str, Any] = dict.fromkeys(trained.tasks, ())
    number = 0
    for task, rounds in apart.items():
        batches = iter(rounds)
        while chunk := list(islice(batches, _CHUNK_BATCHES)):
            number += len(chunk)
            mine = [batch for batch in chunk if batch is not NO_BATCH]
            found: dict[str, list[tuple[Tensor, Tensor]]] = {}
            if mine:
                with closing(outputs_of(trained, {**nothing, task: mine} if task else mine, device)) as outputs:
                    for name, output, label in outputs:
                        found.setdefault(name, []).append((output.cpu(), label.cpu()))
            gathered = processes.gather(found)
            for name in trained.tasks:
                for batch in chain.from_iterable(zip_longest(*(part.get(name, ()) for part in gathered))):
                    if batch is not None:
                        yield name, batch[0].to(device), batch[1].to(device)
    if not number:
        raise LabelError(EMPTY.format(whose="loader to evaluate on"))


def results_of(
    tasks: Mapping[str, Task], outputs: Iterable[tuple[str, Tensor, Tensor]], device: torch.device
) -> Results:
    """Return the mean loss and the metrics per task; see `evaluate`.

    Args:
        tasks: the tasks by name.
        outputs: task, outputs and labels of each batch, as `outputs_of` yields them.
        device: device of the outputs.
    """
    tallies = {name: _Tally(task, device) for name, task in tasks.items()}
    for name, output, label in outputs:
        tallies[name].add(output, label)
    return Results({name: tally.results() for name, tally in tallies.items()})


class _Tally:
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


def outputs_of(
    trained: Trained, loaders: Loaders, device: torch.device
) -> Generator[tuple[str, Tensor, Tensor], None, None]:
    """Yield (task, output, labels as `Task.labels` returns them), in eval mode and inside the task's network.

    Where tasks have networks of their own, a network reads several batches before the next network does. The caller
    disables gradients, since a generator would do so anew for each item, and closes the generator if it stops early.
    """
    together = trained.networks.one_network
    number = 0
    with eval_mode(trained.module):
        for chunk in _chunks(_batches(trained.tasks, loaders, device), alone=together):
            tasks = tuple(chunk[0].labels)
            for names in [tasks] if together else [(task,) for task in tasks]:
                with trained.networks.swapped(trained.model, names[0]):
                    for number, x, labels in chunk:
                        try:
                            outputs = trained.module(x, tasks=names)
                        except ForwardError as error:
                            raise error.at(f"evaluation, batch {number}") from error.__cause__
                        for name, output in outputs.items():
                            yield name, output, labels[name]
    if not number:
        raise LabelError(EMPTY.format(whose="loader to evaluate on"))


class _Batch(NamedTuple):
    """A batch on the device: its number, from 1, its input, and task -> checked labels."""

    number: int
    x: Any
    labels: dict[str, Tensor]


def _batches(tasks: Mapping[str, Task], loaders: Loaders, device: torch.device) -> Iterator[_Batch]:
    """Yield the batches of a split."""
    for number, group in enumerate(evaluation_groups(loaders, tasks), start=1):
        labels = {name: to_device(tasks[name].labels(group.targets), device) for name in group.tasks}
        yield _Batch(number, to_device(group.x, device), labels)


def _chunks(batches: Iterable[_Batch], *, alone: bool) -> Iterator[list[_Batch]]:
    """Yield lists of successive batches with the same tasks.

    Args:
        batches: the batches. Those that wait for others are copied: a loader may use its memory again.
        alone: each batch is a list of its own.
    """
    chunk: list[_Batch] = []
    size = 0
    for batch in batches:
        more = _CHUNK_BYTES if alone else _size(batch.x)
        if chunk and (size + more > _CHUNK_BYTES or chunk[0].labels.keys() != batch.labels.keys()):
            yield chunk
            chunk, size = [], 0
        size += more
        if size >= _CHUNK_BYTES:
            yield [*chunk, batch]
            chunk, size = [], 0
            continue
        chunk.append(_Batch(batch.number, *map_tensors(torch.clone, (batch.x, batch.labels))))
        if len(chunk) == _CHUNK_BATCHES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(nest: Any) -> int:
    """Return the bytes of a nest of tensors; those of a whole chunk if it has other parts, which cannot be copied."""
    others: list[Any] = []
    found: list[Tensor] = []
    map_tensors(found.append, nest, others.append)
    return _CHUNK_BYTES if others else sum(tensor.numel() * tensor.element_size() for tensor in found)


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
