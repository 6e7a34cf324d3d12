"""Per-sample gradients of any architecture: one backward a sample, vectorised by torch.func where that works."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from sparsemtl.criteria.per_sample_powers import BatchPowers, GradientPowers, Totals
from sparsemtl.criteria.per_sample_sums import PowerSum
from sparsemtl.shadow import shadowed

logger = logging.getLogger(__name__)


class FunctionalPowers(GradientPowers):
    """Runs forward and backward for every sample, and materialises its gradient.

    Args:
        model: as in `GradientPowers`.
        parameters: as in `GradientPowers`.
        sums: its `chunk` bounds the bytes of the gradients that exist at a time.
        vectorised: samples of a chunk at once by `vmap`; else, and from the first architecture that `vmap` refuses,
            one after the other.
        strict: raise where `vmap` refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        sums: PowerSum,
        *,
        vectorised: bool = True,
        strict: bool = False,
    ) -> None:
        super().__init__(model, parameters, sums)
        self.vectorised = vectorised
        self.strict = strict
        self._single = BatchPowers(model, parameters, sums)
        self._x: Any = None

    def forward(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the model without a graph."""
        self.read(x)
        with torch.no_grad(), shadowed(self.model, self.twins):
            outputs: dict[str, Tensor] = self.model(x, tasks=tasks)
        return outputs

    def read(self, x: Any) -> None:
        """Take a batch whose outputs are known."""
        self._x = x

    def add(self, cotangents: Mapping[str, Tensor], totals: Totals) -> None:
        """Add the samples' powers, chunk by chunk."""
        batch = len(next(iter(cotangents.values())))
        size = sum(p.numel() * p.element_size() for p in self.parameters.values())
        count = max(1, min(batch, self.sums.chunk // max(size, 1))) if self.vectorised else 1
        for start in range(0, batch, count):
            part = slice(start, min(start + count, batch))
            x = _samples(self._x, part, batch)
            for name, gradients in self._gradients(x, {t: c[part] for t, c in cotangents.items()}).items():
                self.sums.gradients(totals[name], gradients)

    def _gradients(self, x: Any, cotangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter name -> gradients (n, *shape) of n samples."""
        if self.vectorised:
            try:
                return self._vectorised(x, cotangents)
            except Exception as refusal:  # what vmap cannot do it says in many ways
                if self.strict:
                    raise
                logger.info("vmap refuses %s, sample by sample instead: %s", type(self.model).__name__, refusal)
                self.vectorised = False
        batch = len(next(iter(cotangents.values())))
        single = [self._one(x, cotangents, n, batch) for n in range(batch)]
        return {name: torch.stack([gradients[name] for gradients in single]) for name in self.parameters}

    def _one(self, x: Any, cotangents: Mapping[str, Tensor], n: int, batch: int) -> dict[str, Tensor]:
        part = slice(n, n + 1)
        self._single.forward(_samples(x, part, batch), tuple(cotangents))
        found = self._single.gradients({task: c[part] for task, c in cotangents.items()})
        return {name: found.get(name, torch.zeros_like(p)) for name, p in self.twins.items() if name in self.parameters}

    def _vectorised(self, x: Any, cotangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch = len(next(iter(cotangents.values())))
        leaves, form = tree_flatten(x)
        axes = tuple(0 if _batched(leaf, batch) else None for leaf in leaves)
        wanted = {name: self.twins[name] for name in self.parameters}

        def value(parameters: dict[str, Tensor], cotangents: dict[str, Tensor], *leaves: Any) -> Tensor:
            one = [leaf if axis is None else leaf.unsqueeze(0) for leaf, axis in zip(leaves, axes, strict=True)]
            with shadowed(self.model, {**self.twins, **parameters}):
                outputs = self.model(tree_unflatten(one, form), tasks=tuple(cotangents))
            return torch.stack([(outputs[task].squeeze(0) * c).sum() for task, c in cotangents.items()]).sum()

        gradients = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, *axes))
        result: dict[str, Tensor] = gradients(wanted, dict(cotangents), *leaves)
        return result


def _batched(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == batch


def _samples(x: Any, part: slice, batch: int) -> Any:
    """Some samples of an input; tensors without the batch's length belong to all of them."""
    return tree_map_only(Tensor, lambda leaf: leaf[part] if _batched(leaf, batch) else leaf, x)
