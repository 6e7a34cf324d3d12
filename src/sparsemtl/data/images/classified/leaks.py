"""Images that would be in training and in an evaluation: found in all tasks together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from torch import Tensor

from sparsemtl.data.images.classified.duplicates import Fingerprints, copies, same_pixels
from sparsemtl.data.images.classified.listing import TRAIN, VALIDATION
from sparsemtl.data.images.classified.source import ClassImages, read_upright
from sparsemtl.data.images.pictures import Array

Deduplicate = Literal["similar", "exact", "none"]
"""Criterion for equal images: also copies that were saved anew or resized, or equal pixels alone, or none."""


@dataclass(frozen=True)
class Leak:
    """Image that an evaluation has as well."""

    row: int  # index of the image, in its own task
    split: int
    task: str  # task that has the other image
    other: int  # index of the other image, in that task
    exact: bool  # their pixels are equal


def find_leaks(
    sources: Mapping[str, ClassImages],
    splits: Mapping[str, Sequence[Tensor]],
    prints: Mapping[str, Fingerprints],
    criterion: Deduplicate,
) -> dict[str, list[Leak]]:
    """Find training images that validate or test any task, and validation images that test the same task.

    Args:
        sources: task -> its images.
        splits: task -> rows of its training, validation and test images.
        prints: task -> fingerprints of its images.
        criterion: criterion for equal images.

    Returns:
        task -> its leaks, by row.
    """
    names, firsts = list(sources), [0, *accumulate(map(len, sources.values()))]
    rows_of = {
        task: [rows.numpy() + first for rows in splits[task]] for task, first in zip(names, firsts, strict=False)
    }
    together = Fingerprints.joined([prints[task] for task in names])
    train, validation, test = (np.concatenate(rows) for rows in zip(*rows_of.values(), strict=True))

    def own(row: int) -> tuple[str, int]:
        index = int(np.searchsorted(firsts, row, side="right")) - 1
        return names[index], row - firsts[index]

    def read(row: int) -> Array:
        task, image = own(row)
        return read_upright(sources[task].where(image))

    found: dict[str, list[Leak]] = {name: [] for name in names}
    pairs = [(TRAIN, train, np.concatenate([validation, test]))]
    for _, validated, tested in rows_of.values():
        pairs.append((VALIDATION, validated, tested))
    for split, rows, others in pairs:
        exact = same_pixels(together, rows, others)
        rest = np.array([row for row in rows.tolist() if row not in exact], dtype=np.int64)
        alike = copies(together, rest, others, read) if criterion == "similar" else {}
        for row, other in sorted({**exact, **alike}.items()):
            (task, image), (of_task, of_image) = own(row), own(other)
            found[task].append(Leak(image, split, of_task, of_image, row in exact))
    return found


def leak_notes(leaks: Sequence[Leak], sources: Mapping[str, ClassImages], task: str) -> list[str]:
    """Return the notes on the images that are left out of the splits of a task."""
    notes = []
    for split, name, held_out in ((TRAIN, "training", "validation or test"), (VALIDATION, "validation", "test")):
        own = [leak for leak in leaks if leak.split == split]
        if not own:
            continue
        exact = sum(leak.exact for leak in own)
        kinds = {"of the same pixels": exact, "saved anew or resized": len(own) - exact}
        of = Counter(leak.task for leak in own)
        where = ", ".join(f"{count} of {'its own' if of_task == task else of_task}" for of_task, count in of.items())
        first, other = sources[task].where(own[0].row), sources[own[0].task].where(own[0].other)
        notes.append(
            f"{len(own)} {name} images are left out, for they are {held_out} images as well ({where}; "
            f"{', '.join(f'{count} {kind}' for kind, count in kinds.items() if count)}); the first is {first}, as "
            f"{other}"
        )
    return notes
