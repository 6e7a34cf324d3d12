"""Sparsity of weights: the fraction of groups that are zero, and of weights in such groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsemtl.errors import ParameterError
from sparsemtl.optim.groups import Grouping, GroupName, Parameters
from sparsemtl.optim.layers import Layer


@dataclass(frozen=True)
class Sparsity:
    """Numbers of groups and weights that are zero, at one granularity.

    Args:
        granularity: `input-channel`, `output-channel`, `block`, `weight`, `head`, `neuron`, or the name of a user's
            function.
        groups: number of groups.
        zero_groups: number of groups whose weights are all zero.
        weights: number of weights.
        zero_weights: number of weights in zero groups; zeros in other groups do not count.
    """

    granularity: str
    groups: int = 0
    zero_groups: int = 0
    weights: int = 0
    zero_weights: int = 0

    @property
    def of_groups(self) -> float:
        """Fraction of the groups that are zero."""
        return self.zero_groups / max(self.groups, 1)

    @property
    def of_parameters(self) -> float:
        """Fraction of the weights that lie in zero groups."""
        return self.zero_weights / max(self.weights, 1)

    def __add__(self, other: Sparsity) -> Sparsity:
        return Sparsity(
            self.granularity,
            self.groups + other.groups,
            self.zero_groups + other.zero_groups,
            self.weights + other.weights,
            self.zero_weights + other.zero_weights,
        )


@torch.no_grad()
def layer_sparsity(parameters: Parameters, grouping: Grouping | GroupName = "input-channel") -> dict[str, Sparsity]:
    """Return name -> sparsity, for every weight that the grouping covers, or every weight that reads units.

    Args:
        parameters: name -> parameter, or the pairs of `named_parameters()`.
        grouping: groups to count; those of a penalty are `penalty.grouping`.

    Raises:
        ParameterError: if the grouping covers none of the parameters.
    """
    own = grouping if isinstance(grouping, Grouping) else Grouping(grouping)
    found = {layer.name: _sparsity(layer, own) for layer in own.layers(parameters)}
    if not found:
        raise ParameterError(
            "nothing to measure: no parameter has four axes (convolutions); linear=True counts those of two as well. "
            "Heads and neurons are measured where the weight that reads them is among the parameters."
        )
    return found


def total_sparsity(parameters: Parameters, grouping: Grouping | GroupName = "input-channel") -> Sparsity:
    """Return the sparsity of all weights together; see `layer_sparsity`."""
    first, *rest = layer_sparsity(parameters, grouping).values()
    return sum(rest, start=first)


def group_sparsity(parameters: Parameters, grouping: Grouping | GroupName = "input-channel") -> float:
    """Return zero groups over all groups, in [0, 1]; see `layer_sparsity`.

    Examples:
        >>> layer = nn.Conv2d(4, 2, 3)
        >>> _ = layer.weight.data[:, 0].zero_()
        >>> sm.optim.group_sparsity(layer.named_parameters(), "input-channel")
        0.25
        >>> sm.optim.group_sparsity(layer.named_parameters(), "output-channel")
        0.0
    """
    return total_sparsity(parameters, grouping).of_groups


def parameter_sparsity(parameters: Parameters, grouping: Grouping | GroupName = "input-channel") -> float:
    """Return weights in zero groups over all weights, in [0, 1]; see `layer_sparsity`.

    Only groups that are zero as a whole count; with the grouping `weight`, every zero does.
    """
    return total_sparsity(parameters, grouping).of_parameters


def _sparsity(layer: Layer, grouping: Grouping) -> Sparsity:
    total, weight = Sparsity(grouping.name), layer.gather(layer.parameters)
    for view in grouping.split(weight):
        groups = view.read(weight)
        size, zero = groups.shape[1] * groups.shape[3], (groups == 0).all(3).all(1)
        zeros = int(zero.sum())
        total += Sparsity(grouping.name, zero.numel(), zeros, groups.numel(), zeros * size)
    return total
