"""Replacements of functions of Python and torch while a module is recorded."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import _symbolic_trace as tracing

from sparsemtl.compaction.tracing.recording import Recorder

_MISSING = object()


@contextmanager
def watched(recorder: Recorder, root: nn.Module, calls: Collection[Callable[..., Any]]) -> Iterator[None]:
    """Send the calls of modules, of functions that stay one node, and of `len` to a recorder.

    Args:
        recorder: the recorder.
        root: the module that will run.
        calls: functions that stay one node, beside those under `torch.fx.wrap`.
    """
    call = nn.Module.__call__

    @functools.wraps(call)
    def module_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return recorder.call_module(call, module, args, kwargs)

    with ExitStack() as stack:
        for names in _globals_of(root):
            for name, value in list(names.items()):
                if callable(value) and any(value is each for each in calls):
                    stack.enter_context(_replaced(names, name, _as_node(recorder, value)))
            if "len" not in names:
                stack.enter_context(_replaced(names, "len", recorder.length))
        for (_, name), names in list(tracing._wrapped_fns_to_patch.items()):
            function = names.get(name, getattr(builtins, name, None))
            if function is not None and not hasattr(function, "_stays_one_node"):
                stack.enter_context(_replaced(names, name, _as_node(recorder, function)))
        stack.enter_context(_attribute(nn.Module, "__call__", module_call))
        stack.enter_context(_attribute(torch, "finfo", _limits(torch.finfo)))
        stack.enter_context(_tracing())
        stack.enter_context(_attribute(torch.jit, "is_tracing", lambda: True))  # models then skip shortcuts by values
        stack.enter_context(recorder)
        yield


def _globals_of(root: nn.Module) -> list[dict[str, Any]]:
    """Return the globals that the code of the user's modules reads."""
    found: dict[int, dict[str, Any]] = {}
    for module in root.modules():
        names = getattr(type(module).forward, "__globals__", {})
        if not str(names.get("__name__", "torch.")).startswith("torch."):
            found[id(names)] = names
    return list(found.values())


def _as_node(recorder: Recorder, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return recorder.call_function(function, args, kwargs)

    call._stays_one_node = True  # type: ignore[attr-defined]
    return call


def _limits(finfo: Any) -> Callable[..., Any]:
    """Return `torch.finfo` with the numbers of single precision for double: the graph is run in both."""
    return lambda kind=None: finfo(torch.float32 if kind in (None, torch.float64) else kind)


def _tracing() -> AbstractContextManager[None]:
    """Return the context in which torch.fx counts as tracing; torch 2.15 keeps its flag per thread."""
    per_thread: Any = getattr(tracing, "_is_fx_tracing_tls", None)
    if per_thread is None:
        return _attribute(tracing, "_is_fx_tracing_flag", True)
    return _replaced(vars(per_thread), "flag", True)


@contextmanager
def _replaced(names: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    before = names.get(name, _MISSING)
    names[name] = value
    try:
        yield
    finally:
        if before is _MISSING:
            del names[name]
        else:
            names[name] = before


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
