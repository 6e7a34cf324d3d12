"""Compiled forward passes of a model whose weights are replaced from task to task."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsemtl.errors import ParameterError, SparseMTLWarning
from sparsemtl.networks.outputs import masks_outputs
from sparsemtl.networks.swap import current_tensors, refuse_compiled, unswapped

_LIMIT = 100_000
"""Number of variants of the compiled function: practically none."""


class CompiledModel(nn.Module):
    """Model whose training passes are compiled by `torch.compile`, inside the contexts of tasks and masks too.

    A compiled module has its weights frozen in and would ignore masks. Here the weights are arguments of the compiled
    function: all tasks of one architecture run the same code on their own weights. The whole forward pass is one graph.
    Without gradients, and while modules have hooks (output factors, recorded features), the model runs as it is.
    Each shape of the inputs is compiled once: that takes seconds, so that inputs should have few shapes.

    Args:
        model: any module, without recurrent layers.
        backend: backend of `torch.compile`.

    Raises:
        MaskError: if the model is compiled or scripted itself.
        ParameterError: if it has recurrent layers, which torch does not compile.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = TaskMasks({"a": {"0.weight": torch.rand(8, 4) < 0.5}})
        >>> run = sm.CompiledModel(model, backend="eager")
        >>> x = torch.rand(3, 4)
        >>> with masks.applied(model, "a"):
        ...     print(torch.equal(run(x), model(x)))
        True
    """

    def __init__(self, model: nn.Module, *, backend: str = "inductor") -> None:
        super().__init__()
        refuse_compiled(model)
        if (layer := next((m for m in model.modules() if isinstance(m, nn.RNNBase)), None)) is not None:
            raise ParameterError(
                f"{type(layer).__name__} cannot be compiled: torch has no code for recurrent layers. Use compile=False."
            )
        self.model = model
        self._backend = backend
        self._warned = False
        self._function: Callable[..., Any] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's outputs."""
        if not torch.is_grad_enabled():
            return self.model(*args, **kwargs)
        if has_hooks(self.model):
            self._warn_of_factors()
            return self.model(*args, **kwargs)
        tensors = current_tensors(self.model)
        if any(tensor is None for tensor in tensors.values()):  # a module computes without one of its tensors
            return self.model(*args, **kwargs)
        with unswapped(self.model), _settings():
            return self._compiled(tensors, args, kwargs)

    @property
    def _compiled(self) -> Callable[..., Any]:
        if self._function is None:
            import torch._functorch.config

            torch._functorch.config.donated_buffer = False  # several backward passes may read a graph, now and later

            def run(tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
                return functional_call(self.model, dict(tensors), args, dict(kwargs))

            self._function = torch.compile(run, fullgraph=True, dynamic=False, backend=self._backend)
        return self._function

    def _warn_of_factors(self) -> None:
        if masks_outputs(self.model) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self.model).__name__} runs uncompiled: the networks of its tasks have factors on outputs.",
                SparseMTLWarning,
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without compiled code, which a copy compiles anew."""
        return {**self.__dict__, "_function": None}


def has_hooks(model: nn.Module) -> bool:
    """Return True if calls of a module of the model run hooks, which compiled code would leave out."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


@contextmanager
def _settings() -> Iterator[None]:
    """Compile as many variants as there are tasks and shapes."""
    import torch._dynamo.config

    with torch._dynamo.config.patch(recompile_limit=_LIMIT, accumulated_recompile_limit=_LIMIT):
        yield
