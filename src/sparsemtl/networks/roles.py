"""Weights of layers, on which masks and penalties act: found by the layer of a parameter, not by its shape.

Gains, class tokens and maps of positions may have as many axes as a weight and are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn
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
    named = getattr(module, "maskable_weights", ())
    named = (named,) if isinstance(named, str) else tuple(named)
    for name in named:
        if name not in module._parameters and not _sources(module, name):
            raise ParameterError(
                f"{type(module).__name__}.maskable_weights names {name!r}, which is no parameter of that module; "
                f"it has {', '.join(module._parameters) or 'none'}."
            )
    return (*known, *(name for name in named if name not in known))


def is_transposed_linear(module: nn.Module) -> bool:
    """Return True for transformers' `Conv1D`, the linear layer of GPT-2, whose weight is (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def weight_ids(model: nn.Module) -> frozenset[int]:
    """Return the ids of the parameters that are a weight of some layer, under whatever name they are found first."""
    return frozenset(
        id(parameter)
        for module in model.modules()
        for name in weight_names(module)
        if (parameter := module._parameters.get(name)) is not None
    )


def refuse_computed(modules: Mapping[str, nn.Module], covers: Callable[[Tensor], bool] = lambda weight: True) -> None:
    """Raise if a layer computes its weight from other parameters, on which no mask and no penalty has a meaning.

    Args:
        modules: name -> module, searched with all that is in them.
        covers: returns True for weights that masks or penalties would act on.

    Raises:
        ParameterError: naming the weight, what it is computed from, and how to make it plain.
    """
    for where, module in _all(modules):
        for name in weight_names(module):
            sources = _sources(module, name)
            if sources and covers(getattr(module, name)):
                raise ParameterError(
                    f"{where}.{name} ({type(module).__name__}) is no parameter but computed from "
                    f"{', '.join(sources)}, as weight norm, spectral norm and torch's pruning do. Masks and penalties "
                    "act on parameters. Make the weight plain first: "
                    f"`torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})`, "
                    "`torch.nn.utils.remove_weight_norm(layer)` or `torch.nn.utils.prune.remove`, whichever made it."
                )


def left_out(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the parameters that are no weight of a layer, name -> why."""
    weights = frozenset(id for module in modules.values() for id in weight_ids(module))
    return {
        f"{where}.{name}" if where else name: _reason(module, name)
        for where, module in _all(modules)
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) not in weights
    }


def _reason(module: nn.Module, name: str) -> str:
    kind = type(module).__name__
    if type(module).__module__.startswith("torch."):
        return f"a bias, scale or shift of {kind}"
    return f"a parameter of {kind}'s own; maskable_weights = ({name!r},) in that class has it masked"


def _all(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module inside the given ones, with its full name."""
    for prefix, module in modules.items():
        for name, inner in module.named_modules():
            yield ".".join(part for part in (prefix, name) if part), inner


def _sources(module: nn.Module, name: str) -> list[str]:
    """Return the names of the parameters that a weight is computed from; none if it is a parameter, or absent."""
    if parametrize.is_parametrized(module, name):
        originals: nn.Module = module.parametrizations[name]  # type: ignore[assignment, index]
        return [f"parametrizations.{name}.{original}" for original in originals._parameters]
    if name in module._parameters:
        return []
    return [n for n in module._parameters if n in (f"{name}_g", f"{name}_v", f"{name}_orig")]
