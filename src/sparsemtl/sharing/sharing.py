"""Contract of sharing methods: policies that decide what each task's network is, and when it changes.

A method returns `TaskNetworks`; whoever trains keeps the value and hands it back. A method of one's own is a subclass
of `Sharing` with `start`. It changes networks in `begin_epoch`, after optimizer steps by `AfterStep`, or after batches
by `AfterBatch`, and adds terms to losses by `TaskPenalty` and `Regularizer`.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypedDict, runtime_checkable

from typing_extensions import Doc

from sparsemtl.networks.norms import Statistics
from sparsemtl.registry.parameters import Default
from sparsemtl.registry.representation import ConstructorRepr

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from sparsemtl.networks.declarations import Figure, SummaryTable
    from sparsemtl.networks.model import MultiTaskModel
    from sparsemtl.networks.task_networks import TaskNetworks
    from sparsemtl.tasks.batches import Loaders

Update = Literal["joint", "average", "alternate", "random_one"]
"""How a batch becomes optimizer steps: `joint`, one forward pass for all tasks and one step; `average`, one forward
pass per task and one step on the combined gradient; `alternate`, one forward pass and one step per task, in turn;
`random_one`, one forward pass and one step for one task, drawn uniformly among those with a label in the batch."""

TURNS: tuple[Update, ...] = ("alternate", "random_one")
"""Updates whose steps are for one task each."""


class DenseOptions(TypedDict, total=False):
    """Options of methods whose tasks compute with the same weights."""

    update: Annotated[
        Update | None,
        Default(None),
        Doc(
            "How a batch becomes optimizer steps: `joint`, one forward pass for all tasks and one step; `average`, one "
            "forward pass per task and one step; `alternate`, one forward pass and one step per task; `random_one`, "
            "one forward pass and one step for a task drawn at random. By default `average` where each task has its "
            "own data; else `joint` where one network serves all tasks (but `alternate` if they share no trained "
            "weight); else `alternate`, or `average` if the balancer combines the tasks."
        ),
    ]
    bn: Annotated[
        Statistics | None,
        Default(None),
        Doc(
            "Batch-norm statistics: one set for all tasks, one set per task, or those of the batch itself. By default "
            "`shared`, or `per_task` where each task has its own data, and for architectures in which tasks run "
            "different networks (`squeeze-excitation`)."
        ),
    ]


@dataclass(frozen=True)
class StepWeights:
    """Factors of the terms of the objective in one optimizer step, as its gradient has them.

    Attributes:
        losses: task -> the balancer's factor of its loss, without the task's own weight; the mean over accumulated
            batches, in which a batch without a label of the task counts as 0. 1 for tasks that are not named.
        regularizer: factor of terms that belong to no task. 1 where a step is for all tasks; where tasks take turns, 1
            over the sum of the balancer's weights, so that a round weighs the term against the losses as a step for all
            does.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    regularizer: float = 1.0

    def of(self, task: str) -> float:
        """Return the factor of the loss of a task."""
        return self.losses.get(task, 1.0)


def _noting(method: Callable[..., Any], *, begun: bool) -> Callable[..., Any]:
    """Return a method of a sharing method that notes whether an epoch has begun."""

    @wraps(method)
    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        self._epoch_begun = begun
        return method(self, *arguments, **options)

    return noting


