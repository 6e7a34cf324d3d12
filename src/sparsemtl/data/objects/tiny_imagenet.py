"""Tiny ImageNet: 200 classes of ImageNet in 64x64 pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsemtl.data.attributes import text_lines
from sparsemtl.data.base import TaskData
from sparsemtl.data.folders import absent, counted, listed
from sparsemtl.data.objects.assemble import Reading, one_task
from sparsemtl.data.objects.leaks import Deduplicate
from sparsemtl.data.objects.listing import TEST, TRAIN, chosen, images_of, listing_of_parts
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.pictures import Size
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError
from sparsemtl.registry.parameters import Natural, NonNegative

FOLDER, TASK = "tiny-imagenet-200", "object"
IDS, WORDS, ANNOTATIONS = "wnids.txt", "words.txt", "val/val_annotations.txt"
OFFICIAL = {"training images": 100_000, "test images": 10_000}

FILES = Package(
    "tiny-imagenet-200",
    (
        Expected("training images", (f"{FOLDER}/train/*/images/*.JPEG",), OFFICIAL["training images"]),
        Expected("validation images", (f"{FOLDER}/val/images/*.JPEG",), OFFICIAL["test images"]),
        Expected("their classes", (f"{FOLDER}/{ANNOTATIONS}",), 1),
        Expected("ids of the classes", (f"{FOLDER}/{IDS}",), 1),
        Expected("names of the classes", (f"{FOLDER}/{WORDS}",), 1),
    ),
    source="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    licence="we have found none; ImageNet's, whose images they are: non-commercial research and education only",
    get="unpack the archive (248 MB, md5 90528d7ca1a48142e341f4ef8d21d0de) into the root",
)


@requires_files((FILES,))
@checked
def tiny_imagenet(
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    size: Size = 64,
    grey: bool = False,
    validation: ProperFraction = 0.1,
    skip_broken: bool = False,
    deduplicate: Deduplicate = "similar",
    cache: bool = True,
    workers: Natural | None = None,
    memory: NonNegative = 1.0,
    seed: Natural = 0,
) -> TaskData:
    """Tiny ImageNet: 200 classes, 500 training images of 64x64 pixels each (Stanford's course CS231n, 2015).

    Layout:

        tiny-imagenet-200/wnids.txt
        tiny-imagenet-200/words.txt
        tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG, ...
        tiny-imagenet-200/val/images/val_0.JPEG, ...
        tiny-imagenet-200/val/val_annotations.txt

    Its one task is `object`. Nobody may see the classes of the official test images; here, as everywhere, the 10,000
    official validation images are the test images, and validation images are held out of the training images. A class
    is called by the first of its words, `goldfish`; by its id where another class has the same word.

    Arguments are those of `Reading`. Needs the extra `vision`.

    Args:
        classes: the classes; all 200 by default.
        validation: share of the training images of every class held out, in (0, 1).

    Raises:
        DataError: if files are absent or do not fit each other, or an image cannot be decoded.
        ParameterError: if there is no such class.
    """
    reading = Reading(
        root, size, grey, (1 - validation, validation), skip_broken, deduplicate, cache, workers, memory, seed
    )
    place = reading.place / FOLDER
    lacking = [name for name in (IDS, WORDS, ANNOTATIONS, "train", "val/images") if not (place / name).exists()]
    if lacking:
        raise absent("tiny-imagenet", place, lacking)
    names = _names(listed(place / IDS), _words(place / WORDS))
    train = {name: images_of(place / "train" / wnid / "images") for wnid, name in names.items()}
    test = _tested(place, names)
    found = {"training images": _count(train), "test images": _count(test)}
    parts = {part: chosen(folders, classes, "tiny-imagenet") for part, folders in ((TRAIN, train), (TEST, test))}
    return one_task("tiny-imagenet", listing_of_parts(TASK, parts, str(place)), reading, counted(found, OFFICIAL))


def _words(path: Path) -> dict[str, str]:
    """Id of a class -> the first of its words."""
    lines = (line.partition("\t") for line in text_lines(path))
    return {wnid: words.partition(",")[0].strip() for wnid, _, words in lines}


def _names(ids: Sequence[str], words: Mapping[str, str]) -> dict[str, str]:
    """Id of a class -> its name, which no other class has."""
    names = {wnid: words.get(wnid) or wnid for wnid in ids}
    taken = Counter(names.values())
    return {wnid: name if taken[name] == 1 else wnid for wnid, name in names.items()}


def _tested(place: Path, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Class -> paths of the official validation images."""
    there = set(images_of(place / "val" / "images"))
    tested: dict[str, list[str]] = {name: [] for name in names.values()}
    for number, line in enumerate(text_lines(place / ANNOTATIONS), start=1):
        image, wnid = [*line.split("\t"), "", ""][:2]
        path = str(place / "val" / "images" / image)
        if wnid not in names or path not in there:
            what = "an image that is not there" if wnid in names else f"a class that is not in {IDS}"
            raise DataError(f"{place / ANNOTATIONS}, line {number}: {line!r} names {what}.")
        tested[names[wnid]].append(path)
    return tested


def _count(folders: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, folders.values()))
