"""What a frozen network gives of the samples that it was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.architectures.damtl.reference import Reference
from sparsemtl.errors import ParameterError
from sparsemtl.tasks import Classification
from sparsemtl.tasks.batches import Loader
from sparsemtl.tasks.nests import to_device


class ReferenceFeatures(nn.Module):
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
