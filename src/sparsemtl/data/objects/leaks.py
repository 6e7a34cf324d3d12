"""Pictures that would be trained on and tested on: found in all tasks together, and left out of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from torch import Tensor

from sparsemtl.data.objects.likeness import Prints, copies, same_pixels
from sparsemtl.data.objects.parts import NAMES
from sparsemtl.data.objects.source import ClassPictures, read_upright
from sparsemtl.data.pictures import Array

Deduplicate = Literal["similar", "exact", "none"]
"""Which pictures count as the same: also copies that were saved anew or resized, or equal pixels alone, or none."""
TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class Leak:
    """A picture that a later part has as well.

    Attributes:
        row: the picture, in its own task.
        part: the part that it is in.
        task: the task that has the other one.
        other: the other one, in that task.
        exact: whether their pixels are equal.
    """

    row: int
    part: int
    task: str
    other: int
    exact: bool


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a task.

    Attributes:
        source: where they are decoded.
        prints: what they are recognised by.
        rows: rows of its training, validation and test pictures.
    """

    source: ClassPictures
    prints: Prints
    rows: Sequence[Tensor]


def find_leaks(tasks: Mapping[str, Pictures], how: Deduplicate) -> dict[str, list[Leak]]:
    """Find training pictures that validate or test any task, and validation pictures that test the same task.

    Args:
        tasks: task -> its pictures.
        how: which pictures count as the same.

    Returns:
        task -> its leaks, by row.
    """
    names, firsts = list(tasks), [0, *accumulate(len(of.prints) for of in tasks.values())]
    prints = Prints.joined([of.prints for of in tasks.values()])
    parts = [
        np.concatenate([of.rows[part].numpy() + first for of, first in zip(tasks.values(), firsts, strict=False)])
        for part in range(len(NAMES))
    ]

    def own(row: int) -> tuple[str, int]:
        place = int(np.searchsorted(firsts, row, side="right")) - 1
        return names[place], row - firsts[place]

    def read(row: int) -> Array:
        task, picture = own(row)
        return read_upright(tasks[task].source.where(picture))

    found: dict[str, list[Leak]] = {name: [] for name in names}
    pairs = [(TRAIN, parts[TRAIN], np.concatenate(parts[VALIDATION:]))]
    for of, first in zip(tasks.values(), firsts, strict=False):
        pairs.append((VALIDATION, of.rows[VALIDATION].numpy() + first, of.rows[TEST].numpy() + first))
    for part, rows, others in pairs:
        exact = same_pixels(prints, rows, others)
        rest = np.array([row for row in rows.tolist() if row not in exact], dtype=np.int64)
        alike = copies(prints, rest, others, read) if how == "similar" else {}
        for row, other in sorted({**exact, **alike}.items()):
            (task, picture), (of_task, there) = own(row), own(other)
            found[task].append(Leak(picture, part, of_task, there, row in exact))
    return found


def leak_notes(leaks: Sequence[Leak], tasks: Mapping[str, Pictures], task: str) -> list[str]:
    """Say what is left out of the parts of a task, and why."""
    notes = []
    for part in (TRAIN, VALIDATION):
        own = [leak for leak in leaks if leak.part == part]
        if not own:
            continue
        exact = sum(leak.exact for leak in own)
        kinds = {"of the same pixels": exact, "saved anew or resized": len(own) - exact}
        of = Counter(leak.task for leak in own)
        where = ", ".join(f"{count} of {'its own' if name == task else name}" for name, count in of.items())
        first, other = tasks[task].source.where(own[0].row), tasks[own[0].task].source.where(own[0].other)
        held_out = "validation or test" if part == TRAIN else "test"
        notes.append(
            f"{len(own)} {NAMES[part]} images are left out, for they are {held_out} images as well ({where}; "
            f"{', '.join(f'{count} {kind}' for kind, count in kinds.items() if count)}); the first is {first}, as "
            f"{other}"
        )
    return notes
