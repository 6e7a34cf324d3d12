"""Caltech-101 and Caltech-256: photographs of objects, one class each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsemtl.data.base import TaskData
from sparsemtl.data.folders import absent, counted
from sparsemtl.data.objects.assemble import Reading, one_task
from sparsemtl.data.objects.leaks import Deduplicate
from sparsemtl.data.objects.listing import chosen, class_folders, listing
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.pictures import Size
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.registry.parameters import Natural, NonNegative

TASK = "object"


@dataclass(frozen=True)
class Caltech:
    """One of the two.

    Attributes:
        name: the data set, as it is registered.
        places: folders of class folders, under the root; the first that is there is read.
        clutter: the class folder of images that show nothing in particular.
        images: how many there are without these.
        numbered: class folders' names begin with a number and a point.
    """

    name: str
    places: tuple[str, ...]
    clutter: str
    images: int
    numbered: bool

    def package(self, *, source: str, get: str) -> Package:
        """What it needs on disk."""
        images = Expected("images", tuple(f"{place}/*/*.jpg" for place in self.places))
        return Package(self.name, (images,), source, "CC BY 4.0 (CaltechDATA)", get)

    def read(self, reading: Reading, classes: Sequence[str] | None, clutter: bool) -> TaskData:
        """Read the classes that are asked for.

        Raises:
            DataError: if the folder is absent, or a class has no image.
            ParameterError: if there is no such class.
        """
        places = [reading.place / place for place in self.places]
        place = next((place for place in places if place.is_dir()), None)
        if place is None:
            raise absent(self.name, reading.place, self.places, one_of=len(places) > 1)
        folders = class_folders(place)
        images = sum(len(paths) for name, paths in folders.items() if name != self.clutter)
        found = {self._class(name): paths for name, paths in folders.items() if clutter or name != self.clutter}
        asked = listing(TASK, chosen(found, classes, self.name), str(place))
        return one_task(self.name, asked, reading, counted({"images": images}, {"images": self.images}))

    def _class(self, folder: str) -> str:
        return folder.partition(".")[2] if self.numbered and "." in folder else folder


CALTECH_101 = Caltech(
    "caltech-101",
    ("caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories"),
    "BACKGROUND_Google",
    8677,
    numbered=False,
)
CALTECH_256 = Caltech(
    "caltech-256",
    ("256_ObjectCategories", "caltech256/256_ObjectCategories"),
    "257.clutter",
    29_780,
    numbered=True,
)


@requires_files(
    (
        CALTECH_101.package(
            source="https://data.caltech.edu/records/mzrjq-6wc02",
            get="unpack caltech-101.zip (137 MB, md5 3138e1922a9193bfa496528edbbc45d0) into the root, and "
            "101_ObjectCategories.tar.gz in it where it lies",
        ),
    ),
)
@checked
def caltech_101(
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    clutter: bool = False,
    size: Size = 64,
    grey: bool = False,
    split: Sequence[ProperFraction] = (0.7, 0.15, 0.15),
    skip_broken: bool = False,
    deduplicate: Deduplicate = "similar",
    cache: bool = True,
    workers: Natural | None = None,
    memory: NonNegative = 1.0,
    seed: Natural = 0,
) -> TaskData:
    """Caltech-101: 101 kinds of objects, 8,677 photographs of about 300x200 pixels (Fei-Fei et al. 2004).

    Layout; `caltech101` instead of `caltech-101` will do as well:

        caltech-101/101_ObjectCategories/accordion/image_0001.jpg, ...

    Its one task is `object`. Arguments are those of `Reading`. Needs the extra `vision`.

    Args:
        classes: the classes; all 101 by default.
        clutter: also the class BACKGROUND_Google, of images that show nothing in particular.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such class.
    """
    reading = Reading(root, size, grey, split, skip_broken, deduplicate, cache, workers, memory, seed)
    return CALTECH_101.read(reading, classes, clutter)


@requires_files(
    (
        CALTECH_256.package(
            source="https://data.caltech.edu/records/nyy15-4j048",
            get="unpack 256_ObjectCategories.tar (1.2 GB, md5 67b4f42ca05d46448c6bb8ecd2220f6d) into the root",
        ),
    ),
)
@checked
def caltech_256(
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    clutter: bool = False,
    size: Size = 64,
    grey: bool = False,
    split: Sequence[ProperFraction] = (0.7, 0.15, 0.15),
    skip_broken: bool = False,
    deduplicate: Deduplicate = "similar",
    cache: bool = True,
    workers: Natural | None = None,
    memory: NonNegative = 1.0,
    seed: Natural = 0,
) -> TaskData:
    """Caltech-256: 256 kinds of objects, 29,780 photographs, and 827 of clutter (Griffin et al. 2007).

    Layout; `caltech256/256_ObjectCategories` will do as well:

        256_ObjectCategories/001.ak47/001_0001.jpg, ...

    Its one task is `object`; classes are named without their numbers: `ak47`. Arguments are those of `Reading`. Needs
    the extra `vision`.

    Args:
        classes: the classes; all 256 by default.
        clutter: also the class `clutter`, of images that show nothing in particular.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such class.
    """
    reading = Reading(root, size, grey, split, skip_broken, deduplicate, cache, workers, memory, seed)
    return CALTECH_256.read(reading, classes, clutter)
