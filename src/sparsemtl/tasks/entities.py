"""F1 of named entities: spans of tokens in BIO tags, right only as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchmetrics.metric import Metric

_Entity = tuple[int, int, str]
"""First token, one past the last token, and kind."""


def are_bio_tags(names: Sequence[str]) -> bool:
    """Return True if the names of classes are BIO tags: `O`, and `B-` or `I-` before a kind."""
    return "O" in names and all(name == "O" or name[:2] in ("B-", "I-") for name in names) and len(names) > 1


def entities(tags: Sequence[str]) -> Iterator[_Entity]:
    """Yield the entities of one sequence.

    An entity begins at `B-x`, and at an `I-x` that does not go on with an entity of kind x, as in the CoNLL-2000 rules.
    """
    begin, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        goes_on = bool(kind) and tag == f"I-{kind}"
        if kind and not goes_on:
            yield begin, i, kind
            kind = ""
        if tag != "O" and not goes_on:
            begin, kind = i, tag[2:]


class EntityF1(Metric):
    """Micro F1 of entities: a predicted entity is right if its first token, last token and kind are.

    Tokens without a label, such as padding and the later pieces of a word, are left out of both sequences, as in the
    evaluation of CoNLL-2003 with seqeval.

    Args:
        names: BIO tags of the classes.
        ignore_index: label of tokens without one.
    """

    higher_is_better = True
    full_state_update = False
    right: Tensor
    predicted: Tensor
    labelled: Tensor

    def __init__(self, names: Sequence[str], *, ignore_index: int = -100) -> None:
        super().__init__()
        self.names = list(names)
        self.ignore_index = ignore_index
        for state in ("right", "predicted", "labelled"):
            self.add_state(state, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits (B, C, S) and labels (B, S)."""
        known = target != self.ignore_index
        predictions = output.argmax(1)
        for prediction, label, mask in zip(predictions, target, known, strict=True):
            found = set(entities(self._tags(prediction[mask])))
            true = set(entities(self._tags(label[mask])))
            self.right += len(found & true)
            self.predicted += len(found)
            self.labelled += len(true)

    def _tags(self, indices: Tensor) -> list[str]:
        return [self.names[i] for i in indices.tolist()]

    def compute(self) -> Tensor:
        """Return 2 right / (predicted + labelled), in [0, 1]; NaN if there is no entity in either."""
        return 2 * self.right / (self.predicted + self.labelled)
