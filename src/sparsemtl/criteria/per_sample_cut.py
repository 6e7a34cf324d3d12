"""Samples cut out of a batch's input, and the check that a cut was right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsemtl.errors import ParameterError
from sparsemtl.tasks.nests import map_tensors, tensors_in

Select = Callable[[Any, int], Any]
"""Cuts sample i out of a batch: (x, i) -> an input for which the model's output has this one row."""

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Difference of two outputs that counts as rounding, relative to the largest output of the batch, by dtype."""
HALF = 2e-2
"""The same for half precision."""
TENSOR_CORES = 2e-3
"""The same for single precision on a GPU, whose convolutions may round to TF32 and depend on the batch size."""


class CutError(ParameterError):
    """The model gives another output for a sample that was cut out than for the sample inside its batch."""


def leading_axes(x: Any, batch: int) -> list[int | None]:
    """Return, for every tensor of an input, 0 if its first axis has the batch's length, and None if it is shared."""
    return [0 if _holds(tensor, batch) else None for tensor in tensors_in(x)]


def cut(x: Any, part: slice, batch: int) -> Any:
    """Cut samples out of an input: rows of the tensors whose first axis has the batch's length; the rest is shared."""
    return map_tensors(lambda tensor: tensor[part] if _holds(tensor, batch) else tensor, x)


def check_rows(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], part: slice) -> None:
    """Raise unless cut samples have the outputs of the batch.

    Args:
        found: task -> outputs (n, ...) of the cut samples.
        expected: task -> outputs (B, ...) of the batch.
        part: which n of the B rows the samples are.

    Raises:
        CutError: naming the task and the difference.
    """
    for task, output in found.items():
        rows = expected[task][part]
        if output.shape != rows.shape:
            raise CutError(f"task {task!r}: shape {tuple(output.shape)} instead of {tuple(rows.shape)}.")
        largest = float(expected[task].detach().nan_to_num(0.0, 0.0, 0.0).abs().amax()) if rows.numel() else 0.0
        if not torch.isclose(output, rows, rtol=0.0, atol=_tolerance(rows) * largest, equal_nan=True).all():
            error = float((output - rows).abs().amax())
            raise CutError(f"task {task!r}: the outputs differ by up to {error:.3g}.")


def _tolerance(output: Tensor) -> float:
    single = output.dtype == torch.float32
    return TENSOR_CORES if single and output.is_cuda else TOLERANCE.get(output.dtype, HALF)


def _holds(tensor: Tensor, batch: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == batch
