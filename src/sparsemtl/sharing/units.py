"""Units that routing methods deal out to tasks: output channels of layers, switched off behind the layer's norm.

A unit is an output channel of a convolution, or of a linear layer outside of attention. Where a norm reads the very
tensor that the layer returns, the channel is zero behind the norm, else behind the layer; either way before the
activation. In front of a norm over several channels (group, layer and RMS norm) it is zero too: its weights would act
through the statistics. What belongs to a unit, and moves only in steps of its tasks, is the layer's row of weights, its
bias, and the norm's scale and shift.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Doc

from sparsemtl.criteria.channels import norms_behind
from sparsemtl.errors import MaskError
from sparsemtl.networks.coverage import CoverageOptions, coverage_options
from sparsemtl.networks.mask_description import LeftOut, left_out_of
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.norms import Statistics, own_statistics
from sparsemtl.networks.outputs import along, row_axes
from sparsemtl.networks.roles import is_transposed_linear
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
from sparsemtl.registry.parameters import Default, Natural
from sparsemtl.sharing.masking import masks_of
from sparsemtl.sharing.sharing import Update
from sparsemtl.tasks.batches import Loaders, first_groups

logger = logging.getLogger(__name__)


class RoutingOptions(CoverageOptions, total=False):
    """Options of methods that deal out units."""

    seed: Annotated[
        Natural | None,
        Default(None),
        Doc("Seed of the draws; by default that of the run, so that seeds of a study differ in their units."),
    ]
    update: Annotated[
        Update,
        Default("average"),
        Doc(
            "How a batch becomes optimizer steps: `average`, one forward pass per task and one step (the gradients "
            "accumulate, as in the codes for Cityscapes); `alternate`, one step per task, as in those for CelebA; "
            "`random_one`, one step for one task drawn at random, as in Strezoski et al."
        ),
    ]
    strict: Annotated[
        bool,
        Default(True),
        Doc("No step moves the weights of a unit that none of its tasks uses, whatever the state of the optimizer."),
    ]
    bn: Annotated[
        Statistics,
        Default("per_task"),
        Doc("Batch-norm statistics: one set for all tasks, one set per task, or those of the batch itself."),
    ]


@dataclass(frozen=True)
class UnitLayer:
    """A layer with its units.

    Attributes:
        name: name of the layer.
        channels: number of its units, C.
        outputs: names of the modules whose outputs are masked: the norms that read the layer, the layer itself, or all.
        rows: name of every parameter with a row per unit -> axis of the units.
    """

    name: str
    channels: int
    outputs: tuple[str, ...]
    rows: Mapping[str, int]

    def state(self) -> list[Any]:
        """Return the layer as plain values, for a checkpoint."""
        return [self.name, self.channels, list(self.outputs), dict(self.rows)]

    @classmethod
    def of_state(cls, state: Sequence[Any]) -> UnitLayer:
        """Return the layer of a state."""
        name, channels, outputs, rows = state
        return cls(name, channels, tuple(outputs), dict(rows))


_Dealt = Mapping[str, Mapping[str, Tensor]]
"""Layer -> task -> bool (C,), True for the units that the task uses."""


def networks_of_all_units(model: MultiTaskModel, method: str, options: RoutingOptions) -> TaskNetworks:
    """Return networks in which every task uses all units.

    Raises:
        MaskError: if tasks share no layer with units.
        ParameterError: if `only` or `exclude` names nothing, or a shared layer computes its weight from other
            parameters.
    """
    layers, reasons = _layers(model, options)
    if not layers:
        left = "".join(f" {name} is {why}." for name, why in list(reasons.items())[:3])
        raise MaskError(
            f"{method} masks the outputs of layers that tasks share, and {type(model).__name__} shares none.{left} "
            "Use DenseSharing with it, or name layers in `only`."
        )
    rows = {f"{name}.{own}": m.get_parameter(own) for name, m in layers.items() for own in row_axes(m) or ()}
    left_out = left_out_of(model, rows, **coverage_options(options))
    left_out |= {name: LeftOut(left_out[name].shape, why) for name, why in reasons.items()}
    masks = TaskMasks.ones(rows, model.tasks, model=type(model).__name__, method=method, left_out=left_out)
    ones = {name: torch.ones_like(_one_per_unit(m), dtype=torch.bool) for name, m in layers.items()}
    own = own_statistics(model, options["bn"])
    networks = {task: TaskNetwork(own_tensors=own[task]) for task in model.tasks}
    made = TaskNetworks(networks, strict=options["strict"], model=masks.model, method=method)
    return made.with_outputs(dict.fromkeys(model.tasks, ones), masks)


def find_units(model: MultiTaskModel, loaders: Loaders, options: RoutingOptions) -> list[UnitLayer]:
    """Return the layers with units, and where to mask them, by forward passes on first batches.

    A layer that no forward pass calls, or whose norm reads other layers too, keeps all units, with a warning.
    """
    layers, _ = _layers(model, options)
    shared = {m for module in model.shared_modules().values() for m in module.modules()}
    norms: dict[nn.Module, list[nn.Module]] = {}
    for group in first_groups(loaders, model.tasks):
        group = group.to(*placement(model))
        for layer, found in norms_behind(model, list(layers.values()), group.x, group.tasks).items():
            norms[layer] = list(dict.fromkeys([*norms.get(layer, ()), *(norm for norm in found if norm in shared)]))
    readers = [norm for found in norms.values() for norm in found]
    names = {module: name for name, module in model.named_modules()}
    units = []
    for name, layer in layers.items():
        if layer not in norms or any(readers.count(norm) > 1 for norm in norms[layer]):
            why = "its norm reads other layers too" if layer in norms else "no forward pass calls it"
            logger.warning("all tasks use all outputs of %r: %s.", name, why)
            continue
        rows = {f"{names[m]}.{own}": axis for m in (layer, *norms[layer]) for own, axis in (row_axes(m) or {}).items()}
        outputs = tuple(names[norm] for norm in norms[layer])
        if not all(isinstance(norm, _NormBase) for norm in norms[layer]) or not outputs:
            outputs = (name, *outputs)
        units.append(UnitLayer(name, len(_one_per_unit(layer)), outputs, rows))
    return units


def units_kept(keep: float, channels: int) -> int:
    """Return the number of a layer's units that a task uses: ceil(keep * C), at least 1."""
    return max(ceil(keep * channels - 1e-9), 1)


