"""DKL-like: three character sets with inputs of their own, one task each.

FSMTL (AAAI 2024) reports on a "DKL-mnist" of three tasks with heterogeneous inputs and does not say what is
in it. This is our reading: Digits (MNIST), Kuzushiji (KMNIST), Letters (EMNIST letters).
"""

from __future__ import annotations

from typing import Annotated, Literal

from typing_extensions import Doc, Unpack

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.mnist import EMNIST_LETTERS, FASHION_MNIST, KMNIST, MNIST, MnistOptions, split_notes
from sparsemtl.data.options import checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.errors import ParameterError

Source = Literal["mnist", "fashion-mnist", "kmnist", "emnist-letters"]
SOURCES = {source.name: source for source in (MNIST, FASHION_MNIST, KMNIST, EMNIST_LETTERS)}


@requires_files((MNIST.package, KMNIST.package, EMNIST_LETTERS.package), remark="Other parts can take their places.")
@checked
def dkl(
    *,
    digits: Annotated[Source, Doc("Data set of the first task.")] = "mnist",
    kuzushiji: Annotated[Source, Doc("Data set of the second task.")] = "kmnist",
    letters: Annotated[Source, Doc("Data set of the third task.")] = "emnist-letters",
    **options: Unpack[MnistOptions],
) -> TaskData:
    """DKL-like: digits, kuzushiji and letters, every task with images of its own.

    Tasks have the names that they have in their own data sets, also where a part is replaced: `digit`,
    `kuzushiji`, `letter`; `item` for Fashion-MNIST. No table then calls clothes kuzushiji.

    Raises:
        ParameterError: if two parts are the same.
        DataError: if a part's files are absent or damaged.
    """
    names = (digits, kuzushiji, letters)
    if len(set(names)) < len(names):
        raise ParameterError(f"the three parts of dkl must differ, got {', '.join(names)}.")
    splits = {SOURCES[name].task: SOURCES[name].splits(options) for name in names}
    train, held_out, test = ({task: of[part] for task, of in splits.items()} for part in range(3))
    return TaskData(
        "dkl",
        tuple(SOURCES[name].as_task() for name in names),
        train,
        held_out,
        test,
        notes=(f"DKL-like, our reading of an undefined data set: {', '.join(names)}", *split_notes(options)),
    )
