"""Class-conditional discrepancy between two sets of features.

This is the maximum mean discrepancy (MMD) between the outputs of two layers, class by class (Feng & Chen, DAMTL,
Eq. 3). It is computed in float32 or a wider type, also from half-precision features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Literal["linear", "rbf"]
"""Kernel of the MMD: `linear` compares the means of the classes; `rbf`, a sum of five Gaussian kernels, compares their
distributions."""

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the Gaussian kernels, as multiples of the median squared distance."""


def conditional_mmd(
    first: Tensor, second: Tensor, first_classes: Tensor, second_classes: Tensor, kernel: Kernel = "linear"
) -> Tensor:
    """Return the squared MMD between two sets of features, summed over the classes, a scalar (Eq. 3).

    Classes that occur in one set only are left out. With the linear kernel the MMD is the distance of the classes'
    means. The estimate is the biased one, which includes pairs of a sample with itself; so it is negative only by
    rounding.

    Args:
        first: features (N, d).
        second: features (M, d).
        first_classes: int64 (N,), class of each of the first samples; negative for a sample without a class.
        second_classes: int64 (M,), the same for the second samples.
        kernel: see `Kernel`.

    Examples:
        >>> a, b = torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([[4.0], [7.0]])
        >>> conditional_mmd(a, b, torch.tensor([0, 0, 1]), torch.tensor([0, 2]))
        tensor(9.)
    """
    classes = _present(first_classes)
    classes = classes[torch.isin(classes, second_classes)]
    (first, one), (second, other) = _members(first, first_classes, classes), _members(second, second_classes, classes)
    if kernel == "linear":
        return (one @ first - other @ second).square().sum()
    similarity = _gaussians(torch.cat([first, second]))
    weights = torch.cat([one, -other], dim=1)
    return (weights @ similarity * weights).sum()


def layer_discrepancy(
    features: Tensor,
    classes: Tensor,
    layer: tuple[Tensor, Tensor | None],
    reference: tuple[Tensor, Tensor | None],
) -> Tensor:
    """Return the discrepancy between two linear layers on the same features, with the linear kernel, in closed form.

    The layers are affine, so the mean of a layer's outputs is the layer's output of the mean. With the mean m_c of the
    features of class c, the discrepancy is the sum over c of |(A' - A) m_c + (a' - a)|^2. This takes two small matrix
    products for any batch size. It is exactly zero, and so is its gradient, if the layers are equal.

    Args:
        features: input of both layers, (N, d).
        classes: int64 (N,), class of every sample; negative for a sample without a class.
        layer: weight (d', d) and bias (d',), or None, of the first layer.
        reference: weight and bias of the second layer.
    """
    features, averaging = _members(features, classes, _present(classes))
    means = averaging @ features
    (weight, bias), (other, shift) = layer, reference
    gap: Tensor = F.linear(means, _exact(other) - _exact(weight))
    if bias is not None or shift is not None:
        gap = gap + (_or_zero(shift) - _or_zero(bias))
    return torch.sum(gap.square())


def _present(classes: Tensor) -> Tensor:
    present: Tensor = classes.unique()
    return present[present >= 0]


def _members(features: Tensor, classes: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features (n, d) of the chosen classes' samples, and the matrix (C, n) that averages per class."""
    known = torch.isin(classes, chosen)
    features = _exact(features[known])
    members = (classes[known] == chosen.unsqueeze(1)).to(features.dtype)
    return features, members / members.sum(1, keepdim=True)


def _gaussians(features: Tensor) -> Tensor:
    """Return the sum of the Gaussian kernels between all features, (N, N).

    Distances are not computed from inner products, so that equal features have the distance zero.
    """
    squares: Tensor = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square()
    apart = squares.detach()[squares.detach() > 0]
    median = apart.median() if apart.numel() else squares.new_ones(())
    return torch.stack([torch.exp(-squares / (factor * median)) for factor in BANDWIDTHS]).sum(0)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _or_zero(bias: Tensor | None) -> Tensor | float:
    return 0.0 if bias is None else _exact(bias)
