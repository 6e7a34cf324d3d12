"""Combination of the tasks' gradients of the shared weights: by rows, or by their Gramian in chunks of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsemtl.balancing import Balancer
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.storage.tensor_checks import is_finite
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.finite import check_rows
from sparsemtl.training.steps.gradient_rows import GradientRows, chunks_of, mask_gradients
from sparsemtl.training.steps.weight_users import WeightUsers


class Combination(Protocol):
    """Collects the tasks' gradients of the shared weights in a step, and combines them."""

    @property
    def keeps_graphs(self) -> bool:
        """True if `combine` runs backward passes of the losses that were added."""

    @property
    def is_complete(self) -> bool:
        """True if `combine` leaves the gradient of all processes, False if it leaves this process's summand."""

    def clear(self) -> None:
        """Start a step."""

    def add(self, task: str, loss: Tensor, networks: TaskNetworks) -> None:
        """Add a task's masked gradient, which is in the shared weights' `.grad`; its loss still has its graph."""

    def combine(self, networks: TaskNetworks, present: Tensor, where: str) -> None:
        """Put the balancer's combination into the shared weights' `.grad`.

        Args:
            networks: the tasks' networks.
            present: bool (T,), True for tasks with a gradient.
            where: place in the run, for error messages.

        Raises:
            NonFiniteError: if a gradient is NaN or infinite and there is no gradient scaler.
        """


@dataclass(frozen=True)
class Combined:
    """Parts that both combinations are made of.

    Attributes:
        shared: name -> shared weight that is trained.
        tasks: names of all tasks, in the order of the rows.
        balancer: combines the rows, or finds their weights.
        backend: runs backward passes; has the scale of the gradients, if there is one, and the processes.
        users: counts the tasks that use a weight.
    """

    shared: Mapping[str, nn.Parameter]
    tasks: Sequence[str]
    balancer: Balancer
    backend: Backend
    users: WeightUsers


class CombinedRows:
    """Combination by rows (T, P).

    Args:
        parts: weights, tasks and balancer.
    """

    keeps_graphs = False
    is_complete = True

    def __init__(self, parts: Combined) -> None:
        self._parts = parts
        self._rows = GradientRows(list(parts.shared.values()), parts.tasks)

    def clear(self) -> None:
        """Start a step."""
        self._rows.present.clear()

    def add(self, task: str, loss: Tensor, networks: TaskNetworks) -> None:
        """Add the shared weights' `.grad` to the row of a task."""
        self._rows.add(task)

    def combine(self, networks: TaskNetworks, present: Tensor, where: str) -> None:
        """Put the balancer's combination of the rows into the gradients of the shared weights."""
        balancer, backend = self._parts.balancer, self._parts.backend
        rows = self._rows.matrix()
        backend.processes.add_up([rows])
        scale = None if backend.loss_scale is None else backend.loss_scale()
        if not backend.scaled:
            check_rows(rows, self._parts.tasks, where)
        elif not is_finite(rows):
            self._rows.set_gradients(rows.sum(0))  # the gradient scaler is to see what is not finite
            return
        if scale is not None:
            rows.div_(scale)  # some aggregators depend on the gradients' size
        combine = partial(balancer.aggregate, present=present)
        if balancer.scope == "overlap":
            combined = self._parts.users.combine_overlap(rows, networks, combine)
        else:
            combined = combine(rows)
        self._rows.set_gradients(combined if scale is None else combined * scale)