def deal(
    layer: UnitLayer, tasks: Sequence[str], keep: float, draw: torch.Generator, *, cover: bool
) -> Mapping[str, Tensor]:
    """Return task -> the units that it uses, drawn uniformly and for every task on its own.

    Args:
        layer: the layer.
        tasks: names of the tasks.
        keep: fraction of the units that a task uses, in (0, 1].
        draw: generator of the draws.
        cover: give unit c to task c mod T first, so that every unit has a task; a task may then use more than `keep`.
    """
    masks = {}
    for number, task in enumerate(tasks):
        mask = torch.zeros(layer.channels, dtype=torch.bool)
        if cover:
            mask[number :: len(tasks)] = True
        free = (~mask).nonzero().squeeze(1)
        missing = max(units_kept(keep, layer.channels) - int(mask.sum()), 0)
        mask[free[torch.randperm(len(free), generator=draw)[:missing]]] = True
        masks[task] = mask
    return masks


def routed(model: MultiTaskModel, networks: TaskNetworks, layers: Sequence[UnitLayer], dealt: _Dealt) -> TaskNetworks:
    """Return the networks in which every task uses its units.

    Args:
        model: the model.
        networks: the current networks; layers that are not dealt out stay as they are.
        layers: the layers.
        dealt: layer -> task -> units.
    """
    before, device = masks_of(networks), placement(model)[0]
    outputs: dict[str, dict[str, Tensor]] = {task: {} for task in networks}
    weights: dict[str, dict[str, Tensor]] = {task: dict(before[task]) for task in networks}
    for layer in layers:
        for task, mask in dealt.get(layer.name, {}).items():
            mask = mask.to(device)
            outputs[task].update(dict.fromkeys(layer.outputs, mask))
            for name, axis in layer.rows.items():
                p = model.get_parameter(name)
                weights[task][name] = along(mask, axis, p.ndim).expand(p.shape).contiguous()
    left_out = {name: why for name, why in (before.left_out or {}).items() if name not in weights[next(iter(weights))]}
    masks = TaskMasks(weights, model=before.model, method=before.method, left_out=left_out)
    return networks.with_outputs(outputs, masks)


def _layers(model: MultiTaskModel, options: RoutingOptions) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the layers with units by name, and name of another weight -> why it makes none."""
    patterns = coverage_options(options)
    weights = maskable_parameters(model, **patterns)
    inside = _attention(model) if patterns["only"] is None else set()
    uses = [id(p) for module in model.modules() for p in module._parameters.values()]
    layers, reasons = {}, {}
    for name, weight in weights.items():
        layer, _, own = name.rpartition(".")
        module = model.get_submodule(layer)
        if own != "weight" or not _is_layer(module) or row_axes(module) is None:
            reasons[name] = "no weight of a convolution or a linear layer, whose outputs are units"
        elif layer in inside:
            reasons[name] = "in an attention layer, whose units are heads; name it in `only` to have its outputs masked"
        elif uses.count(id(weight)) > 1:
            reasons[name] = "a weight of several layers"
        else:
            layers[layer] = module
    return layers, reasons


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (_ConvNd, nn.Linear)) or is_transposed_linear(module)


def _one_per_unit(layer: nn.Module) -> Tensor:
    """Return one weight of every unit, (C,)."""
    weight = layer.get_parameter("weight").detach()
    axis = (row_axes(layer) or {})["weight"]
    return weight[tuple(slice(None) if own == axis else 0 for own in range(weight.ndim))]


def _attention(model: nn.Module) -> set[str]:
    """Return the names of the modules inside modules whose class has `attention` in its name."""
    around = [name for name, module in model.named_modules() if "attention" in type(module).__name__.lower()]
    return {name for name, _ in model.named_modules() if any(f"{name}.".startswith(f"{outer}.") for outer in around)}
