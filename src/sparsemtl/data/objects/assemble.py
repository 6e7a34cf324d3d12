"""From listed images to a data set: broken ones sorted out, parts made, tasks named."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sparsemtl.data.base import Samples, TaskData
from sparsemtl.data.lazy import LazySplit, Sample
from sparsemtl.data.objects.cache import PictureCache
from sparsemtl.data.objects.listing import TEST, TRAIN, VALIDATION, Listing
from sparsemtl.data.objects.parts import Division, check_parts
from sparsemtl.data.objects.source import ClassPictures, Form
from sparsemtl.data.objects.twins import twins
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
        whole: the same, read when they are asked for.
        rows: rows of training, validation and test images.
        notes: what is to be said of them.
    """

    listing: Listing
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
        return cls(listing, whole, rows, notes)

    def part(self, part: int) -> Samples:
        """The images of a part."""
        return self.whole.select(self.rows[part])

    def held_out(self) -> list[str]:
        """Files of the validation and test images."""
        return [self.listing.paths[row] for part in (VALIDATION, TEST) for row in self.rows[part].tolist()]

    def without(self, files: Collection[str]) -> Divided:
        """The same, but that no file among these trains."""
        train = [row for row in self.rows[TRAIN].tolist() if self.listing.paths[row] not in files]
        gone = len(self.rows[TRAIN]) - len(train)
        if not gone:
            return self
        rows = [torch.tensor(train, dtype=torch.long), *self.rows[VALIDATION:]]
        check_parts(self.listing, rows)
        note = f"{gone} training images are left out: another task is validated or tested on the same ones"
        return replace(self, rows=rows, notes=[*self.notes, note])


def one_task(name: str, listing: Listing, reading: Reading, notes: Sequence[str] = ()) -> TaskData:
    """A data set of one task and one split for all."""
    divided = Divided.of(listing, reading)
    train, validation, test = map(divided.part, range(3))
    task = Classification(listing.name, listing.classes)
    return TaskData(name, (task,), train, validation, test, (*divided.notes, *notes))


def several_tasks(name: str, listings: Sequence[Listing], reading: Reading, notes: Sequence[str] = ()) -> TaskData:
    """A data set in which every task has images of its own, and none learns from what another is tested on."""
    divided = _kept_apart({listing.name: Divided.of(listing, reading) for listing in listings})
    train, validation, test = ({task: own.part(part) for task, own in divided.items()} for part in range(3))
    tasks = tuple(Classification(listing.name, listing.classes) for listing in listings)
    own = _joined({task: own.notes for task, own in divided.items()})
    return TaskData(name, tasks, train, validation, test, (*own, *notes))


def _kept_apart(divided: Mapping[str, Divided]) -> dict[str, Divided]:
    """The same without training images that are, byte for byte, validation or test images of another task."""
    same = twins({task: own.listing.paths for task, own in divided.items()})
    held_out = {task: {same[path] for path in own.held_out() if path in same} for task, own in divided.items()}
    apart = {}
    for task, own in divided.items():
        of_others = {key for other, keys in held_out.items() if other != task for key in keys}
        apart[task] = own.without({path for path in own.listing.paths if path in same and same[path] in of_others})
    return apart


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
