"""scikit-learn's small digits, with four tasks of different kinds on every image. Nothing to download."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.options import checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.splitting import partition
from sparsemtl.errors import missing_extra
from sparsemtl.registry.parameters import Natural, Share
from sparsemtl.tasks import Classification, MultiLabel, Regression, Task

SHARES = (0.6, 0.2, 0.2)
"""Shares of training, validation and test."""
SHAPES = {"loop": (0, 6, 8, 9), "bar": (4, 5, 7), "stem": (1, 4, 9)}
"""Attribute -> digits that have it: a closed loop, a straight horizontal or a straight vertical stroke."""


@requires_files(remark="scikit-learn, in the extra `data`, brings the images along.")
@checked
def digits(
    *,
    root: Annotated[str | Path | None, Doc("Unused: scikit-learn brings the images along.")] = None,
    download: Annotated[bool, Doc("Unused: there is nothing to download.")] = False,
    missing: Annotated[
        Share,
        Doc(
            "Share of each task's training labels that are hidden at random: partially labelled data. Validation and "
            "test keep all labels."
        ),
    ] = 0.0,
    seed: Annotated[
        Natural, Doc("Seed of the split into 60 % training, 20 % validation, 20 % test, and of the hidden labels.")
    ] = 0,
) -> TaskData:
    """Digits: 1,797 images of 8x8 pixels with four tasks, from scikit-learn (Alpaydin and Kaynak 1998).

    The tasks are `digit` (10 classes), `parity` (even or odd), `shape` (whether a printed digit of the class
    has a loop, a horizontal bar, a vertical stem) and `slant` (how far this very image leans to the right, in
    columns per row, standardised to mean 0 and variance 1 in training). The first three follow from the class;
    the last does not.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    images, classes = _read()
    tasks: tuple[Task, ...] = (
        Classification("digit", 10),
        Classification("parity", ["even", "odd"]),
        MultiLabel("shape", list(SHAPES)),
        Regression("slant"),
    )
    rows = partition(len(images), SHARES, seed=seed)
    lean = slant(images.squeeze(1))
    spread, mean = torch.std_mean(lean[rows[0]], correction=0)
    targets = {
        "digit": classes,
        "parity": classes % 2,
        "shape": torch.stack([torch.isin(classes, torch.tensor(d)) for d in SHAPES.values()], dim=1).float(),
        "slant": (lean - mean) / spread,
    }
    train, validation, test = (Split(images, targets).select(part) for part in rows)
    notes = [f"60 % training, 20 % validation, 20 % test at random (seed {seed})"]
    if missing:
        notes.append(f"{missing:.4g} of the training labels of every task are hidden at random")
    return TaskData("digits", tasks, _hide(train, tasks, missing, seed), validation, test, tuple(notes))


def slant(images: Tensor) -> Tensor:
    """Return how far glyphs lean to the right: the regression of bright pixels' columns on their rows.

    Args:
        images: brightness, at least two rows lit in each, shape (N, H, W).

    Returns:
        columns to the right for each row up, shape (N,): the covariance of column and row over the variance of the row,
        negated because rows count downwards.
    """
    weights = images / images.sum((1, 2), keepdim=True)
    rows = torch.arange(images.shape[1], dtype=images.dtype)
    columns = torch.arange(images.shape[2], dtype=images.dtype)
    by_row, by_column = weights.sum(2), weights.sum(1)
    height = rows - (by_row @ rows)[:, None]
    breadth = columns - (by_column @ columns)[:, None]
    covariance = torch.einsum("nhw,nh,nw->n", weights, height, breadth)
    return -covariance / (by_row * height.square()).sum(1)


def _read() -> tuple[Tensor, Tensor]:
    """Return images in [0, 1], shape (1797, 1, 8, 8), and classes (1797,).

    `sklearn.datasets.load_digits` reads the same file; the import of scikit-learn takes 50 times as long.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise missing_extra("scikit-learn", "data", "the data set 'digits'")
    return _table(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz")


@functools.lru_cache(maxsize=1)
def _table(file: Path) -> tuple[Tensor, Tensor]:
    """Return the same from the file, read once per process; callers copy what they change."""
    table = torch.from_numpy(np.loadtxt(file, delimiter=",") if file.exists() else _from_sklearn())
    return table[:, :-1].float().view(-1, 1, 8, 8) / 16, table[:, -1].long()


def _from_sklearn() -> Any:
    """Return pixels and class per image, (1797, 65), from a scikit-learn that has the file elsewhere."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def _hide(split: Split, tasks: tuple[Task, ...], share: float, seed: int) -> Split:
    """Replace a share of every task's labels by that of an unknown one."""
    generator = torch.Generator().manual_seed(seed)
    targets = {name: labels.clone() for name, labels in split.targets.items()}
    for task in tasks:
        rows = torch.randperm(len(split), generator=generator)[: round(share * len(split))]
        targets[task.target][rows] = task.ignore_index if isinstance(task, Classification) else float("nan")
    return Split(split.x, targets)
