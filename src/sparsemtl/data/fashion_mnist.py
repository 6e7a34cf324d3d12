"""Fashion-MNIST: clothes in the format of MNIST (Xiao, Rasul and Vollgraf 2017)."""

from __future__ import annotations

from pathlib import Path

from sparsemtl.data.base import TaskData
from sparsemtl.data.download import SeparateFiles
from sparsemtl.data.labelled import LabelledImages
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.registry.parameters import Count, Natural

FASHION_MNIST = LabelledImages(
    name="fashion-mnist",
    task="item",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    folder="FashionMNIST",
    origin=SeparateFiles(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    licence="MIT",
)


@requires_files((FASHION_MNIST.package,))
@checked
def fashion_mnist(
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_size: Count | None = None,
    test_size: Count | None = None,
    validation: ProperFraction = 0.1,
    seed: Natural = 0,
) -> TaskData:
    """Fashion-MNIST: 70,000 pictures of clothes, one task of 10 classes.

    Arguments are those of `LabelledImages.load`.
    """
    return FASHION_MNIST.load(
        root=root,
        download=download,
        train_size=train_size,
        test_size=test_size,
        validation=validation,
        seed=seed,
    )
