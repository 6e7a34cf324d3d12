"""Recomputed batch-norm statistics: averages over batches in place of running averages of past weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sparsemtl.errors import ParameterError
from sparsemtl.networks.batch_averages import BatchAverages
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.modes import train_mode
from sparsemtl.networks.norms import TaskNorms, norms_in, shared_norms, statistics_of
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.swap import swap_tensors
from sparsemtl.networks.task_networks import TaskNetworks, dense_networks
from sparsemtl.tasks.batches import Group, Loaders, evaluation_groups, groups_for, per_task, preserve_loader_state
from sparsemtl.tasks.processes import ALONE, Processes

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

BATCHES = 100
"""Batches over which statistics are averaged by default."""


@contextmanager
def dense_statistics(
    model: MultiTaskModel, inputs: Iterable[Any], task: str, processes: Processes = ALONE
) -> Iterator[None]:
    """Inside the context, the shared norms have the exact averages over `inputs` under the current weights.

    A network that is trained as several sub-networks has no statistics of the dense network, which criteria need.

    Args:
        model: the model.
        inputs: inputs of the encoder, batch by batch.
        task: task to run the model for.
        processes: processes over whose inputs the averages are.
    """
    averages = BatchAverages(shared_norms(model))
    if statistics_of(model):
        for x in inputs:
            averages.add(model, partial(model, x, tasks=(task,)))
    averages.add_up(processes)
    with swap_tensors(model, averages.tensors()):
        yield


def recompute_norms(
    model: MultiTaskModel,
    loaders: Loaders,
    norms: TaskNorms | None = None,
    *,
    masks: TaskMasks | None = None,
    networks: TaskNetworks | None = None,
    batches: int = BATCHES,
    module: nn.Module | None = None,
) -> None:
    """Replace the running statistics of batch norms by averages over training batches with the present weights.

    Running averages are of past weights. After few steps, or a step that made weights zero, they are not those of the
    network that is evaluated. Every task's batches pass through the task's network, and every batch counts the same.
    Left out are batches without a label of the task, as in training, and those with a single value per channel. Norms
    that stay in eval mode while training, or have a momentum of 0, keep their statistics. The random generators and
    the order of the loaders' data are not disturbed.

    Args:
        model: the model.
        loaders: training data, as for `Trainer.fit`.
        norms: sets of statistics per task, which are filled; if None, the model's own are, over all tasks.
        masks: masks, where a task computes with mask * weight.
        networks: the tasks' networks, in place of `norms` and `masks`.
        batches: largest number of batches per task.
        module: callable in place of the model, such as Lightning Fabric's wrapper of it.

    Raises:
        ParameterError: if `batches` is below 1, or `networks` stands beside `norms` or `masks`.

    Examples:
        >>> norms = TaskNorms(model)                                            # doctest: +SKIP
        >>> recompute_norms(model, loader, norms, masks=masks)                  # doctest: +SKIP
        >>> with masks.applied(model, "digit"), norms.applied(model, "digit"):  # doctest: +SKIP
        ...     outputs = model.eval()(x)
    """
    if batches < 1:
        raise ParameterError(f"`batches` must be at least 1, got {batches}.")
    if networks is None:
        networks = _networks_of(model, norms, masks)
    elif norms is not None or masks is not None:
        raise ParameterError("recompute_norms: give `networks`, or `norms` and `masks`, not both.")
    averages = _averages(model, per_task_sets=networks.have_own_tensors)
    if not averages:
        return
    with fork_rng(), preserve_loader_state(loaders):
        for task, x in _batches(model, loaders, batches):
            with networks.swapped(model, task):
                averages[task].add(model, partial(module or model, x, tasks=(task,)))
    _replace_statistics(model, networks, averages)


def _networks_of(model: MultiTaskModel, norms: TaskNorms | None, masks: TaskMasks | None) -> TaskNetworks:
    own = {task: norms[task] for task in model.tasks} if norms is not None else {}
    return dense_networks(model, model.tasks, own) if masks is None else TaskNetworks.of_masks(masks, own)


def _averages(model: MultiTaskModel, *, per_task_sets: bool) -> dict[str, BatchAverages]:
    """Return task -> averages of the norms that its batches pass through: its own, or the same for all tasks.

    They are of the norms whose running statistics training changes; empty if there are none.
    """
    with train_mode(model):
        shared = _moving(shared_norms(model))
        apart = {task: _moving(norms_in(model.task_modules(task))) for task in model.tasks}
    if not shared and not any(apart.values()):
        return {}
    if per_task_sets:
        return {task: BatchAverages({**shared, **own}) for task, own in apart.items()}
    everything = {name: norm for own in (shared, *apart.values()) for name, norm in own.items()}
    return dict.fromkeys(model.tasks, BatchAverages(everything))


@torch.no_grad()
def _replace_statistics(model: MultiTaskModel, networks: TaskNetworks, averages: Mapping[str, BatchAverages]) -> None:
    """Put averages in the place of the tasks' own statistics, and of the model's where a task has none of its own."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for task, own in averages.items():
        current = {**buffers, **networks[task].own_tensors} if networks.have_own_tensors else buffers
        for name, tensor in own.tensors().items():
            if (found := current[name]) is not None:
                found.copy_(tensor)


def _moving(norms: Mapping[str, _NormBase]) -> dict[str, _NormBase]:
    return {name: norm for name, norm in norms.items() if norm.training and norm.momentum != 0}


def _batches(model: MultiTaskModel, loaders: Loaders, batches: int) -> Iterator[tuple[str, Any]]:
    """Yield (task, input) of the first batches with a label of the task, from one pass over the loaders."""
    device, dtype = placement(model)
    passes: list[tuple[tuple[str, ...], Iterator[Group]]]
    if per_task(loaders):
        passes = [((name,), groups_for(loaders, task)) for name, task in model.tasks.items()]
    else:
        passes = [(tuple(model.tasks), evaluation_groups(loaders, model.tasks))]
    for names, groups in passes:
        left = dict.fromkeys(names, batches)
        for group in groups:
            labelled = [name for name in names if left[name] and _has_label(model.tasks[name], group)]
            x = group.to(device, dtype).x
            for name in labelled:
                left[name] -= 1
                yield name, x
            if not any(left.values()):
                break


def _has_label(task: Task, group: Group) -> bool:
    return bool(task.labelled(task.labels(group.targets)).any())
