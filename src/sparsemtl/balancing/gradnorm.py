"""GradNorm: loss weights with which the tasks' gradients at one shared layer have sizes that fit their progress."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.balancing.balancer import Balancer
from sparsemtl.balancing.frozen_entries import frozen_entries
from sparsemtl.balancing.targets import GradientTarget, shared_layer
from sparsemtl.errors import NonFiniteLossError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.registry.parameters import NonNegative, Positive, validated

_SMALLEST = 1e-3
"""Smallest weight before the weights are scaled to sum to T, so that no task is lost."""


class GradNorm(Balancer):
    """Learn loss weights that bring the tasks' gradient norms to a common size (GradNorm, Chen et al. 2018).

    With n_t the norm of the gradient of L_t with respect to the weights W of the last shared layer, G_t = w_t n_t and
    r_t the relative loss L_t / L_t(0) over the mean of all tasks' relative losses, the weights descend
    sum_t |G_t - mean(G) r_t^alpha|, whose second term counts as constant (Eq. 2). G_t is linear in w_t, so that the
    slope is sign(G_t - mean(G) r_t^alpha) n_t, and no second derivative is needed. After each step the weights are
    scaled to sum to T. A step costs T gradients from the losses down to W more than plain training. L_t(0) is the loss
    of the first step in which the task has a label. Weights of a task without a label stay as they are.

    Differences from the paper:
        Weights are at least 1e-3 before they are scaled.
    """

    @validated
    def __init__(
        self,
        *,
        alpha: Annotated[
            NonNegative,
            Doc("Power of the relative losses: the larger, the more a slow task's gradient is strengthened."),
        ] = 1.5,
        lr: Annotated[Positive, Doc("Learning rate of the Adam optimizer of the task weights.")] = 0.025,
        layer: Annotated[
            str | None,
            Doc("Name of a shared module or parameter, such as encoder.3; by default the last shared layer."),
        ] = None,
    ) -> None:
        self.alpha = alpha
        self.lr = lr
        self.layer = layer
        self._w = nn.Parameter(torch.zeros(0))
        self._optimizer = torch.optim.Adam([self._w], lr=lr)
        self._first = torch.zeros(0)
        self._losses = self._counts = self._norms = torch.zeros(0)
        self._rows: Tensor | None = None

    def attach(self, tasks: int, device: torch.device) -> None:
        """Start with weights of one."""
        self._w = nn.Parameter(torch.ones(tasks, device=device))
        self._optimizer = torch.optim.Adam([self._w], lr=self.lr)
        self._first = torch.full((tasks,), torch.nan, device=device)
        self._norms = torch.zeros(0, device=device)
        self._start_step()

    def gradient_target(self, model: MultiTaskModel) -> GradientTarget:
        """Return the shared layer."""
        return shared_layer(model, self.layer)

    def observe_gradients(self, losses: Tensor, rows: Tensor, present: Tensor) -> None:
        """Add a batch's losses and gradients (T, P) to those of the step.

        Raises:
            RuntimeError: if the balancer is not attached yet.
        """
        if not len(self._w):
            raise RuntimeError("the balancer is not attached yet; call attach(tasks, device).")
        self._losses = self._losses + torch.where(present, losses, 0.0)
        self._counts = self._counts + present
        self._rows = rows if self._rows is None else self._rows + rows
        self._norms = self._rows.norm(dim=1)  # now, while the processor's cache holds the rows

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the weights, which do not depend on the losses of this batch."""
        return self._w.detach().to(losses.dtype)

    def end_step(self) -> None:
        """Move the weights of the tasks that had a label by the gradients of the step."""
        present = self._counts > 0
        losses = self._losses / self._counts.clamp(min=1)
        self._start_step()
        if not bool(present.any()):
            return
        self._first = torch.where(self._first.isnan() & present, losses, self._first)
        if bool((self._first[present] <= 0).any()):
            raise NonFiniteLossError(
                f"gradnorm divides each task's loss by its first one, and the first losses are {self._first.tolist()}, "
                "in the order of the tasks. Losses that are zero or negative need another balancer, such as `mgda`."
            )
        norms = self._norms.to(self._w.dtype)
        total = self._w.detach()[present].sum()
        everybody = bool(present.all())
        with nullcontext() if everybody else frozen_entries([self._w], ~present, self._optimizer):
            self._w.grad = torch.where(present, self._slopes(norms, losses, present), 0.0)
            self._optimizer.step()
            with torch.no_grad():
                self._w.clamp_(min=_SMALLEST)
                self._w.mul_(total / self._w[present].sum())

    def _slopes(self, norms: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """Return the gradient of the weights, (T,)."""
        relative = losses / self._first
        pace = (relative / relative[present].mean()) ** self.alpha
        sizes = self._w.detach() * norms
        return torch.sign(sizes - sizes[present].mean() * pace) * norms

    def _start_step(self) -> None:
        self._losses, self._counts = torch.zeros_like(self._first), torch.zeros_like(self._first)
        self._rows = None

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, their optimizer's state and the first losses."""
        return {
            "w": self._w.detach().clone(),
            "first": self._first.clone(),
            "optimizer": deepcopy(self._optimizer.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        with torch.no_grad():
            self._w.copy_(state["w"])
        self._first = state["first"].clone().to(self._first.device)
        self._optimizer.load_state_dict(state["optimizer"])
