"""The auxiliary network, frozen: what the tasks' fully connected layers are aligned to."""

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
from sparsemtl.tasks import Classification
from sparsemtl.tasks.batches import Loader
from sparsemtl.tasks.nests import to_dtype

LAST = ""
"""What the last layer is called among the layers of an encoder."""


@dataclass(frozen=True)
class Source:
    """What an auxiliary network was trained for.

    Attributes:
        task: the auxiliary task, which names the classes.
        head: its head; if that is a linear layer, last layers are made of its rows, and aligned to it.
        samples: its training samples, with which the reading `classic` compares.

    Raises:
        ParameterError: if the task is no classification, or the head is no module, still waits for its width, or is a
            linear layer of other outputs than the task has classes.
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
                f"the head of task {self.task.name!r} has not learned its width yet, let alone its weights: run the "
                "auxiliary network on a batch, or train it, before it is a source."
            )
        if self.last is not None and self.last.out_features != self.task.classes:
            raise ParameterError(
                f"the head of task {self.task.name!r} has {self.last.out_features} outputs, and the task "
                f"{self.task.classes} classes. Give the head that was trained for this task."
            )

    @property
    def last(self) -> nn.Linear | None:
        """The head, if it is a linear layer."""
        return self.head if isinstance(self.head, nn.Linear) else None


class Tap(NamedTuple):
    """What a fully connected layer did in a forward pass.

    Attributes:
        features: what it read, (B, d).
        weight: the weight that it had then, (d', d).
        bias: its bias (d',), or None.
        output: what it gave, (B, d').
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor

    def columns(self, chosen: Tensor) -> Tap:
        """The same of some outputs, int64 (n,)."""
        bias = None if self.bias is None else self.bias[chosen]
        return self._replace(weight=self.weight[chosen], bias=bias, output=self.output[:, chosen])


@contextmanager
def tapped(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tap]]:
    """Inside the context, note what layers do; of one that is called more than once, the last time."""
    taps: dict[str, Tap] = {}

    def note(name: str) -> Callable[[Any, Any, Tensor], None]:
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
            stack.callback(layer.register_forward_hook(note(name)).remove)
        yield taps


class Reference(nn.Module):
    """A trained network whose weights are buffers: it is saved with a model, and no optimizer sees it.

    Args:
        encoder: the network without its last layer; copied.
        layers: its fully connected layers by name.
        last: its last layer, if it is known; copied.
    """

    def __init__(self, encoder: nn.Module, layers: Iterable[str], last: nn.Linear | None) -> None:
        super().__init__()
        self.encoder = without_parameters(encoder)
        self.last = without_parameters(last) if last is not None else None
        self.layers = tuple(layers)
        self.train(False)

    def train(self, mode: bool = True) -> Reference:
        """Stay in eval mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: Any) -> dict[str, Tensor]:
        """What every fully connected layer gives, name -> (B, width); the last one's name is `LAST`."""
        dtype = next(self.buffers()).dtype  # in mixed precision x is in half
        x = to_dtype(x, dtype)
        with tapped({name: self.encoder.get_submodule(name) for name in self.layers}) as taps:
            features = self.encoder(x)
        outputs = {name: tap.output for name, tap in taps.items()}
        return outputs if self.last is None else {**outputs, LAST: self.last(features)}
