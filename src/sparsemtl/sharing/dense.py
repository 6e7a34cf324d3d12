"""Plain hard sharing: every task reads and trains all shared weights."""

from __future__ import annotations

from sparsemtl.registry.parameters import validated
from sparsemtl.sharing.sharing import Sharing, Statistics, Update


class DenseSharing(Sharing):
    """Every task uses every shared weight: plain multi-task learning, or single-task with `single-task`.

    Args:
        update: `joint` by default, `average` where every task has its own data; see `Update`.
        bn: batch norm statistics, shared by default.
    """

    @validated
    def __init__(self, *, update: Update | None = None, bn: Statistics = "shared") -> None:
        super().__init__(update=update, bn=bn)
