"""One training step: forward, combine, backward, update, for any architecture, sharing method and balancer.

The order is fixed so that runs compare bit for bit: per task forward, loss, backward accumulating into `.grad` in
the tasks' order, then one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.balancing.balancer import Balancer
from sparsemtl.errors import ForwardError, NonFiniteError, NonFiniteLossError, ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.optim.masked import FreezeOutsideMask
from sparsemtl.sharing.sharing import Sharing, StepWeights, Update
from sparsemtl.tasks.batches import Group
from sparsemtl.training.finite import check_gradient, check_norm, check_rows, named_parameters
from sparsemtl.training.structure import check_state

MAX_SKIPPED = 100
"""Steps that a gradient scaler may leave out one after another. Each halves its scale, so that a gradient which does
not fit into half precision does after a few dozen of them; one that still does not is not finite at any scale."""


@dataclass(frozen=True)
class Backend:
    """How to run a model on a device and in a precision; Lightning Fabric's parts, or plain torch's.

    Attributes:
        module: what is called in place of the model.
        backward: called with a scalar, and `retain_graph`.
        clip: called before an optimizer step; may return the gradient's norm, to be checked.
        device: where batches go.
        scaled: a gradient scaler leaves out steps whose gradient is not finite, and lowers its scale.
    """

    module: nn.Module
    backward: Callable[..., None]
    clip: Callable[[], Any] | None
    device: torch.device
    scaled: bool = False


@dataclass
class StepResult:
    """What a step tells: the loss of every task that had a label, its mean over the batches in which it had one, and
    the balancer's weights."""

    losses: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    samples: int = 0


