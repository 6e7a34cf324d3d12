"""The frozen auxiliary network, to which the tasks' fully connected layers are aligned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from sparsemtl.errors import ParameterError
from sparsemtl.heads.linear import LinearHead, pooled
from sparsemtl.networks.frozen import without_parameters
from sparsemtl.tasks.batches import Loader
from sparsemtl.tasks.classification import Classification
from sparsemtl.tasks.nests import to_dtype

LAST = ""
"""Name of the last layer, beside the names of an encoder's layers."""


@dataclass(frozen=True)
class Source:
    """Training task of an auxiliary network, with its head and samples.

    Attributes:
        task: the auxiliary task, which names the classes.
        head: its head. If the head is a linear layer, the tasks' last layers are made of its rows and aligned to it.
        samples: its training samples, with which `align="classic"` compares.

    Raises:
        ParameterError: if the task is no classification, or the head is no module, has not inferred its width yet, or
            is a linear layer whose number of outputs is not the number of classes.
    """

    task: Classification
    head: nn.Module
    samples: Loader | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.task, Classification):
            raise ParameterError(
                f"a source needs its task, such as sm.Classification('all', ['cat', 'dog']), got {self.task!r}."
            )
        if not isinstance(self.head, nn.Module):
            raise ParameterError(
                f"the head of task {self.task.name!r}: expected a module, got a {type(self.head).__name__}."
            )
        if any(isinstance(parameter, UninitializedParameter) for parameter in self.head.parameters()):
            raise ParameterError(
                f"the head of task {self.task.name!r} has no width and no weights yet. Run the auxiliary network on a "
                "batch, or train it, before it is a source."
            )
        if self.last is not None and self.last.out_features != self.task.classes:
            raise ParameterError(
                f"the head of task {self.task.name!r} has {self.last.out_features} outputs, and the task "
                f"{self.task.classes} classes. Give the head that was trained for this task."
            )

    @property
    def last(self) -> nn.Linear | None:
        """Head, if it is a linear layer."""
        return self.head if isinstance(self.head, nn.Linear) else None


class Tap(NamedTuple):
    """Input, weights and output of a fully connected layer in a forward pass.

    Attributes:
        features: input of the layer, (B, d).
        weight: weight in this forward pass, (d', d).
        bias: bias (d',), or None.
        output: output of the layer, (B, d').
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor

    def columns(self, chosen: Tensor) -> Tap:
        """Return the same for some outputs only, int64 (n,)."""
        bias = None if self.bias is None else self.bias[chosen]
        return self._replace(weight=self.weight[chosen], bias=bias, output=self.output[:, chosen])


@contextmanager
def tapped(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tap]]:
    """Record the taps of layers inside the context; for a layer that is called several times, the last one."""
    taps: dict[str, Tap] = {}

    def record(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            features = pooled(inputs[0]) if isinstance(layer, LinearHead) else inputs[0]
            if features.ndim != 2:
                raise ParameterError(
                    f"layer {name!r} reads features of shape {tuple(features.shape)}; alignment compares features "
                    "(batch, width). Name the layers to align in `layers`."
                )
            taps[name] = Tap(features, layer.weight, layer.bias, output)

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(record(name)).remove)
        yield taps


class ReferenceNetwork(nn.Module):
    """Frozen copy of a trained network. It has buffers in place of parameters, so that it is saved but not trained.

    Args:
        encoder: the network without its last layer.
        layers: names of its fully connected layers.
        last: its last layer, None if unknown.
    """

    def __init__(self, encoder: nn.Module, layers: Iterable[str], last: nn.Linear | None) -> None:
        super().__init__()
        self.encoder = without_parameters(encoder)
        self.last = without_parameters(last) if last is not None else None
        self.layers = tuple(layers)
        self.train(False)

    def train(self, mode: bool = True) -> ReferenceNetwork:
        """Stay in eval mode, whatever `mode` is."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: Any) -> dict[str, Tensor]:
        """Return the output of every fully connected layer, name -> (B, width); the last one's name is `LAST`."""
        dtype = next(self.buffers()).dtype  # in mixed precision x has half precision
        x = to_dtype(x, dtype)
        with tapped({name: self.encoder.get_submodule(name) for name in self.layers}) as taps:
            features = self.encoder(x)
        outputs = {name: tap.output for name, tap in taps.items()}
        return outputs if self.last is None else {**outputs, LAST: self.last(features)}
