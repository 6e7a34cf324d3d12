"""EMNIST letters: handwritten letters, both cases in one class (Cohen et al. 2017)."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase

from sparsemtl.data.base import TaskData
from sparsemtl.data.download import ZipArchive
from sparsemtl.data.labelled import LabelledImages
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.registry.parameters import Count, Natural

EMNIST_LETTERS = LabelledImages(
    name="emnist-letters",
    task="letter",
    classes=tuple(ascii_lowercase),
    folder="EMNIST",
    files=(
        "emnist-letters-train-images-idx3-ubyte",
        "emnist-letters-train-labels-idx1-ubyte",
        "emnist-letters-test-images-idx3-ubyte",
        "emnist-letters-test-labels-idx1-ubyte",
    ),
    origin=ZipArchive(
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
        md5="58c8d27c78d21e728a6bc7b3cc06412e",
        inside="gzip",
    ),
    licence="NIST's, in the public domain",
    first_label=1,
    transposed=True,
)


@requires_files((EMNIST_LETTERS.package,))
@checked
def emnist_letters(
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_size: Count | None = None,
    test_size: Count | None = None,
    validation: ProperFraction = 0.1,
    seed: Natural = 0,
) -> TaskData:
    """EMNIST letters: 145,600 handwritten letters, one task of 26 classes.

    The download is the whole of EMNIST, about half a gigabyte, of which the four files of the letters are
    kept. Arguments are those of `LabelledImages.load`.
    """
    return EMNIST_LETTERS.load(
        root=root,
        download=download,
        train_size=train_size,
        test_size=test_size,
        validation=validation,
        seed=seed,
    )
