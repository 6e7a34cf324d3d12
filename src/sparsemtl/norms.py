"""Batch norm statistics that belong to a task: sub-networks see other activations, so they need other averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sparsemtl.errors import MaskError, unknown_name
from sparsemtl.masks import unwrapped
from sparsemtl.models import MultiTaskModel
from sparsemtl.modes import evaluating
from sparsemtl.shadow import shadowed

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class TaskNorms:
    """Running statistics of the shared batch norms, one set a task; scale and shift stay shared.

    Each task's set starts as a copy of the model's own.

    Args:
        model: a `MultiTaskModel`.

    Example:
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
        return shadowed(model, own)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Task -> buffer name -> statistics, copied."""
        return {task: {name: t.detach().clone() for name, t in own.items()} for task, own in self._sets.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `state_dict` gave.

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
    """The norms that keep running statistics in modules that tasks share, masked or not, by name."""
    return {
        f"{prefix}.{name}" if name else prefix: module
        for prefix, shared in {**model.shared_modules(), **model.unmasked_modules()}.items()
        for name, module in shared.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats
    }


def statistics_of(model: MultiTaskModel) -> dict[str, Tensor]:
    """The running statistics in the shared norms, by buffer name."""
    return {
        f"{name}.{kind}": tensor
        for name, norm in shared_norms(model).items()
        for kind in STATISTICS
        if (tensor := norm._buffers[kind]) is not None
    }


def batch_statistics(model: MultiTaskModel) -> AbstractContextManager[None]:
    """Inside the context, the shared norms use the batch's own statistics, in eval mode as well."""
    return shadowed(model, dict.fromkeys(statistics_of(model)))


@contextmanager
def recalibrated(model: MultiTaskModel, inputs: Iterable[Any], task: str) -> Iterator[None]:
    """Inside the context, the shared norms have the exact averages over `inputs` under the current weights.

    A network trained as several sub-networks has no statistics of its dense self; a criterion that looks at
    the dense network needs them.

    Args:
        inputs: what the encoder reads, batch by batch.
        task: the task to run the model for.
    """
    fresh = {name: torch.zeros_like(tensor) for name, tensor in statistics_of(model).items()}
    if not fresh:
        yield
        return
    norms = list(shared_norms(model).values())
    momenta = [norm.momentum for norm in norms]
    with shadowed(model, fresh):
        with evaluating(model), torch.no_grad():
            try:
                for norm in norms:
                    norm.momentum = None  # a cumulative average: every batch counts the same
                    norm.train()
                for x in inputs:
                    model(x, tasks=(task,))
            finally:
                for norm, momentum in zip(norms, momenta, strict=True):
                    norm.momentum = momentum
        yield
