"""The auxiliary network, frozen: what the tasks' fully connected layers are aligned to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_map_only

from sparsemtl.batches import Loader, to_device
from sparsemtl.errors import ParameterError
from sparsemtl.frozen import without_parameters
from sparsemtl.heads.linear import LinearHead, pooled
from sparsemtl.tasks import Classification


@dataclass(frozen=True)
class Source:
    """What an auxiliary network was trained for.

    Attributes:
        task: the auxiliary task, which names the classes.
        head: its head; if that is a linear layer, last layers are made of its rows, and aligned to it.
        samples: its training samples, with which the reading `classic` compares.

    Raises:
        ParameterError: if the head still waits for its width.
    """

    task: Classification
    head: nn.Module
    samples: Loader | None = None

    def __post_init__(self) -> None:
        if any(isinstance(parameter, UninitializedParameter) for parameter in self.head.parameters()):
            raise ParameterError(
                f"the head of task {self.task.name!r} has not learned its width yet, let alone its weights: run the "
                "auxiliary network on a batch, or train it, before it is a source."
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
        """What every fully connected layer gives, name -> (B, width); the last one's name is `""`."""
        dtype = next(self.buffers()).dtype  # in mixed precision x is in half
        x = tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, x)
        with tapped({name: self.encoder.get_submodule(name) for name in self.layers}) as taps:
            features = self.encoder(x)
        outputs = {name: tap.output for name, tap in taps.items()}
        return outputs if self.last is None else {**outputs, "": self.last(features)}


class Remembered:
    """A frozen network's answers, each computed once a sample.

    Samples are known by their content, not by their place, so that any loader will do. Every sample is computed
    alone: what is remembered does not depend on the batch that it first came in, and a resumed run computes the same
    if there is room for all. A copy has forgotten them.

    Args:
        megabytes: how much to remember; what would be more is computed again every time, in batches.
    """

    def __init__(self, megabytes: float) -> None:
        self._megabytes = megabytes
        self._room = int(megabytes * 2**20)
        self._known: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Number of samples remembered."""
        return len(self._known)

    def __reduce__(self) -> tuple[type[Remembered], tuple[float]]:
        return Remembered, (self._megabytes,)

    def __call__(self, network: Callable[[Any], dict[str, Tensor]], x: Any) -> dict[str, Tensor]:
        """What the network, always the same, gives for a batch: name -> (B, width)."""
        if not isinstance(x, Tensor) or not self._megabytes:
            return network(x)
        keys = fingerprints(x)
        for index, key in enumerate(keys):
            if key not in self._known and self._room > 0:
                answer = network(x[index : index + 1])
                self._room -= sum(tensor.nbytes for tensor in answer.values())
                self._known[key] = answer
        if any(key not in self._known for key in keys):
            return network(x)
        answers = [self._known[key] for key in keys]
        return {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}


def fingerprints(x: Tensor) -> list[tuple[int, ...]]:
    """Every sample's shape and two 64-bit hashes of its bytes: equal for equal samples, and hardly ever for others."""
    words = x.detach().reshape(len(x), -1).contiguous().view(_WORDS[x.element_size()]).long()
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (2, words.shape[1]), generator=generator) | 1
    sums = [(words * row).sum(1) for row in factors.to(x.device)]
    return [(*x.shape[1:], *hashes) for hashes in zip(*(column.tolist() for column in sums), strict=True)]


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Bank(nn.Module):
    """What the layers of a trained network give of the samples that it was trained on, a few of every class.

    Args:
        reference: the network.
        samples: its training samples, (x, classes) or (x, {target: classes}); those without a class are left out.
        task: what it was trained for.
        each: samples of every class to keep; 0 keeps the mean over all of them instead.

    Raises:
        ParameterError: if there is no sample.
    """

    labels: Tensor

    def __init__(self, reference: Reference, samples: Loader, task: Classification, each: int) -> None:
        super().__init__()
        gather = _some if each else _means
        features, labels = gather(_outputs(reference, samples, task), task.classes, each)
        if not len(labels):
            raise ParameterError("the auxiliary task has no samples, with which `align='classic'` compares.")
        self.names = tuple(features)
        self.register_buffer("labels", labels)
        for index, of_layer in enumerate(features.values()):
            self.register_buffer(f"features_{index}", of_layer)

    def forward(self) -> tuple[dict[str, Tensor], Tensor]:
        """Every layer's features, name -> (N, width), and the samples' classes (N,)."""
        return {name: self.get_buffer(f"features_{index}") for index, name in enumerate(self.names)}, self.labels


Outputs = Iterator[tuple[dict[str, Tensor], Tensor]]


def _outputs(reference: Reference, samples: Loader, task: Classification) -> Outputs:
    """What the layers give of labelled samples, batch by batch, with their classes."""
    device = next(reference.buffers()).device
    for x, targets in samples:
        labels = task.labels(targets).to(device)
        known = task.labelled(labels)
        outputs = reference(to_device(x, device))
        yield {name: of_layer[known] for name, of_layer in outputs.items()}, labels[known]


def _some(outputs: Outputs, classes: int, each: int) -> tuple[dict[str, Tensor], Tensor]:
    """The first samples of every class, as many as asked for."""
    kept: dict[str, list[Tensor]] = defaultdict(list)
    kept_labels: list[Tensor] = []
    counts = torch.zeros(classes, dtype=torch.long)
    for features, labels in outputs:
        members = F.one_hot(labels, classes).cpu()
        place = (counts + members.cumsum(0)).gather(1, labels.cpu().unsqueeze(1)).squeeze(1)
        chosen = (place <= each).to(labels.device)
        kept_labels.append(labels[chosen])
        for name, of_layer in features.items():
            kept[name].append(of_layer[chosen])
        counts += members.sum(0)
    return {name: torch.cat(parts) for name, parts in kept.items()}, torch.cat([*kept_labels, *_nothing(kept_labels)])


def _means(outputs: Outputs, classes: int, each: int) -> tuple[dict[str, Tensor], Tensor]:
    """The mean over all samples of every class that has any."""
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(classes)
    for features, labels in outputs:
        members = F.one_hot(labels, classes).T
        counts = counts.to(labels.device) + members.sum(1)
        for name, of_layer in features.items():
            added = members.to(of_layer.dtype) @ of_layer
            sums[name] = sums[name] + added if name in sums else added
    present = counts.nonzero().squeeze(1)
    return {name: total[present] / counts[present].unsqueeze(1) for name, total in sums.items()}, present


def _nothing(parts: Sequence[Tensor]) -> list[Tensor]:
    """What `torch.cat` needs where there are no parts."""
    return [] if parts else [torch.zeros(0, dtype=torch.long)]
