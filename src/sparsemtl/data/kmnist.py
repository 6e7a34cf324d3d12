"""Kuzushiji-MNIST: cursive Japanese characters in the format of MNIST (Clanuwat et al. 2018)."""

from __future__ import annotations

from pathlib import Path

from sparsemtl.data.base import TaskData
from sparsemtl.data.download import SeparateFiles
from sparsemtl.data.labelled import LabelledImages
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.registry.parameters import Count, Natural

KMNIST = LabelledImages(
    name="kmnist",
    task="kuzushiji",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    folder="KMNIST",
    origin=SeparateFiles(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        {
            "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
            "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
            "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
            "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
        },
    ),
    licence="CC BY-SA 4.0",
)


@requires_files((KMNIST.package,))
@checked
def kmnist(
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_size: Count | None = None,
    test_size: Count | None = None,
    validation: ProperFraction = 0.1,
    seed: Natural = 0,
) -> TaskData:
    """Kuzushiji-MNIST: 70,000 cursive Japanese characters, one task of 10 classes.

    Arguments are those of `LabelledImages.load`.
    """
    return KMNIST.load(
        root=root,
        download=download,
        train_size=train_size,
        test_size=test_size,
        validation=validation,
        seed=seed,
    )
