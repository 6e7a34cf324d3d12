"""MNIST: handwritten digits (LeCun, Cortes and Burges 1998)."""

from __future__ import annotations

from pathlib import Path

from sparsemtl.data.base import TaskData
from sparsemtl.data.download import SeparateFiles
from sparsemtl.data.labelled import LabelledImages
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.registry.parameters import Count, Natural

MNIST = LabelledImages(
    name="mnist",
    task="digit",
    classes=tuple("0123456789"),
    folder="MNIST",
    origin=SeparateFiles(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        mirrors=("http://yann.lecun.com/exdb/mnist/",),
    ),
    licence="none is stated; commonly redistributed under CC BY-SA 3.0",
)


@requires_files((MNIST.package,))
@checked
def mnist(
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_size: Count | None = None,
    test_size: Count | None = None,
    validation: ProperFraction = 0.1,
    seed: Natural = 0,
) -> TaskData:
    """MNIST: 70,000 handwritten digits, one task of 10 classes.

    Arguments are those of `LabelledImages.load`.
    """
    return MNIST.load(
        root=root,
        download=download,
        train_size=train_size,
        test_size=test_size,
        validation=validation,
        seed=seed,
    )
