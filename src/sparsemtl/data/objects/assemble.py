"""From listed images to a data set: broken ones sorted out, parts made, tasks named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sparsemtl.data.base import Samples, TaskData
from sparsemtl.data.lazy import LazySplit, Sample
from sparsemtl.data.objects.cache import PictureCache
from sparsemtl.data.objects.leaks import Deduplicate, Leak, Pictures, find_leaks, leak_notes
from sparsemtl.data.objects.listing import TEST, Listing
from sparsemtl.data.objects.parts import Division, check_parts
from sparsemtl.data.objects.source import ClassPictures, Form
from sparsemtl.data.options import resolve_root
from sparsemtl.data.pictures import Size
from sparsemtl.errors import DataError
from sparsemtl.tasks import Classification

FOLDER = "pictures"
"""Folder under the root in which decoded images are kept."""
BATCH = 64
"""Images that a thread tries to decode at once."""


@dataclass(frozen=True)
class Reading:
    """How images are read and divided.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        size: pixels of the square that images become, of which the middle is taken; or height and width, to which they
            are squeezed.
        grey: one channel instead of three.
        split: shares of training, validation and test images, of every class; where the test images have a folder of
            their own and the validation images none, the first two say what is held out of the training images.
        skip_broken: leave out images that cannot be decoded, counted in the notes; else they are an error when they
            are met.
        deduplicate: leave out training images that any task is validated or tested on, and validation images that the
            same task is tested on, counted in the notes. `similar`: of equal pixels, or a copy that was saved anew or
            resized; `exact`: of equal pixels, whatever the file; `none`: keep them all. To find them, all images are
            decoded once.
        cache: keep decoded images on disk, in `pictures` under `root`: a byte a pixel and channel.
        workers: threads that decode; 0 decodes in the training thread; by default one a processor, at most 4.
        memory: gigabytes a split may take in memory, in which case it is read once.
        seed: of the split.
    """

    root: str | Path | None
    size: Size
    grey: bool
    split: Sequence[float]
    skip_broken: bool
    deduplicate: Deduplicate
    cache: bool
    workers: int | None
    memory: float
    seed: int

    @cached_property
    def form(self) -> Form:
        """What becomes of every image."""
        return Form.of(self.size, grey=self.grey)

    @cached_property
    def division(self) -> Division:
        """How they are divided."""
        return Division(tuple(self.split), self.seed)

    @property
    def place(self) -> Path:
        """The root."""
        return resolve_root(self.root)

    def source(self, listing: Listing) -> ClassPictures:
        """Where the images of a task are decoded."""
        cache = None
        if self.cache:
            cache = PictureCache.of(self.place / FOLDER, listing.paths, repr(self.form), prod(self.form.shape))
        return ClassPictures(listing.name, listing, self.form, cache)

    def broken(self, source: ClassPictures) -> list[int]:
        """Rows of the images that cannot be decoded, looked for only if they are to be left out."""
        if not self.skip_broken:
            return []
        found = source.cache.broken() if source.cache is not None else None
        if found is None:
            found = _undecodable(source, self.workers)
            if source.cache is not None:
                source.cache.write_broken(found)
        return found


@dataclass(frozen=True)
class Divided:
    """The images of a task and which part each belongs to.

    Attributes:
        listing: the images.
        source: where they are decoded.
        whole: the same, read when they are asked for.
        rows: rows of training, validation and test images.
        notes: what is to be said of them.
    """

    listing: Listing
    source: ClassPictures
    whole: LazySplit
    rows: list[Tensor]
    notes: list[str]

    @classmethod
    def of(cls, listing: Listing, reading: Reading) -> Divided:
        """The usable images of a listing, divided as the reading says."""
        source = reading.source(listing)
        broken = reading.broken(source)
        usable = torch.ones(len(listing), dtype=torch.bool)
        usable[broken] = False
        rows = reading.division.divide(listing, usable.nonzero().squeeze(1))
        whole = LazySplit.of(source, workers=reading.workers, memory=reading.memory)
        notes = [reading.division.note(listing)]
        if broken:
            first = source.where(broken[0])
            notes.append(
                f"{len(broken)} of {len(listing)} images cannot be decoded and are left out, the first is {first}"
            )
        return cls(listing, source, whole, rows, notes)

    def part(self, part: int) -> Samples:
        """The images of a part."""
        return self.whole.select(self.rows[part])

    def pictures(self, reading: Reading) -> Pictures:
        """Return what the images are compared by with those of other parts and tasks."""
        return Pictures(self.source, self.source.prints(reading.workers), self.rows)

    def without(self, leaks: Sequence[Leak], notes: Sequence[str]) -> Divided:
        """The same without some training and validation images.

        Raises:
            DataError: if a part has no image left, or a class none in training.
        """
        gone = torch.tensor([leak.row for leak in leaks], dtype=torch.long)
        if not len(gone):
            return self
        rows = [of_part[~torch.isin(of_part, gone)] for of_part in self.rows[:TEST]]
        try:
            check_parts(self.listing, [*rows, self.rows[TEST]])
        except DataError as error:
            raise DataError(f"{error} {notes[0]}. `deduplicate: none` keeps them.") from None
        return replace(self, rows=[*rows, self.rows[TEST]], notes=[*self.notes, *notes])


def one_task(name: str, listing: Listing, reading: Reading, notes: Sequence[str] = ()) -> TaskData:
    """A data set of one task and one split for all."""
    divided = _kept_apart({listing.name: Divided.of(listing, reading)}, reading)[listing.name]
    train, validation, test = map(divided.part, range(3))
    task = Classification(listing.name, listing.classes)
    return TaskData(name, (task,), train, validation, test, (*divided.notes, *notes))


def several_tasks(name: str, listings: Sequence[Listing], reading: Reading, notes: Sequence[str] = ()) -> TaskData:
    """A data set in which every task has images of its own, and none learns from what another is tested on."""
    divided = _kept_apart({listing.name: Divided.of(listing, reading) for listing in listings}, reading)
    train, validation, test = ({task: own.part(part) for task, own in divided.items()} for part in range(3))
    tasks = tuple(Classification(listing.name, listing.classes) for listing in listings)
    own = _joined({task: own.notes for task, own in divided.items()})
    return TaskData(name, tasks, train, validation, test, (*own, *notes))


def _kept_apart(divided: Mapping[str, Divided], reading: Reading) -> dict[str, Divided]:
    """The same without training images that any task is held out on, and validation images that test the same."""
    if reading.deduplicate == "none":
        return dict(divided)
    pictures = {task: own.pictures(reading) for task, own in divided.items()}
    leaks = find_leaks(pictures, reading.deduplicate)
    return {task: own.without(leaks[task], leak_notes(leaks[task], pictures, task)) for task, own in divided.items()}


def _joined(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes with the tasks that they are of; with none where they are of all."""
    tasks: dict[str, list[str]] = {}
    for task, made in notes.items():
        for note in made:
            tasks.setdefault(note, []).append(task)
    return [note if len(of) == len(notes) else f"{', '.join(of)}: {note}" for note, of in tasks.items()]


@dataclass(frozen=True)
class _Attempts:
    """A source that says of every image whether it can be decoded."""

    source: ClassPictures

    targets = ("broken",)

    def __len__(self) -> int:
        return len(self.source)

    def where(self, row: int) -> str:
        return self.source.where(row)

    def sample(self, row: int, targets: Sequence[str]) -> Sample:
        return Sample(torch.empty(0), {"broken": torch.tensor(self._broken(row))}, {})

    def _broken(self, row: int) -> bool:
        try:
            self.source.pixels(row)
        except DataError:
            return True
        return False


def _undecodable(source: ClassPictures, workers: int | None) -> list[int]:
    attempts = LazySplit.of(_Attempts(source), workers=workers, memory=0.0)
    broken: list[Tensor] = [targets["broken"] for _, targets in attempts.loader(BATCH)]
    return torch.cat(broken).nonzero().squeeze(1).tolist()
