"""Penalties that make weights sparse: a strength, a grouping of the weights, and the proximal map."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, get_args, get_type_hints

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.errors import ParameterError
from sparsemtl.networks.structures import Kind, Structure
from sparsemtl.optim import proximal
from sparsemtl.optim.groups import GroupFunction, Grouping, GroupName, Parameters
from sparsemtl.optim.proximal import Scratch, fresh
from sparsemtl.registry.checking import check_value
from sparsemtl.registry.parameters import Natural, NonNegative, Positive
from sparsemtl.registry.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Penalty(abc.ABC):
    """Base of penalties: strength * sum over groups g of sqrt(n_g) * size of g, for n_g weights in the group.

    A penalty covers tensors of four axes (weights of convolutions, 1x1 too) and no others. Gains and maps of positions
    may have four axes as well: pass `sm.maskable_parameters(model)`, or groups that `penalty_groups` makes.
    """

    strength: Annotated[NonNegative, Doc("Factor of the penalty, lambda in the papers.")]
    linear: Annotated[bool, Doc("Cover weights of two axes (linear layers) as well.")] = False
    keep_min: Annotated[
        Natural,
        Doc(
            "Groups per weight that never become zero: those nearest to it keep the value that the optimizer gave them."
        ),
    ] = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            check_value(f"The {name!r} parameter of {type(self).__name__}", getattr(self, name), hint)

    @property
    @abc.abstractmethod
    def grouping(self) -> Grouping:
        """Grouping of the weights."""

    def covers(self, weight: Tensor) -> bool:
        """Return whether the penalty acts on a weight alone; heads and neurons span several, see `grouping.layers`."""
        return self.grouping.covers(weight)

    def refusal(self, weight: Tensor) -> str:
        """Return why the penalty does not act on a weight, "" if it does, alone or in a head or neuron."""
        if isinstance(self.grouping.by, Mapping):
            return ""
        advice = "; `linear` covers weights of two" if weight.ndim == 2 else ""
        return "" if self.covers(weight) else f"a weight of {weight.ndim} axes, not four{advice}"

    def weight(self, x: Tensor) -> float:
        """Return the slope of the penalty at zero, for groups in the shape (L, A, G, B): strength * sqrt(A * B)."""
        return self.strength * math.sqrt(x.shape[1] * x.shape[3])

    @abc.abstractmethod
    def shrink_(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Take the proximal step in place; see `proximal`.

        Args:
            x: groups in the shape (L, A, G, B); see `groups`.
            shift: step size times `weight(x)`, > 0, over the diagonal of the metric, if there is one; a tensor may be
                changed, like x.
            scratch: returns memory to compute in.

        Returns:
            (L, 1, G, 1), True where the group is not zero.
        """

    @abc.abstractmethod
    def pull(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Return the pull of groups against the step, above 1 where a group does not become zero; (L, 1, G, 1)."""

    @abc.abstractmethod
    def critical_factor(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Return the least factor on the strength at which groups become zero in the step; (L, 1, G, 1)."""

    @abc.abstractmethod
    def cost(self, x: Tensor) -> Tensor:
        """Return the penalty of groups in the shape (L, A, G, B), a differentiable scalar."""

    def value(self, parameters: Parameters) -> Tensor:
        """Return the penalty of all covered weights, a differentiable scalar."""
        costs = [
            self.cost(view.read(weight))
            for layer in self.grouping.layers(parameters)
            for weight in [layer.gather(layer.parameters)]
            for view in self.grouping.split(weight)
        ]
        return torch.stack(costs).sum() if costs else torch.zeros(())


@dataclass(frozen=True, kw_only=True)
class L1(Penalty):
    """Sum of absolute weights: single weights become zero (Tibshirani 1996). A group is a single weight."""

    @cached_property
    def grouping(self) -> Grouping:
        """Grouping of every weight on its own."""
        return Grouping("weight", linear=self.linear)

    def shrink_(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Take the proximal step in place; see `Penalty`."""
        return proximal.l1_(x, shift, scratch)

    def pull(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Return the pull of groups against the step; see `Penalty`."""
        return proximal.l1_pull(x, shift)

    def critical_factor(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Return the least factor on the strength at which groups become zero; see `Penalty`."""
        return proximal.l1_pull(x, shift)

    def cost(self, x: Tensor) -> Tensor:
        """Return the penalty of groups; see `Penalty`."""
        return self.strength * x.abs().sum()


@dataclass(frozen=True, kw_only=True)
class _Grouped(Penalty):
    """Penalty on the norms of groups."""

    granularity: Annotated[
        GroupName | GroupFunction | Mapping[str, Structure],
        Doc(
            "Groups: `input-channel` W[:, c], `output-channel` W[n], `block`, `weight`, or a function that returns the "
            "number of the group per entry of a weight, in a shape that broadcasts to the weight's; it is called once "
            "per weight. Or the attention heads or feed-forward neurons of a model, as `sm.find_structures` returns "
            "them: the rows that make a head or a neuron and the columns that read it are one group."
        ),
    ] = "input-channel"
    block: Annotated[Sequence[int], Doc("Output by input channels of a `block`, with their whole kernels.")] = (4, 4)

    def __post_init__(self) -> None:
        if self.granularity in get_args(Kind):
            raise ParameterError(
                f"granularity={self.granularity!r} needs the {self.granularity}s of a model: "
                f"granularity=sm.find_structures(model, x, {self.granularity!r}) for an input x of the model."
            )
        super().__post_init__()
        object.__setattr__(self, "block", tuple(self.block))
        self.grouping  # noqa: B018 - raise for a wrong grouping now, not at the first step

    @cached_property
    def grouping(self) -> Grouping:
        """Grouping by `granularity`."""
        return Grouping(self.granularity, tuple(self.block), self.linear)


@dataclass(frozen=True, kw_only=True)
class GroupLasso(_Grouped):
    """Sum of the groups' norms: whole groups become zero (Yuan & Lin 2006; Less is More 2023, Eq. 3).

    Differences from the paper's code: the penalty acts by its proximal map only, not by a term of the loss as well; a
    group's weight is sqrt(n_g) everywhere, not the square root of the number of channels; the map is exact near its
    threshold, and finite for a group of zeros.

    Examples:
        >>> penalty = sm.optim.GroupLasso(strength=0.1)
        >>> weight = torch.ones(4, 3, 3, 3)
        >>> round(float(penalty.value([weight])), 4)  # 0.1 * 3 channels * sqrt(36) * norm 6
        10.8
    """

    def shrink_(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Take the proximal step in place; see `Penalty`."""
        return proximal.group_lasso_(x, shift, scratch)

    def pull(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Return the pull of groups against the step; see `Penalty`."""
        return proximal.lasso_pull(x, shift, scratch)

    def critical_factor(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Return the least factor on the strength at which groups become zero; see `Penalty`."""
        return proximal.lasso_pull(x, shift, scratch)

    def cost(self, x: Tensor) -> Tensor:
        """Return the penalty of groups; see `Penalty`."""
        size: Tensor = torch.linalg.vector_norm(x, dim=(1, 3))
        return self.weight(x) * size.sum()


@dataclass(frozen=True, kw_only=True)
class GroupMCP(_Grouped):
    """Minimax concave penalty on the groups' norms, which does not shrink large groups (Zhang 2010; Huang 2012)."""

    gamma: Annotated[
        Positive,
        Doc(
            "Groups whose norm is above gamma * strength * sqrt(n_g) are not shrunk; towards infinity this is group "
            "lasso."
        ),
    ] = 3.0

    def shrink_(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Take the proximal step in place; see `Penalty`."""
        return proximal.group_mcp_(x, shift, self.gamma * self.weight(x), scratch)

    def pull(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Return the pull of groups against the step; see `Penalty`."""
        return proximal.mcp_pull(x, shift, self.gamma * self.weight(x), scratch)

    def critical_factor(self, x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
        """Return the least factor on the strength at which groups become zero; see `Penalty`."""
        return proximal.mcp_critical_factor(x, shift, self.gamma * self.weight(x), scratch)

    def cost(self, x: Tensor) -> Tensor:
        """Return the penalty of groups; see `Penalty`."""
        weight = self.weight(x)
        size: Tensor = torch.linalg.vector_norm(x, dim=(1, 3)).clamp(max=self.gamma * weight)
        return (weight * size - size.square() / (2 * self.gamma)).sum()


PENALTIES: Registry[Penalty] = Registry("penalty", {"group-lasso": GroupLasso, "l1": L1, "group-mcp": GroupMCP})
