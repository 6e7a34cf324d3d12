"""Units by their incoming weights: the largest per unit, floors that keep units alive, and units that are dead.

A unit is an output channel of a convolution, an output of a linear layer, or a gate of a recurrent one. It is dead if
none of its incoming weights is kept: its output is then a constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.criteria.select import Scope, select
from sparsemtl.criteria.top_k import budget
from sparsemtl.errors import DeadUnitWarning, ParameterError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.roles import is_transposed_linear

_MANY_DEAD = 0.5
"""Fraction of dead units in one layer above which a warning names the layer."""


def owners_of(model: nn.Module) -> dict[int, nn.Module]:
    """Return id of a parameter -> a module that has it."""
    return {id(p): module for module in model.modules() for p in module._parameters.values() if p is not None}


def incoming(weight: Tensor, module: nn.Module) -> Tensor:
    """Return a weight as (units, incoming weights)."""
    if isinstance(module, _ConvTransposeNd):
        inputs, outputs = weight.shape[0] // module.groups, weight.shape[1]  # outputs per group
        return weight.view(module.groups, inputs, outputs, -1).transpose(1, 2).reshape(module.groups * outputs, -1)
    if is_transposed_linear(module):
        return weight.T.contiguous()
    return weight.flatten(1) if weight.ndim > 1 else weight[:, None]


def largest_per_neuron(scores: Tensor, module: nn.Module, keep: float) -> Tensor:
    """Return the mask of the round(keep * n) largest scores among the n incoming weights of every unit, at least one.

    Args:
        scores: scores of a weight, of its shape; ties go to the lowest index.
        module: layer that the weight belongs to.
        keep: fraction in (0, 1].
    """
    places = incoming(torch.arange(scores.numel(), device=scores.device).view_as(scores), module)
    return _best(scores, places, budget(places.shape[1], keep))


def _best(scores: Tensor, places: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` largest scores per row of `places`."""
    order = scores.flatten()[places].sort(dim=1, descending=True, stable=True).indices
    best = places.gather(1, order[:, :count])
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[best.flatten()] = True
    return mask.view_as(scores)


def select_alive(
    scores: Mapping[str, Tensor],
    keep: float,
    *,
    model: nn.Module,
    min_per_unit: int,
    scope: Scope = "global",
    min_per_layer: int = 1,
) -> dict[str, Tensor]:
    """Keep the weights of highest score, among them the best `min_per_unit` incoming weights of every unit.

    Args:
        scores: parameter name -> score per weight.
        keep: fraction in (0, 1].
        model: module that has the parameters.
        min_per_unit: incoming weights that every unit keeps at least, or all if it has fewer. A global ranking takes
            them out of K first; a layer's own ranking raises its K to them. Biases and norms have no units.
        scope: as in `select`.
        min_per_layer: as in `select`.

    Raises:
        ParameterError: as in `select`, and if `keep` is too small for the floor.
    """
    floors = _floors(scores, model, min_per_unit)
    taken = sum(int(floor.count_nonzero()) for floor in floors.values())
    size = sum(score.numel() for score in scores.values())
    if scope == "global" and taken > budget(size, keep):
        raise ParameterError(
            f"keep={keep} leaves {budget(size, keep)} of {size} weights, fewer than the {taken} that "
            f"min_per_unit={min_per_unit} needs. Raise keep or lower min_per_unit."
        )
    raised = {n: score.masked_fill(floors[n], torch.inf) if n in floors else score for n, score in scores.items()}
    masks = select(raised, keep, scope=scope, min_per_layer=min_per_layer)
    return {name: mask | floors[name] if name in floors else mask for name, mask in masks.items()}


def _floors(scores: Mapping[str, Tensor], model: nn.Module, count: int) -> dict[str, Tensor]:
    """Return the `count` best incoming weights of every unit, per weight with at least two axes."""
    owners, floors = owners_of(model), {}
    for name, score in scores.items():
        if score.ndim > 1:
            places = torch.arange(score.numel(), device=score.device).view_as(score)
            floors[name] = _best(score, incoming(places, owners[id(model.get_parameter(name))]), count)
    return floors


def dead_units(masks: TaskMasks, model: nn.Module) -> dict[str, dict[str, float]]:
    """Return task -> parameter -> fraction of its units of which the task keeps no incoming weight.

    Args:
        masks: masks of single weights.
        model: module that has the parameters.
    """
    owners = owners_of(model)
    layers = {name: owners[id(model.get_parameter(name))] for name, shape in masks.shapes().items() if len(shape) > 1}
    return {
        task: {
            name: 1 - float(incoming(masks[task][name], layer).any(1).double().mean()) for name, layer in layers.items()
        }
        for task in masks
    }


def warn_of_dead_units(masks: TaskMasks, model: nn.Module) -> bool:
    """Warn, and return True, if a task keeps no incoming weight of more than half of the units of a layer."""
    shares = dead_units(masks, model)
    worst = {task: max(found.items(), key=lambda item: item[1], default=("", 0.0)) for task, found in shares.items()}
    many = {task: layer for task, layer in worst.items() if layer[1] > _MANY_DEAD}
    if many:
        found = "; ".join(f"task {task!r}: {share:.0%} of {name!r}" for task, (name, share) in list(many.items())[:5])
        warnings.warn(
            f"{masks.method or 'masks'}: units are dead, of which a task keeps no incoming weight, so that their "
            f"output is a constant ({found}). Keep more weights, rank them per layer (scope='layer'), or let every "
            "unit keep some (min_per_unit=1).",
            DeadUnitWarning,
            stacklevel=3,
        )
    return bool(many)
