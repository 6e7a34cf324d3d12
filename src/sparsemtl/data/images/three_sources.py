"""Three image sets with inputs of their own, one task each, of which nothing must be downloaded by hand.

A stand-in for FSMTL's DKL-mnist where KMNIST and EMNIST are not at hand: two sets of digits, which have much in common
though their images come from different sources, and one of clothes.
"""

from __future__ import annotations

import torch.nn.functional as F
from typing_extensions import Unpack

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.digits import digits
from sparsemtl.data.images.mnist import FASHION_MNIST, MNIST, SIDE, MnistOptions, split_notes
from sparsemtl.data.options import checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.tasks import Classification

SMALL = "small-digit"
"""Task of scikit-learn's digits."""


@requires_files(
    (MNIST.package, FASHION_MNIST.package), remark="scikit-learn, in the extra `data`, brings the small digits."
)
@checked
def three_sources(**options: Unpack[MnistOptions]) -> TaskData:
    """Three sources: digits of MNIST, clothes of Fashion-MNIST and scikit-learn's digits, each with images of its own.

    The tasks are `digit`, `item` and `small-digit`. Small digits, 8x8 pixels, are resized to 28x28, bilinearly; there
    are 1,078 for training, 360 for validation and 359 for the test, or as many as the sizes ask for.

    Raises:
        DataError: if files are absent or damaged.
        MissingExtraError: if scikit-learn is not installed.
    """
    parts = {source.task: source.splits(options) for source in (MNIST, FASHION_MNIST)}
    small = digits(seed=options["seed"])
    sizes = (options["train_size"], None, options["test_size"])
    resized = [
        _resized(split, size) for split, size in zip((small.train, small.validation, small.test), sizes, strict=True)
    ]
    train, held_out, test = (
        {**{task: of[number] for task, of in parts.items()}, SMALL: resized[number]} for number in range(3)
    )
    tasks = (MNIST.as_task(), FASHION_MNIST.as_task(), Classification(SMALL, MNIST.classes))
    notes = (*split_notes(options), f"{SMALL}: {len(resized[0])} training images, resized from 8x8 to {SIDE}x{SIDE}")
    return TaskData("three-sources", tasks, train, held_out, test, notes=notes)


def _resized(split: object, size: int | None) -> Split:
    """Return the first samples of a split of small digits, resized."""
    assert isinstance(split, Split)
    x = F.interpolate(split.x[:size], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return Split(x, {SMALL: split.targets["digit"][:size]})
