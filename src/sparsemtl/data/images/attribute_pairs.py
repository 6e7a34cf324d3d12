"""Eight yes/no attributes of a digit and a piece of clothing in one image: many small tasks on one input.

A small stand-in for sets of many attributes such as CelebA, made of real images. An attribute is a property of the
item's class, so that its labels are as good as those of MNIST and Fashion-MNIST. Attributes of one item go together,
those of different items have nothing in common but the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.images.mnist import FASHION_MNIST, MNIST
from sparsemtl.data.images.overlaid import OVERLAID
from sparsemtl.data.options import Download, ProperFraction, Root, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.registry.parameters import Count, Natural
from sparsemtl.tasks import Classification

ATTRIBUTES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "left": {"even": (0, 2, 4, 6, 8), "large": (5, 6, 7, 8, 9), "loop": (0, 6, 8, 9), "stem": (1, 4, 9)},
    "right": {"footwear": (5, 7, 9), "top": (0, 2, 4, 6), "sleeves": (2, 4, 6), "below-waist": (1, 5, 7, 9)},
}
"""Side of the image -> attribute -> classes of MNIST (left) or Fashion-MNIST (right) that have it."""


@requires_files((MNIST.package, FASHION_MNIST.package))
@checked
def pair_attributes(
    *,
    root: Root = None,
    download: Download = False,
    train_size: Annotated[Count, Doc("Number of training pairs; those for validation are in proportion.")] = 60_000,
    test_size: Annotated[Count, Doc("Number of test pairs.")] = 10_000,
    validation: Annotated[
        ProperFraction, Doc("Fraction of the official training images held out for validation pairs.")
    ] = 0.1,
    size: Annotated[Literal[28, 36], Doc("Height and width in pixels; 28 resizes the canvas of 36, bilinearly.")] = 36,
    seed: Annotated[Natural, Doc("Seed of all draws. A smaller number of pairs is the beginning of a larger one.")] = 0,
) -> TaskData:
    """Pair attributes: a digit and a piece of clothing overlaid, with eight yes/no tasks.

    Images are those of `multi-fashion-mnist`. Of the digit: `even`; `large`, 5 to 9; `loop`, a closed one as in 0, 6,
    8, 9; `stem`, a straight vertical stroke as in 1, 4, 9. Of the clothing: `footwear`; `top`, a T-shirt, pullover,
    coat or shirt; `sleeves`, those with long ones (pullover, coat, shirt); `below-waist`, trousers or footwear.
    """
    options = {"train_size": train_size, "test_size": test_size, "validation": validation, "size": size, "seed": seed}
    pairs = OVERLAID["multi-fashion-mnist"](root=root, download=download, **options)
    train, held_out, test = (_attributed(part) for part in (pairs.train, pairs.validation, pairs.test))
    names = [name for attributes in ATTRIBUTES.values() for name in attributes]
    tasks = tuple(Classification(name, ["no", "yes"]) for name in names)
    return TaskData("pair-attributes", tasks, train, held_out, test, notes=pairs.notes)


def _attributed(pairs: object) -> Split:
    """Return pairs with the attributes of their classes as labels."""
    assert isinstance(pairs, Split)
    labels: dict[str, Tensor] = {
        name: torch.isin(pairs.targets[side], torch.tensor(classes)).long()
        for side, attributes in ATTRIBUTES.items()
        for name, classes in attributes.items()
    }
    return Split(pairs.x, labels)
