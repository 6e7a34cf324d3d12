"""The loader of photographs with labels: layouts of files, and the data set that is made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

from torch import Tensor
from typing_extensions import Doc

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.images.maps import ImageSource
from sparsemtl.data.images.pictures import Size
from sparsemtl.data.lazy import LazySplit, Memory, Workers
from sparsemtl.data.options import ProperFraction, Root
from sparsemtl.data.requirements import Package
from sparsemtl.data.splitting import hold_out
from sparsemtl.errors import DataError
from sparsemtl.registry.parameters import Default, Natural
from sparsemtl.tasks import Task


class DecodingOptions(TypedDict, total=False):
    """Options of all data sets of photographs with labels."""

    root: Annotated[Root, Default(None)]
    workers: Annotated[Workers, Default(None)]
    memory: Annotated[Memory, Default(1.0)]


class LayoutOptions(DecodingOptions, total=False):
    """Options of the data sets of which several layouts are in use."""

    size: Annotated[
        Size, Default(None), Doc("Height and width in pixels, or the shorter side; by default as in the files.")
    ]
    validation: Annotated[
        ProperFraction,
        Default(0.1),
        Doc("Fraction of the training images held out, where no list names validation images."),
    ]
    seed: Annotated[Natural, Default(0), Doc("Seed of the images held out.")]


@dataclass(frozen=True)
class Photos:
    """Photographs of a data set."""

    tasks: Mapping[str, Task]  # target -> task, for all targets that the data set may have
    train: ImageSource
    test: ImageSource
    validation: ImageSource | None = None  # held out from the training images if there are none
    tested: str = "the official test images"  # note on the test images
    validated: str = ""  # note on the validation images, where there are any


@dataclass(frozen=True)
class PhotoLayout:
    """Layout of a data set's files."""

    package: Package
    folder: str  # folder of the files under the root
    marker: str  # path in the folder that exists if the files are there
    read: Callable[..., Photos]  # called with the folder and the data set's further arguments


def find_layout(name: str, layouts: Mapping[str, PhotoLayout], layout: str, root: Path) -> PhotoLayout:
    """Return the first layout whose files are there.

    Args:
        name: registered name of the data set.
        layouts: name -> layout.
        layout: name of a layout, or "auto" for any.
        root: folder under which data sets lie.
    """
    kinds = list(layouts.values()) if layout == "auto" else [layouts[layout]]
    for kind in kinds:
        if (root / kind.folder / kind.marker).exists():
            return kind
    raise absent(name, root, [f"{kind.folder}/{kind.marker}" for kind in kinds], one_of=len(kinds) > 1)


def photo_data(
    name: str, kind: PhotoLayout, photos: Photos, official: Sequence[int], options: LayoutOptions
) -> TaskData:
    """Return the data set of photographs.

    Args:
        name: registered name of the data set.
        kind: layout of the files.
        photos: photographs.
        official: official numbers of training and test images.
        options: options of the data set.
    """
    targets = photos.train.targets
    if not targets:
        raise DataError(f"{name}: there are images, and no labels of any kind for them.")
    if targets != photos.test.targets:
        raise DataError(
            f"{name}: training images have {', '.join(targets)}; test images {', '.join(photos.test.targets)}."
        )

    def lazy(source: ImageSource) -> LazySplit:
        return LazySplit.of(source, workers=options["workers"], memory=options["memory"])

    train, test = lazy(photos.train), lazy(photos.test)
    counts = {"training images": len(train), "test images": len(test)}
    if photos.validation is None:
        validation, seed = options["validation"], options["seed"]
        rows, held_out = hold_out(len(train), validation, seed=seed)
        train, validating = train.select(rows), train.select(held_out)
        chosen = f"{100 * validation:.4g} % of the official training images, at random (seed {seed})"
    else:
        validating, chosen = lazy(photos.validation), photos.validated
    notes = (
        f"read from {kind.folder} ({kind.package.title})",
        f"validation: {chosen}; test: {photos.tested}",
        *counted(counts, dict(zip(counts, official, strict=True))),
    )
    tasks = tuple(task for target, task in photos.tasks.items() if target in targets)
    return TaskData(name, tasks, train, validating, test, notes)


def partitioned(
    name: str,
    tasks: tuple[Task, ...],
    source: ImageSource,
    rows: Sequence[Tensor],
    options: DecodingOptions,
    notes: Sequence[str],
) -> TaskData:
    """Return the data set of photographs of one source.

    Args:
        name: registered name of the data set.
        tasks: tasks.
        source: photographs.
        rows: rows of the training, validation and test images.
        options: options of the data set.
        notes: notes of the data set.
    """
    whole = LazySplit.of(source, workers=options["workers"], memory=options["memory"])
    train, validation, test = (whole.select(part) for part in rows)
    return TaskData(name, tasks, train, validation, test, tuple(notes))
