"""The contract of balancers: the losses or gradients of T tasks into one update.

A training step gives a balancer one row of losses and, if the balancer declares so, one row of gradients per task:
those of the shared weights, which it combines, or those at a target that it names, from which it chooses weights. A
balancer computes no gradient itself.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sparsemtl.balancing.frozen_entries import frozen_entries
from sparsemtl.networks.declarations import Figure, SummaryTable

if TYPE_CHECKING:
    from sparsemtl.balancing.targets import GradientTarget
    from sparsemtl.networks.model import MultiTaskModel


class Balancer(abc.ABC):
    """Base of balancers: combines the tasks of a training step."""

    #: True if the weights are the same at every step of a run. They are computed once, and each task can go backward
    #: right after its forward pass.
    constant: bool = False
    #: True if the balancer combines the tasks' gradients with respect to the shared weights, one row per task.
    combines_gradients: bool = False
    #: True if the combined gradient is a sum of the tasks' gradients with weights of their inner products: training
    #: then calls `gradient_weights` in place of `aggregate`, and never holds all rows.
    from_gramian: bool = False
    #: True if the balancer reads the losses of the same batch once more after the step.
    needs_post_step_losses: bool = False
    #: Tasks over which the gradient of a shared weight is averaged, for balancers of constant weights: all of them, or
    #: `selected`, those whose network uses the weight.
    normalise: Literal["all", "selected"] = "all"
    #: Shared weights whose gradients are combined: all, or the `overlap`, those that several tasks use. A weight that
    #: one task uses gets the plain gradient of this task.
    scope: Literal["all", "overlap"] = "all"

    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("weight", "Loss weights", "factor of each task's loss in the last step of the epoch"),
    )
    """Declarations of the names that are logged: `weight` for every balancer, and those that `metrics` yields."""

    @property
    def takes_turns(self) -> bool:
        """True if a step for one task at a time is possible: nothing of the tasks is combined."""
        return self.constant and self.normalise == "all"

    def attach(self, tasks: int, device: torch.device) -> None:
        """Start a run with this number of tasks, with all tensors on this device."""

    @abc.abstractmethod
    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the factor of every task's loss in the update, (T,): the slopes of the combined loss.

        Args:
            losses: the tasks' losses times their own weights, detached, (T,). A task without a label in this batch
                enters with its last loss.
            present: bool (T,), True for tasks with a label in this batch; None if all have one. Parameters of the
                balancer that belong to another task alone get no gradient.
        """

    def aggregate(self, rows: Tensor, present: Tensor | None = None) -> Tensor:
        """Combine the tasks' gradients (T, P) into one (P,).

        Args:
            rows: one gradient per task; zero for a task without one. The next step uses their memory again: copy
                what is needed for longer, and do not return a part of it.
            present: bool (T,), True for tasks that have a gradient; None if all have one. The balancer's state of
                other tasks does not change.

        Raises:
            NotImplementedError: if the balancer combines losses.
        """
        raise NotImplementedError(f"{type(self).__name__} combines losses.")

    def gradient_weights(self, gramian: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the factors (T,) of the tasks' gradients in the combined one, zero for absent tasks.

        Args:
            gramian: inner products (T, T) of the gradients; zero for a task without one.
            present: bool (T,), as for `aggregate`.

        Raises:
            NotImplementedError: if the balancer reads more than inner products.
        """
        raise NotImplementedError(f"{type(self).__name__} reads more of the gradients than their inner products.")

    def gradient_target(self, model: MultiTaskModel) -> GradientTarget | None:
        """Return what the tasks' losses are differentiated by before `weights` is called; None for nothing.

        Raises:
            ParameterError: if the model has no such thing.
        """
        return None

    def observe_gradients(self, losses: Tensor, rows: Tensor, present: Tensor) -> None:
        """Read the gradients of a batch at the target, before `weights` is called for this batch.

        Args:
            losses: the tasks' losses times their own weights, detached, (T,), as `weights` reads them.
            rows: gradients (T, P) of these losses at the target, float32 or float64; zero for a task without a label.
            present: bool (T,), True for tasks with a label in this batch.
        """

    def end_step(self) -> None:
        """Update what is learned once per optimizer step, after the step; batches that accumulate make one step."""

    def observe_post_step_losses(self, losses: Tensor, present: Tensor | None = None) -> None:
        """Read the losses of the same batch after the step, (T,); `present` as in `weights`."""

    def per_task_parameters(self, tasks: int) -> Iterable[nn.Parameter]:
        """Return those of `parameters` that have one entry per task, (tasks,)."""
        return ()

    @contextmanager
    def held(self, present: Tensor, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Leave the entries of tasks without a label unchanged in a step of the optimizer.

        Args:
            present: bool (T,), True for tasks with a label in this step.
            optimizer: takes the step inside the context; its state of these entries does not change either.
        """
        with frozen_entries(self.per_task_parameters(len(present)), ~present, optimizer):
            yield

    def end_epoch(self) -> None:
        """Update averages that are kept per epoch."""

    def metrics(self) -> Iterator[tuple[int | None, str, float]]:
        """Yield what is logged after an epoch: (row of the task, or None for all tasks together; name; value)."""
        return iter(())

    def tables(self) -> tuple[SummaryTable, ...]:
        """Return tables of the balancer at the end of training, for the report."""
        return ()

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that the run's optimizer trains, without weight decay; `weights` sets their gradients.

        By default there are none.
        """
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as a copy."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`, after `attach`."""
