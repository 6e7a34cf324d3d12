"""The training step: per task swap in its network, forward and backward; combine; step; restore what may not move.

The order is fixed so that runs compare bit for bit: tasks in their order. With constant weights each task goes forward
and backward in turn; otherwise all go forward, the balancer weighs them, and all go backward. A backward pass always
runs inside its task's network, entered again if need be, since autograd may run modules again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsemtl.balancing import Balancer, as_balancer
from sparsemtl.compaction.slices.task_slices import TaskSlices
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim.masked import FreezeOutsideMask
from sparsemtl.sharing.dense import DenseSharing
from sparsemtl.sharing.sharing import TURNS, AfterBatch, AfterStep, Regularizer, Sharing, StepWeights, Update
from sparsemtl.tasks.batches import Group, Loaders, as_group, preserve_loader_state
from sparsemtl.training.arguments import check_networks
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.batch_losses import BatchLosses, ReadyBatch, times
from sparsemtl.training.steps.combination import Combination, Combined, CombinedByGramian, CombinedRows
from sparsemtl.training.steps.exchange import OwnRandomness, StepExchange, add_up_gradients, average_statistics
from sparsemtl.training.steps.finite import check_gradient, check_norm, named_parameters
from sparsemtl.training.steps.gradient_rows import mask_gradients
from sparsemtl.training.steps.loss_weights import LossWeights
from sparsemtl.training.steps.optimizer_steps import OptimizerSteps
from sparsemtl.training.steps.result import StepResult
from sparsemtl.training.steps.task_gradients import TaskGradients
from sparsemtl.training.steps.teacher import Teacher
from sparsemtl.training.steps.update import choose_update
from sparsemtl.training.steps.weight_users import WeightUsers


class TrainingStep:
    """Turns batches into optimizer steps, for the `Trainer` and for a loop of one's own.

    Args:
        model: the model.
        optimizer: optimizer of the parameters of the model, of `networks.parameters()` (soft masks) and of the
            balancer's.
        networks: the tasks' networks. Set the attribute when they change; methods that change them after a step do so
            here.
        sharing: sharing method that made the networks, for its terms and its acts after steps; by default one without
            any, `DenseSharing`. Networks of `sharing.start` keep everything: call `begin_epoch` of the step before each
            epoch, which chooses masks.
        balancing: a `Balancer` that is attached, or a name, scalarizer or aggregator of TorchJD that makes one.
        update: `joint`, `average`, `alternate` or `random_one`; by default as `choose_update` returns it. A single task
            has no other to take turns with, so that all are one.
        backend: device and precision; plain torch by default.
        slices: execution of tasks on their slices, `TaskSlices(model)`; by default they compute with whole weights
            times masks.

    Raises:
        ParameterError: if `networks` are no `TaskNetworks`, `joint` meets tasks with networks of their own, or tasks
            take turns but the balancer combines them.

    Examples:
        >>> tasks = [Classification("shape", 2), Classification("colour", 3)]
        >>> model = SharedBottom(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), tasks)
        >>> x, labels = torch.rand(6, 4), {"shape": torch.tensor([0, 1] * 3), "colour": torch.tensor([0, 1, 2] * 2)}
        >>> _ = model(x)  # heads learn their widths
        >>> sharing = RandomSharing(keep=0.5, seed=0)
        >>> networks = sharing.start(model)
        >>> step = TrainingStep(model, torch.optim.Adam(model.parameters()), networks, sharing=sharing)
        >>> for epoch in range(2):
        ...     step.begin_epoch(epoch, [(x, labels)])
        ...     result = step(x, labels)
        >>> sorted(result.losses)
        ['colour', 'shape']
    """

    def __init__(
        self,
        model: MultiTaskModel,
        optimizer: torch.optim.Optimizer,
        networks: TaskNetworks,
        *,
        sharing: Sharing | None = None,
        balancing: Balancer | Any = "mean",
        update: Update | None = None,
        backend: Backend | None = None,
        slices: TaskSlices | None = None,
    ) -> None:
        check_networks(networks)
        self.model = model
        self.tasks = model.tasks
        self.networks = networks
        self.sharing: Sharing = DenseSharing() if sharing is None else sharing
        self.optimizer = optimizer
        self.backend = Backend.of(model) if backend is None else backend
        self.slices = slices
        self._randomness = OwnRandomness(self.backend.processes)
        self._losses = BatchLosses(model, self.backend, self.sharing, self._randomness.forward)
        self.balancer = _attached(balancing, len(model.tasks), self.backend.device)
        self.update = self._checked_update(update)
        self._steps = OptimizerSteps(optimizer, scaled=self.backend.scaled)
        self._weights = LossWeights(self.balancer, self.tasks, self.backend.device)
        self._parameters = dict(model.named_parameters())
        together = {**model.shared_parameters(), **model.unmasked_parameters()}
        self._shared = {name: p for name, p in together.items() if p.requires_grad}
        self._by_rows = self.balancer.combines_gradients and bool(self._shared)
        self._factors: dict[str, float] = {}
        self._users = WeightUsers(model, self._shared)
        self._combination = self._made_combination()
        target = self.balancer.gradient_target(model)
        self._observed = None if target is None else TaskGradients(model, target, self.update, self.backend)
        self._freezes: dict[tuple[str, ...], FreezeOutsideMask] = {}
        self._memory: dict[str, Tensor] = {}
        self._own = named_parameters(model, sharing=networks.parameters())
        self.trained = {**self._own, **named_parameters(model, balancer=self.balancer.parameters())}
        self._where = ""
        self._epoch_checked = False
        self._regularizer = self.sharing.regularizer if isinstance(self.sharing, Regularizer) else None
        self._after_step = self.sharing.after_step if isinstance(self.sharing, AfterStep) else None
        self._after_batch = self.sharing.after_batch if isinstance(self.sharing, AfterBatch) else None

    @property
    def teacher(self) -> Teacher | None:
        """Network whose outputs are soft targets beside the labels; set it before the first step.

        Raises:
            ParameterError: if it has none of the model's tasks.
        """
        return self._losses.teacher

    @teacher.setter
    def teacher(self, teacher: Teacher | None) -> None:
        if teacher is not None:
            teacher.check(self.tasks)
        self._losses.teacher = teacher

    def _checked_update(self, update: Update | None) -> Update:
        if len(self.tasks) == 1:
            return "joint"
        update = choose_update(self.model, self.networks, self.balancer, asked=update or self.sharing.update)
        if update in TURNS and not self.balancer.takes_turns:
            raise ParameterError(
                f"update={update!r} takes a step for one task at a time, so there is nothing for this balancer to "
                "combine. Use update='average', or a balancer of constant weights, such as 'mean'."
            )
        return update

    def _made_combination(self) -> Combination:
        parts = Combined(self._shared, tuple(self.tasks), self.balancer, self.backend, self._users)
        if not self.balancer.from_gramian:
            return CombinedRows(parts)
        ordered = {name: self._shared[name] for name in self._parameters if name in self._shared}
        parts = replace(parts, shared=ordered)  # passes to the last weights are short
        return CombinedByGramian(parts, partial(self._swapped, again=True), together=self.update == "joint")

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Let the sharing method and the architecture change what they change before an epoch.

        Args:
            epoch: epoch that begins, counted from 0.
            loaders: training data, which the method may read; generators of its loaders stay as they are.
        """
        with preserve_loader_state(loaders):
            self._change(self.sharing.begin_epoch(epoch, self.model, self.networks, loaders))
        self.model.begin_epoch(epoch)

    def __call__(self, x: Any, targets: Mapping[str, Tensor] | Tensor) -> StepResult:
        """Train on one batch of a loader that yields (x, {task: labels}); see `step`."""
        return self.step([[as_group((x, targets), self.tasks)]])

    def step(self, batches: Sequence[Sequence[Group]], where: str = "") -> StepResult:
        """Train on one batch, or on several whose gradients accumulate.

        Args:
            batches: each a list of groups.
            where: place in the run, for error messages.

        Raises:
            ParameterError: if the sharing method acts before epochs, and none has begun.
            NonFiniteLossError: if a task's loss, or the weight that the balancer gives it, is NaN or infinite; before
                the step that it belongs to. Where tasks take turns, those before have taken theirs.
            NonFiniteError: if the gradient is, likewise; where a gradient scaler leaves such steps out, after
                `MAX_SKIPPED` of them.
        """
        if not self._epoch_checked:
            self._check_epoch()
        self._where = where
        ready = [[self._losses.ready(group) for group in groups] for groups in batches]
        self._exchange = StepExchange(self.backend.processes, self.tasks, ready, self._losses.taught)
        self._randomness.begin_step(where)
        result = StepResult()
        if self.update in TURNS or self.networks.apart:
            self._take_turns(ready, result)
        else:
            self._combine(ready, result)
        if self._after_batch is not None:
            self._change(self._after_batch(self.model, self.networks, len(batches)))
        average_statistics(self.backend.processes, self.model, self.networks)
        self._exchange.complete(result, self.tasks)
        result.average()
        return result

    def _change(self, networks: TaskNetworks | None) -> None:
        """Compute with the networks that the sharing method has returned; None keeps the current ones."""
        if networks is not None:
            self.networks = networks

    def _check_epoch(self) -> None:
        """Raise at the first step if no epoch has begun."""
        if self.sharing.needs_epoch:
            raise ParameterError(
                f"{type(self.sharing).__name__} acts before epochs, such as by choosing masks, and none has begun: "
                "steps would train a network in which nothing was chosen yet. Call `step.begin_epoch(epoch, train)` "
                "before each epoch, the first one (0) included."
            )
        self._epoch_checked = True

    def _take_turns(self, batches: Sequence[Sequence[ReadyBatch]], result: StepResult) -> None:
        weights = dict.fromkeys(self.tasks, 1.0) if self.networks.apart else self._weights.of({}, self._where)
        scale = len(weights) / sum(weights.values())  # only the weights' ratios matter: 1 for mean and sum alike
        result.weights = {task: weight * scale for task, weight in weights.items()}
        labelled = {t: [b for groups in batches for b in groups if t in b.labelled] for t in self.tasks}
        turns = [task for task in self.tasks if any(task in present for present in self._exchange.present)]
        if self.update == "random_one" and turns and not self.networks.apart:
            turns = [turns[int(torch.randint(len(turns), ()))]]
        for task in turns:
            self.optimizer.zero_grad()
            self._factors = {}
            for present in self._exchange.present:
                self._count_factors([task] * present.count(task), result.weights, len(batches))
            for batch in labelled[task]:
                self._forward_backward(batch, (task,), result, len(batches))
            self._move((task,), part=scale / len(weights))

    def _combine(self, batches: Sequence[Sequence[ReadyBatch]], result: StepResult) -> None:
        self.optimizer.zero_grad()
        self._combination.clear()
        self._factors = {}
        for groups, here in zip(batches, self._exchange.present, strict=True):
            if self.balancer.constant and self.update == "average":
                result.weights = self._weights.of({}, self._where)
                for batch, tasks in self._passes(groups):
                    self._forward_backward(batch, tasks, result, len(batches))
            elif here:
                losses, values = self._observed_losses(groups, here, result)
                result.weights = self._weights.of(values, self._where)
                self._backward_of_all(losses, _parts(losses, result.weights, len(batches)))
            self._count_factors(here, result.weights, len(batches))
        present = tuple(t for t in self.tasks if any(t in here for here in self._exchange.present))
        if not present:
            return
        if self._by_rows:
            self._combination.combine(self.networks, self._weights.flags(present), self._where)
        if self.balancer.normalise == "selected":
            self._users.average_over_users(self.networks)
        for p in self.balancer.parameters():
            if p.grad is not None:
                p.grad /= len(batches)
        self._move(present)
        self.balancer.end_step()
        if self.balancer.needs_post_step_losses:
            self._observe_post_step_losses(batches[-1])

    def _forward_backward(self, batch: ReadyBatch, tasks: tuple[str, ...], result: StepResult, parts: int) -> None:
        """Run a forward and a backward pass whose weights are known, for one of some batches that make a step."""
        with self._swapped(tasks[0]):
            losses = self._losses(batch, tasks, self.networks, result, self._where)
            self._backward(losses, _parts(losses, result.weights, parts))

    def _losses_of_all(self, groups: Sequence[ReadyBatch], result: StepResult) -> dict[str, Tensor]:
        """Return the losses of a batch's tasks that have a label."""
        losses: dict[str, Tensor] = {}
        for batch, tasks in self._passes(groups):
            with self._swapped(tasks[0]):
                losses.update(self._losses(batch, tasks, self.networks, result, self._where))
        return losses

    def _observed_losses(
        self, groups: Sequence[ReadyBatch], present: Sequence[str], result: StepResult
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the losses of a batch, and the values that the balancer weighs.

        The balancer reads the gradients of the losses at its target, if it has one.
        """
        if self._observed is None:
            losses = self._losses_of_all(groups, result)
            return losses, {} if self.balancer.constant else self._exchange.values(losses, present)
        with self._observed.recording():
            losses = self._losses_of_all(groups, result)
        values = self._exchange.values(losses, present)
        rows = self._observed.rows(losses, self.networks, self._where)
        if rows is not None:
            self.balancer.observe_gradients(self._weights.row(values), rows, self._weights.flags(values))
        return losses, values

    def _backward_of_all(self, losses: Mapping[str, Tensor], factors: Mapping[str, float]) -> None:
        """Run the backward passes of losses, each inside its task's network again."""
        together = [tuple(losses)] if losses and self.update == "joint" else [(task,) for task in losses]
        for tasks in together:
            with self._swapped(tasks[0], again=True):
                self._backward({task: losses[task] for task in tasks}, factors)

    def _swapped(self, task: str, *, again: bool = False) -> AbstractContextManager[None]:
        """Return the context in which the model is the network of a task; entered again for a backward pass."""
        if self.slices is None:
            return self.networks.swapped(self.model, task)
        return self.slices.again(self.networks, task) if again else self.slices.swapped(self.networks, task)

    def _passes(self, groups: Sequence[ReadyBatch]) -> Iterator[tuple[ReadyBatch, tuple[str, ...]]]:
        """Yield the forward passes of a batch: all of a group's tasks at once, or one by one."""
        for batch in groups:
            if self.update == "joint":
                if batch.labelled:
                    yield batch, batch.labelled
            else:
                for task in batch.labelled:
                    yield batch, (task,)

    def _count_factors(self, tasks: Iterable[str], weights: Mapping[str, float], parts: int) -> None:
        """Add up the factors of the tasks' losses, for one of some batches that make a step."""
        for task in tasks:
            self._factors[task] = self._factors.get(task, 0.0) + weights[task] / parts

    def _backward(self, losses: Mapping[str, Tensor], factors: Mapping[str, float]) -> None:
        """Add the gradients of one network's losses times their factors to `.grad`, masked, or keep them as rows."""
        masks = {task: self.networks[task].gradient_mask for task in losses}
        if (self._by_rows and not self.networks.apart) or (any(masks.values()) and not self.networks.common):
            last = len(losses) - 1
            for i, (task, loss) in enumerate(losses.items()):
                loss = times(loss, factors[task])
                self._backward_apart(task, loss, masks[task], retain=self.update == "joint" and i < last)
        else:
            together = torch.stack(list(losses.values()))
            self.backend.backward(together, gradient=together.new_tensor([factors[task] for task in losses]))
        if self.networks.common and not self._by_rows:
            mask_gradients(self._shared, next(iter(masks.values())))

    def _backward_apart(self, task: str, loss: Tensor, mask: Mapping[str, Tensor], *, retain: bool) -> None:
        """Run the backward pass of one task, whose shared gradient is masked or kept as a row before it is added."""
        before = [p.grad for p in self._shared.values()]
        for p in self._shared.values():
            p.grad = None
        self.backend.backward(loss, retain_graph=retain or (self._by_rows and self._combination.keeps_graphs))
        mask_gradients(self._shared, mask)
        if self._by_rows:
            self._combination.add(task, loss, self.networks)
        for p, earlier in zip(self._shared.values(), before, strict=True):
            if self._by_rows:
                p.grad = earlier
            elif earlier is not None:
                p.grad = earlier if p.grad is None else earlier.add_(p.grad)

    def _move(self, tasks: tuple[str, ...], part: float = 1.0) -> None:
        """Take the step for some tasks, with a part of the term that belongs to no task."""
        is_complete = self._by_rows and not self.networks.apart and self._combination.is_complete
        combined = self._shared if is_complete else {}
        add_up_gradients(self.backend.processes, (p for n, p in self._own.items() if n not in combined))
        term = None if self._regularizer is None else self._regularizer(self.model)
        if term is not None:
            self.backend.backward(term * part)
        self._check_and_clip(tasks)
        with self._frozen_outside(tasks), self._balancer_held(tasks):
            stepped = self._steps.take(self._where)
        if stepped and self._after_step is not None:
            weights = StepWeights(dict(self._factors), part)
            self._change(self._after_step(self.model, self.networks, self._steps.inner, weights))

    def _check_and_clip(self, tasks: tuple[str, ...]) -> None:
        """Clip the gradient, and check it; a gradient scaler does the check itself."""
        if not self.backend.scaled:
            check_gradient(self.trained, tasks, self._where)
        norm = None if self.backend.clip is None else self.backend.clip()
        if isinstance(norm, Tensor) and not self.backend.scaled:
            check_norm(norm, tasks, self._where)

    def _frozen_outside(self, tasks: tuple[str, ...]) -> AbstractContextManager[None]:
        """Return the context in which nothing outside of the tasks' trainable region moves."""
        region = self.networks.trainable(tasks)
        if region is None:
            return nullcontext()
        freeze = self._freezes.get(tasks)
        if freeze is None or freeze.active is not region:
            freeze = self._freezes[tasks] = FreezeOutsideMask(self._parameters, region, self._memory)
        return freeze

    def _balancer_held(self, tasks: tuple[str, ...]) -> AbstractContextManager[None]:
        """Return the context in which nothing moves that a balancer has learned of other tasks."""
        missing = len(tasks) < len(self.tasks) and not self.balancer.constant
        return self.balancer.held(self._weights.flags(tasks), self._steps.inner) if missing else nullcontext()

    def _observe_post_step_losses(self, groups: Sequence[ReadyBatch]) -> None:
        before = self._where
        self._where = f"{before}, post-step losses".lstrip(", ")
        with torch.no_grad():
            losses = self._losses_of_all(groups, StepResult())
        self._where = before
        values = self._exchange.values(losses, self._exchange.present[-1])
        self.balancer.observe_post_step_losses(self._weights.row(values), self._weights.flags(values))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the model, the optimizer, the sharing method and the balancer."""
        return {"last_losses": dict(self._weights.last), "networks": self.networks.state_dict()}

    def state_form(self) -> dict[str, Any]:
        """Return what every state has: the copies that tasks train are there in some epochs only."""
        return {**self.state_dict(), "networks": self.networks.without_copies().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._weights.restore(state["last_losses"])
        self.networks = self.networks.restored(state["networks"])


def _parts(tasks: Iterable[str], weights: Mapping[str, float], parts: int) -> dict[str, float]:
    """Return the factors of the tasks' losses, for one of some batches that make a step."""
    return {task: weights[task] / parts for task in tasks}


def _attached(balancing: Balancer | Any, tasks: int, device: torch.device) -> Balancer:
    if isinstance(balancing, Balancer):
        return balancing
    balancer = as_balancer(balancing)
    balancer.attach(tasks, device)
    return balancer
