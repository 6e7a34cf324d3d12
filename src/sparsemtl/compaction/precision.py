"""A network in double precision while it is compacted, and back: what is folded is rounded once."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Precision:
    """The types that the numbers of a model have.

    Args:
        model: the model.
        prefix: what names begin with in it and not in the compacted network.
    """

    def __init__(self, model: nn.Module, prefix: str) -> None:
        owned = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        floating = {name.removeprefix(prefix): t.dtype for name, t in owned if t.is_floating_point()}
        self._types = floating
        self._usual = next(iter(floating.values()), torch.get_default_dtype())

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Give every tensor of a compacted network the type that it had, new ones that of their layer's weight."""
        made: dict[int, Tensor] = {}
        for name, part in module.named_modules():
            for kept in (part._parameters, part._buffers):
                for own, tensor in kept.items():
                    if tensor is not None and tensor.is_floating_point():
                        kept[own] = made.setdefault(id(tensor), self._restored(f"{name}.{own}".lstrip("."), tensor))

    def _restored(self, name: str, tensor: Tensor) -> Tensor:
        weight = f"{name.rpartition('.')[0]}.weight".lstrip(".")
        dtype = self._types.get(name) or self._types.get(weight, self._usual)
        if tensor.dtype == dtype:
            return tensor
        cast = tensor.detach().to(dtype)
        return nn.Parameter(cast, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cast
