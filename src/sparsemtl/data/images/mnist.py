"""MNIST and its relatives: grey images of 28x28 pixels with one label each, in four idx files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Annotated, TypedDict

from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.download import Origin, SeparateFiles, ZipArchive
from sparsemtl.data.images.idx import read_idx
from sparsemtl.data.options import ROOT_VARIABLE, Download, ProperFraction, Root, checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.data.splitting import hold_out, shuffled
from sparsemtl.errors import DataError
from sparsemtl.registry.parameters import Count, Default, Natural
from sparsemtl.tasks import Classification

SIDE = 28
"""Height and width of an image in pixels."""


class MnistOptions(TypedDict, total=False):
    """Options of the data sets of the MNIST family."""

    root: Annotated[Root, Default(None)]
    download: Annotated[Download, Default(False)]
    train_size: Annotated[
        Count | None,
        Default(None),
        Doc(
            "Number of training images per task; all that are not held out by default. Fewer hold out proportionally "
            "fewer for validation."
        ),
    ]
    test_size: Annotated[
        Count | None, Default(None), Doc("Number of test images per task, drawn by the seed; all by default.")
    ]
    validation: Annotated[ProperFraction, Default(0.1), Doc("Fraction of the official training images held out.")]
    seed: Annotated[Natural, Default(0), Doc("Seed of all draws.")]


@dataclass(frozen=True)
class LabelledImages:
    """Declaration of a data set of images with one label each."""

    name: str
    about: str  # docstring of the data set's function
    task: str
    classes: tuple[str, ...]
    folder: str  # folder under the root; the files lie in its `raw`, as in torchvision
    origin: Origin  # address of the files, with .gz
    licence: str
    files: tuple[str, ...] = (  # training images and labels, test images and labels, without .gz
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    first_label: int = 0  # label of the first class in the files
    transposed: bool = False  # the files hold columns of pixels instead of rows

    @property
    def package(self) -> Package:
        """Files that the data set needs."""
        raw = f"{self.folder}/raw"
        kinds = ("training images", "training labels", "test images", "test labels")
        return Package(
            self.name,
            tuple(
                Expected(kind, (f"{raw}/{name}", f"{raw}/{name}.gz"), 1)
                for kind, name in zip(kinds, self.files, strict=True)
            ),
            source=self.origin.address,
            licence=self.licence,
            get=f"set `download: true` in the configuration (download=True in Python), or put the files into {raw}",
        )

    def read(self, root: str | Path | None, *, download: bool) -> tuple[Split, Split]:
        """Read the training and the test images: bytes (N, 28, 28), and classes from 0."""
        folder = resolve_root(root) / self.folder / "raw"
        absent = [name for name in self.files if _find(folder, name) is None]
        if absent and download:
            self.origin.fetch(folder, [f"{name}.gz" for name in absent])
        found = [path for name in self.files if (path := _find(folder, name))]
        if len(found) < len(self.files):
            raise DataError(
                f"{self.name}: {folder.absolute()} lacks {', '.join(absent)}, plain or as .gz. "
                "Set `download: true` in the configuration (download=True in Python) to get what is absent "
                f"from {self.origin.address}, or let `root` or {ROOT_VARIABLE} name the folder that holds "
                f"{self.folder}/raw."
            )
        return self._pair(found[0], found[1]), self._pair(found[2], found[3])

    def _pair(self, images: Path, labels: Path) -> Split:
        pixels, classes = read_idx(images, ndim=3), read_idx(labels, ndim=1).long() - self.first_label
        if pixels.shape[1:] != (SIDE, SIDE):
            raise DataError(f"{images} has images of {pixels.shape[1]}x{pixels.shape[2]} pixels, not {SIDE}x{SIDE}.")
        if len(pixels) != len(classes) or len(pixels) == 0:
            raise DataError(f"{images} has {len(pixels)} images, {labels} {len(classes)} labels.")
        wrong = classes[(classes < 0) | (classes >= len(self.classes))]
        if len(wrong):
            raise DataError(
                f"{labels} has a label {int(wrong[0]) + self.first_label}; those of {self.name} are "
                f"{self.first_label} .. {self.first_label + len(self.classes) - 1}."
            )
        return Split(pixels.mT if self.transposed else pixels, {self.task: classes})

    def as_task(self) -> Classification:
        """Return the classification of the images."""
        return Classification(self.task, self.classes)

    def splits(self, options: MnistOptions) -> tuple[Split, Split, Split]:
        """Return training, validation and test images."""
        train, test = self.read(options["root"], download=options["download"])
        if (size := options["test_size"]) is not None and size > len(test):
            raise DataError(f"{size} of the test images of {self.name} were asked for, there are {len(test)}.")
        seed = options["seed"]
        rows, held_out = hold_out(len(train), options["validation"], seed=seed, train_size=options["train_size"])
        chosen = train.select(rows), train.select(held_out), test.select(shuffled(len(test), seed)[:size].sort().values)
        first, second, third = (Split(scaled(some.x), some.targets) for some in chosen)
        return first, second, third


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def scaled(pixels: Tensor) -> Tensor:
    """Convert bytes (N, H, W) to floats in [0, 1] with a channel, (N, 1, H, W)."""
    return pixels.unsqueeze(1).float().div_(255)


def held_out_note(validation: float, seed: int) -> str:
    """Return the note on the choice of the validation images."""
    return (
        f"validation: the last {100 * validation:.4g} % of a permutation (seed {seed}) of the official "
        "training images; test: the official test images"
    )


def split_notes(options: MnistOptions) -> list[str]:
    """Return the notes on the splits and on images that were not used."""
    notes = [held_out_note(options["validation"], options["seed"])]
    if train_size := options["train_size"]:
        notes.append(f"only {train_size} training images per task, validation in proportion")
    if test_size := options["test_size"]:
        notes.append(f"only {test_size} test images per task")
    return notes


def _labelled_images(images: LabelledImages) -> Callable[..., TaskData]:
    """Make the data set's function, which reads, splits and scales the images: one classification task."""

    def build(**options: Unpack[MnistOptions]) -> TaskData:
        return TaskData(images.name, (images.as_task(),), *images.splits(options), tuple(split_notes(options)))

    build.__name__, build.__doc__ = images.name.replace("-", "_"), images.about
    return requires_files((images.package,))(checked(build))


