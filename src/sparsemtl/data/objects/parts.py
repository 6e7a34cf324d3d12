"""Which images train, validate and test: class by class, so that no class is missing by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsemtl.data.objects.listing import TEST, TRAIN, VALIDATION, Listing
from sparsemtl.data.splitting import by_class
from sparsemtl.errors import DataError, ParameterError

NAMES = ("training", "validation", "test")


@dataclass(frozen=True)
class Division:
    """How images are divided where no folders say it.

    Attributes:
        shares: of training, validation and test. Where the test images are given and no validation images are, the
            first two say what is held out of the training images, and the third may be absent.
        seed: of the order.
    """

    shares: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        if len(self.shares) not in (2, 3) or any(share <= 0 for share in self.shares):
            raise ParameterError(
                f"split: expected the shares of training, validation and test, each above 0, got {list(self.shares)}."
            )

    @property
    def held_out(self) -> float:
        """The share of training and validation images that validate."""
        return self.shares[VALIDATION] / (self.shares[TRAIN] + self.shares[VALIDATION])

    def divide(self, listing: Listing, usable: Tensor) -> list[Tensor]:
        """Rows of training, validation and test images.

        Args:
            listing: the images.
            usable: rows of those that can be decoded.

        Raises:
            DataError: if a part gets no image, or a class none in training.
        """
        labels = listing.labels[usable]
        if listing.parts is None and len(self.shares) < len(NAMES):
            raise ParameterError(f"split: {listing.name} needs the shares of training, validation and test.")
        if listing.parts is None:
            parts = by_class(labels, self.shares, seed=self.seed)
        else:
            parts = self._given(listing.parts[usable], labels)
        rows = [usable[part] for part in parts]
        check_parts(listing, rows)
        return rows

    def _given(self, of_rows: Tensor, labels: Tensor) -> list[Tensor]:
        train, validation, test = ((of_rows == part).nonzero().squeeze(1) for part in range(3))
        if len(validation) == 0 and len(train):
            kept, held_out = by_class(labels[train], [1 - self.held_out, self.held_out], seed=self.seed)
            train, validation = train[kept], train[held_out]
        return [train, validation, test]

    def note(self, listing: Listing) -> str:
        """Say how the parts of a task were made."""
        if listing.parts is None:
            each = ", ".join(f"{100 * share:.4g} % {part}" for share, part in zip(self.shares, NAMES, strict=True))
            return f"{each}, of every class, at random (seed {self.seed})"
        if bool((listing.parts == VALIDATION).any()):
            return "the parts are those of the folders"
        return (
            f"validation: {100 * self.held_out:.4g} % of the training images of every class at random "
            f"(seed {self.seed}); test images have a folder of their own"
        )


def check_parts(listing: Listing, rows: Sequence[Tensor]) -> None:
    """Raise a DataError if a part has no image, or a class has none in training."""
    counts = torch.bincount(listing.labels[rows[TRAIN]], minlength=len(listing.classes))
    check_every_class(listing.name, listing.classes, counts)
    for part in (VALIDATION, TEST):
        if len(rows[part]) == 0:
            raise DataError(
                f"{listing.name}: of {len(listing)} images none is left for {NAMES[part]}. Add images, or give it a "
                "larger share (`split`)."
            )


def check_every_class(name: str, classes: Sequence[str], counts: Tensor) -> None:
    """Raise a DataError unless every class has a training sample.

    Args:
        name: whose classes they are.
        classes: their names.
        counts: training samples of each.
    """
    lacking = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise DataError(
            f"{name}: class {lacking[0]!r}{more} has no sample in the training split. Add one, or leave the class out."
        )
