"""Tiny ImageNet: 200 classes of ImageNet in 64x64 pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc, Unpack

from sparsemtl.data.attributes import text_lines
from sparsemtl.data.base import TaskData
from sparsemtl.data.images.classified.listing import TEST, TRAIN, choose_classes, images_of, list_splits
from sparsemtl.data.images.classified.loader import ImageOptions, one_task
from sparsemtl.data.images.folders import absent, counted, listed
from sparsemtl.data.options import ProperFraction, checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError

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
    classes: Annotated[Sequence[str] | None, Doc("Classes to read; all 200 by default.")] = None,
    validation: Annotated[ProperFraction, Doc("Fraction of the training images held out, per class.")] = 0.1,
    **options: Unpack[ImageOptions],
) -> TaskData:
    """Tiny ImageNet: 200 classes, 500 training images of 64x64 pixels each (Stanford's course CS231n, 2015).

    Layout:

        tiny-imagenet-200/wnids.txt
        tiny-imagenet-200/words.txt
        tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG, ...
        tiny-imagenet-200/val/images/val_0.JPEG, ...
        tiny-imagenet-200/val/val_annotations.txt

    Its one task is `object`. The classes of the official test images are not public; here, as everywhere, the 10,000
    official validation images are the test images, and validation images are held out of the training images. The name
    of a class is the first of its words, `goldfish`; its id where another class has the same word. Needs the extra
    `vision`.

    Raises:
        DataError: if files are absent or do not fit each other, or an image cannot be decoded.
        ParameterError: if there is no such class.
    """
    folder = resolve_root(options["root"]) / FOLDER
    lacking = [name for name in (IDS, WORDS, ANNOTATIONS, "train", "val/images") if not (folder / name).exists()]
    if lacking:
        raise absent("tiny-imagenet", folder, lacking)
    names = _names(folder)
    train = {name: images_of(folder / "train" / wnid / "images") for wnid, name in names.items()}
    test = _test_images(folder, names)
    counts = {name: sum(map(len, of.values())) for name, of in (("training images", train), ("test images", test))}
    splits = {split: choose_classes(of, classes, "tiny-imagenet") for split, of in ((TRAIN, train), (TEST, test))}
    listing = list_splits(TASK, splits, str(folder))
    return one_task("tiny-imagenet", listing, options, (1 - validation, validation), counted(counts, OFFICIAL))


def _names(folder: Path) -> dict[str, str]:
    """Return id of a class -> its name, which no other class has."""
    lines = (line.partition("\t") for line in text_lines(folder / WORDS))
    words = {wnid: words.partition(",")[0].strip() for wnid, _, words in lines}
    names = {wnid: words.get(wnid) or wnid for wnid in listed(folder / IDS)}
    taken = Counter(names.values())
    return {wnid: name if taken[name] == 1 else wnid for wnid, name in names.items()}


def _test_images(folder: Path, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return class -> paths of the official validation images."""
    present = set(images_of(folder / "val" / "images"))
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for number, line in enumerate(text_lines(folder / ANNOTATIONS), start=1):
        image, wnid = [*line.split("\t"), "", ""][:2]
        path = str(folder / "val" / "images" / image)
        if wnid not in names or path not in present:
            problem = "an image that is not there" if wnid in names else f"a class that is not in {IDS}"
            raise DataError(f"{folder / ANNOTATIONS}, line {number}: {line!r} names {problem}.")
        found[names[wnid]].append(path)
    return found
