"""Let modules read other tensors in place of their parameters and buffers, for a while, and touch nothing else.

`nn.Module` looks a parameter up in `_parameters` only after the instance's own dictionary, so an entry there hides
it from `module.weight` while `state_dict`, `parameters()`, hooks and every optimizer go on seeing the original.
Gradients reach the original through whatever graph made the replacement.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.errors import MaskError


@contextmanager
def swap_tensors(model: nn.Module, tensors: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Inside the context, `model` computes with `tensors` in place of its parameters and buffers of those names.

    Args:
        model: any module. A tensor that it holds under several names (tied weights) is replaced under all of them.
        tensors: qualified name -> replacement of the same shape, or None where a module accepts that.

    Contexts nest, the inner one wins. Deep copies and pickles made inside are of the plain model. Functions that
    `torch.compile` made of others run uncompiled inside.

    Raises:
        MaskError: if a name does not exist, or the model is compiled or scripted: such code has its weights
            frozen in and would silently ignore the replacements.
    """
    places = _places(model)
    hidden: list[tuple[dict[str, Any], str, Any]] = []

    def hide(module: nn.Module, attribute: str, value: Any) -> None:
        entries = vars(module)
        hidden.append((entries, attribute, entries.get(attribute, _ABSENT)))
        entries[attribute] = value

    try:
        touched: dict[int, nn.Module] = {}
        for name, tensor in tensors.items():
            if name not in places:
                raise MaskError(f"the model {type(model).__name__} has no parameter or buffer {name!r}.")
            for module, attribute in places[name]:
                hide(module, attribute, tensor)
                touched[id(module)] = module
        for module in touched.values():
            if isinstance(module, nn.RNNBase):
                hide(module, "_flat_weights", [getattr(module, name) for name in module._flat_weights_names])
                hide(module, "_flat_weight_refs", module._flat_weight_refs)  # a forward pass writes to it
            hide(module, "__reduce_ex__", functools.partial(_reduce_plain, module))
        with _uncompiled():
            yield
    finally:
        for entries, attribute, before in reversed(hidden):
            _put(entries, attribute, before)


def seen(model: nn.Module) -> dict[str, Tensor | None]:
    """Every parameter and buffer by name, as the model computes with it now: the replacement where it is shadowed."""
    return {
        f"{prefix}.{attribute}" if prefix else attribute: getattr(module, attribute)
        for prefix, module in model.named_modules()
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def materialize(model: nn.Module) -> nn.Module:
    """A copy of the model that has for its own what the model computes with now: the replacements, where shadowed."""
    tensors = {name: tensor if tensor is None else tensor.detach().clone() for name, tensor in seen(model).items()}
    copied = deepcopy(model)
    with torch.no_grad():
        for prefix, module in copied.named_modules():
            for attribute, own in (*module._parameters.items(), *module._buffers.items()):
                found = tensors.get(f"{prefix}.{attribute}" if prefix else attribute)
                if own is not None and found is not None:
                    own.copy_(found)
                elif own is not None:
                    setattr(module, attribute, None)
    return copied


_ABSENT: Any = object()


def _places(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every name of a parameter or buffer -> all (module, attribute) that hold that same tensor.

    Raises:
        MaskError: if code has weights frozen in.
    """
    _refuse_compiling()
    by_tensor: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[str, int] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        _refuse_frozen(module)
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                place = (module, attribute)
                by_tensor.setdefault(id(tensor), [])
                if place not in by_tensor[id(tensor)]:
                    by_tensor[id(tensor)].append(place)
                names[f"{prefix}.{attribute}" if prefix else attribute] = id(tensor)
    return {name: by_tensor[key] for name, key in names.items()}


def refuse_compiled(model: nn.Module) -> None:
    """Raise if the model's code has its weights frozen in.

    Raises:
        MaskError: saying how to do without.
    """
    _refuse_compiling()
    for module in model.modules():
        _refuse_frozen(module)


def _refuse_compiling() -> None:
    if torch.compiler.is_dynamo_compiling():
        raise MaskError("weights cannot be replaced inside a compiled region; enter the context outside of it.")


def _refuse_frozen(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise MaskError(f"{type(module).__name__} is scripted; put masks on the plain module.")
    if "_orig_mod" in module._modules or vars(module).get("_compiled_call_impl") is not None:
        raise MaskError(
            "a compiled module ignores replaced weights. Use the plain module here, or compile a function of the "
            "weights, run = torch.compile(lambda weights, x: torch.func.functional_call(model, weights, (x,))), "
            "and call run(masks.weights(model, task), x)."
        )


def _uncompiled() -> AbstractContextManager[Any]:
    """Functions compiled earlier run as they were written: their guards do not notice that weights are replaced."""
    if torch.compiler.is_dynamo_compiling() or "torch._dynamo" not in sys.modules:
        return nullcontext()
    set_stance: Any = getattr(torch.compiler, "set_stance", nullcontext)  # it came with torch 2.6
    eagerly: AbstractContextManager[Any] = set_stance("force_eager")
    return eagerly


def _reduce_plain(module: nn.Module, protocol: int) -> Any:
    """Reduce a module, for copying or pickling, as if nothing in it were hidden."""
    entries = vars(module)
    plain: dict[str, Any] = {"__reduce_ex__": _ABSENT}
    plain.update((name, _ABSENT) for name in (*module._parameters, *module._buffers) if name in entries)
    if isinstance(module, nn.RNNBase):
        plain["_flat_weights"] = [module._parameters[name] for name in module._flat_weights_names]
    hidden = {name: entries[name] for name in plain}
    for name, value in plain.items():
        _put(entries, name, value)
    try:
        reduced: Any = type(module).__reduce_ex__(module, protocol)
        make, arguments, state, *rest = reduced
        return (make, arguments, dict(state) if isinstance(state, dict) else state, *rest)
    finally:
        entries.update(hidden)


def _put(entries: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        entries.pop(name, None)  # registering a new parameter under the name has taken it away
    else:
        entries[name] = value
