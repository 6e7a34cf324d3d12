"""Batch-norm statistics per task: sub-networks have other activations, so each needs averages of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sparsemtl.errors import MaskError, unknown_name
from sparsemtl.networks.swap import swap_tensors, unwrapped

if TYPE_CHECKING:
    from sparsemtl.networks.model import MultiTaskModel

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of a norm that keeps running statistics."""

Statistics = Literal["shared", "per_task", "batch"]
"""Batch norm statistics: one set for all tasks, one set per task, or those of the batch, in training and evaluation."""


class TaskNorms:
    """Running statistics of the shared batch norms, one set per task; scale and shift stay shared.

    Each task's set starts as a copy of the model's own.

    Args:
        model: a `MultiTaskModel`.

    Examples:
        >>> norms = TaskNorms(model)                                            # doctest: +SKIP
        >>> with masks.applied(model, "digit"), norms.applied(model, "digit"):  # doctest: +SKIP
        ...     loss = tasks["digit"].loss(model(x)["digit"], y)
    """

    def __init__(self, model: MultiTaskModel) -> None:
        own = statistics_of(model)
        self._sets = {task: {name: tensor.clone() for name, tensor in own.items()} for task in model.tasks}

    def __getitem__(self, task: str) -> dict[str, Tensor]:
        if task not in self._sets:
            raise MaskError(unknown_name("task", task, self._sets))
        return self._sets[task]

    def applied(self, model: nn.Module, task: str) -> AbstractContextManager[None]:
        """Inside the context, the model's batch norms read and, in train mode, update the task's statistics."""
        own = self[task]
        if not own:
            return nullcontext()
        model = unwrapped(model)
        device = next(model.parameters()).device
        with torch.inference_mode(False):  # statistics made for inference only could never be updated
            own.update({name: tensor.to(device) for name, tensor in own.items()})
        return swap_tensors(model, own)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return task -> buffer name -> statistics, copied."""
        return {task: {name: t.detach().clone() for name, t in own.items()} for task, own in self._sets.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore a state of `state_dict`.

        Raises:
            MaskError: if the state is of other tasks, or of a model with other norms.
        """
        expected, found = _shapes(self._sets), _shapes(state)
        for name in [*expected, *found]:
            if expected.get(name) != found.get(name):
                raise MaskError(
                    f"norm statistics {name}: the state has shape {found.get(name, 'absent')}, the model "
                    f"{expected.get(name, 'absent')}. Were they saved for another model?"
                )
        self._sets = {task: {name: t.clone() for name, t in own.items()} for task, own in state.items()}


def _shapes(sets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {f"{task}/{name}": tuple(tensor.shape) for task, own in sets.items() for name, tensor in own.items()}


def shared_norms(model: MultiTaskModel) -> dict[str, _NormBase]:
    """Return the norms with running statistics in modules that tasks share, masked or not, by name."""
    return norms_in({**model.shared_modules(), **model.unmasked_modules()})


def norms_in(modules: Mapping[str, nn.Module]) -> dict[str, _NormBase]:
    """Return the norms with running statistics in modules, by name.

    Args:
        modules: name in the model -> module.
    """
    return {
        f"{prefix}.{name}" if name else prefix: norm
        for prefix, module in modules.items()
        for name, norm in module.named_modules()
        if isinstance(norm, _NormBase) and norm.track_running_stats
    }


def statistics_of(model: MultiTaskModel) -> dict[str, Tensor]:
    """Return the running statistics in the shared norms, by buffer name."""
    return {
        f"{name}.{kind}": tensor
        for name, norm in shared_norms(model).items()
        for kind in STATISTICS
        if (tensor := norm._buffers[kind]) is not None
    }


def statistics_for(model: MultiTaskModel, asked: Statistics | None) -> Statistics:
    """Return whose statistics the tasks use: as asked for, or else one set unless the tasks' activations differ."""
    return asked or ("per_task" if model.norms_per_task else "shared")


def own_statistics(model: MultiTaskModel, asked: Statistics | None = "per_task") -> dict[str, dict[str, Tensor | None]]:
    """Return task -> buffer name -> the statistics that the task uses in place of the model's.

    Args:
        model: the model; sets per task start as copies of its own.
        asked: `per_task`; `shared`, of which no task has its own; or `batch`. None is what data and architecture need.

    Returns:
        Empty per task for `shared`; None stands for the statistics of the batch.

    Examples:
        >>> encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> model = SharedBottom(encoder, [Regression("price"), Regression("size")])
        >>> masks = TaskMasks.ones(model.shared_parameters(), model.tasks)
        >>> networks = TaskNetworks.of_masks(masks, own_statistics(model))
        >>> sorted(networks["price"].own_tensors)
        ['encoder.1.num_batches_tracked', 'encoder.1.running_mean', 'encoder.1.running_var']
    """
    kind, found = statistics_for(model, asked), statistics_of(model)
    if kind == "per_task" and model.shared_modules():
        with torch.inference_mode(False):  # statistics made for inference only could never be updated
            return {task: {name: t.detach().clone() for name, t in found.items()} for task in model.tasks}
    if kind == "batch":
        return {task: dict.fromkeys(found) for task in model.tasks}
    return {task: {} for task in model.tasks}


def pool_statistics(model: nn.Module, sets: Mapping[str, Mapping[str, Tensor | None]]) -> None:
    """Set the model's own statistics to those of all tasks' data together, every task counting the same.

    A model called without its tasks' networks then has statistics of its data, and not those that it began with.

    Args:
        model: the model, whose buffers are changed.
        sets: task -> buffer name -> its statistics.
    """
    own = dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name in {name: None for found in sets.values() for name in found if name.endswith(".running_mean")}:
            norm = name.removesuffix("running_mean")
            means, variances, counts = (_stacked(sets, f"{norm}{kind}") for kind in STATISTICS)
            if means is None:
                continue
            own[name].copy_(means.mean(0))
            if variances is not None:
                own[f"{norm}running_var"].copy_(variances.mean(0) + means.var(0, correction=0))
            if counts is not None:
                own[f"{norm}num_batches_tracked"].copy_(counts.amax(0))


def _stacked(sets: Mapping[str, Mapping[str, Tensor | None]], name: str) -> Tensor | None:
    """Return the tensors of this name of all sets that have one, stacked; None if none has."""
    found = [tensor for own in sets.values() if (tensor := own.get(name)) is not None]
    return torch.stack(found) if found else None
