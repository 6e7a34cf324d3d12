"""Which images train, validate and test: class by class, so that no class is missing by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsemtl.data.objects.listing import TEST, TRAIN, VALIDATION, Listing
from sparsemtl.errors import DataError, ParameterError

NAMES = ("training", "validation", "test")


def by_class(labels: Tensor, shares: Sequence[float], *, seed: int) -> list[Tensor]:
    """Cut samples into parts in which every class has its share, and the whole its own, as nearly as numbers allow.

    The samples come class by class, shuffled in each, and every one goes to the part that is furthest behind its share.

    Args:
        labels: class of every sample, shape (N,).
        shares: fraction of every part, each above 0; they add up to 1. The first part gets at least one sample of
            every class.
        seed: of the order.

    Returns:
        Indices of every part's samples, ascending: disjoint, together all of them.

    Raises:
        ParameterError: if the shares do not add up to 1, or one is not above 0.

    Example:
        >>> [rows.tolist() for rows in by_class(torch.tensor([0, 1, 0, 1, 0, 0]), [0.5, 0.5], seed=0)]
        [[0, 2, 3], [1, 4, 5]]
    """
    if any(share <= 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-9):
        raise ParameterError(f"the parts of a split must be above 0 and add up to 1, got {list(shares)}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    parts = _dealt(len(labels), shares)
    for label in labels.unique():
        own = (labels[order] == label).nonzero().squeeze(1)
        if bool((parts[own] > 0).all()):
            parts[own[0]] = 0
    return [order[parts == part].sort().values for part in range(len(shares))]


def _dealt(count: int, shares: Sequence[float]) -> Tensor:
    """The part that every one of `count` samples goes to, shape (count,)."""
    given, dealt = [0] * len(shares), []
    for number in range(1, count + 1):
        behind = [round(share * number - got, 9) for share, got in zip(shares, given, strict=True)]
        part = behind.index(max(behind))
        given[part] += 1
        dealt.append(part)
    return torch.tensor(dealt)


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
