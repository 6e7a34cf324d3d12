"""Class-conditional alignment: how far apart two sets of features are, class by class.

For every class, the maximum mean discrepancy (MMD) between the features that one layer and another give of the class
(Feng & Chen, DAMTL, Eq. 3). Everything is computed in float32 at least, also of half-precision features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Literal["linear", "rbf"]
"""`linear`: compares the classes' means. `rbf`: the sum of five Gaussian kernels, compares whole distributions."""

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the Gaussian kernels, as multiples of the median squared distance."""


def conditional_mmd(
    first: Tensor, second: Tensor, first_classes: Tensor, second_classes: Tensor, kernel: Kernel = "linear"
) -> Tensor:
    """Sum over the classes of the squared MMD between two sets of features, a scalar (Eq. 3).

    Classes that are in one set only are left out. With the linear kernel this is the squared distance of the classes'
    means. The estimate is the biased one, which counts pairs of a sample with itself, so it is negative by
    rounding only.

    Args:
        first: features (N, d).
        second: features (M, d).
        first_classes: the class of each of the first, int64 (N,); a negative one is none.
        second_classes: the class of each of the second, (M,).
        kernel: see `Kernel`.

    Example:
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
    """The same between two linear layers on the same features, with the linear kernel, in closed form.

    The layers are affine, so the means of what they give are what they give of the means. With the means m_c of the
    features of class c, the sum over c of |(A' - A) m_c + (a' - a)|^2: two small products, whatever the batch. It is
    exactly zero, and so is its gradient, where the layers are equal.

    Args:
        features: what both layers read, (N, d).
        classes: class of every sample, int64 (N,); a negative one is none.
        layer: weight (d', d) and bias (d',), or None, of the one.
        reference: of the other.
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
    """The features (n, d) of the samples of the chosen classes, and the matrix (C, n) that averages over each class."""
    known = torch.isin(classes, chosen)
    features = _exact(features[known])
    members = (classes[known] == chosen.unsqueeze(1)).to(features.dtype)
    return features, members / members.sum(1, keepdim=True)


def _gaussians(features: Tensor) -> Tensor:
    """The sum of the Gaussian kernels between any two features (N, N).

    Distances are not taken from inner products, so that what is equal is at distance zero.
    """
    squares: Tensor = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square()
    apart = squares.detach()[squares.detach() > 0]
    median = apart.median() if apart.numel() else squares.new_ones(())
    return torch.stack([torch.exp(-squares / (factor * median)) for factor in BANDWIDTHS]).sum(0)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _or_zero(bias: Tensor | None) -> Tensor | float:
    return 0.0 if bias is None else _exact(bias)
