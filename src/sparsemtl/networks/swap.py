"""Swap tensors: modules read other tensors in place of their parameters and buffers, for a while.

`nn.Module` looks a parameter up in `_parameters` only after the instance's own dictionary. An entry there hides the
parameter from `module.weight`, while `state_dict`, `parameters()`, hooks and every optimizer go on seeing the original.
Gradients reach the original through the graph that made the replacement.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.networks.slots import Slot, refuse_compiling, slots_of
from sparsemtl.networks.swap_guards import guarded, lock_of, shared_state, unwatched


@contextmanager
def swap_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor | None],
    label: Hashable | None = None,
    also: Iterable[nn.Module] = (),
) -> Iterator[None]:
    """Inside the context, `model` computes with `tensors` in place of its parameters and buffers of those names.

    Contexts nest and may end in any order; the one entered last wins. Another thread that enters a context on the same
    model waits until this one has ended. Deep copies and pickles made inside are of the plain model. Compiled
    functions run uncompiled inside (torch 2.6 or newer).

    Args:
        model: any module. A tensor that it holds under several names (tied weights) is replaced under all of them.
        tensors: qualified name -> replacement of the same shape, or None where a module accepts that.
        label: identifies the network that the replacements make. A forward pass that is recomputed in the backward
            pass (activation checkpointing) must run under the label that it first ran under.
        also: further modules that compute otherwise inside the context; they are guarded likewise.

    Raises:
        MaskError: if a name does not exist; if the model is compiled or scripted, since such code has its weights
            frozen in; and inside the context, if a module is called by another thread, or recomputed by another network
            than the one that computed it first.
    """
    refuse_compiling()
    with lock_of(model):
        layer = _Layer(_replacements(model, tensors))
        try:
            with _uncompiled(), guarded((model, *layer.modules, *also), object() if label is None else label):
                layer.show()
                yield
        finally:
            layer.remove()


def current_tensors(model: nn.Module) -> dict[str, Tensor | None]:
    """Return every parameter and buffer by name, as the model computes with it now: the replacement where swapped."""
    return {
        f"{prefix}.{attribute}" if prefix else attribute: getattr(module, attribute)
        for prefix, module in model.named_modules()
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def materialize(model: nn.Module) -> nn.Module:
    """Return a copy of the model whose own tensors are those that the model computes with now."""
    tensors = {name: t if t is None else t.detach().clone() for name, t in current_tensors(model).items()}
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


def own_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return parameters and buffers of a model by name, the model's own also inside a context.

    Raises:
        MaskError: if the model has no tensor of such a name.
    """
    found = {}
    for name, slots in slots_of(model, names).items():
        module, attribute = slots[0]
        tensor = module._parameters.get(attribute)
        found[name] = module._buffers[attribute] if tensor is None else tensor
    return found  # type: ignore[return-value]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's own module inside wrappers of DistributedDataParallel and Lightning Fabric."""
    while True:
        inner = next((getattr(model, a) for a in ("_forward_module", "_original_module") if a in model._modules), None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def refuse_compiled(model: nn.Module) -> None:
    """Raise if the code of the model has its weights frozen in.

    Raises:
        MaskError: naming the module and an alternative.
    """
    refuse_compiling()
    slots_of(model)


def _replacements(model: nn.Module, tensors: Mapping[str, Tensor | None]) -> dict[nn.Module, dict[str, Any]]:
    """Return module -> attribute -> what stands there inside the context."""
    values: dict[nn.Module, dict[str, Any]] = {}
    for name, slots in slots_of(model, tensors).items():
        for module, attribute in slots:
            values.setdefault(module, {})[attribute] = tensors[name]
    return values


_ABSENT: Any = object()
_LAYERS: dict[nn.Module, list[_Layer]] = {}
"""Module -> the layers in force, the last on top; a module without a layer is not in it."""


class _Layer:
    """Replacements of one context.

    Args:
        values: module -> attribute -> replacement.
    """

    def __init__(self, values: Mapping[nn.Module, dict[str, Any]]) -> None:
        self._values = dict(values)
        self._before: dict[Slot, Any] = {}
        self.modules = tuple(values)

    def show(self) -> None:
        """Put the layer on top."""
        for module, values in self._values.items():
            for name, value in values.items():
                self._set(module, name, value)
            if isinstance(module, nn.RNNBase):
                self._set(module, "_flat_weights", [getattr(module, name) for name in module._flat_weights_names])
                self._set(module, "_flat_weight_refs", module._flat_weight_refs)  # a forward pass writes to it
            self._set(module, "__reduce_ex__", functools.partial(_reduce_plain, module))
            _LAYERS.setdefault(module, []).append(self)

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        entries = vars(module)
        self._before[module, name] = entries.get(name, _ABSENT)
        self._values[module][name] = entries[name] = value

    def names(self, module: nn.Module) -> list[str]:
        """Return the attributes of a module that the layer has put there."""
        return [name for owner, name in self._before if owner is module]

    def remove(self) -> None:
        """Take the layer out, wherever it is."""
        for (module, name), before in reversed(self._before.items()):
            above = [layer for layer in _above(module, self) if (module, name) in layer._before]
            if above:
                above[0]._before[module, name] = before
            else:
                _put(vars(module), name, before)
        for module in {module for module, _ in self._before}:
            _LAYERS[module].remove(self)
            if not _LAYERS[module]:
                del _LAYERS[module]
        self._before = {}


def _above(module: nn.Module, layer: _Layer) -> list[_Layer]:
    layers = _LAYERS.get(module, [])
    return layers[layers.index(layer) + 1 :] if layer in layers else []


def _put(entries: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        entries.pop(name, None)  # registering a new parameter under the name has taken it away
    else:
        entries[name] = value


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


_eager: list[AbstractContextManager[Any]] = []
"""Stance in force while contexts are open, one entry per context that found torch._dynamo loaded."""


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run functions compiled earlier as they were written: their guards do not notice that weights are replaced.

    The stance is one for all contexts, which may end in any order.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    set_stance: Any = getattr(torch.compiler, "set_stance", None)  # it came with torch 2.6
    with shared_state:
        stance = _eager[-1] if _eager else nullcontext() if set_stance is None else set_stance("force_eager")
        if not _eager:
            stance.__enter__()
        _eager.append(stance)
    try:
        yield
    finally:
        with shared_state:
            _eager.pop()
            if not _eager:
                stance.__exit__(None, None, None)


@contextmanager
def unswapped(model: nn.Module) -> Iterator[None]:
    """Inside the context, the modules of a model show their own tensors again, and run functions as compiled.

    For code that passes the tensors of `current_tensors`, read before, as arguments.
    """
    hidden = {(m, name) for m in model.modules() for layer in _LAYERS.get(m, ()) for name in layer.names(m)}
    shown = {slot: vars(slot[0]).pop(slot[1]) for slot in hidden if slot[1] in vars(slot[0])}
    set_stance: Any = torch.compiler.set_stance
    try:
        with unwatched(), set_stance("default"):
            yield
    finally:
        for (module, name), value in shown.items():
            vars(module)[name] = value
