"""Weights of layers, on which masks and penalties act: found by the layer of a parameter, not by its shape.

Gains, class tokens and maps of positions may have as many axes as a weight and are none.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from sparsemtl.errors import ParameterError

WEIGHTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Bilinear: ("weight",),
    _ConvNd: ("weight",),
    nn.Embedding: ("weight",),
    nn.EmbeddingBag: ("weight",),
    nn.RNNCellBase: ("weight_ih", "weight_hh"),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
"""Class of layers -> names of the weights in them; recurrent layers name their own."""


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's own weights, those of its children left out.

    A module of any other class than torch's layers names its weights in the attribute `maskable_weights`.

    Raises:
        ParameterError: if `maskable_weights` names something that is not a parameter of the module.
    """
    if isinstance(module, nn.RNNBase):
        return tuple(name for name in module._flat_weights_names if name.startswith("weight"))
    known = next((names for kind, names in WEIGHTS.items() if isinstance(module, kind)), ())
    known = ("weight",) if is_transposed_linear(module) else known
    named = _declared(module)
    for name in named:
        if name not in module._parameters and not computed_from(module, name):
            raise ParameterError(
                f"{type(module).__name__}.maskable_weights names {name!r}, which is no parameter of that module; "
                f"it has {', '.join(module._parameters) or 'none'}."
            )
    return (*known, *(name for name in named if name not in known))


def is_transposed_linear(module: nn.Module) -> bool:
    """Return True for transformers' `Conv1D`, the linear layer of GPT-2, whose weight is (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def is_declared(module: nn.Module, name: str) -> bool:
    """Return True for a weight that the module names in `maskable_weights`."""
    return name in _declared(module)


def is_embedding(module: nn.Module) -> bool:
    """Return True for tables of which an input reads single rows."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def computed_from(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return the parameters that a weight is computed from, by name; none if it is a parameter, or absent."""
    if parametrize.is_parametrized(module, name):
        originals: nn.Module = module.parametrizations[name]  # type: ignore[assignment, index]
        found = {f"parametrizations.{name}.{original}": p for original, p in originals._parameters.items()}
    elif name in module._parameters:
        found = {}
    else:
        found = {n: p for n, p in module._parameters.items() if n in (f"{name}_g", f"{name}_v", f"{name}_orig")}
    return {n: p for n, p in found.items() if p is not None}


def _declared(module: nn.Module) -> tuple[str, ...]:
    named = getattr(module, "maskable_weights", ())
    return (named,) if isinstance(named, str) else tuple(named)
