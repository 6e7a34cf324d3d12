"""Successive halving of candidates: how many go on after a rung, which ones, and what that costs at most."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from sparsemtl.errors import CheckpointError
from sparsemtl.storage.text_files import read_json, write_json
from sparsemtl.training.choosing.candidates import CandidateTraining, whole_epochs

RUNGS = (0.5,)
"""Shares of the epochs after which candidates are dropped. Earlier ones drop masks, which are chosen late."""
SURVIVORS = 0.6
"""Fraction of the candidates that go on: five candidates, of which three go on after half, cost four trainings."""


def surviving(trainings: Mapping[str, CandidateTraining], dense: Collection[str], share: float) -> list[str]:
    """Return the candidates that go on, as `survivors` of `auto_share` describes them; ties go to the simpler one.

    Args:
        trainings: candidate, from the simplest to the most complex -> its training.
        dense: names of the dense candidates.
        share: fraction of the candidates that go on.
    """
    names = list(trainings)
    ranks: dict[str, list[int]] = {name: [] for name in names}
    for task in trainings[names[0]].trainer.model.tasks:
        order = sorted(names, key=lambda name: -trainings[name].value(task))
        for rank, name in enumerate(order):
            ranks[name].append(rank)

    def remaining(name: str) -> tuple[int, int]:
        """Return the sum of the tasks' best ranks if a candidate stays as well, and the sum of its own ranks."""
        return sum(map(min, zip(*(ranks[one] for one in (*stay, name)), strict=True))), sum(ranks[name])

    stay = [min((name for name in names if name in dense), key=lambda name: sum(ranks[name]))]
    while len(stay) < _left(len(names), share):
        stay.append(min((name for name in names if name not in stay), key=remaining))
    return [name for name in names if name in stay]


def largest_cost(selectable: Sequence[int], rungs: Sequence[float], survivors: float, epochs: int) -> float:
    """Return the largest cost of `auto_share` in trainings of all epochs.

    Args:
        selectable: per candidate, the number of epochs until one can be selected.
        rungs: as in `auto_share`.
        survivors: as in `auto_share`.
        epochs: epochs of one training.
    """
    count, before = len(selectable), 0
    first = whole_epochs((*rungs, 1.0)[0], epochs)
    cost = sum(max(own - first, 0) for own in selectable)
    for share in (*rungs, 1.0):
        until = whole_epochs(share, epochs)
        cost += count * (until - before)
        count, before = _left(count, survivors), until
    return cost / epochs


def _left(count: int, share: float) -> int:
    """Return the number of candidates that a rung leaves."""
    return min(count, max(ceil(share * count), 2))


class HalvingRecord:
    """Record of the candidates that each rung left, so that a halving that was interrupted goes on as it began.

    Args:
        folder: folder of the candidates.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "halving.json"
        self._rungs: dict[str, Any] = read_json(self._path) if self._path.exists() else {}

    def read(self, share: float, candidates: Sequence[str]) -> list[str] | None:
        """Return the candidates that a rung left; None if it has not been reached.

        Raises:
            CheckpointError: if the record is of other candidates.
        """
        found = self._rungs.get(f"{share:g}")
        if found is not None and sorted(found["epochs"]) != sorted(candidates):
            raise CheckpointError(
                f"{self._path} is of the candidates {', '.join(found['epochs'])}, not {', '.join(candidates)}. Use "
                "another folder, or delete it."
            )
        return None if found is None else list(found["left"])

    def write(self, share: float, left: Sequence[str], epochs: Mapping[str, int]) -> None:
        """Write what a rung left, and the epochs of all candidates so far."""
        before = self.epochs
        known = {name: max(count, before.get(name, 0)) for name, count in epochs.items()}
        self._rungs[f"{share:g}"] = {"left": list(left), "epochs": known}
        write_json(self._path, self._rungs)

    @property
    def epochs(self) -> dict[str, int]:
        """Epochs of each candidate at the last rung."""
        found: dict[str, int] = {}
        for rung in self._rungs.values():
            found |= {name: max(count, found.get(name, 0)) for name, count in rung["epochs"].items()}
        return found
