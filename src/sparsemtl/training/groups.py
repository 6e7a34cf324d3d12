"""Optimizer of a run: its parameter groups, each with its learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim import OPTIMIZERS, MaskedOptimizer
from sparsemtl.optim.parameter_groups import ParameterGroupOptions, named_groups
from sparsemtl.training.arguments import check_made

Maker = Callable[[Any], Optimizer]
"""Function of parameter groups that returns an optimizer."""


class _Given:
    """Maker that returns an optimizer of the user's own, with the options that it was given with and no state."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]

    def __call__(self, groups: Any) -> Optimizer:
        self.optimizer.state.clear()
        self.optimizer.param_groups[:] = [{**group, "params": list(group["params"])} for group in self._groups]
        return self.optimizer


def optimizer_maker(optimizer: str | Maker | Optimizer, model: MultiTaskModel, options: ParameterGroupOptions) -> Maker:
    """Return what makes the optimizer of each run.

    Args:
        optimizer: name of an optimizer, maker, or an optimizer that holds the model's parameters.
        model: the model.
        options: options of the groups.

    Raises:
        ParameterError: if the optimizer does not train the whole model, or has groups of its own beside `options`.
    """
    if isinstance(optimizer, str):
        return OPTIMIZERS[optimizer]
    if not isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, MaskedOptimizer):
        raise ParameterError(
            "Trainer: `optimizer` is a MaskedOptimizer; pass the optimizer inside, the trainer's step is strict."
        )
    if options["parameter_groups"] or options["layer_decay"] is not None:
        raise ParameterError(
            "Trainer: `parameter_groups` and `layer_decay` go with the name of an optimizer or a function that makes "
            f"one; the {type(optimizer).__name__} given has its groups already. "
            "`sm.optim.parameter_groups` makes such groups."
        )
    _check_trained(optimizer, model)
    return _Given(optimizer)


def make_optimizer(
    make: Maker,
    model: MultiTaskModel,
    extra: Iterable[tuple[Iterable[nn.Parameter], float | None]] = (),
    *,
    options: ParameterGroupOptions,
) -> Optimizer:
    """Return the optimizer of the model's parameters, at rates by name, depth and `lr_factors`, and of further ones.

    Args:
        make: makes an optimizer from parameter groups.
        model: the model.
        extra: (parameters, their learning rate or None for the optimizer's) of the sharing method and the balancer;
            they have no weight decay.
        options: options of the groups.

    Raises:
        ParameterError: if `make` returns no optimizer, or one that does not train the whole model.
    """
    groups = named_groups(model, options["parameter_groups"], options["layer_decay"], model.lr_factors)
    further: list[dict[str, Any]] = [
        {"params": found, "weight_decay": 0.0} | ({} if lr is None else {"lr": lr})
        for parameters, lr in extra
        if (found := list(parameters))
    ]
    optimizer = make([*groups, *further])
    check_made("optimizer", optimizer, Optimizer)
    if "weight_decay" not in optimizer.defaults and any("weight_decay" in group for group in groups):
        raise ParameterError(f"`parameter_groups`: {type(optimizer).__name__} has no `weight_decay`.")
    _check_trained(optimizer, model)
    held = _held(optimizer)
    for group in further:
        if missing := [p for p in group["params"] if id(p) not in held]:
            named = any("param_names" in own for own in optimizer.param_groups)
            held_already = len(held)
            params = [(f"further.{held_already + i}", p) for i, p in enumerate(missing)] if named else missing
            held |= {id(p) for p in missing}
            optimizer.add_param_group({**group, "params": params})
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_factor", 1.0)
    return optimizer


def add_copies(optimizer: Optimizer, model: MultiTaskModel, networks: TaskNetworks) -> None:
    """Add the copies that tasks train of some parameters to the groups of the originals."""
    copies = list(networks.copies())
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]} if copies else {}
    for task, name, copy in copies:
        group = groups[id(model.get_parameter(name))]
        group["params"].append(copy)
        if "param_names" in group:
            group["param_names"].append(f"{task}/{name}")


def _held(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _check_trained(optimizer: Optimizer, model: MultiTaskModel) -> None:
    """Raise if a parameter that is to be trained is in no group."""
    held = _held(optimizer)
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ParameterError(
            f"Trainer: {missing[0]!r}{more} would not be trained: no group of the {type(optimizer).__name__} holds it. "
            "Add it to a group, or freeze it by `requires_grad_(False)`."
        )
