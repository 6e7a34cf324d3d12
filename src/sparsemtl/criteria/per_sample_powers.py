"""The contract of everything that sums powers of gradients, and its plainest member: autograd, the batch as a whole."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.criteria.per_sample_sums import PowerSum
from sparsemtl.networks.swap import swap_tensors

Totals = Mapping[str, Tensor]
"""Parameter name -> sum so far, of the parameter's shape."""


class GradientPowers(abc.ABC):
    """Adds |gradient|^power of a batch's samples, for any gradients of its outputs.

    One `forward` a batch, then any number of `add`. The model computes with detached twins of its parameters, so
    that neither their `.grad` and `requires_grad` nor the hooks on them have a part in this.

    Args:
        model: a `MultiTaskModel` in eval mode.
        parameters: the parameters to differentiate, by name; the others count as constants.
        sums: what to add.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], sums: PowerSum) -> None:
        self.model = model
        self.parameters = dict(parameters)
        self.sums = sums
        self.twins = {name: p.detach() for name, p in model.named_parameters()}

    @abc.abstractmethod
    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model; outputs by task, detached."""

    @abc.abstractmethod
    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add the powers of d (sum over tasks of <cotangent, output>) / d parameter, of every sample on its own.

        Args:
            cotangents: task -> gradient with respect to its output, of the output's shape.
            totals: what to add to.
        """

    def zeros(self) -> dict[str, Tensor]:
        """Totals of nothing, in single precision at least."""
        return {name: torch.zeros_like(p, dtype=wide(p.dtype)) for name, p in self.parameters.items()}


class BatchPowers(GradientPowers):
    """Powers of the gradient of the whole batch: what autograd gives, and of a single sample the truth."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], sums: PowerSum) -> None:
        super().__init__(model, parameters, sums)
        self.leaves = {name: self.twins[name].detach().requires_grad_() for name in self.parameters}
        self._outputs: dict[str, Tensor] = {}

    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model and keep its graph until the next batch."""
        self._outputs = {}
        with swap_tensors(self.model, {**self.twins, **self.leaves}):
            self._outputs = self.model(x, tasks=tasks)
        return {task: output.detach() for task, output in self._outputs.items()}

    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add the powers of the sum of all samples' gradients."""
        for name, gradient in self.gradients(cotangents).items():
            self.sums.gradients(totals[name], gradient.unsqueeze(0))

    def gradients(self, cotangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of all samples' gradients, of the parameters that the outputs depend on."""
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


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to add up in: squares of half precision would overflow."""
    return dtype if dtype == torch.float64 else torch.float32
