"""Checks of tensors that are read from files, before they replace tensors of a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsemtl.errors import CheckpointError


def check_tensor(found: Any, own: Tensor, where: str) -> None:
    """Check that a tensor read from a file can replace `own`.

    Raises:
        CheckpointError: if its kind of number or its shape differs, or it is not finite although `own` is.
    """
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.is_meta or found.is_quantized:
        raise CheckpointError(f"{where}: expected a dense tensor, found {kind_of(found)}.")
    if found.shape != own.shape:
        raise CheckpointError(f"{where} has shape {tuple(found.shape)} there and {tuple(own.shape)} here.")
    if _numbers(found) != _numbers(own):
        raise CheckpointError(f"{where} holds {_numbers(found)} ({found.dtype}), expected {_numbers(own)}.")
    if own.is_floating_point() and not is_finite(found) and is_finite(own):
        raise CheckpointError(f"{where} holds NaN or infinity. Weights are finite; use another copy of it.")


def is_finite(tensor: Tensor) -> bool:
    """Return True if all entries are finite. Costs one sum: if that is finite, so is every entry."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _numbers(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "truth values"
    if tensor.is_complex():
        return "complex numbers"
    return "floats" if tensor.is_floating_point() else "whole numbers"


def kind_of(value: Any) -> str:
    """Return the kind of a value, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, (bool, int, float, str)):
        return f"{type(value).__name__} {value!r}"[:80]
    return "nothing" if value is None else f"a {type(value).__name__}"