class Sharing(ConstructorRepr, abc.ABC):
    """Policy that decides what each task computes with and trains.

    A method keeps no model and no networks: both are handed to it. What it must know from one epoch to the next, such
    as a schedule's progress, is its state.
    """

    #: Figures that `metrics` yields.
    figures: ClassVar[tuple[Figure, ...]] = ()
    #: True if the best epoch is selected for each task, though tasks share weights.
    selects_per_task: ClassVar[bool] = False
    #: How a batch becomes optimizer steps; None chooses by the data, the networks and the balancer.
    update: Update | None = None
    #: Batch-norm statistics of the tasks, None for what data and architecture need; where they are per task, training
    #: recomputes them before validation.
    bn: Statistics | None = "shared"
    #: Learning rate of `TaskNetworks.parameters()`; None is the optimizer's.
    lr: float | None = None
    _epoch_begun = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Let a method note the calls that `needs_epoch` depends on."""
        super().__init_subclass__(**options)
        for name in ("start", "begin_epoch", "load_state_dict"):
            if name in cls.__dict__:
                setattr(cls, name, _noting(cls.__dict__[name], begun=name != "start"))

    @property
    def needs_epoch(self) -> bool:
        """True if the method acts before epochs, and none has begun since `start`."""
        return not self._epoch_begun and type(self).begin_epoch is not Sharing.begin_epoch

    @abc.abstractmethod
    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return the networks before the first epoch, which `begin_epoch` may change; masks keep everything here.

        Raises:
            ParameterError: if the method has nothing to act on in the model.
            MaskError: likewise, for methods that mask weights.
        """

    def begin_training(self, epochs: int) -> None:
        """Note the largest number of epochs, before `start`."""

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Return the networks of the epoch, or None to keep the current ones.

        Args:
            epoch: epoch that begins, counted from 0.
            model: the model; it must not be changed.
            networks: the current networks.
            loaders: training data, which may be read.
        """
        return None

    def restarts_at(self, epoch: int) -> bool:
        """Return True if training starts afresh before an epoch: optimizer and scheduler lose their state."""
        return False

    def end_epoch(self, epoch: int, networks: TaskNetworks) -> None:
        """Check the networks after the epoch (counted from 0), before validation.

        Raises:
            TrainingError: if they cannot be used.
        """

    def is_selectable(self, epoch: int) -> bool:
        """Return False for epochs whose model is never selected, such as those of a warm-up."""
        return True

    def first_selectable(self) -> int:
        """Return the first epoch (counted from 0) whose model may be selected."""
        return next(epoch for epoch in itertools.count() if self.is_selectable(epoch))

    def end_training(self, model: MultiTaskModel, networks: TaskNetworks) -> None:
        """Warn if the selected model is not what the method is for."""

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield what is logged after an epoch: (task or "", name of a figure, value)."""
        return iter(())

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the entry of the method in `summary.json`."""
        return {}

    def tables(self, model: MultiTaskModel, networks: TaskNetworks) -> tuple[SummaryTable, ...]:
        """Return tables of the state at the end of training, for the report."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the networks."""
        return {}

    @partial(_noting, begun=True)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""


@runtime_checkable
class AfterStep(Protocol):
    """Sharing method that acts after each optimizer step, as proximal methods do."""

    def after_step(
        self, model: MultiTaskModel, networks: TaskNetworks, optimizer: Optimizer, weights: StepWeights
    ) -> TaskNetworks | None:
        """Change weights in place, or return other networks; None keeps the current ones.

        Args:
            model: the model.
            networks: the current networks.
            optimizer: the optimizer that took the step.
            weights: factors of the losses and of the regularizer in the step. A proximal step of a term must weigh the
                term as the gradient step weighed the loss beside it.
        """


@runtime_checkable
class AfterBatch(Protocol):
    """Sharing method that changes networks within epochs, after batches."""

    def after_batch(self, model: MultiTaskModel, networks: TaskNetworks, batches: int) -> TaskNetworks | None:
        """Return other networks, or None to keep the current ones.

        Args:
            model: the model; it must not be changed.
            networks: the current networks.
            batches: number of batches since the last call: more than 1 where gradients accumulate.
        """


@runtime_checkable
class ObservesValidation(Protocol):
    """Sharing method that reads how good each task is on validation data."""

    def observe_validation(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Observe an epoch (counted from 0) after its validation.

        Args:
            epoch: the epoch.
            scores: task -> finite value by the run's monitor, larger is better; without tasks for which it is
                undefined.
        """


@runtime_checkable
class TaskPenalty(Protocol):
    """Sharing method with a term in the loss of each task."""

    def penalty(self, model: MultiTaskModel, networks: TaskNetworks, task: str) -> Tensor | None:
        """Return the term, a scalar, or None if there is none now."""


@runtime_checkable
class Regularizer(Protocol):
    """Sharing method with a term in each optimizer step that belongs to no task, and that no balancer weighs."""

    def regularizer(self, model: MultiTaskModel) -> Tensor | None:
        """Return the term, a scalar, or None if there is none now."""