class Engine:
    """Turns batches into optimizer steps.

    Args:
        model: the model, attached to `sharing`.
        sharing: what every task reads and trains.
        balancer: combines the tasks, attached.
        optimizer: steps the model's (and the balancer's) parameters.
        update: `joint`, `average` or `alternate`, as `sharing.update_for` says; a single task has nobody to take
            turns with, so that all three are one.
        backend: device and precision.

    Raises:
        ParameterError: if tasks take turns but the balancer combines them.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        sharing: Sharing,
        balancer: Balancer,
        optimizer: torch.optim.Optimizer,
        update: Update,
        backend: Backend,
    ) -> None:
        if len(model.tasks) == 1:
            update = "joint"
        if update == "alternate" and not balancer.constant:
            raise ParameterError(
                "update 'alternate' takes a step for one task at a time, so there is nothing for this balancer to "
                "combine. Use sharing.update 'average', or a balancer of constant weights."
            )
        self.model = model
        self.tasks = model.tasks
        self.sharing = sharing
        self.balancer = balancer
        self.optimizer = optimizer
        self.update = update
        self.backend = backend
        self._inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self._parameters = dict(model.named_parameters())
        together = {**model.shared_parameters(), **model.unmasked_parameters()}
        self._shared = {name: p for name, p in together.items() if p.requires_grad}
        self._by_rows = balancer.combines_gradients and bool(self._shared)
        self._last_losses: dict[str, float] = {}
        self._rows: dict[str, Tensor] = {}
        self._factors: Counter[str] = Counter()
        self._holds: dict[tuple[str, ...], FreezeOutsideMask] = {}
        self._memory: dict[str, Tensor] = {}
        self.trained = named_parameters(model, sharing=sharing.parameters(), balancer=balancer.parameters())
        self._skipped = 0
        self._where = ""

    def step(self, batches: Sequence[Sequence[Group]], where: str = "") -> StepResult:
        """Train on one batch, or on several whose gradients accumulate.

        Args:
            batches: each a list of groups.
            where: the place in the run, for error messages.

        Raises:
            NonFiniteLossError: if a task's loss, or the weight that the balancer gives it, is NaN or infinite; before
                the step that it belongs to. With `alternate`, tasks before it in turn have taken theirs.
            NonFiniteError: if the gradient is, likewise; where a gradient scaler leaves such steps out, after
                `MAX_SKIPPED` of them.
        """
        self._where = where
        ready = [self._prepare(groups) for groups in batches]
        result = StepResult(samples=sum(group.count for groups in ready for group in groups))
        if self.update == "alternate":
            self._alternate(ready, result, where)
        else:
            self._combine(ready, result, where)
        counts = Counter(task for groups in ready for group in groups for task in group.labelled)
        result.losses = {task: total / counts[task] for task, total in result.losses.items()}
        return result

    def _prepare(self, groups: Sequence[Group]) -> list[_Ready]:
        """Move groups to the device, with the tasks that have a label in them."""
        ready = []
        for group in groups:
            labels = {t: self.tasks[t].labels(group.targets) for t in group.tasks}
            labelled = tuple(t for t in group.tasks if bool(self.tasks[t].labelled(labels[t]).any()))
            count = max((len(label) for label in labels.values()), default=0)
            ready.append(_Ready(group.to(self.backend.device), labelled, count))
        return ready

    # ---- a step a task -------------------------------------------------------------------------------------

    def _alternate(self, batches: Sequence[Sequence[_Ready]], result: StepResult, where: str) -> None:
        weights = self._weights({}, where)
        scale = len(weights) / sum(weights.values())  # only the weights' ratios matter: 1 for mean and sum alike
        result.weights = {task: weight * scale for task, weight in weights.items()}
        for task in self.tasks:
            mine = [ready for groups in batches for ready in groups if task in ready.labelled]
            if not mine:
                continue
            self.optimizer.zero_grad()
            self._factors = Counter()
            for ready in mine:
                loss = self._losses(ready.group, (task,), result, where)[task]
                self._backward(self._weighed({task: loss}, result.weights, len(batches)))
            self._move((task,), part=scale / len(weights))

    # ---- a step for all tasks ------------------------------------------------------------------------------

    def _combine(self, batches: Sequence[Sequence[_Ready]], result: StepResult, where: str) -> None:
        self.optimizer.zero_grad()
        self._rows = {}
        self._factors = Counter()
        for groups in batches:
            if self.balancer.constant and self.update == "average":
                result.weights = self._weights({}, where)
                for group, tasks in self._passes(groups):
                    losses = self._losses(group, tasks, result, where)
                    self._backward(self._weighed(losses, result.weights, len(batches)))
            elif losses := self._losses_of_all(groups, result, where):
                result.weights = self._weights(losses, where)
                self._backward(self._weighed(losses, result.weights, len(batches)))
        present = tuple(t for t in self.tasks if t in result.losses)
        if not present:
            return
        if self._rows:
            self._aggregate()
        for p in self.balancer.parameters():
            if p.grad is not None:
                p.grad /= len(batches)
        self._move(present)
        if self.balancer.needs_post_step_losses:
            self._look_back(batches[-1], where)

    def _losses_of_all(self, groups: Sequence[_Ready], result: StepResult, where: str) -> dict[str, Tensor]:
        """The losses of a batch's tasks that have a label."""
        losses: dict[str, Tensor] = {}
        for group, tasks in self._passes(groups):
            losses.update(self._losses(group, tasks, result, where))
        return losses

    def _passes(self, groups: Sequence[_Ready]) -> Iterator[tuple[Group, tuple[str, ...]]]:
        """The forward passes of a batch: all of a group's tasks at once, or one by one."""
        for ready in groups:
            if self.update == "joint":
                if ready.labelled:
                    yield ready.group, ready.labelled
            else:
                for task in ready.labelled:
                    yield ready.group, (task,)

    def _losses(self, group: Group, tasks: tuple[str, ...], result: StepResult, where: str) -> dict[str, Tensor]:
        """One forward pass; losses and the model's terms times the tasks' own weights, plus the sharing method's."""
        with self.sharing.view(tasks[0]):
            try:
                outputs = self.backend.module(group.x, tasks=tasks)
            except ForwardError as error:
                raise error.at(where or "training") from error.__cause__
        losses = {}
        for name in tasks:
            task = self.tasks[name]
            target = task.labels(group.targets)
            loss = task.loss(outputs[name], target)
            value = float(loss.detach())
            _check_finite(value, f"the loss of task {name!r}", where)
            result.losses[name] = result.losses.get(name, 0.0) + value
            own = self.model.penalty(name, target)
            weighted = (loss if own is None else loss + own) * task.weight
            penalty = self.sharing.penalty(name)
            losses[name] = weighted if penalty is None else weighted + penalty
        return losses

    def _weights(self, losses: Mapping[str, Tensor], where: str) -> dict[str, float]:
        """The balancer's weight of every task."""
        self._last_losses.update({task: float(loss.detach()) for task, loss in losses.items()})
        present = self._flags(losses) if losses else None
        row = self.balancer.weights(self._row({}), present).tolist()
        for task, weight in zip(self.tasks, row, strict=True):
            _check_finite(weight, f"the balancer's weight of task {task!r}", where)
        return dict(zip(self.tasks, row, strict=True))

    def _row(self, losses: Mapping[str, float]) -> Tensor:
        """The tasks' losses as balancers read them; a task without one enters with its last, or with the mean."""
        last = self._last_losses
        fallback = sum(last.values()) / len(last) if last else 1.0
        row = [losses.get(task, last.get(task, fallback)) for task in self.tasks]
        return torch.tensor(row, device=self.backend.device)

    def _weighed(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], parts: int) -> dict[str, Tensor]:
        """The losses times their weights, for one of some batches that make a step."""
        factors = {task: weights[task] / parts for task in losses}
        self._factors.update(factors)
        return {task: loss * factors[task] for task, loss in losses.items()}

    def _flags(self, present: Iterable[str]) -> Tensor:
        """Return which of the tasks are present, (T,)."""
        names = set(present)
        return torch.tensor([task in names for task in self.tasks], device=self.backend.device)

    # ---- backward ------------------------------------------------------------------------------------------

    def _backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses' gradients to `.grad`, masked, or keep them as rows where the balancer wants them."""
        masks = {task: self.sharing.gradient_mask(task) for task in losses}
        if self._by_rows or any(mask is not None for mask in masks.values()):
            last = len(losses) - 1
            for i, (task, loss) in enumerate(losses.items()):
                self._backward_apart(task, loss, masks[task], retain=self.update == "joint" and i < last)
        elif self.update == "joint":
            self.backend.backward(sum(losses.values()))
        else:
            for loss in losses.values():
                self.backend.backward(loss)

    def _backward_apart(self, task: str, loss: Tensor, mask: Mapping[str, Tensor] | None, *, retain: bool) -> None:
        """Backward of one task, whose shared gradient is seen on its own before it is added or kept as a row."""
        before = {name: p.grad for name, p in self._shared.items()}
        for p in self._shared.values():
            p.grad = None
        self.backend.backward(loss, retain_graph=retain)
        for name, p in self._shared.items():
            if p.grad is not None and mask is not None and name in mask:
                p.grad.masked_fill_(~mask[name], 0.0)
        if self._by_rows:
            row = torch.cat([_or_zeros(p).flatten() for p in self._shared.values()])
            self._rows[task] = self._rows[task] + row if task in self._rows else row
        for name, p in self._shared.items():
            earlier = before[name]
            if self._by_rows:
                p.grad = earlier
            elif earlier is not None:
                p.grad = earlier if p.grad is None else earlier.add_(p.grad)

    def _aggregate(self) -> None:
        """Put the balancer's combination of the rows into the shared weights' gradients."""
        like = next(iter(self._rows.values()))
        rows = torch.stack([self._rows.get(task, torch.zeros_like(like)) for task in self.tasks])
        exact = torch.promote_types(rows.dtype, torch.float32)  # decompositions know no half precision
        if not self.backend.scaled:
            check_rows(self._rows, self._where)
        finite = bool(rows.isfinite().all())  # otherwise the gradient scaler is to see it, and no decomposition
        exactly = rows.to(exact)
        combined = self.balancer.aggregate(exactly, self._flags(self._rows)) if finite else exactly.sum(0)
        sizes = [p.numel() for p in self._shared.values()]
        for p, part in zip(self._shared.values(), torch.split(combined, sizes), strict=True):
            p.grad = part.view_as(p).to(p.dtype)

    # ---- update --------------------------------------------------------------------------------------------

    def _move(self, tasks: tuple[str, ...], part: float = 1.0) -> None:
        """Take the step for some tasks, with a part of the term that is on no task's account."""
        self.sharing.step_weights = StepWeights(dict(self._factors), part)
        if (term := self.sharing.regularizer()) is not None:
            self.backend.backward(term * part)
        if not self.backend.scaled:
            check_gradient(self.trained, tasks, self._where)
        if self.backend.clip is not None:
            norm = self.backend.clip()
            if isinstance(norm, Tensor) and not self.backend.scaled:
                check_norm(norm, tasks, self._where)
        stepped: list[bool] = []
        watch = self._inner.register_step_post_hook(lambda *_: stepped.append(True))
        try:
            with self._held(tasks), self._balancer_held(tasks):
                self.optimizer.step()
        finally:
            watch.remove()
        if stepped:  # in half precision a step that would overflow is left out
            self.sharing.after_step(self._inner)
        if self.backend.scaled:
            self._count_skipped(bool(stepped))

    def _count_skipped(self, stepped: bool) -> None:
        self._skipped = 0 if stepped else self._skipped + 1
        if self._skipped >= MAX_SKIPPED:
            raise NonFiniteError(
                f"the gradient was NaN or infinite in {self._skipped} steps one after another"
                f"{', until ' + self._where if self._where else ''}, at ever smaller loss scales. None of them was "
                "taken. Check the inputs and the losses for NaN, or train with another `precision`."
            )

    def _held(self, tasks: tuple[str, ...]) -> AbstractContextManager[None]:
        """Holds what a step for these tasks may not move."""
        active = self.sharing.active(tasks)
        if active is None:
            return nullcontext()
        hold = self._holds.get(tasks)
        if hold is None or hold.active is not active:
            hold = self._holds[tasks] = FreezeOutsideMask(self._parameters, active, self._memory)
        return hold

    def _balancer_held(self, tasks: tuple[str, ...]) -> AbstractContextManager[None]:
        """Holds what the balancer has learned of other tasks."""
        missing = len(tasks) < len(self.tasks)
        return self.balancer.held(self._flags(tasks), self._inner) if missing else nullcontext()

    def _look_back(self, groups: Sequence[_Ready], where: str) -> None:
        with torch.no_grad():
            losses = self._losses_of_all(groups, StepResult(), f"{where}, looking back".lstrip(", "))
        row = self._row({task: float(loss) for task, loss in losses.items()})
        self.balancer.observe_post_step_losses(row, self._flags(losses))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond model, optimizer, sharing and balancer."""
        return {"last_losses": dict(self._last_losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        check_state(state["last_losses"], dict.fromkeys(state["last_losses"], 0.0), "engine.last_losses")
        self._last_losses = dict(state["last_losses"])


@dataclass(frozen=True)
class _Ready:
    group: Group
    labelled: tuple[str, ...]
    count: int


def _or_zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _check_finite(value: float, what: str, where: str) -> None:
    if not isfinite(value):
        raise NonFiniteLossError(
            f"{what} is {value}{' at ' + where if where else ''}. No step was taken on it. "
            "A smaller learning rate or `clip_norm` often helps; check the inputs for NaN."
        )
