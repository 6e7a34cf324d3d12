"""MultiMNIST and its relatives: two overlapping items per image, one task each.

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

from collections.abc import Callable
from math import ceil
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.images.mnist import FASHION_MNIST, MNIST, SIDE, LabelledImages, held_out_note, scaled
from sparsemtl.data.options import Download, ProperFraction, Root, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.splitting import hold_out, in_proportion
from sparsemtl.registry.parameters import Count, Natural
from sparsemtl.tasks import Classification

_CANVAS = 36
"""Height and width of an overlaid image in pixels."""
_OFFSET = _CANVAS - SIDE
"""Rows and columns by which the second item lies below and to the right of the first."""


def overlaid(name: str, left: LabelledImages, right: LabelledImages, *, about: str) -> Callable[..., TaskData]:
    """Make the function of a data set of pairs.

    Args:
        name: name of the data set.
        left: items at the top left.
        right: items at the bottom right.
        about: description, the function's docstring.
    """

    def build(
        *,
        root: Root = None,
        download: Download = False,
        train_size: Annotated[Count, Doc("Number of training pairs; those for validation are in proportion.")] = 60_000,
        test_size: Annotated[Count, Doc("Number of test pairs.")] = 10_000,
        validation: Annotated[
            ProperFraction, Doc("Fraction of the official training images held out for validation pairs.")
        ] = 0.1,
        size: Annotated[
            Literal[28, 36], Doc("Height and width in pixels; 28 resizes the canvas of 36, bilinearly.")
        ] = 36,
        seed: Annotated[
            Natural, Doc("Seed of all draws. A smaller number of pairs is the beginning of a larger one.")
        ] = 0,
    ) -> TaskData:
        first_train, first_test = left.read(root, download=download)
        second_train, second_test = (first_train, first_test) if left is right else right.read(root, download=download)
        first, first_held_out = hold_out(len(first_train), validation, seed=seed)
        second, second_held_out = hold_out(len(second_train), validation, seed=seed)
        held_out = first_train.select(first_held_out), second_train.select(second_held_out)

        def pairs(top: Split, bottom: Split, count: int) -> Split:
            return _overlay(top, bottom, _draw(count, len(top), len(bottom), seed), size)

        return TaskData(
            name,
            (Classification("left", left.classes), Classification("right", right.classes)),
            train=pairs(first_train.select(first), second_train.select(second), train_size),
            validation=pairs(*held_out, in_proportion(train_size, validation)),
            test=pairs(first_test, second_test, test_size),
            notes=(
                f"{train_size} training and {test_size} test pairs drawn with seed {seed}, not the papers' own",
                held_out_note(validation, seed),
            ),
        )

    build.__name__, build.__doc__ = name.replace("-", "_"), about
    packages = tuple(dict.fromkeys([left.package, right.package]))
    return requires_files(packages)(checked(build))


def _draw(count: int, left: int, right: int, seed: int) -> Tensor:
    """Draw `count` pairs of indices, shape (count, 2); sides are reshuffled when used up, so no item is rare."""
    generator = torch.Generator().manual_seed(seed)
    round_size = min(left, right)
    rounds = [
        torch.stack([torch.randperm(n, generator=generator)[:round_size] for n in (left, right)], dim=1)
        for _ in range(ceil(count / round_size))
    ]
    return torch.cat(rounds)[:count]


def _overlay(left: Split, right: Split, pairs: Tensor, size: int) -> Split:
    (left_task,), (right_task,) = left.targets, right.targets
    first, second = left.select(pairs[:, 0]), right.select(pairs[:, 1])
    canvas = first.x.new_zeros(len(pairs), _CANVAS, _CANVAS)
    canvas[:, :SIDE, :SIDE] = first.x
    corner = canvas[:, _OFFSET:, _OFFSET:]
    torch.maximum(corner, second.x, out=corner)
    x = scaled(canvas)
    if size != _CANVAS:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return Split(x, {"left": first.targets[left_task], "right": second.targets[right_task]})


_TASKS = ", top-left (task `left`) and bottom-right (task `right`)."
OVERLAID = {
    "multi-mnist": overlaid("multi-mnist", MNIST, MNIST, about=f"MultiMNIST: two overlapping digits{_TASKS}"),
    "multi-fashion": overlaid(
        "multi-fashion", FASHION_MNIST, FASHION_MNIST, about=f"Multi-Fashion: two overlapping clothes{_TASKS}"
    ),
    "multi-fashion-mnist": overlaid(
        "multi-fashion-mnist", MNIST, FASHION_MNIST, about=f"Multi-Fashion-MNIST: a digit and clothes{_TASKS}"
    ),
}
"""Registered name -> function of the data set."""
