"""Slots: the places of a model that hold a parameter or a buffer, of which tied tensors have several.

The map of a model's slots is kept until a module, a parameter or a buffer is registered anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sparsemtl.errors import MaskError, unknown_name

Slot = tuple[nn.Module, str]
"""Module and name of an attribute of it."""


_registrations = 0
"""Number of modules, parameters and buffers that were registered anywhere: they may tie or replace tensors."""


def _count_registration(*_: Any) -> None:
    global _registrations
    _registrations += 1


torch_module.register_module_module_registration_hook(_count_registration)
torch_module.register_module_parameter_registration_hook(_count_registration)
torch_module.register_module_buffer_registration_hook(_count_registration)


class _SlotMap:
    """Slots of one model as it was built at some time; it keeps no module alive."""

    def __init__(self, model: nn.Module) -> None:
        self.version = _registrations
        self.modules = [ref(module) for module in model.modules()]
        by_tensor: dict[int, list[tuple[ref[nn.Module], str]]] = {}
        names: dict[str, Tensor] = {}
        for prefix, module in model.named_modules(remove_duplicate=False):
            for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    slots = by_tensor.setdefault(id(tensor), [])
                    if (ref(module), attribute) not in slots:
                        slots.append((ref(module), attribute))
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
            if (ref(module), attribute) not in self.slots.get(name, ()):
                return False
        return True


_maps: WeakKeyDictionary[nn.Module, _SlotMap] = WeakKeyDictionary()


def slots_of(model: nn.Module, names: Iterable[str] = ()) -> dict[str, list[Slot]]:
    """Return name -> all slots that hold the tensor of that name.

    Args:
        model: any module.
        names: names of parameters and buffers.

    Raises:
        MaskError: if the model has no tensor of such a name, or if a module is compiled or scripted, since its code has
            the weights frozen in.
    """
    names = list(names)
    known = _maps.get(model)
    if known is None or not known.fits(model, names):
        known = _maps[model] = _SlotMap(model)
    for reference in known.modules:
        if (module := reference()) is not None:
            _refuse_frozen(module)
    for name in names:
        if name not in known.slots:
            raise MaskError(f"{type(model).__name__}: {unknown_name('parameter or buffer', name, known.slots)}")
    return {name: [(m, attribute) for r, attribute in known.slots[name] if (m := r()) is not None] for name in names}


def _refuse_frozen(module: nn.Module) -> None:
    if vars(module).get("_compiled_call_impl") is not None or "_orig_mod" in module._modules:
        raise MaskError(
            f"{type(module).__name__} is compiled: a compiled module ignores replaced weights. Use the plain module, "
            "or compile a function of the weights, run = torch.compile(lambda weights, x: "
            "torch.func.functional_call(model, weights, (x,))), and call run(masks.weights(model, task), x)."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise MaskError(f"{type(module).__name__} is scripted; put masks on the plain module.")


def refuse_compiling() -> None:
    """Raise a MaskError inside a compiled region, which would have the replaced weights frozen in."""
    if torch.compiler.is_dynamo_compiling():
        raise MaskError("weights cannot be replaced inside a compiled region; enter the context outside of it.")
