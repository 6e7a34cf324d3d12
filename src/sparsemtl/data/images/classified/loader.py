"""The loader of class folders: options, splits without leaks, and the data set of one or several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, TypedDict, cast

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.classified.cache import ImageCache
from sparsemtl.data.images.classified.duplicates import Fingerprints
from sparsemtl.data.images.classified.leaks import Deduplicate, Leak, find_leaks, leak_notes
from sparsemtl.data.images.classified.listing import TEST, TRAIN, VALIDATION, Listing
from sparsemtl.data.images.classified.source import ClassImages, Form
from sparsemtl.data.images.pictures import Size
from sparsemtl.data.lazy import LazySplit, Memory, Workers
from sparsemtl.data.options import ProperFraction, Root, resolve_root
from sparsemtl.data.splitting import by_class
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.registry.parameters import Default, Natural
from sparsemtl.tasks import Classification

FOLDER = "pictures"
"""Folder under the root for the caches of decoded images."""
SPLITS = ("training", "validation", "test")


class ImageOptions(TypedDict, total=False):
    """Options of all data sets of class folders."""

    root: Annotated[Root, Default(None)]
    size: Annotated[
        Size,
        Default(64),
        Doc(
            "Side in pixels of the square that is cut out of the middle of an image; or height and width, to which "
            "images are squeezed."
        ),
    ]
    grey: Annotated[bool, Default(False), Doc("One channel instead of three.")]
    skip_broken: Annotated[
        bool,
        Default(False),
        Doc("Leave out images that cannot be decoded, with a note; else reading such an image raises an error."),
    ]
    deduplicate: Annotated[
        Deduplicate,
        Default("similar"),
        Doc(
            "Leave out training images that validate or test any task, and validation images that test the same task, "
            "with a note. `similar`: equal pixels, or a copy that was saved anew or resized; `exact`: equal pixels, "
            "whatever the file; `none`: keep all images. All images are decoded once to find them."
        ),
    ]
    cache: Annotated[
        bool,
        Default(True),
        Doc("Keep decoded images on disk, in `pictures` under `root`, one byte per pixel and channel."),
    ]
    workers: Annotated[Workers, Default(None)]
    memory: Annotated[Memory, Default(1.0)]
    seed: Annotated[Natural, Default(0), Doc("Seed of the split.")]


class SplitOptions(ImageOptions, total=False):
    """Options of the data sets that have no official split."""

    split: Annotated[
        Sequence[ProperFraction],
        Default((0.7, 0.15, 0.15)),
        Doc(
            "Fractions of training, validation and test images, per class. Where the test images have a folder of "
            "their own and the validation images none, the first two determine the fraction that is held out of the "
            "training images."
        ),
    ]


@dataclass(frozen=True)
class _TaskImages:
    """Images of a task and their splits."""

    source: ClassImages
    prints: Fingerprints | None  # where they are known already
    rows: list[Tensor]  # of training, validation and test images
    notes: list[str]  # on the splits


def one_task(
    name: str, listing: Listing, options: ImageOptions, fractions: Sequence[float], notes: Sequence[str] = ()
) -> TaskData:
    """Return a data set of one task.

    Args:
        name: name of the data set.
        listing: images of the task.
        options: options of the data set.
        fractions: fractions of the splits; see `SplitOptions`.
        notes: further notes of the data set.
    """
    data = several_tasks(name, [listing], options, fractions, notes)
    splits = (cast("Mapping[str, LazySplit]", part) for part in (data.train, data.validation, data.test))
    train, validation, test = (split[listing.name] for split in splits)
    return TaskData(name, data.tasks, train, validation, test, data.notes)


def several_tasks(
    name: str, listings: Sequence[Listing], options: ImageOptions, fractions: Sequence[float], notes: Sequence[str] = ()
) -> TaskData:
    """Return a data set in which every task has images of its own. No task trains on images that evaluate another.

    Args:
        name: name of the data set.
        listings: images of every task.
        options, fractions, notes: see `one_task`.
    """
    found = {listing.name: _divided(listing, options, fractions) for listing in listings}
    if (criterion := options["deduplicate"]) != "none":
        sources = {task: of.source for task, of in found.items()}
        prints = {task: of.prints or of.source.fingerprints(options["workers"]) for task, of in found.items()}
        leaks = find_leaks(sources, {task: of.rows for task, of in found.items()}, prints, criterion)
        found = {task: _without(of, leaks[task], leak_notes(leaks[task], sources, task)) for task, of in found.items()}
    whole = {
        task: LazySplit.of(of.source, workers=options["workers"], memory=options["memory"])
        for task, of in found.items()
    }
    train, validation, test = (
        {task: whole[task].select(of.rows[split]) for task, of in found.items()} for split in range(len(SPLITS))
    )
    tasks = tuple(Classification(listing.name, listing.classes) for listing in listings)
    own = _joined({task: of.notes for task, of in found.items()})
    return TaskData(name, tasks, train, validation, test, (*own, *notes))


def _divided(listing: Listing, options: ImageOptions, fractions: Sequence[float]) -> _TaskImages:
    """Split the images of a task that can be decoded, as far as that is known."""
    form = Form.of(options["size"], grey=options["grey"])
    cache = None
    if options["cache"]:
        folder = resolve_root(options["root"]) / FOLDER
        cache = ImageCache.of(folder, listing.paths, repr(form), prod(form.shape))
    source = ClassImages(listing, form, cache)
    prints = source.fingerprints(options["workers"]) if options["skip_broken"] else None
    usable, broken = torch.arange(len(listing)), []
    if prints is not None:
        decodable = torch.from_numpy(prints.decodable())
        usable, broken = usable[decodable], usable[~decodable].tolist()
    rows, note = _split(listing, usable, fractions, options["seed"])
    notes = [note]
    if broken:
        first = source.where(broken[0])
        notes.append(f"{len(broken)} of {len(listing)} images cannot be decoded and are left out, the first is {first}")
    return _TaskImages(source, prints, rows, notes)


def _split(listing: Listing, usable: Tensor, fractions: Sequence[float], seed: int) -> tuple[list[Tensor], str]:
    """Return the rows of training, validation and test images, among those in `usable`, and the note on the split."""
    if len(fractions) not in (2, 3) or any(fraction <= 0 for fraction in fractions):
        raise ParameterError(
            f"split: expected the shares of training, validation and test, each above 0, got {list(fractions)}."
        )
    if listing.splits is None:
        if len(fractions) < len(SPLITS):
            raise ParameterError(f"split: {listing.name} needs the shares of training, validation and test.")
        parts = by_class(listing.labels[usable], fractions, seed=seed)
        each = ", ".join(f"{100 * share:.4g} % {split}" for share, split in zip(fractions, SPLITS, strict=True))
        note = f"{each}, of every class, at random (seed {seed})"
    else:
        parts = [(listing.splits[usable] == split).nonzero().squeeze(1) for split in range(len(SPLITS))]
        note = "the parts are those of the folders"
        if len(parts[VALIDATION]) == 0 and len(parts[TRAIN]):
            share = fractions[VALIDATION] / (fractions[TRAIN] + fractions[VALIDATION])
            rows = parts[TRAIN]
            kept, held_out = by_class(listing.labels[usable][rows], [1 - share, share], seed=seed)
            parts[:TEST] = rows[kept], rows[held_out]
            note = (
                f"validation: {100 * share:.4g} % of the training images of every class at random (seed {seed}); test "
                "images have a folder of their own"
            )
    rows_of = [usable[part] for part in parts]
    _check_splits(listing, rows_of)
    return rows_of, note


def _check_splits(listing: Listing, rows: Sequence[Tensor]) -> None:
    """Raise a DataError if a split has no image, or a class has none in training."""
    counts = torch.bincount(listing.labels[rows[TRAIN]], minlength=len(listing.classes))
    check_every_class(listing.name, listing.classes, counts)
    for split in (VALIDATION, TEST):
        if len(rows[split]) == 0:
            raise DataError(
                f"{listing.name}: of {len(listing)} images none is left for {SPLITS[split]}. Add images, or give it a "
                "larger share (`split`)."
            )


def check_every_class(name: str, classes: Sequence[str], counts: Tensor) -> None:
    """Raise a DataError unless every class of a task has a training sample; `counts` are their numbers per class."""
    lacking = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise DataError(
            f"{name}: class {lacking[0]!r}{more} has no sample in the training split. Add one, or leave the class out."
        )


def _without(images: _TaskImages, leaks: Sequence[Leak], notes: Sequence[str]) -> _TaskImages:
    """Return the images without some training and validation images."""
    if not leaks:
        return images
    gone = torch.tensor([leak.row for leak in leaks])
    rows = [*(of_split[~torch.isin(of_split, gone)] for of_split in images.rows[:TEST]), images.rows[TEST]]
    try:
        _check_splits(images.source.listing, rows)
    except DataError as error:
        raise DataError(f"{error} {notes[0]}. `deduplicate: none` keeps them.") from None
    return replace(images, rows=rows, notes=[*images.notes, *notes])


def _joined(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the notes of all tasks, each with its tasks where it does not concern all."""
    tasks: dict[str, list[str]] = {}
    for task, own in notes.items():
        for note in own:
            tasks.setdefault(note, []).append(task)
    return [note if len(of) == len(notes) else f"{', '.join(of)}: {note}" for note, of in tasks.items()]
