"""Guards of swapped tensors: other threads, and forward passes that autograd runs again in the backward pass.

Replaced tensors are visible to whoever calls the module. Two callers would get wrong numbers without an error: another
thread, activation checkpointing, which runs a forward pass again when the context may have ended, and tracing. They are
refused.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.fx import _symbolic_trace
from torch.nn.modules.module import register_module_forward_pre_hook

from sparsemtl.errors import MaskError

_is_jit_tracing: Any = torch.jit.is_tracing  # type: ignore[attr-defined]
is_fx_tracing: Any = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)
"""True inside `torch.fx.symbolic_trace`; older torch has it under another name."""
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
shared_state = threading.Lock()
"""Held while a thread changes state that all contexts share: the locks, the guards, the stance of the compiler."""


def lock_of(model: nn.Module) -> threading.RLock:
    """Return the lock that a thread holds while it computes with replaced tensors of the model."""
    with shared_state:
        return _locks.setdefault(model, threading.RLock())


class _Use:
    """Use of modules by one context.

    Args:
        label: the network that the context makes of the modules.
    """

    def __init__(self, label: Hashable) -> None:
        self.label = label
        self.thread = threading.get_ident()
        self.trains = torch.is_grad_enabled()


_uses: dict[nn.Module, list[_Use]] = {}
"""Module -> the contexts that it is in, the last entered on top."""
_recomputable: WeakKeyDictionary[nn.Module, dict[Hashable, None]] = WeakKeyDictionary()
"""Module -> labels of the networks whose forward pass through it may be recomputed, oldest first; None is the plain
model."""
_MOST_LABELS = 1000
"""Labels that are kept per module: methods that renew networks would add labels without end."""
_hook: Any = None


@contextmanager
def guarded(modules: Sequence[nn.Module], label: Hashable) -> Iterator[None]:
    """Inside the context, refuse calls of the modules that would compute with tensors meant for somebody else.

    Args:
        modules: modules whose tensors are replaced.
        label: the network that the replacements make.

    Raises:
        MaskError: inside the context, at such a call.
    """
    use = _Use(label)
    with shared_state:
        for module in modules:
            _uses.setdefault(module, []).append(use)
        _watch()
    try:
        yield
    finally:
        with shared_state:
            for module in modules:
                _uses[module].remove(use)
                if not _uses[module]:
                    del _uses[module]
            _watch()


@contextmanager
def unwatched() -> Iterator[None]:
    """Inside the context, calls of modules are not checked: a compiler would compile the check."""
    global _hook
    with shared_state:
        if _hook is not None:
            _hook.remove()
            _hook = None
    try:
        yield
    finally:
        with shared_state:
            _watch()


def is_swapped(model: nn.Module) -> bool:
    """Return True inside a context that replaces tensors of the model."""
    return any(module in _uses for module in model.modules())


def _watch() -> None:
    """Keep the hook on module calls in place exactly while there is something to guard."""
    global _hook
    if _hook is None and _uses:
        _hook = register_module_forward_pre_hook(_check_call)
    elif _hook is not None and not _uses and not _recomputable:
        _hook.remove()
        _hook = None


def _check_call(module: nn.Module, _: Any) -> None:
    uses = _uses.get(module)
    labels = _recomputable.get(module)
    if uses is None and labels is None:
        return
    use = uses[-1] if uses else None
    if use is not None and (_is_jit_tracing() or is_fx_tracing() or torch.compiler.is_exporting()):
        raise MaskError(_TRACED)
    if torch._C._current_graph_task_id() != -1:  # autograd runs this forward pass again
        label = None if use is None else use.label
        if labels and label not in labels:
            raise MaskError(_RECOMPUTED.format(module=type(module).__name__))
    elif use is None:
        if labels is not None and (module.training or torch.is_grad_enabled()):
            labels[None] = None
    elif use.thread != threading.get_ident():
        raise MaskError(
            f"{type(module).__name__} was called while another thread computes with a task's network of the same "
            "model. Enter the task's context in each thread (they wait for each other), or give each thread a copy."
        )
    elif _is_recomputable(use):
        labels = _recomputable.setdefault(module, {})
        labels.pop(None, None)
        labels[use.label] = labels.pop(use.label, None)
        if len(labels) > _MOST_LABELS:
            del labels[next(iter(labels))]


_TRACED = (
    "a model was traced or exported inside a task's network, which would fix other tensors than the task's. Export the "
    "network itself: `networks.network(model, task)` is plain, `sm.compact(model, masks, task=...)` is small."
)
_RECOMPUTED = (
    "activation checkpointing recomputes the forward pass of {module}, which ran as a task's network, outside of that "
    "network's context. Call backward() inside the same `with` block as the forward pass; with several tasks, enter "
    "the task's context again around its own backward(). Criteria such as Fisher information turn only "
    "torch.utils.checkpoint off; in eval mode, other code must not checkpoint: `... if self.training else ...`."
)


def _is_recomputable(use: _Use) -> bool:
    """Return True inside a checkpointed region: of the reentrant kind without gradients, of the other with hooks."""
    if use.trains and not torch.is_grad_enabled():
        return True
    find: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return find is None or find(True) is not None
