"""What MNIST and its relatives have in common: 28x28 grey images with one label each, in four idx files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.download import Origin
from sparsemtl.data.idx import read_idx
from sparsemtl.data.options import ROOT_VARIABLE, resolve_root
from sparsemtl.data.requirements import Expected, Package
from sparsemtl.data.splitting import hold_out, shuffled
from sparsemtl.errors import DataError
from sparsemtl.tasks import Classification

SIDE = 28
"""Pixels of an image's side."""


@dataclass(frozen=True)
class LabelledImages:
    """A data set of images with one label each, and where its files are.

    Attributes:
        name: the data set's name.
        task: name of its task.
        classes: names of the classes.
        folder: folder under the root; the files lie in its `raw`, as torchvision puts them.
        files: of the training images, training labels, test images and test labels, without .gz.
        origin: where the files, with .gz, can be got.
        licence: under which terms.
        first_label: the label of the first class in the files.
        transposed: the files hold columns of pixels instead of rows.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    folder: str
    origin: Origin
    licence: str
    files: tuple[str, str, str, str] = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    first_label: int = 0
    transposed: bool = False

    @property
    def package(self) -> Package:
        """What it needs on disk."""
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

    def locate(self, root: str | Path | None, *, download: bool) -> tuple[Path, Path, Path, Path]:
        """Find the four files, plain or gzipped, downloading those that are absent if allowed.

        Raises:
            DataError: if one is absent, with what was looked for, where, and how to get it.
        """
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
        train_images, train_labels, test_images, test_labels = found
        return train_images, train_labels, test_images, test_labels

    def read(self, root: str | Path | None, *, download: bool) -> tuple[RawImages, RawImages]:
        """Read the training and the test images.

        Raises:
            DataError: if a file is absent, damaged or does not fit the others.
        """
        train_images, train_labels, test_images, test_labels = self.locate(root, download=download)
        return self._pair(train_images, train_labels), self._pair(test_images, test_labels)

    def _pair(self, images: Path, labels: Path) -> RawImages:
        pixels, classes = read_idx(images, ndim=3), read_idx(labels, ndim=1).long() - self.first_label
        if pixels.shape[1:] != (SIDE, SIDE):
            raise DataError(f"{images} has images of {pixels.shape[1]}x{pixels.shape[2]} pixels, not {SIDE}x{SIDE}.")
        if len(pixels) != len(classes) or len(pixels) == 0:
            raise DataError(f"{images} has {len(pixels)} images, {labels} {len(classes)} labels.")
        wrong = classes[(classes < 0) | (classes >= len(self.classes))]
        if len(wrong):
            last = self.first_label + len(self.classes) - 1
            raise DataError(
                f"{labels} has a label {int(wrong[0]) + self.first_label}; those of {self.name} are "
                f"{self.first_label} .. {last}."
            )
        return RawImages(pixels.mT if self.transposed else pixels, classes)

    def load(
        self,
        *,
        root: str | Path | None,
        download: bool,
        train_size: int | None,
        test_size: int | None,
        validation: float,
        seed: int,
    ) -> TaskData:
        """Read, split and scale: one classification task.

        Args:
            root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
            download: get absent files.
            train_size: number of training images; all that are not held out by default. Fewer hold out
                proportionally fewer for validation.
            test_size: number of test images, drawn by the seed; all by default.
            validation: share of the official training images held out, in (0, 1).
            seed: of all draws.
        """
        train, held_out, test = self.splits(
            root=root,
            download=download,
            train_size=train_size,
            test_size=test_size,
            validation=validation,
            seed=seed,
        )
        notes = (held_out_note(validation, seed), *size_notes(train_size, test_size))
        return TaskData(self.name, (self.as_task(),), train, held_out, test, notes)

    def as_task(self) -> Classification:
        """The task of telling the classes apart."""
        return Classification(self.task, self.classes)

    def splits(
        self,
        *,
        root: str | Path | None,
        download: bool,
        train_size: int | None,
        test_size: int | None,
        validation: float,
        seed: int,
    ) -> tuple[Split, Split, Split]:
        """Training, validation and test images; arguments are those of `load`."""
        train, test = self.read(root, download=download)
        rows, held_out = hold_out(len(train), validation, seed=seed, train_size=train_size)
        tested = subset(len(test), test_size, seed=seed, what=f"the test images of {self.name}")
        return (
            self._split(train.select(rows)),
            self._split(train.select(held_out)),
            self._split(test.select(tested)),
        )

    def _split(self, images: RawImages) -> Split:
        return Split(scaled(images.pixels), {self.task: images.classes})


@dataclass(frozen=True, eq=False)
class RawImages:
    """Images as the files hold them.

    Attributes:
        pixels: uint8, shape (N, 28, 28).
        classes: int64 from 0, shape (N,).
    """

    pixels: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, rows: Tensor) -> RawImages:
        """The images at these indices, in their order."""
        return RawImages(self.pixels[rows], self.classes[rows])


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def scaled(pixels: Tensor) -> Tensor:
    """Bytes (N, H, W) as floats in [0, 1] with a channel, (N, 1, H, W)."""
    return pixels.unsqueeze(1).float().div_(255)


def subset(count: int, size: int | None, *, seed: int, what: str) -> Tensor:
    """Indices, ascending, of `size` of `count` samples drawn by the seed; of all if `size` is None."""
    if size is not None and size > count:
        raise DataError(f"{size} of {what} were asked for, there are {count}.")
    return shuffled(count, seed)[:size].sort().values


def held_out_note(validation: float, seed: int) -> str:
    """Say how validation images were chosen."""
    return (
        f"validation: the last {100 * validation:.4g} % of a permutation (seed {seed}) of the official "
        "training images; test: the official test images"
    )


def size_notes(train_size: int | None, test_size: int | None) -> tuple[str, ...]:
    """Say where a part of the images was not used."""
    trained = f"only {train_size} training images a task, validation in proportion"
    tested = f"only {test_size} test images a task"
    return (*([trained] if train_size else []), *([tested] if test_size else []))
