"""Penalties that make weights sparse: each knows its strength, how weights fall into groups, and its proximal map."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_type_hints

import torch
from torch import Tensor

from sparsemtl.optim import proximal
from sparsemtl.optim.groups import GroupFunction, Grouping, GroupName, Parameters, dense, named
from sparsemtl.optim.proximal import Scratch, fresh
from sparsemtl.registry.checking import check_value
from sparsemtl.registry.parameters import Natural, NonNegative, Positive
from sparsemtl.registry.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Penalty(abc.ABC):
    """strength * sum over groups g of sqrt(n_g) * size of g, where n_g is the number of the group's weights.

    It covers tensors of four axes (weights of convolutions, 1x1 too), and leaves the rest alone. Gains and maps of
    positions may have four axes as well: pass `sm.maskable_parameters(model)`, which holds weights of layers alone.

    Args:
        strength: the papers' lambda.
        linear: cover weights of two axes (linear layers, embeddings) as well.
        keep_min: groups of a weight that always survive; those nearest to surviving keep the value that the optimizer
            gave them.
    """

    strength: NonNegative
    linear: bool = False
    keep_min: Natural = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            check_value(f"The {name!r} parameter of {type(self).__name__}", getattr(self, name), hint)

    @property
    @abc.abstractmethod
    def grouping(self) -> Grouping:
        """How the weights fall into groups."""

    def covers(self, weight: Tensor) -> bool:
        """Tell whether the penalty acts on a weight."""
        return self.grouping.covers(weight)

    def weight(self, x: Tensor) -> float:
        """The slope of the penalty at zero, of groups in the shape (L, A, G, B): strength * sqrt(A * B)."""
        return self.strength * math.sqrt(x.shape[1] * x.shape[3])

    @abc.abstractmethod
    def shrink_(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Take the proximal step in place; see `proximal`.

        Args:
            x: groups in the shape (L, A, G, B); see `groups`.
            shift: step size times `weight(x)`, > 0, over the diagonal of the metric, if there is one; a tensor, like x,
                may be changed.
            scratch: gives memory to compute in.

        Returns:
            (L, 1, G, 1), True where the group survives.
        """

    @abc.abstractmethod
    def pull(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """How strongly groups withstand the step, above 1 where they survive it; (L, 1, G, 1)."""

    def critical(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """The factor on the strength from which on groups do not survive the step; (L, 1, G, 1)."""
        return self.pull(x, shift, scratch)

    @abc.abstractmethod
    def cost(self, x: Tensor) -> Tensor:
        """Penalty of groups in the shape (L, A, G, B); a differentiable scalar."""

    def value(self, parameters: Parameters) -> Tensor:
        """The penalty of all the weights that it covers; a differentiable scalar."""
        costs = [
            self.cost(part.read(dense(weight)))
            for _, weight in named(parameters)
            if self.covers(weight)
            for part in self.grouping.split(weight)
        ]
        return torch.stack(costs).sum() if costs else torch.zeros(())


@dataclass(frozen=True, kw_only=True)
class L1(Penalty):
    """Sum of absolute weights: single weights become zero (Tibshirani 1996).

    Args:
        strength, linear, keep_min: see `Penalty`; a group is a single weight.
    """

    @cached_property
    def grouping(self) -> Grouping:
        """Every weight on its own."""
        return Grouping("weight", linear=self.linear)

    def shrink_(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """See `Penalty`."""
        return proximal.l1_(x, shift, scratch)

    def pull(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """See `Penalty`."""
        return proximal.l1_pull(x, shift)

    def cost(self, x: Tensor) -> Tensor:
        """See `Penalty`."""
        return self.strength * x.abs().sum()


@dataclass(frozen=True, kw_only=True)
class _Grouped(Penalty):
    """A penalty on the norms of groups.

    Args:
        granularity: `input-channel` W[:, c], `output-channel` W[n], `block`, or a function that gives every entry of a
            weight the number of its group, as whole numbers that broadcast to the weight's shape. It is called once
            for each weight.
        block: output by input channels of a `block`, with their whole kernels.
    """

    granularity: GroupName | GroupFunction = "input-channel"
    block: Sequence[int] = (4, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "block", tuple(self.block))
        self.grouping  # noqa: B018 - a wrong grouping is an error now, not at the first step

    @cached_property
    def grouping(self) -> Grouping:
        """See `Penalty`."""
        return Grouping(self.granularity, tuple(self.block), self.linear)


@dataclass(frozen=True, kw_only=True)
class GroupLasso(_Grouped):
    """Sum of the groups' norms: whole groups become zero (Yuan & Lin 2006; Less is More 2023, Eq. 3).

    Args:
        granularity, block: see `_Grouped`.
        strength, linear, keep_min: see `Penalty`.

    Differences from the paper's code: the penalty acts by its proximal map only, not by a term of the loss as well; a
    group's weight is sqrt(n_g) everywhere, not the square root of the number of channels; the map is exact near its
    threshold, and finite for a group of zeros.

    Example:
        >>> penalty = sm.optim.GroupLasso(strength=0.1)
        >>> weight = torch.ones(4, 3, 3, 3)
        >>> round(float(penalty.value([weight])), 4)  # 0.1 * 3 channels * sqrt(36) * norm 6
        10.8
    """

    def shrink_(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """See `Penalty`."""
        return proximal.group_lasso_(x, shift, scratch)

    def pull(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """See `Penalty`."""
        return proximal.lasso_pull(x, shift, scratch)

    def cost(self, x: Tensor) -> Tensor:
        """See `Penalty`."""
        size: Tensor = torch.linalg.vector_norm(x, dim=(1, 3))
        return self.weight(x) * size.sum()


@dataclass(frozen=True, kw_only=True)
class GroupMCP(_Grouped):
    """Minimax concave penalty on the groups' norms, which leaves large groups as they are (Zhang 2010; Huang 2012).

    Args:
        gamma: a group whose norm is above gamma * strength * sqrt(n_g) is not shrunk; towards infinity this is group
            lasso.
        granularity, block: see `_Grouped`.
        strength, linear, keep_min: see `Penalty`.
    """

    gamma: Positive = 3.0

    def shrink_(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """See `Penalty`."""
        return proximal.group_mcp_(x, shift, self.gamma * self.weight(x), scratch)

    def pull(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """See `Penalty`."""
        return proximal.mcp_pull(x, shift, self.gamma * self.weight(x), scratch)

    def critical(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """See `Penalty`."""
        return proximal.mcp_critical(x, shift, self.gamma * self.weight(x), scratch)

    def cost(self, x: Tensor) -> Tensor:
        """See `Penalty`."""
        weight = self.weight(x)
        size: Tensor = torch.linalg.vector_norm(x, dim=(1, 3)).clamp(max=self.gamma * weight)
        return (weight * size - size.square() / (2 * self.gamma)).sum()


PENALTIES: Registry[Penalty] = Registry("penalty", {"group-lasso": GroupLasso, "l1": L1, "group-mcp": GroupMCP})
