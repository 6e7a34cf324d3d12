"""Numerical precision of a run through Lightning Fabric, and of the plain model beside Fabric's module."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning_fabric.plugins.precision import DoublePrecision, HalfPrecision, Precision


class _DoubleOutputs(DoublePrecision):
    """Double precision in which outputs stay double, so that losses are computed in it too.

    Fabric's own plugin casts outputs to single precision.
    """

    def convert_output(self, data: Any) -> Any:
        """Return the outputs as they are."""
        return data


def fabric_options(precision: str) -> dict[str, Any]:
    """Return the arguments of `Fabric` for a precision."""
    own = {"64-true": _DoubleOutputs}
    return {"plugins": [own[precision]()]} if precision in own else {"precision": precision}


def default_dtype(precision: Precision) -> AbstractContextManager[Any]:
    """Set the dtype of tensors that a plain model makes in its forward pass to that of training.

    In mixed precision the weights are in single precision, and the plain model runs in that.
    """
    whole = isinstance(precision, (DoublePrecision, HalfPrecision))
    return precision.forward_context() if whole else nullcontext()
