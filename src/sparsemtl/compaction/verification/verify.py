"""Comparison of any two networks that should give the same outputs, such as a model and what was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.compaction.compact import network_of, with_weights
from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.files.modules import read_file
from sparsemtl.compaction.inputs import Inputs, leaves
from sparsemtl.compaction.verification.comparison import (
    LIMITS,
    ROUNDING,
    Verification,
    cast,
    device_of,
    difference,
    differences,
    outputs_of,
)
from sparsemtl.errors import CompactionError, ParameterError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import TaskNorms
from sparsemtl.networks.swap import unwrapped
from sparsemtl.networks.task_networks import TaskNetworks

Runnable = nn.Module | torch.export.ExportedProgram | str | Path
"""Network: a module, what `torch.export` returns, or a file of one."""


_STORED = 100
"""Networks are equal as well if they differ by as many times the spacing of the numbers that store their weights."""


@torch.inference_mode(False)
@torch.no_grad()
@torch.random.fork_rng(devices=[])
def verify(
    model: Runnable,
    small: Runnable,
    inputs: Any,
    *,
    task: str | None = None,
    masks: TaskMasks | TaskNetworks | None = None,
    norms: TaskNorms | None = None,
) -> Verification:
    """Compare the outputs of two networks on inputs of your own, in double and in single precision.

    `sm.compact` has compared its result with the model on its example already; this compares on other inputs, or
    with what was saved, exported or changed since. Both networks run in eval mode, on copies, with the same random
    numbers. Where one of them does not run in a precision, such as an ONNX file in double precision, they are compared
    in the other alone.

    Args:
        model: the network with the right outputs.
        small: the network in its place. Like the model it is a module, an exported program, or the path of a file:
            `.safetensors` of `sm.export` or `sm.save_bundle`, `.pt2` of `torch.export`, `.onnx` (run by onnxruntime).
        inputs: a batch that both read, as `example_inputs` of `sm.compact`.
        task: the only task to compare, if the model's outputs are a dict by task; needed if those of `small` are not.
        masks: of the model, the weights that each task keeps, or the tasks' networks; only with `task`.
        norms: of the model, batch norm statistics per task; only with `task`.

    Returns:
        the differences, by output and precision; `equal` is True if they are those of rounding. Weights that are stored
        in single precision are rounded as well: folding a norm into them differs by about 1e-7 in double precision.

    Raises:
        CompactionError: if `small` does not run on the inputs, or its outputs have other shapes.
        ParameterError: if the model does not run on the inputs, or outputs cannot be assigned to each other.
        MissingExtraError: for an ONNX file, if onnxruntime is not installed.

    Examples:
        >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = layers[2].weight.data[:, :6].zero_()
        >>> x = torch.rand(16, 4)
        >>> sm.verify(layers, sm.compact(layers), x).equal
        True
        >>> sm.verify(layers, nn.Linear(4, 2), x).equal
        False
    """
    first = _model_network(model, task, masks, norms)
    second = _network(small, "small", task)
    given = Inputs.of(inputs, first, single=isinstance(first, MultiTaskModel))
    return _compared(first, second, given, task)


def _model_network(
    model: Runnable, task: str | None, masks: TaskMasks | TaskNetworks | None, norms: TaskNorms | None
) -> nn.Module:
    """Return a module that runs `model`, with the masks and the statistics of the task."""
    if isinstance(model, nn.Module):
        own, left = network_of(unwrapped(model), masks, norms, task, caller="verify")
        if isinstance(own, MultiTaskModel) and task is not None:
            own.check_task(task)
        network = with_weights(own, left, norms, task)
    elif masks is None and norms is None:
        network = _network(model, "model", task)
    else:
        raise ParameterError("`masks` and `norms` are those of a module, and `model` is none.")
    if task is None and (masks is not None or norms is not None):
        raise ParameterError("masks and norms are different for each task: name the one to verify (task=...).")
    return network


def _compared(first: nn.Module, second: nn.Module, inputs: Inputs, task: str | None) -> Verification:
    """Compare the outputs of two networks in each precision in which both run, double precision first."""
    stored = _STORED * max(map(_epsilon, (first, second)))
    errors: dict[torch.dtype, dict[str, float]] = {}
    failed: dict[torch.dtype, Exception] = {}
    exact, equal, left_out = None, True, ""
    for dtype in LIMITS:
        own, other = (_run(network, inputs, dtype) for network in (first, second))
        if isinstance(own, Exception):
            failed.setdefault(dtype, own)
            continue
        if difference(own, _run(first, inputs, dtype, seed=1)) != 0:
            return Verification(reason="the model's outputs are not the same from one run to the next")
        if isinstance(other, Exception):
            failed[dtype] = CompactionError(
                f"`small` does not run on inputs of shape {inputs.shapes()}, which the model takes: {other}"
            )
            continue
        own, other, left_out = _matched(own, other, task)
        errors[dtype] = differences(own, other)
        rounding = 0.0 if exact is None else difference(exact, own)
        limit = max(LIMITS[dtype], stored, ROUNDING * rounding if rounding < 1 else 0.0)
        exact, equal = own, equal and max(errors[dtype].values(), default=0.0) <= limit
    if not errors:
        raise _reason(failed, inputs)
    kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in LIMITS if dtype not in errors)
    notes = [left_out, f"not in {kinds}, in which one of them does not run" if kinds else ""]
    described = f"inputs of shape {inputs.shapes()}"
    return Verification.of(errors, described, only="; ".join(filter(None, notes)), equal=equal)


def _epsilon(network: nn.Module) -> float:
    """Return the spacing of numbers near one in the coarsest precision of a network's weights."""
    types = {p.dtype for p in network.parameters() if p.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in types), default=torch.finfo(torch.float32).eps)


