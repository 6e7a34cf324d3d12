"""Copies of a user's model: with plain weights in place of computed ones, and in the precision of the model.

torch has four ways to compute a weight: `torch.nn.utils.prune` and the older `weight_norm` and `spectral_norm` do it
in a hook before the forward pass, `torch.nn.utils.parametrize` when the weight is read.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Module = TypeVar("Module", bound=nn.Module)


def copied(model: Module) -> Module:
    """Return a deep copy; also of a model that has tensors with a history, which `copy.deepcopy` refuses.

    A pruned layer has such a weight once it has run in training.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif type(value) in (OrderedDict, dict, set) and not value:
                memo[id(value)] = type(value)()  # a module has a dozen, whose copies take half of the time
    return copy.deepcopy(model, memo)


@torch.no_grad()
def fold_weights(model: nn.Module) -> None:
    """Replace weights that are computed by their values. The model must be in eval mode."""
    for module in list(model.modules()):
        _fold_parametrizations(module)
        _fold_hooks(module)


def _fold_parametrizations(module: nn.Module) -> None:
    """Replace parametrizations; torch's own function would change the class that copies of the module share."""
    if not parametrize.is_parametrized(module):
        return
    computed = module._modules["parametrizations"]
    values = {name: getattr(module, name).detach() for name in computed}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _fold_hooks(module: nn.Module) -> None:
    """Remove torch's hooks, the last first: its result may depend on an earlier one."""
    for hook in reversed(list(module._forward_pre_hooks.values())):
        if isinstance(hook, BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)


class Precision:
    """Dtypes of the tensors of a model.

    Args:
        model: the model.
        prefix: what names begin with in it and not in the compacted network.
    """

    def __init__(self, model: nn.Module, prefix: str) -> None:
        owned = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        floating = {name.removeprefix(prefix): t.dtype for name, t in owned if t.is_floating_point()}
        self._types = floating
        self._usual = next(iter(floating.values()), torch.get_default_dtype())

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Restore the dtype of every tensor of a compacted network; new tensors get that of their layer's weight."""
        made: dict[int, Tensor] = {}
        for name, part in module.named_modules():
            for kept in (part._parameters, part._buffers):
                for own, tensor in kept.items():
                    if tensor is not None and tensor.is_floating_point():
                        kept[own] = made.setdefault(id(tensor), self._restored(f"{name}.{own}".lstrip("."), tensor))

    def _restored(self, name: str, tensor: Tensor) -> Tensor:
        weight = f"{name.rpartition('.')[0]}.weight".lstrip(".")
        dtype = self._types.get(name) or self._types.get(weight, self._usual)
        if tensor.dtype == dtype:
            return tensor
        cast = tensor.detach().to(dtype)
        return nn.Parameter(cast, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cast
