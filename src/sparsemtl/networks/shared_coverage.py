"""The shared parameters of a model that masks and penalties act on, and why not on the others."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor, nn
from typing_extensions import Unpack

from sparsemtl.networks.coverage import CoverageOptions, CoveredParameters, coverage
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.patterns import Patterns

logger = logging.getLogger(__name__)


def maskable_parameters(
    model: nn.Module, *, mask_all: bool = False, only: Patterns | None = None, exclude: Patterns | None = None
) -> dict[str, nn.Parameter]:
    """Return the shared parameters that masks cover, by name: by default the trained weights of layers.

    These are the weights of linear and bilinear layers, convolutions, recurrent layers and attention's projections. A
    module of your own names its weights in an attribute, such as `maskable_weights = ("kernel",)` in the class. Biases,
    norms, gains, embeddings, positions and frozen parameters are left out, whatever their shape; `left_out_parameters`
    lists them with the reason.

    Args:
        model: a `MultiTaskModel`, or any module, all of whose parameters then count as shared.
        mask_all: take all shared parameters that are trained.
        only: names or globs of parameters and modules, or classes of modules, to take no others. A pattern that matches
            no weight but an embedding, a position or a parameter of your own takes that.
        exclude: parameters to leave out, named in the same way; it has the last word.

    Raises:
        ParameterError: if a pattern matches nothing, or if a shared layer computes its weight from other parameters
            (weight norm), unless `mask_all`.
    """
    found = shared_coverage(model, mask_all=mask_all, only=only, exclude=exclude)
    return (found if mask_all else found.refuse_computed()).covered


def left_out_parameters(
    model: nn.Module, *, mask_all: bool = False, only: Patterns | None = None, exclude: Patterns | None = None
) -> dict[str, str]:
    """Return the shared parameters that masks do not cover, name -> why; arguments as for `maskable_parameters`."""
    return shared_coverage(model, mask_all=mask_all, only=only, exclude=exclude).reasons


def shared_coverage(
    model: nn.Module,
    *,
    mask_all: bool = False,
    refusal: Callable[[Tensor], str] = lambda weight: "",
    **options: Unpack[CoverageOptions],
) -> CoveredParameters:
    """Return which shared parameters masks or penalties act on, and why not on the others; see `coverage`."""
    names = [name for name, _ in model.named_parameters()]
    return coverage(_shared_modules(model), mask_all=mask_all, refusal=refusal, others=names, **options)


def check_maskable(model: nn.Module, *, mask_all: bool = False, **options: Unpack[CoverageOptions]) -> None:
    """Raise unless masks can act on the shared layers; log parameters of a user's modules that they leave out.

    Raises:
        ParameterError: if a pattern matches nothing, or a shared layer computes its weight from other parameters.
    """
    found = shared_coverage(model, mask_all=mask_all, **options).refuse_computed()
    for name, why in found.reasons.items():
        shape = model.get_parameter(name).shape
        if len(shape) > 1 and 1 not in shape and "maskable_weights" in why:
            logger.warning("%r of shape %s is not masked: it is %s.", name, tuple(shape), why)


def _shared_modules(model: nn.Module) -> dict[str, nn.Module]:
    return model.shared_modules() if isinstance(model, MultiTaskModel) else {"": model}
