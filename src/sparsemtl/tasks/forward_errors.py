"""Errors of modules in a forward pass, with task, module, input and advice in the message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import FrameType, TracebackType

import torch
from torch import Tensor, nn

from sparsemtl.errors import OUT_OF_MEMORY, ForwardError, memory_used_up

PLAIN = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError, KeyError)
"""Classes of errors that modules raise at wrong inputs. Subclasses (tracers, memory that ran out) are caught by their
class elsewhere, and are not replaced."""

_ADVICE = {
    r"more than 1 (value|spatial element)": "A batch norm cannot be trained with a batch of one sample: pass "
    "`drop_last=True` to the loader, or use another batch size.",
    r"(same|different|expected).*dtype|dtype.*same|(expected|found).*scalar type|should be the same|type Double|"
    r"(Double|Float|Long|Int|Half|Byte|BFloat16)Tensor|not implemented for": "The model computes in {dtype}: convert "
    "what the loader yields to it, for example by `x.float()`.",
    r"on the same device|different devices": "Everything must be on one device: move the inputs to that of the model.",
    r"shape|size|channels|dimension|dims|out of range": "Does the module expect inputs of another width or layout than "
    "the loader yields?",
}
"""Pattern in PyTorch's message -> advice; the first match counts."""


def explain(model: nn.Module, error: Exception, tasks: Iterable[str]) -> ForwardError:
    """Return an error with the module of a model that failed, its input and advice.

    Args:
        model: model that was called.
        error: error that it raised, with its traceback.
        tasks: names of the tasks of the call.
    """
    place = _innermost(error.__traceback__, {id(module): name for name, module in model.named_modules()})
    named = ", ".join(map(repr, tasks))
    return ForwardError(
        f"{'tasks' if ',' in named else 'task'} {named}: {place or type(model).__name__} failed: "
        f"{_sentence(error)}{_advice(error, model)}"
    )


def explain_loss(task: str, error: Exception, output: Tensor, target: Tensor) -> ForwardError:
    """Return an error with the shapes that a task's loss failed on."""
    advice = OUT_OF_MEMORY if memory_used_up(error) else "Does the head give what the loss expects?"
    return ForwardError(
        f"task {task!r}: its loss failed on outputs of {_form(output)} and labels of {_form(target)}: "
        f"{_sentence(error)} {advice}"
    )


def _innermost(trace: TracebackType | None, names: Mapping[int, str]) -> str | None:
    """Return the innermost module of the traceback, with its input."""
    found = None
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            given = _first_tensor(trace.tb_frame) if trace.tb_frame.f_code.co_name == "forward" else None
            form = f" on an input of {_form(given)}" if given is not None else ""
            if form or found is None or repr(names[id(owner)]) not in found:
                found = f"module {names[id(owner)]!r} ({type(owner).__name__}){form}"
        trace = trace.tb_next
    return found


def _first_tensor(frame: FrameType) -> Tensor | None:
    code = frame.f_code
    arguments = (frame.f_locals.get(name) for name in code.co_varnames[1 : code.co_argcount])
    return next((value for value in arguments if isinstance(value, Tensor)), None)


def _form(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}"


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{text} is missing" if isinstance(error, KeyError) else text
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _advice(error: Exception, model: nn.Module) -> str:
    if memory_used_up(error):
        return f" {OUT_OF_MEMORY}"
    dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.get_default_dtype())
    for pattern, advice in _ADVICE.items():
        if re.search(pattern, str(error), re.IGNORECASE):
            return " " + advice.format(dtype=str(dtype).removeprefix("torch."))
    return ""
