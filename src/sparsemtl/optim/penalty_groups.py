"""Parameter groups of a proximal optimizer: the weights that a penalty acts on, and all other parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from typing_extensions import Unpack

from sparsemtl.errors import ParameterError
from sparsemtl.networks.coverage import CoverageOptions
from sparsemtl.networks.shared_coverage import shared_coverage
from sparsemtl.networks.structures import restricted
from sparsemtl.optim.penalties import Penalty


def penalty_groups(model: nn.Module, penalty: Penalty, **options: Unpack[CoverageOptions]) -> list[dict[str, Any]]:
    """Return the parameter groups of a model for `ProximalAdamW` and `ProximalSGD`.

    An optimizer sees tensors without their layers, and cannot know a weight from a map of positions of as many axes.

    Args:
        model: a `MultiTaskModel`, of which the penalty acts on shared weights, or any module.
        penalty: penalty on the weights of layers.
        options: `only` and `exclude` name the weights, as in `maskable_parameters`.

    Returns:
        a group of the weights with the penalty, and one of all other trained parameters with `penalty=None`. Add
        options of the optimizer to either, such as a learning rate. For a penalty on heads or neurons the first group
        holds all their parameters, and both groups hold names.

    Raises:
        ParameterError: if `only` or `exclude` names nothing, or the penalty acts on no weight.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> penalty = sm.optim.GroupLasso(strength=1e-3)
        >>> groups = sm.optim.penalty_groups(model, penalty, exclude="0")
        >>> [[tuple(p.shape) for p in group["params"]] for group in groups]
        [[(8, 8, 3, 3)], [(8, 3, 3, 3), (8,), (8,), (2, 8), (2,)]]
        >>> optimizer = sm.optim.ProximalAdamW(groups, lr=1e-3, penalty=penalty)
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = shared_coverage(model, refusal=penalty.refusal, **options)
    units = penalty.grouping.by
    if isinstance(units, Mapping):
        parts = {part.name for own in restricted(units, model, **options).values() for part in own.parts}
        covered = [(name, p) for name, p in named.items() if name in parts]
    else:
        covered = list(found.refuse_computed().covered.items())
    if not covered:
        raise ParameterError(
            f"{type(penalty).__name__} acts on no shared weight of {type(model).__name__}: it acts on weights of four "
            "axes (convolutions), on those of two with linear=True, and on heads and neurons."
        )
    taken = {id(parameter) for _, parameter in covered}
    others = [(name, p) for name, p in named.items() if id(p) not in taken]
    if not isinstance(units, Mapping):  # torch takes names since version 2.6
        return [_group([p for _, p in covered], penalty), _group([p for _, p in others], None)]
    return [_group(covered, penalty), _group(others, None)]


def _group(parameters: Sequence[Any], penalty: Penalty | None) -> dict[str, Any]:
    return {"params": parameters, "penalty": penalty}
