"""Cross-entropy of known labels, with factors per class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.errors import ParameterError


def cross_entropy(
    output: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    class_weights: Sequence[float] | None,
    focal_gamma: float = 0.0,
    complete: bool = False,
) -> Tensor:
    """Return the mean cross-entropy over the known labels, a scalar; zero, with zero gradient, if none is known.

    With weights w it is the sum of w_y times the cross-entropy over the sum of w_y, y being the class of the label.

    Args:
        output: logits, (B, C) or (B, C, H, W).
        target: class indices, (B,) or (B, H, W), and the ignore index where a label is unknown.
        ignore_index: label of the unknown ones.
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
        class_weights: C factors of at least 0; all classes count alike if None.
        focal_gamma: exponent of the factor (1 - p)^gamma of a label's cross-entropy, p being the probability of its
            class; 0 for no factor.
        complete: all labels are known; False searches for unknown ones.
    """
    on_cpu = target.device.type == "cpu"  # a GPU would have to be waited for
    if complete or (on_cpu and _all_known(target, ignore_index, output.shape[1])):
        if on_cpu and class_weights is None and not (label_smoothing or focal_gamma) and output.dtype in _EXACT:
            return F.cross_entropy(output, target, ignore_index=ignore_index)
    else:  # NaN times a gradient of zero would still be NaN
        output = torch.where((target != ignore_index).unsqueeze(1), output, 0.0)
    weights = None if class_weights is None else output.new_tensor(class_weights)
    known = target != ignore_index
    if focal_gamma:
        terms = F.cross_entropy(
            output, target, weights, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
        )
        total = (_miss(output, torch.where(known, target, 0)) ** focal_gamma * terms).sum()
    else:
        total = F.cross_entropy(
            output, target, weights, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
        )
    count = known.sum() if weights is None else weights[target[known]].sum()
    return total / torch.where(count > 0, count, 1)


def _miss(output: Tensor, target: Tensor) -> Tensor:
    """Return 1 - p, p being the probability of the target; above 0, where the slope of any power of it is finite."""
    log_p = -F.cross_entropy(output, target, reduction="none")
    return -torch.expm1(log_p.clamp(max=-torch.finfo(output.dtype).tiny))


def _all_known(target: Tensor, ignore_index: int, classes: int) -> bool:
    """Return True if no label is the ignore index, which is the least or the largest label if it is no class."""
    if not target.numel():
        return False
    if 0 <= ignore_index < classes:
        return bool((target != ignore_index).all())
    return int(target.min() if ignore_index < 0 else target.max()) != ignore_index


_EXACT = (torch.float32, torch.float64)
"""Precisions in which torch's mean is the quotient of its sum and the count, to the last bit."""


def check_class_weights(task: str, class_weights: Sequence[float] | None, classes: int) -> None:
    """Raise a ParameterError unless there is one finite factor of at least 0 per class, and not only zeros."""
    if class_weights is None:
        return
    numbers = [w for w in class_weights if isinstance(w, (int, float)) and not isinstance(w, bool)]
    if not (len(numbers) == len(class_weights) == classes and all(0 <= w < math.inf for w in numbers) and any(numbers)):
        raise ParameterError(
            f"task {task!r}: `class_weights` must be {classes} finite numbers of at least 0, one per class and not all "
            f"zero, got {list(class_weights)!r}."
        )
