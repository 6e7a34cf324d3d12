"""Targets of gradients: what the tasks' losses are differentiated by before a balancer chooses their weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.networks.model import MultiTaskModel


@dataclass(frozen=True)
class SharedLayer:
    """Weights of one layer that all tasks share.

    Attributes:
        candidates: names of the weights of each layer that may be meant. The first layer that the losses of the first
            batch depend on is taken.
    """

    candidates: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Representation:
    """Output of one module, which every task's loss depends on, and through which the shared weights act.

    Attributes:
        module: name of the module.
    """

    module: str


GradientTarget = SharedLayer | Representation


def shared_layer(model: MultiTaskModel, layer: str | None) -> SharedLayer:
    """Return a layer that all tasks share as a target.

    Args:
        model: the model.
        layer: name of a module with trained weights, or of one parameter; None for the last layer in the model's order
            that all losses depend on.

    Raises:
        ParameterError: if there is no such layer, or not all tasks use it.
    """
    layers = _shared_layers(model)
    if not layers:
        raise ParameterError(
            f"{type(model).__name__} has no trained weight that all of its tasks use, so that their gradients have "
            "nothing in common to be compared at. Share a layer, or use a balancer of losses, such as `uncertainty`."
        )
    if layer is None:
        return SharedLayer(tuple(reversed(layers.values())))
    everywhere = {name for names in layers.values() for name in names}
    if layer in everywhere:
        return SharedLayer(((layer,),))
    if inside := tuple(name for name in everywhere if name.startswith(f"{layer}.")):
        return SharedLayer((layers.get(layer, tuple(sorted(inside))),))
    if layer in {*dict(model.named_modules()), *dict(model.named_parameters())}:
        raise ParameterError(
            f"layer {layer!r} has no trained weight that all tasks use. Layers with one: {', '.join(layers)}."
        )
    raise ParameterError(unknown_name("layer", layer, layers))


def representation(model: MultiTaskModel) -> Representation:
    """Return the common representation of a model's tasks as a target.

    Raises:
        ParameterError: if the architecture has none.
    """
    name = model.common_representation()
    if name is None:
        raise ParameterError(
            f"{type(model).__name__} has no common representation, one module whose output all tasks read, so that the "
            "tasks' gradients cannot be compared there. Use an architecture that has one, such as shared-bottom, or a "
            "balancer of the shared weights' gradients, such as `mgda`."
        )
    return Representation(name)


def _shared_layers(model: MultiTaskModel) -> dict[str, tuple[str, ...]]:
    """Return name of a module -> names of its own trained weights that all tasks use, in the model's order."""
    users, everyone = model.parameter_tasks(), frozenset(model.tasks)
    shared = {**model.shared_parameters(), **model.unmasked_parameters()}
    found: dict[str, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        own = (f"{name}.{key}" for key, p in module.named_parameters(recurse=False) if _is_weight(p))
        if names := tuple(key for key in own if key in shared and users[key] == everyone):
            found[name] = names
    return found


def _is_weight(parameter: nn.Parameter) -> bool:
    """Return True for a trained matrix or kernel: gains and biases are no layer of their own."""
    return parameter.requires_grad and parameter.ndim > 1