class CombinedByGramian:
    """Combination by the Gramian (T, T), with P / T entries of every row in memory at a time: as much as one row.

    The first chunk of weights is read from each task's own backward pass. For every other chunk, each task takes a
    backward pass from its loss down to these weights. A last backward pass of the weighted losses makes the combined
    gradient. The graphs of the losses of a step stay in memory until then.

    Args:
        parts: weights, in the order of the model, tasks and balancer.
        swapped: function from a task to the context of its backward passes.
        together: True if the tasks compute with one network, so that one backward pass serves all losses.
    """

    keeps_graphs = True
    is_complete = False

    def __init__(
        self, parts: Combined, swapped: Callable[[str], AbstractContextManager[None]], *, together: bool
    ) -> None:
        self._swapped = swapped
        self._tasks = list(parts.tasks)
        self._balancer = parts.balancer
        self._backend = parts.backend
        self._users = parts.users
        self._together = together
        self._shared = dict(parts.shared)
        self._parameters = list(self._shared.values())
        self._chunks = chunks_of([p.numel() for p in self._parameters], len(self._tasks))
        self._losses: dict[str, list[Tensor]] = {}
        self._rows = torch.empty(0)
        self._plain: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Start a step."""
        self._losses, self._plain = {}, {}

    def add(self, task: str, loss: Tensor, networks: TaskNetworks) -> None:
        """Keep the graph of a loss, and read the first chunk of its gradient."""
        if not self._losses:
            self._start_rows()
        self._losses.setdefault(task, []).append(loss)
        for name, alone in self._alone(networks).items():
            gradient = self._shared[name].grad
            if gradient is not None:
                earlier = self._plain.get(name)
                self._plain[name] = gradient.clone() if earlier is None else earlier.add_(gradient)
                gradient.masked_fill_(alone, 0.0)
        self._read(self._tasks.index(task), 0)

    def combine(self, networks: TaskNetworks, present: Tensor, where: str) -> None:
        """Put the balancer's combination of the gradients into the gradients of the shared weights."""
        gramian = self._gramian(networks)
        if not self._backend.scaled:
            check_rows(gramian.diagonal()[:, None], self._tasks, where)
        finite = not self._backend.scaled or is_finite(gramian)
        weights = self._balancer.gradient_weights(gramian, present) if finite else torch.ones_like(gramian[0])
        self._backward(dict(zip(self._tasks, weights, strict=True)), networks)
        for name, alone in self._alone(networks).items():
            gradient, plain = self._shared[name].grad, self._plain.get(name)
            if gradient is not None and plain is not None:
                gradient[alone] = plain[alone]
        self.clear()

    def _gramian(self, networks: TaskNetworks) -> Tensor:
        if not self._losses:  # where other processes have all labels
            self._start_rows()
        gramian = self._squared()
        alone = self._alone(networks)
        for chunk in range(1, len(self._chunks)):
            self._rows.zero_()
            targets = [self._parameters[i] for i, _, _ in self._chunks[chunk]]
            for task, losses in self._losses.items():
                for p in targets:
                    p.grad = None
                with self._swapped(task):
                    for loss in losses:
                        self._backend.backward(loss, retain_graph=True, inputs=targets)
                mask_gradients(self._shared, networks[task].gradient_mask)
                mask_gradients(self._shared, {name: ~mask for name, mask in alone.items()})
                self._read(self._tasks.index(task), chunk)
            gramian += self._squared()
        return gramian

    def _squared(self) -> Tensor:
        """Return the inner products of the present chunk's rows, which are added up over the processes."""
        self._backend.processes.add_up([self._rows])
        return self._rows @ self._rows.T

    def _backward(self, weights: Mapping[str, Tensor], networks: TaskNetworks) -> None:
        """Run the backward pass of the weighted losses to the shared weights, one pass per task with a mask."""
        masked = any(networks[task].gradient_mask for task in self._losses)
        one_pass = self._together and not masked
        groups = [list(self._losses)] if one_pass and self._losses else [[task] for task in self._losses]
        for p in self._parameters:
            p.grad = None
        for group in groups:
            earlier = [p.grad for p in self._parameters]
            for p in self._parameters:
                p.grad = None
            losses = torch.stack([loss.to(weights[task].dtype) for task in group for loss in self._losses[task]])
            factors = torch.stack([weights[task] for task in group for _ in self._losses[task]])
            with self._swapped(group[0]):
                retain = self._together and group is not groups[-1]
                self._backend.backward(losses, gradient=factors, retain_graph=retain, inputs=self._parameters)
            mask_gradients(self._shared, networks[group[0]].gradient_mask)
            for p, before in zip(self._parameters, earlier, strict=True):
                if before is not None:
                    p.grad = before if p.grad is None else before.add_(p.grad)
        for p in self._parameters:
            if p.grad is None:  # as rows have it: an optimizer's momentum and weight decay act on all shared weights
                p.grad = torch.zeros_like(p)

    def _alone(self, networks: TaskNetworks) -> dict[str, Tensor]:
        """Return name -> entries that fewer than two tasks use, if these are not combined."""
        if self._balancer.scope == "all":
            return {}
        return {name: count < 2 for name, count in self._users.counts(networks).items()}

    def _start_rows(self) -> None:
        dtype, device = self._parameters[0].dtype, self._parameters[0].device
        for p in self._parameters:
            dtype = torch.promote_types(dtype, p.dtype)
        width = sum(stop - start for _, start, stop in self._chunks[0])
        self._rows = torch.zeros(
            len(self._tasks), width, dtype=torch.promote_types(dtype, torch.float32), device=device
        )

    def _read(self, task: int, chunk: int) -> None:
        """Add a chunk of the shared weights' `.grad` to a task's row."""
        scale = None if self._backend.loss_scale is None else self._backend.loss_scale()
        done = 0
        for index, start, stop in self._chunks[chunk]:
            gradient = self._parameters[index].grad
            if gradient is not None:
                part = gradient.flatten()[start:stop].to(self._rows.dtype)
                self._rows[task, done : done + stop - start] += part if scale is None else part / scale
            done += stop - start
