"""Metrics per task over a whole split, each computed with the task's own network."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain, islice, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsemtl.errors import ForwardError, LabelError
from sparsemtl.networks.modes import eval_mode
from sparsemtl.tasks.batches import EMPTY, Loaders, evaluation_groups, per_task
from sparsemtl.tasks.nests import map_tensors, to_device
from sparsemtl.tasks.processes import Processes
from sparsemtl.tasks.shards import NO_BATCH, processes_of, sharded
from sparsemtl.tasks.task import Task
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.tally import Tally
from sparsemtl.training.evaluation.trained import Trained

_CHUNK_BATCHES, _CHUNK_BYTES = 32, 2**24
"""Most batches, and bytes of their inputs, that are held while one network after another reads them."""


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
    tallies = {name: Tally(task, device) for name, task in tasks.items()}
    for name, output, label in outputs:
        tallies[name].add(output, label)
    return Results({name: tally.results() for name, tally in tallies.items()})


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
