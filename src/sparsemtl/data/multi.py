"""MultiMNIST and its relatives: two overlapping items in one image, one task each.

Sabour et al. (2017) overlaid digits; Sener and Koltun (2018) made two tasks of it, the top-left digit and the
bottom-right one; Lin et al. (2019) added Fashion-MNIST. Each drew pairs of its own; here a seed draws them.

Differences from the papers:
- Items lie in the corners of a 36x36 canvas, 8 pixels apart, and the brighter pixel stays where they overlap.
  Lin et al. publish 36x36 images without the code that made them. Sener and Koltun's code moves the second
  item by 6 pixels and resizes to 28x28, nearest neighbour. Sabour et al. move each digit by up to 4 pixels.
- Both items of a pair may be of one class, as in Sener and Koltun; Sabour et al. pair different classes.
- Validation pairs are drawn from images that are in no training pair; the papers have no validation set.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.fashion_mnist import FASHION_MNIST
from sparsemtl.data.labelled import SIDE, LabelledImages, RawImages, held_out_note, scaled
from sparsemtl.data.mnist import MNIST
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.splitting import hold_out, in_proportion
from sparsemtl.registry.parameters import Count, Natural
from sparsemtl.tasks import Classification

CANVAS = 36
"""Pixels of an overlaid image's side."""
OFFSET = CANVAS - SIDE
"""Rows and columns by which the second item lies below and to the right of the first."""


@requires_files((MNIST.package,))
@checked
def multi_mnist(
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_size: Count = 60_000,
    test_size: Count = 10_000,
    validation: ProperFraction = 0.1,
    size: Literal[28, 36] = 36,
    seed: Natural = 0,
) -> TaskData:
    """MultiMNIST: two overlapping digits, top-left (task `left`) and bottom-right (task `right`).

    Arguments are those of `overlaid`.
    """
    return overlaid(
        "multi-mnist",
        MNIST,
        MNIST,
        root=root,
        download=download,
        train_size=train_size,
        test_size=test_size,
        validation=validation,
        size=size,
        seed=seed,
    )


@requires_files((FASHION_MNIST.package,))
@checked
def multi_fashion(
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_size: Count = 60_000,
    test_size: Count = 10_000,
    validation: ProperFraction = 0.1,
    size: Literal[28, 36] = 36,
    seed: Natural = 0,
) -> TaskData:
    """Multi-Fashion: two overlapping clothes, top-left (task `left`) and bottom-right (task `right`).

    Arguments are those of `overlaid`.
    """
    return overlaid(
        "multi-fashion",
        FASHION_MNIST,
        FASHION_MNIST,
        root=root,
        download=download,
        train_size=train_size,
        test_size=test_size,
        validation=validation,
        size=size,
        seed=seed,
    )


@requires_files((MNIST.package, FASHION_MNIST.package))
@checked
def multi_fashion_mnist(
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_size: Count = 60_000,
    test_size: Count = 10_000,
    validation: ProperFraction = 0.1,
    size: Literal[28, 36] = 36,
    seed: Natural = 0,
) -> TaskData:
    """Multi-Fashion-MNIST: a digit top-left (task `left`), clothes bottom-right (task `right`).

    Arguments are those of `overlaid`.
    """
    return overlaid(
        "multi-fashion-mnist",
        MNIST,
        FASHION_MNIST,
        root=root,
        download=download,
        train_size=train_size,
        test_size=test_size,
        validation=validation,
        size=size,
        seed=seed,
    )


def overlaid(
    name: str,
    left: LabelledImages,
    right: LabelledImages,
    *,
    root: str | Path | None,
    download: bool,
    train_size: int,
    test_size: int,
    validation: float,
    size: int,
    seed: int,
) -> TaskData:
    """Draw pairs of images and lay them over each other.

    Args:
        name: of the data set.
        left: the items at the top left.
        right: the items at the bottom right.
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        download: get absent files.
        train_size: number of training pairs; those for validation are in proportion.
        test_size: number of test pairs.
        validation: share of the official training images held out for validation pairs, in (0, 1).
        size: pixels of a side; 28 resizes the canvas of 36 (bilinear).
        seed: of all draws. A smaller number of pairs is the beginning of a larger one.
    """
    first_train, first_test = left.read(root, download=download)
    second_train, second_test = (first_train, first_test) if left is right else right.read(root, download=download)
    first, first_held_out = hold_out(len(first_train), validation, seed=seed)
    second, second_held_out = hold_out(len(second_train), validation, seed=seed)

    def pairs(top: RawImages, bottom: RawImages, count: int) -> Split:
        return _overlay(top, bottom, _draw(count, len(top), len(bottom), seed), size)

    return TaskData(
        name,
        (Classification("left", left.classes), Classification("right", right.classes)),
        train=pairs(first_train.select(first), second_train.select(second), train_size),
        validation=pairs(
            first_train.select(first_held_out),
            second_train.select(second_held_out),
            in_proportion(train_size, validation),
        ),
        test=pairs(first_test, second_test, test_size),
        notes=(
            f"{train_size} training and {test_size} test pairs drawn with seed {seed}, not the papers' own",
            held_out_note(validation, seed),
        ),
    )


def _draw(count: int, left: int, right: int, seed: int) -> Tensor:
    """Indices of `count` pairs, shape (count, 2); sides are reshuffled when used up, so no item is rare."""
    generator = torch.Generator().manual_seed(seed)
    round_size = min(left, right)
    rounds = [
        torch.stack([torch.randperm(n, generator=generator)[:round_size] for n in (left, right)], dim=1)
        for _ in range(ceil(count / round_size))
    ]
    return torch.cat(rounds)[:count]


def _overlay(left: RawImages, right: RawImages, pairs: Tensor, size: int) -> Split:
    first, second = left.select(pairs[:, 0]), right.select(pairs[:, 1])
    canvas = first.pixels.new_zeros(len(pairs), CANVAS, CANVAS)
    canvas[:, :SIDE, :SIDE] = first.pixels
    corner = canvas[:, OFFSET:, OFFSET:]
    torch.maximum(corner, second.pixels, out=corner)
    x = scaled(canvas)
    if size != CANVAS:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return Split(x, {"left": first.classes, "right": second.classes})
