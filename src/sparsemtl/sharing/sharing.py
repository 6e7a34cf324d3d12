"""The contract of sharing methods: which shared weights each task reads and trains, and when that changes.

The training step asks a sharing method seven things and knows nothing else about it: how the tasks take turns
(`update`), the task's sub-network (`view`), what its gradient may touch (`gradient_mask`), what a step may move
(`active`), an extra term of its loss (`penalty`) or of the whole (`regularizer`), and what to do after a step
(`after_step`). Before every epoch `begin_epoch` may change any of the answers; after it `end_epoch` may object.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from sparsemtl.errors import ParameterError
from sparsemtl.networks.masks import Mask, TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import TaskNorms, batch_statistics
from sparsemtl.tasks.batches import Loaders

Update = Literal["joint", "average", "alternate"]
"""How a batch becomes updates: `joint`, one forward for all tasks and one step; `average`, a forward a task and one
step on the combined gradient; `alternate`, a forward and a step a task, in turn."""

Statistics = Literal["shared", "per_task", "batch"]
"""Batch norm statistics: one set for all, a set a task, or the batch's own in training and evaluation."""


@dataclass(frozen=True)
class StepWeights:
    """Factors of the terms of the objective in one optimizer step, as its gradient has them.

    Attributes:
        losses: task -> the balancer's factor of its loss, without the task's own weight; the mean over accumulated
            batches, in which a batch without a label of the task counts as 0. 1 for tasks that are not named.
        regularizer: factor of terms that are on no task's account. 1 where a step is for all tasks; where tasks take
            turns, every step has its part of the term, so that a round has as much of it as a step for all.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    regularizer: float = 1.0

    def of(self, task: str) -> float:
        """The factor of a task's loss."""
        return self.losses.get(task, 1.0)


class Sharing(abc.ABC):
    """Which shared weights each task reads and trains.

    Args:
        update: how a batch becomes updates; None chooses by the data: in turns where tasks share
            their inputs, averaged where each has its own; methods that run one network for all start with `joint`.
        bn: whose batch norm statistics a task uses.
    """

    #: The masks in force, for methods that have any.
    masks: TaskMasks | None = None
    #: Parts of the state that are kept task by task.
    by_task: tuple[str, ...] = ("norms", "masks")
    #: True if every task is given the epoch that is best for it, though it shares weights with others.
    chosen_apart: bool = False
    #: True if a task may read other values than the model's, which masks and statistics do not tell.
    scales: bool = False
    #: Learning rate of `parameters`; None is the optimizer's.
    lr: float | None = None
    #: What the step under way weighs; the training step sets it before `after_step`, and so does a loop of one's own
    #: that weighs losses.
    step_weights: StepWeights = StepWeights()

    def __init__(self, *, update: Update | None, bn: Statistics) -> None:
        self._update = update
        self.bn = bn
        self.norms: TaskNorms | None = None
        self._model: MultiTaskModel | None = None

    @property
    def model(self) -> MultiTaskModel:
        """The model that the method was attached to."""
        if self._model is None:
            raise ParameterError(f"{type(self).__name__} is not attached to a model yet; call attach(model).")
        return self._model

    def attach(self, model: MultiTaskModel) -> None:
        """Start on a model, before its optimizer takes a step."""
        self._model = model
        self.norms = TaskNorms(model) if self.bn == "per_task" and model.shared_modules() else None

    @property
    def one_network(self) -> bool:
        """True if all tasks read the same weights and statistics, so that one forward serves them all."""
        return self.norms is None

    def update_for(self, *, own_data: bool, constant: bool = True) -> Update:
        """How a batch becomes updates.

        Args:
            own_data: every task has data of its own.
            constant: the balancer's weights are constant. Others combine the tasks of a step, so that tasks take no
                turns unless it is asked for.

        Raises:
            ParameterError: if `joint` is asked for and the tasks do not read one network.
        """
        if self._update == "joint" and not self.one_network:
            raise ParameterError(
                f"{type(self).__name__}: update='joint' runs one forward for all tasks, but each has a network of "
                "its own. Use 'average' or 'alternate'."
            )
        if self._update is not None:
            return self._update
        if own_data:
            return "average"
        if self.one_network and not (constant and self.model.independent):
            return "joint"
        return "alternate" if constant else "average"

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Renew what the method renews, before the epoch (counted from 0). May read the training data."""

    def end_training(self) -> None:
        """Look at the model that was chosen, and warn if it is not what the method is for."""

    def end_epoch(self, epoch: int) -> None:
        """Look at what the epoch (counted from 0) has made, before it is validated.

        Raises:
            TrainingError: if nothing good can come of it.
        """

    def is_selectable(self, epoch: int) -> bool:
        """True if the model of this epoch is what the method promises; a warm-up's is not and is never chosen."""
        return True

    def view(self, task: str) -> AbstractContextManager[Any]:
        """Inside the context, the model is the network of this task, for training and for inference."""
        if self.norms is not None:
            return self.norms.applied(self.model, task)
        return batch_statistics(self.model) if self.bn == "batch" else nullcontext()

    def gradient_mask(self, task: str) -> Mask | None:
        """Which entries of the task's gradient count, where the forward does not mask them; None is all."""
        return None

    def active(self, tasks: Sequence[str]) -> Mask | None:
        """Which shared weights a step for these tasks may move; None is all."""
        return None

    def penalty(self, task: str) -> Tensor | None:
        """An extra term of the task's loss."""
        return None

    def parameters(self) -> Iterator[nn.Parameter]:
        """The method's own parameters, which the optimizer trains beside the model's, without weight decay."""
        return iter(())

    def regularizer(self) -> Tensor | None:
        """An extra term of every step, on no task's account: no balancer weighs it."""
        return None

    def after_step(self, optimizer: Optimizer) -> None:
        """Act on the weights after a step that the optimizer took, as a proximal method does.

        A proximal step of a term must weigh it as the gradient step weighed the loss that it stands beside: see
        `step_weights`.
        """

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """What to log after an epoch: (task or "", name, value)."""
        return iter(())

    def summary(self) -> dict[str, Any]:
        """What the run's summary says of the method's result."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "norms": self.norms.state_dict() if self.norms else None,
            "masks": {task: dict(mask) for task, mask in self.masks.items()} if self.masks else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, after `attach`."""
        if self.norms is not None:
            self.norms.load_state_dict(state["norms"])
        if state["masks"] is not None:
            device = next(self.model.parameters()).device
            header = {"model": type(self.model).__name__, "method": type(self).__name__}
            self.masks = TaskMasks(state["masks"], **header).to(device)

    def put_back(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take every task's part of a state of its own: task -> what `state_dict` gave at the task's best epoch."""
        merged = dict(next(iter(states.values())))
        for key in self.by_task:
            if merged[key] is not None:
                merged[key] = {task: state[key][task] for task, state in states.items()}
        self.load_state_dict(merged)