MNIST = LabelledImages(
    name="mnist",
    about="MNIST: 70,000 handwritten digits, one task of 10 classes (LeCun, Cortes and Burges 1998).",
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
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_MNIST = LabelledImages(
    name="fashion-mnist",
    about="Fashion-MNIST: 70,000 pictures of clothes, one task of 10 classes (Xiao, Rasul and Vollgraf 2017).",
    task="item",
    classes=_CLOTHES,
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
KMNIST = LabelledImages(
    name="kmnist",
    about="Kuzushiji-MNIST: 70,000 cursive Japanese characters, one task of 10 classes (Clanuwat et al. 2018).",
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
_KINDS = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
EMNIST_LETTERS = LabelledImages(
    name="emnist-letters",
    about="EMNIST letters: 145,600 handwritten letters, one task of 26 classes (Cohen et al. 2017).\n\n"
    "The download is the whole of EMNIST, about half a gigabyte, of which the four files of the letters are kept.",
    task="letter",
    classes=tuple(ascii_lowercase),
    folder="EMNIST",
    origin=ZipArchive(
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", md5="58c8d27c78d21e728a6bc7b3cc06412e", inside="gzip"
    ),
    licence="NIST's, in the public domain",
    files=tuple(
        f"emnist-letters-{p}-{kind}-ubyte" for p in ("train", "test") for kind in ("images-idx3", "labels-idx1")
    ),
    first_label=1,
    transposed=True,
)
MNIST_FAMILY = {images.name: _labelled_images(images) for images in (MNIST, FASHION_MNIST, KMNIST, EMNIST_LETTERS)}
"""Registered name -> function of the data set."""
