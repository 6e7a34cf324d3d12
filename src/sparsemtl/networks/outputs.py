"""Output factors: channels of a module's output that a task switches off, in a forward pass or in the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsemtl.errors import MaskError, unknown_name
from sparsemtl.networks.roles import is_transposed_linear

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Norms with a scale per channel, or per feature."""


def channel_axis(module: nn.Module, ndim: int) -> int:
    """Return the axis of a module's output along which its channels lie: the last for linear layers and layer norms.

    Args:
        module: the module.
        ndim: number of axes of its output.
    """
    if isinstance(module, nn.Linear) or is_transposed_linear(module):
        return ndim - 1
    scaled: tuple[int, ...] | None = getattr(module, "normalized_shape", None)
    return 1 if scaled is None else ndim - len(scaled)


def row_axes(module: nn.Module) -> dict[str, int] | None:
    """Return own parameter -> axis along which its output channels lie; None unless they make the whole channel zero.

    A channel of a layer's output is zero where its row of the weight and its bias are. So is one behind a norm whose
    scale and shift are zero there.
    """
    axes = dict.fromkeys((n for n, p in module._parameters.items() if p is not None), 0)
    if isinstance(module, _ConvTransposeNd):
        return {**axes, "weight": 1} if module.groups == 1 else None
    if is_transposed_linear(module):
        return {**axes, "weight": 1}
    if isinstance(module, (nn.Linear, _ConvNd)):
        return axes if "weight" in axes else None  # a computed weight has other parameters
    scaled = getattr(module, "normalized_shape", None)
    return axes if isinstance(module, NORMS) and "weight" in axes and (scaled is None or len(scaled) == 1) else None


def along(factor: Tensor, axis: int, ndim: int) -> Tensor:
    """Return a factor (channels,) with axes of size 1 around it, to be broadcast along one of `ndim` axes."""
    return factor.view([-1 if own == axis % ndim else 1 for own in range(ndim)])


class ChannelMask:
    """Forward hook that multiplies the channels of a module's output by 0 or 1.

    Inside `masked_outputs` the hook that was registered last acts, and no other.

    Args:
        factor: bool (channels,).
        always: act outside of a context as well.
    """

    def __init__(self, factor: Tensor, *, always: bool = False) -> None:
        self.factor = factor
        self.always = always

    def __call__(self, module: nn.Module, inputs: object, output: object) -> Tensor | None:
        """Return the masked output; None leaves it as it is."""
        if not self.always and _masks.get(module, [None])[-1] is not self:
            return None
        name = type(module).__name__
        if not isinstance(output, Tensor):
            raise MaskError(f"an output factor acts on a tensor, and {name} returns a {type(output).__name__}.")
        axis = channel_axis(module, output.ndim)
        if output.shape[axis] != len(self.factor):
            raise MaskError(
                f"an output factor of {len(self.factor)} channels does not fit the output of {name}, of shape "
                f"{tuple(output.shape)} with channels on axis {axis}. Was it made for another model?"
            )
        return output * along(self.factor.to(output.device, output.dtype), axis, output.ndim)


_masks: dict[nn.Module, list[ChannelMask]] = {}
"""Module -> the hooks of the contexts that it is in, the last entered on top."""


@contextmanager
def masked_outputs(modules: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Inside the context, modules return factor * output. Contexts nest; of a module the last entered acts."""
    with ExitStack() as stack:
        for module, factor in modules.items():
            hook = ChannelMask(factor)
            _masks.setdefault(module, []).append(hook)
            stack.callback(_forget, module, hook)
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def masks_outputs(model: nn.Module) -> bool:
    """Return True inside a context in which a module of the model returns factor * output."""
    return any(module in _masks for module in model.modules())


def _forget(module: nn.Module, hook: ChannelMask) -> None:
    _masks[module].remove(hook)
    if not _masks[module]:
        del _masks[module]


def modules_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return name -> module.

    Raises:
        MaskError: if the model has no module of such a name.
    """
    found = {}
    for name in names:
        try:
            found[name] = model.get_submodule(name)
        except AttributeError:
            known = dict(model.named_modules(remove_duplicate=False))
            raise MaskError(f"{type(model).__name__}: {unknown_name('module', name, known)}") from None
    return found


def folded_weights(model: nn.Module, factors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return which rows of the weights make the same channels zero.

    Args:
        model: the model.
        factors: module name -> bool (channels,).

    Returns:
        parameter name -> bool factor that broadcasts to it; the factors that no weight of the module can stand for,
        such as those of a norm without scale and shift, or of a weight that another module has too.
    """
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    weights: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    for name, module in modules_of(model, factors).items():
        factor, axes = factors[name], row_axes(module)
        own = {row: module._parameters[row] for row in axes or ()}
        if axes is None or any(uses[id(parameter)] > 1 for parameter in own.values()):
            left[name] = factor
            continue
        for row, parameter in own.items():
            assert parameter is not None
            weights[f"{name}.{row}"] = along(factor, axes[row], parameter.ndim)
    return weights, left


def fold_outputs(model: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Make a model, in place, compute factor * output: by zeros in its weights, or by hooks where none can be."""
    weights, left = folded_weights(model, factors)
    with torch.no_grad():
        for name, factor in weights.items():
            parameter = model.get_parameter(name)
            parameter.mul_(factor.to(parameter.device))
    for name, module in modules_of(model, left).items():
        module.register_forward_hook(ChannelMask(left[name], always=True))
