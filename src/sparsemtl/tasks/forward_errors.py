"""Torch's errors inside a model's forward pass, with the task, the module, its input and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import FrameType, TracebackType

import torch
from torch import Tensor, nn

from sparsemtl.errors import ForwardError

PLAIN = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError, KeyError)
"""What modules raise at inputs that they cannot take. Kinds of these, such as those of tracers and of memory that ran
out, are read by others by their class, and stay as they are."""

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
"""Pattern in torch's message -> what to do; the first that fits."""


def explain(model: nn.Module, error: Exception, tasks: Iterable[str]) -> ForwardError:
    """Word the error of a module inside a model.

    Args:
        model: what was called.
        error: what came out of it, with its traceback.
        tasks: names of the tasks that it was called for.
    """
    place = _innermost(error.__traceback__, {id(module): name for name, module in model.named_modules()})
    named = ", ".join(map(repr, tasks))
    return ForwardError(
        f"{'tasks' if ',' in named else 'task'} {named}: {place or type(model).__name__} failed: "
        f"{_sentence(error)}{_advice(error, model)}"
    )


def explain_loss(task: str, error: Exception, output: Tensor, target: Tensor) -> ForwardError:
    """Word the error of a task's loss."""
    return ForwardError(
        f"task {task!r}: its loss failed on outputs of {_form(output)} and labels of {_form(target)}: "
        f"{_sentence(error)} Does the head give what the loss expects?"
    )


def _innermost(trace: TracebackType | None, names: Mapping[int, str]) -> str | None:
    """The last module of the model that was at work, with the input that it had."""
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
    dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.get_default_dtype())
    for pattern, advice in _ADVICE.items():
        if re.search(pattern, str(error), re.IGNORECASE):
            return " " + advice.format(dtype=str(dtype).removeprefix("torch."))
    return ""
