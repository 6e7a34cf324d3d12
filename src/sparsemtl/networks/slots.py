"""Slots of a model: where in its modules each parameter and buffer stands, found once per model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sparsemtl.errors import MaskError

Slot = tuple[nn.Module, str]
"""Module and name of an attribute of it."""


class _Map:
    """Slots of one model as it was built at some time."""

    def __init__(self, model: nn.Module) -> None:
        self.version = _registrations
        self.modules = list(model.modules())
        by_tensor: dict[int, list[Slot]] = {}
        names: dict[str, Tensor] = {}
        for prefix, module in model.named_modules(remove_duplicate=False):
            for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    slots = by_tensor.setdefault(id(tensor), [])
                    if (module, attribute) not in slots:
                        slots.append((module, attribute))
                    names[f"{prefix}.{attribute}" if prefix else attribute] = tensor
        self.slots = {name: by_tensor[id(tensor)] for name, tensor in names.items()}

    def fits(self, model: nn.Module, names: Iterable[str]) -> bool:
        """Return True if nothing was registered since, and each name still leads to one of its slots."""
        if self.version != _registrations:
            return False
        for name in names:
            *path, attribute = name.split(".")
            module: Any = model
            for part in path:
                module = module._modules.get(part)
                if module is None:
                    return False
            if (module, attribute) not in self.slots.get(name, ()):
                return False
        return True


_registrations = 0
_maps: WeakKeyDictionary[nn.Module, _Map] = WeakKeyDictionary()


def slots_of(model: nn.Module, names: Iterable[str] = ()) -> dict[str, list[Slot]]:
    """Return name -> all slots that hold the tensor of that name.

    Args:
        model: any module.
        names: names that the caller reads; only they are checked against lists of modules that were cut since.

    Raises:
        MaskError: if a module is compiled or scripted, since its code has the weights frozen in.
    """
    known = _maps.get(model)
    if known is None or not known.fits(model, names):
        known = _maps[model] = _Map(model)
    for module in known.modules:
        _refuse_frozen(module)
    return known.slots


def _refuse_frozen(module: nn.Module) -> None:
    if vars(module).get("_compiled_call_impl") is not None or "_orig_mod" in module._modules:
        raise MaskError(
            "a compiled module ignores replaced weights. Use the plain module here, or compile a function of the "
            "weights, run = torch.compile(lambda weights, x: torch.func.functional_call(model, weights, (x,))), "
            "and call run(masks.weights(model, task), x)."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise MaskError(f"{type(module).__name__} is scripted; put masks on the plain module.")


def _count_registration(*_: Any) -> None:
    global _registrations
    _registrations += 1


# Modules, parameters and buffers that are set anywhere may tie or replace tensors of a model whose map is known.
torch_module.register_module_module_registration_hook(_count_registration)
torch_module.register_module_parameter_registration_hook(_count_registration)
torch_module.register_module_buffer_registration_hook(_count_registration)