def _network(given: Any, name: str, task: str | None) -> nn.Module:
    """Return a module that runs a network, of a bundle that of the task; a module is copied."""
    if isinstance(given, nn.Module):
        return copied(unwrapped(given))
    if isinstance(given, torch.export.ExportedProgram):
        return given.module()
    if not isinstance(given, str | Path):
        raise ParameterError(
            f"`{name}` must be a module, a `torch.export.ExportedProgram` or the path of a file, got "
            f"{type(given).__name__}."
        )
    return read_file(given, task, name=name).network


def _run(network: nn.Module, inputs: Inputs, dtype: torch.dtype, seed: int = 0) -> Any:
    """Return the outputs of a network in a precision, or the error that it raises."""
    own = cast(network, dtype)
    with suppress(NotImplementedError):  # of modules of exported programs, which have one mode
        own.eval()
    return outputs_of(own, inputs.to(dtype=dtype, device=device_of(own)), seed)


def _matched(expected: Any, found: Any, task: str | None) -> tuple[Any, Any, str]:
    """Return the outputs to compare, with the same keys, and which outputs of the model are left out."""
    left_out = ""
    if task is not None:
        expected, found = ({task: _of_task(each, task)} for each in (expected, found))
    elif isinstance(expected, Mapping) and isinstance(found, Mapping) and set(found) <= set(expected):
        others = [str(name) for name in expected if name not in found]
        left_out = f"without {', '.join(others)}, which `small` does not compute" if others else ""
        expected = {name: expected[name] for name in found}
    elif isinstance(expected, Mapping):
        parts = list(found.values() if isinstance(found, Mapping) else [found] if isinstance(found, Tensor) else found)
        if len(parts) != len(expected):
            raise ParameterError(
                f"the model has the outputs {', '.join(map(str, expected))}, and `small` has {len(parts)}: name the "
                "task to compare (task=...)."
            )
        found = dict(zip(expected, parts, strict=True))
    elif isinstance(found, Mapping):
        found = next(iter(found.values())) if len(found) == 1 else list(found.values())
    _check_shapes(expected, found)
    return expected, found, left_out


def _of_task(outputs: Any, task: str) -> Any:
    if isinstance(outputs, Mapping) and task in outputs:
        return outputs[task]
    parts = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    if isinstance(parts, Tensor) or not isinstance(parts, Sequence) or len(parts) != 1:
        if isinstance(parts, Tensor):
            return parts
        raise ParameterError(f"there is no output {task!r} of {len(parts)}; give networks with that task's output.")
    return parts[0]


def _check_shapes(expected: Any, found: Any) -> None:
    """Raise a CompactionError if outputs have other structures or shapes."""
    ours, theirs = ([leaf for leaf in leaves(each) if isinstance(leaf, Tensor)] for each in (expected, found))
    shapes = [[tuple(leaf.shape) for leaf in each] for each in (ours, theirs)]
    if shapes[0] != shapes[1]:
        wanted, got = (", ".join(map(str, each)) for each in shapes)
        raise CompactionError(f"`small` has outputs of shape {got}, and the model of shape {wanted}.")


def _reason(failed: Mapping[torch.dtype, Exception], inputs: Inputs) -> Exception:
    """Return the error to raise where nothing could be compared."""
    error = failed.get(torch.float32) or next(iter(failed.values()))
    if isinstance(error, CompactionError):
        return error
    return ParameterError(f"`inputs`: the model cannot be run on inputs of shape {inputs.shapes()}: {error}")
