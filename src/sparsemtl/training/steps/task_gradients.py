"""Gradients of the tasks' losses at a balancer's target, one row per task, before the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.balancing.targets import GradientTarget, Representation, SharedLayer
from sparsemtl.errors import ParameterError
from sparsemtl.networks.masked_product import ProductMemory
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing.sharing import Update
from sparsemtl.storage.tensor_checks import is_finite
from sparsemtl.tasks.nests import tensors_in
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.finite import check_rows

_Swapped = Callable[[str], AbstractContextManager[None]]


class TaskGradients:
    """Computes rows (T, P) of gradients; the graphs of the losses stay for the backward pass.

    Args:
        model: the model.
        target: what the losses are differentiated by.
        update: how a batch becomes optimizer steps.
        backend: runs backward passes. Its scaler, if it has one, scales the losses in them: gradients of the losses as
            they are may vanish in half precision.

    Raises:
        ParameterError: if the tasks do not compute one common representation, and the target is one.
    """

    def __init__(self, model: MultiTaskModel, target: GradientTarget, update: Update, backend: Backend) -> None:
        self._model = model
        self._backend = backend
        self._target = target
        self._weights: list[nn.Parameter] = []
        self._outputs: list[list[Tensor]] = []
        self._memory = ProductMemory()
        if isinstance(target, Representation) and update != "joint":
            raise ParameterError(
                f"the balancer compares gradients at one representation of all tasks, the output of {target.module!r}, "
                f"but with update={update!r} each task has a forward pass of its own: the tasks have networks or data "
                "of their own. Use a balancer of the shared weights' gradients, such as `mgda` in place of `mgda-ub`."
            )

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the representation in the forward passes inside the context."""
        self._outputs = []
        if isinstance(self._target, SharedLayer):
            yield
            return

        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            found = [t for t in tensors_in(output) if t.requires_grad]
            for tensor in found:
                tensor.retain_grad()
            self._outputs.append(found)

        hook = self._model.get_submodule(self._target.module).register_forward_hook(record)
        try:
            yield
        finally:
            hook.remove()

    def rows(self, losses: Mapping[str, Tensor], networks: TaskNetworks, where: str = "") -> Tensor | None:
        """Return the gradients (T, P) in float32 or float64, zero for tasks without a loss.

        A gradient scaler leaves out steps whose gradient is not finite. There are no rows then, nor without losses.

        Args:
            losses: task -> loss with its graph.
            networks: the tasks' networks, in which the backward passes run.
            where: place in the run, for error messages.

        Raises:
            NonFiniteError: if a gradient is NaN or infinite and there is no scaler.
            ParameterError: if the losses do not depend on the target.
        """
        processes = self._backend.processes
        if not losses and not processes.several:
            return None
        swapped = partial(networks.swapped, self._model)
        targets = self._targets(losses, swapped)
        given = targets[0].dtype if targets else placement(self._model)[1]
        kind = torch.promote_types(given or torch.float32, torch.float32)
        names = list(self._model.tasks)
        size = sum(target.numel() for target in targets)
        rows = self._empty(torch.empty(len(names), size, dtype=kind, device=self._backend.device))
        for task, row in zip(names, rows, strict=True):
            if task not in losses:
                row.zero_()
        for task, loss in losses.items():
            with swapped(task):
                found = self._gradients(loss, targets)
            if all(gradient is None for gradient in found):
                raise ParameterError(
                    f"task {task!r}: its loss does not depend on {self._name()}, where the balancer compares the "
                    "tasks' gradients. Does its head or its loss detach the features? Name another `layer`, or use "
                    "another balancer."
                )
            parts = [torch.zeros_like(t) if g is None else g for t, g in zip(targets, found, strict=True)]
            torch.cat([part.detach().flatten().to(kind) for part in parts], out=rows[names.index(task)])
        self._outputs = []
        if isinstance(self._target, SharedLayer):
            processes.add_up([rows])
        else:  # a representation of more samples, whose gradients are the processes' side by side
            rows = processes.gather_rows(rows)
        scale = self._backend.loss_scale
        if scale is None:
            check_rows(rows, names, where)
            return rows
        return rows / scale() if is_finite(rows) else None

    def _empty(self, like: Tensor) -> Tensor:
        """Return memory for rows: of an earlier step, if nothing refers to its rows any more."""
        return self._memory.empty_like("rows", like) if like.device.type == "cpu" else like

    def _targets(self, losses: Mapping[str, Tensor], swapped: _Swapped) -> list[Any]:
        if isinstance(self._target, SharedLayer):
            if not self._weights:
                self._weights = self._reached(self._target, losses, swapped)
            return self._weights
        if not losses:
            return []
        if len(self._outputs) == 1 and not self._outputs[0]:
            raise ParameterError(
                f"the output of {self._name()} has no graph, so that no gradient reaches it. Is everything in front of "
                "it frozen? Then use a balancer of losses, such as `uncertainty`."
            )
        if len(self._outputs) != 1:
            raise ParameterError(
                f"the balancer compares gradients at one output of {self._target.module!r}, which ran "
                f"{len(self._outputs)} times on this batch: tasks have data or networks of their own. Use a balancer "
                "of the shared weights' gradients, such as `mgda` in place of `mgda-ub`."
            )
        return self._outputs[0]

    def _reached(self, target: SharedLayer, losses: Mapping[str, Tensor], swapped: _Swapped) -> list[nn.Parameter]:
        """Return the weights of the first layer that every loss depends on, of the first layer if there is none."""
        layers = [[self._model.get_parameter(name) for name in names] for names in target.candidates]
        found = self._backend.processes.from_first(lambda: self._first_reached(layers, losses, swapped))
        return layers[found]

    def _first_reached(
        self, layers: Sequence[Sequence[nn.Parameter]], losses: Mapping[str, Tensor], swapped: _Swapped
    ) -> int:
        for number, weights in enumerate(layers):
            reached = []
            for task, loss in losses.items():
                with swapped(task):
                    reached.append(self._gradients(loss, weights))
            if all(any(gradient is not None for gradient in found) for found in reached):
                return number
        return 0

    def _name(self) -> str:
        if isinstance(self._target, Representation):
            return repr(self._target.module)
        return " and ".join(map(repr, self._target.candidates[0]))

    def _gradients(self, loss: Tensor, targets: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of a loss, whose graph stays; `.grad` of the targets does not change."""
        before = [target.grad for target in targets]
        for target in targets:
            target.grad = None
        self._backend.backward(loss, retain_graph=True, inputs=list(targets))
        found = [target.grad for target in targets]
        for target, gradient in zip(targets, before, strict=True):
            target.grad = gradient
        return found
