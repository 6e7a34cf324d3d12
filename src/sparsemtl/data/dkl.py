"""DKL-like: three character sets with inputs of their own, one task each.

FSMTL (AAAI 2024) reports on a "DKL-mnist" of three tasks with heterogeneous inputs and does not say what is
in it. This is our reading: Digits (MNIST), Kuzushiji (KMNIST), Letters (EMNIST letters).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.images.mnist import (
    EMNIST_LETTERS,
    FASHION_MNIST,
    KMNIST,
    MNIST,
    held_out_note,
    size_notes,
)
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Natural

Source = Literal["mnist", "fashion-mnist", "kmnist", "emnist-letters"]
SOURCES = {source.name: source for source in (MNIST, FASHION_MNIST, KMNIST, EMNIST_LETTERS)}


@requires_files((MNIST.package, KMNIST.package, EMNIST_LETTERS.package), remark="Other parts can take their places.")
@checked
def dkl(
    *,
    root: str | Path | None = None,
    download: bool = False,
    digits: Source = "mnist",
    kuzushiji: Source = "kmnist",
    letters: Source = "emnist-letters",
    train_size: Count | None = None,
    test_size: Count | None = None,
    validation: ProperFraction = 0.1,
    seed: Natural = 0,
) -> TaskData:
    """DKL-like: digits, kuzushiji and letters, every task with images of its own.

    Tasks have the names that they have in their own data sets, also where a part is replaced: `digit`,
    `kuzushiji`, `letter`; `item` for Fashion-MNIST. No table then calls clothes kuzushiji.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        download: get absent files.
        digits: what stands in the first place.
        kuzushiji: what stands in the second place.
        letters: what stands in the third place.
        train_size: number of training images of every task; all that are not held out by default.
        test_size: number of test images of every task; all by default.
        validation: share of every official training set held out, in (0, 1).
        seed: of all draws.

    Raises:
        ParameterError: if two parts are the same.
        DataError: if a part's files are absent or damaged.
    """
    names = (digits, kuzushiji, letters)
    if len(set(names)) < len(names):
        raise ParameterError(f"the three parts of dkl must differ, got {', '.join(names)}.")
    train: dict[str, Split] = {}
    held_out: dict[str, Split] = {}
    test: dict[str, Split] = {}
    for name in names:
        task = SOURCES[name].task
        train[task], held_out[task], test[task] = SOURCES[name].splits(
            root=root,
            download=download,
            train_size=train_size,
            test_size=test_size,
            validation=validation,
            seed=seed,
        )
    return TaskData(
        "dkl",
        tuple(SOURCES[name].as_task() for name in names),
        train,
        held_out,
        test,
        notes=(
            f"DKL-like, our reading of an undefined data set: {', '.join(names)}",
            held_out_note(validation, seed),
            *size_notes(train_size, test_size),
        ),
    )
