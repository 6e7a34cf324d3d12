"""Powers of the gradients of samples: the contract of everything that adds them up, and autograd's way."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.criteria.power_sum import PowerSum, wide
from sparsemtl.networks.swap import swap_tensors

Totals = Mapping[str, Tensor]
"""Parameter name -> sum so far, of the parameter's shape."""


class GradientPowers(abc.ABC):
    """Adds |gradient|^power of a batch's samples, for any gradients of its outputs.

    One `forward` per batch, then any number of `add`. The model computes with detached copies of its parameters that
    share their memory, so that the parameters' `.grad`, `requires_grad` and hooks have no part in it.

    Args:
        model: a `MultiTaskModel` in eval mode.
        parameters: parameters to differentiate, by name; the others count as constants.
        sums: sum to add.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], sums: PowerSum) -> None:
        self.model = model
        self.parameters = dict(parameters)
        self.sums = sums
        self.detached = {name: p.detach() for name, p in model.named_parameters()}

    @abc.abstractmethod
    def zeros(self) -> dict[str, Tensor]:
        """Return totals of zeros, in single precision at least."""

    @abc.abstractmethod
    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model and return its detached outputs by task."""

    @abc.abstractmethod
    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add the powers of d (sum over tasks of <cotangent, output>) / d parameter, of every sample on its own.

        Totals are complete after `sums.flush()`.

        Args:
            cotangents: task -> gradient with respect to its output, of the output's shape.
            totals: totals to add to.
        """


class BatchPowers(GradientPowers):
    """Powers of the gradient of the whole batch, by autograd; for a batch of one these are the per-sample powers."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], sums: PowerSum) -> None:
        super().__init__(model, parameters, sums)
        self.leaves = {name: self.detached[name].detach().requires_grad_() for name in self.parameters}
        self._outputs: dict[str, Tensor] = {}

    def zeros(self) -> dict[str, Tensor]:
        """Return totals of zeros."""
        return zeros_like(self.parameters)

    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model and keep its graph until the next batch."""
        self._outputs = {}
        with swap_tensors(self.model, {**self.detached, **self.leaves}):
            self._outputs = self.model(x, tasks=tasks)
        return {task: output.detach() for task, output in self._outputs.items()}

    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add the powers of the sum of all samples' gradients."""
        for name, gradient in self.gradients(cotangents).items():
            self.sums.gradients(totals[name], gradient.unsqueeze(0))

    def gradients(self, cotangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of all samples' gradients, for the parameters that the outputs depend on."""
        reached = {task: c for task, c in cotangents.items() if self._outputs[task].requires_grad}
        if not reached:
            return {}
        gradients = torch.autograd.grad(
            [self._outputs[task] for task in reached],
            list(self.leaves.values()),
            list(reached.values()),
            retain_graph=True,
            allow_unused=True,
        )
        found = zip(self.leaves, gradients, strict=True)
        return {name: g.to_dense() if g.is_sparse else g for name, g in found if g is not None}


def zeros_like(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return totals of zeros for parameters, in the dtype to add in."""
    return {name: torch.zeros_like(p, dtype=wide(p.dtype)) for name, p in parameters.items()}
