"""Arithmetic that every processor rounds alike.

Images depend on their seed and index only if each operation of the renderer has one result. IEEE 754 defines one for
+, -, *, /, square roots, comparisons and conversions; not for exponentials, logarithms, sines and powers, and not for
sums in an order that depends on the processor. torch computes square roots of tensors with Intel's MKL, which rounds
about one in 150 differently on processors of Intel and of AMD; those of numpy are the processor's own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sqrt(x: Tensor) -> Tensor:
    """Return the square roots of a tensor on the CPU, each the floating-point number nearest to the true root."""
    return torch.from_numpy(np.sqrt(x.numpy()))
