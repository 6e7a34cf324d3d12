"""Features of a trained network on its own training samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.architectures.damtl.reference import ReferenceNetwork
from sparsemtl.errors import ParameterError
from sparsemtl.tasks.batches import Loader
from sparsemtl.tasks.classification import Classification
from sparsemtl.tasks.nests import to_device


class ReferenceFeatures(nn.Module):
    """Features of the layers of a trained network on some of its training samples of each class, or their means.

    Args:
        reference: the network.
        samples: its training samples, (x, classes) or (x, {target: classes}); samples without a class are left out.
        task: its training task.
        per_class: number of samples to keep per class; 0 keeps the mean over all samples of each class instead.

    Attributes:
        labels: int64 (N,), class of every sample or mean.

    Raises:
        ParameterError: if there is no sample with a class.
    """

    labels: Tensor

    def __init__(self, reference: ReferenceNetwork, samples: Loader, task: Classification, per_class: int) -> None:
        super().__init__()
        gather = _first_samples if per_class else _means
        features, labels = gather(_outputs(reference, samples, task), task.classes, per_class)
        if not len(labels):
            raise ParameterError("the auxiliary task has no samples, with which `align='classic'` compares.")
        self.names = tuple(features)
        self.register_buffer("labels", labels)
        for index, layer_features in enumerate(features.values()):
            self.register_buffer(f"features_{index}", layer_features)

    def forward(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return the features of every layer, name -> (N, width), and their classes (N,)."""
        return {name: self.get_buffer(f"features_{index}") for index, name in enumerate(self.names)}, self.labels


_Outputs = Iterator[tuple[dict[str, Tensor], Tensor]]


def _outputs(reference: ReferenceNetwork, samples: Loader, task: Classification) -> _Outputs:
    """Yield the features of labelled samples and their classes, batch by batch."""
    device = next(reference.buffers()).device
    for x, targets in samples:
        labels = task.labels(targets).to(device)
        known = task.labelled(labels)
        outputs = reference(to_device(x, device))
        yield {name: layer_features[known] for name, layer_features in outputs.items()}, labels[known]


def _first_samples(outputs: _Outputs, classes: int, per_class: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the features and classes of the first samples of every class."""
    kept: dict[str, list[Tensor]] = defaultdict(list)
    kept_labels: list[Tensor] = []
    counts = torch.zeros(classes, dtype=torch.long)
    for features, labels in outputs:
        members = F.one_hot(labels, classes).cpu()
        rank = (counts + members.cumsum(0)).gather(1, labels.cpu().unsqueeze(1)).squeeze(1)
        chosen = (rank <= per_class).to(labels.device)
        kept_labels.append(labels[chosen])
        for name, layer_features in features.items():
            kept[name].append(layer_features[chosen])
        counts += members.sum(0)
    return {name: torch.cat(parts) for name, parts in kept.items()}, torch.cat([*kept_labels, *_empty(kept_labels)])


def _means(outputs: _Outputs, classes: int, per_class: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the mean features of every class with samples, and these classes."""
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(classes)
    for features, labels in outputs:
        members = F.one_hot(labels, classes).T
        counts = counts.to(labels.device) + members.sum(1)
        for name, layer_features in features.items():
            added = members.to(layer_features.dtype) @ layer_features
            sums[name] = sums[name] + added if name in sums else added
    present = counts.nonzero().squeeze(1)
    return {name: total[present] / counts[present].unsqueeze(1) for name, total in sums.items()}, present


def _empty(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return one empty tensor if there are no parts, because `torch.cat` needs at least one."""
    return [] if parts else [torch.zeros(0, dtype=torch.long)]
