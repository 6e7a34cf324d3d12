"""Selection of two of every four consecutive inputs of a row, the pattern of sparse tensor cores (2:4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.criteria.finite import check_scores
from sparsemtl.criteria.select import Keep, Scope
from sparsemtl.errors import ParameterError
from sparsemtl.networks.roles import is_transposed_linear

_OF = 4
_KEPT = 2


def input_axes(model: nn.Module) -> dict[str, int]:
    """Return name of each parameter -> axis of its inputs: 1, of transposed layers 0."""
    return {
        f"{prefix}.{name}".lstrip("."): 0 if isinstance(module, _ConvTransposeNd) or is_transposed_linear(module) else 1
        for prefix, module in model.named_modules()
        for name in module._parameters
    }


def check_half(keep: Keep, target_sparsity: float | None = None) -> None:
    """Raise unless tasks keep half of the weights, or everything.

    Raises:
        ParameterError: naming `keep`, or `target_sparsity` if there is one.
    """
    wrong = next((k for k in (keep.values() if isinstance(keep, Mapping) else (keep,)) if k not in (0.5, 1)), None)
    if target_sparsity is not None:
        raise ParameterError("granularity '2:4' keeps half of the weights from the start; leave out `target_sparsity`.")
    if wrong is not None:
        raise ParameterError(f"granularity '2:4' keeps half of the weights: say keep=0.5, got {wrong}.")


def select_two_of_four(
    scores: Mapping[str, Tensor],
    keep: float,
    *,
    axes: Mapping[str, int],
    scope: Scope = "global",
    min_per_layer: int = 1,
) -> dict[str, Tensor]:
    """Keep the two weights of highest score of every four consecutive inputs of an output.

    A row of a convolution has the inputs of one output channel at one place of the kernel. If the number of inputs is
    no multiple of four, the last one to three of them are a group of their own, of which two are kept, or one if there
    is one. Ties go to the lower index. Parameters without inputs, such as biases, are kept whole.

    Args:
        scores: parameter name -> score per weight.
        keep: 0.5; 1 keeps everything.
        axes: parameter name -> axis of its inputs.
        scope: without effect: groups are ranked by themselves.
        min_per_layer: without effect: every row keeps its half.

    Returns:
        parameter name -> bool tensor.

    Raises:
        NonFiniteScoreError: if a score is NaN.
        ParameterError: if `keep` is another fraction.

    Examples:
        >>> score = torch.tensor([[1.0, 3, 2, 0, 5, 5, 5, 0]])
        >>> select_two_of_four({"w": score}, 0.5, axes={"w": 1})["w"].int().tolist()
        [[0, 1, 1, 0, 1, 1, 0, 0]]
    """
    check_half(keep)
    check_scores(scores)
    if keep == 1:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    return {name: _two_of_four(score, axes[name]) for name, score in scores.items()}


def _two_of_four(score: Tensor, axis: int) -> Tensor:
    if score.ndim < 2:
        return torch.ones_like(score, dtype=torch.bool)
    rows = score.detach().movedim(axis, -1)
    inputs = rows.shape[-1]
    groups = F.pad(rows, (0, -inputs % _OF), value=-torch.inf).unflatten(-1, (-1, _OF))
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :_KEPT]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
    return kept.flatten(-2)[..., :inputs].movedim(-1, axis).contiguous()
