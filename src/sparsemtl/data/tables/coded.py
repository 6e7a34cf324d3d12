"""Coded rows in memory, which become one-hot in their batch.

Expanding a batch is faster than gathering one from an expanded table, and a table of 30 categories stays a tenth as
large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from sparsemtl.data.base import BatchLoader, Split, shown
from sparsemtl.registry.parameters import Count, validated


@dataclass(frozen=True)
class OneHot:
    """Map from coded rows to one-hot rows: a category's code k > 0 is a 1 in its k-th column, code 0 is none.

    Attributes:
        numeric: width of the numbers, which come first and stay as they are.
        cardinalities: number of codes per category, code 0 included.

    Examples:
        >>> OneHot(1, (3, 4))(torch.tensor([[0.5, 2, 1], [-0.5, 0, 3]]))
        tensor([[ 0.5000,  0.0000,  1.0000,  1.0000,  0.0000,  0.0000],
                [-0.5000,  0.0000,  0.0000,  0.0000,  0.0000,  1.0000]])
    """

    numeric: int
    cardinalities: tuple[int, ...]

    @property
    def width(self) -> int:
        """Width of a one-hot row."""
        return self.numeric + sum(self.cardinalities) - len(self.cardinalities)

    def __call__(self, coded: Tensor) -> Tensor:
        """Return rows (N, width) of rows (N, numeric + categories)."""
        rows = coded.new_zeros(len(coded), self.width)
        rows[:, : self.numeric] = coded[:, : self.numeric]
        codes = coded[:, self.numeric :].long()
        places = (codes + self._before).clamp_(min=0)  # code 0 of the first category would be left of all columns
        return rows.scatter_add_(1, places, (codes > 0).to(rows.dtype))

    @cached_property
    def _before(self) -> Tensor:
        """Places of the categories' codes 0, were there columns for them."""
        starts = list(accumulate((cardinality - 1 for cardinality in self.cardinalities), initial=self.numeric))
        return torch.tensor(starts[:-1]) - 1


@dataclass(frozen=True, eq=False)
class CodedSplit:
    """Some rows of a coded table with the labels of their tasks.

    Attributes:
        coded: coded rows, shape (M, columns).
        labels: target -> labels, M of each.
        rows: indices of the split's rows, shape (N,).
        expand: map of a batch to one-hot rows; None leaves it coded.
    """

    coded: Tensor
    labels: Mapping[str, Tensor]
    rows: Tensor
    expand: OneHot | None

    def __repr__(self) -> str:
        return shown(self)

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that have labels."""
        return tuple(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.expand.width if self.expand else self.coded.shape[1],)

    def __len__(self) -> int:
        return len(self.rows)

    def loader(self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False) -> CodedLoader:
        """Make a loader of these rows."""
        return CodedLoader(self, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)

    def take(self, count: int) -> CodedSplit:
        """Return the first `count` rows, or all if there are fewer."""
        return replace(self, rows=self.rows[:count])

    def select(self, rows: Tensor) -> CodedSplit:
        """Return the rows at these indices, in their order."""
        return replace(self, rows=self.rows[rows])

    def only(self, targets: Sequence[str]) -> CodedSplit:
        """Return the same rows with the labels of these targets."""
        return replace(self, labels={name: self.labels[name] for name in targets})

    def load(self) -> Split:
        """Return all rows as batches have them."""
        return Split(*self.batch(torch.arange(len(self))))

    def batch(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rows at these indices and their labels, copied."""
        places = self.rows[rows]
        coded = self.coded[places]
        return self.expand(coded) if self.expand else coded, {n: of[places] for n, of in self.labels.items()}


class CodedLoader(BatchLoader):
    """Batches of a coded table: one gather per batch, no worker processes.

    Args:
        split: the rows.
        batch_size, shuffle, drop_last, generator: see `BatchLoader`.

    Yields:
        pairs (inputs, target -> labels); inputs are one-hot unless the split leaves them coded.
    """

    @validated
    def __init__(
        self,
        split: CodedSplit,
        *,
        batch_size: Count = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(len(split), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, generator=generator)
        self.split = split

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        return map(self.split.batch, self.order())
