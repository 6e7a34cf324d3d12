"""Listing of class folders: images, their classes, and the split that each belongs to, where folders determine it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsemtl.errors import DataError, ParameterError, unknown_name

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
"""Endings of image names, in small letters; other files are ignored."""
INNER = "images"
"""Name, in small letters, of the folder that may lie between a class folder and its images."""
TRAIN, VALIDATION, TEST = range(3)
ROLES = {"train": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}
"""Names of folders that hold one split each."""
Folders = Mapping[str, Sequence[str]]
"""Class -> paths of its images."""


@dataclass(frozen=True, eq=False)
class Listing:
    """Images of one task, called `name`."""

    name: str
    paths: tuple[str, ...]
    labels: Tensor  # class of each image, int64, (N,)
    classes: tuple[str, ...]
    splits: Tensor | None = None  # split of each image, (N,), if folders determine it

    def __len__(self) -> int:
        return len(self.paths)


def class_folders(folder: Path) -> dict[str, list[str]]:
    """Return the images in the folders of a folder by the folders' names, both in alphabetical order.

    Hidden folders, folders that macOS adds to archives, and files without an image's ending are ignored. The images of
    a class may lie in a folder `images` of its own, as in Tiny ImageNet.
    """
    folders = _folders(folder)
    if not folders:
        raise DataError(f"{folder.absolute()} has no folders; expected one for each class, named as the class.")
    return {name: images_of(folder / name) or _inner_images(folder / name) for name in folders}


def _inner_images(folder: Path) -> list[str]:
    """Return the images of the folder `images` in a class folder, if it is the only folder."""
    inside = _folders(folder)
    return images_of(folder / inside[0]) if [name.lower() for name in inside] == [INNER] else []


def _folders(folder: Path) -> list[str]:
    names = [name for name in _entries(folder) if not name.startswith(".") and name != "__MACOSX"]
    return [name for name in names if (folder / name).is_dir()]


def images_of(folder: Path) -> list[str]:
    """Return the paths of the images in a folder, in alphabetical order."""
    return [str(folder / name) for name in _entries(folder) if name.lower().endswith(IMAGES) and name[0] != "."]


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder.absolute()} is no folder.") from None


def choose_classes(folders: Folders, names: Iterable[str] | None, where: str) -> dict[str, Sequence[str]]:
    """Return the folders of the named classes, in the order of the names; all by default."""
    if names is None:
        return dict(folders)
    counts = Counter(map(str, names))
    for name, count in counts.items():
        if name not in folders:
            raise ParameterError(f"{where}: {unknown_name('class', name, folders)}")
        if count > 1:
            raise ParameterError(f"{where}: class {name!r} is named twice.")
    return {name: folders[name] for name in counts}


def list_classes(name: str, folders: Folders, where: str) -> Listing:
    """List the images of all classes."""
    if len(folders) < 2:
        raise DataError(f"{where} has {len(folders)} class, a classification at least 2: {', '.join(folders)}.")
    empty = next((label for label, paths in folders.items() if not paths), None)
    if empty is not None:
        raise DataError(f"{where}: class {empty!r} has no image. Expected files that end in {', '.join(IMAGES)}.")
    labels = [label for label, paths in enumerate(folders.values()) for _ in paths]
    paths = tuple(path for paths in folders.values() for path in paths)
    return Listing(name, paths, torch.tensor(labels), tuple(folders))


def list_splits(name: str, splits: Mapping[int, Folders], where: str) -> Listing:
    """List the images of splits that have folders of their own.

    The classes are those of all splits together, in the order in which they come.

    Args:
        name: name of the task.
        splits: split -> its class folders.
        where: folder to name in messages.
    """
    classes = dict.fromkeys(label for folders in splits.values() for label in folders)
    together = {label: [path for folders in splits.values() for path in folders.get(label, ())] for label in classes}
    of_paths = {path: split for split, folders in splits.items() for paths in folders.values() for path in paths}
    whole = list_classes(name, together, where)
    return Listing(name, whole.paths, whole.labels, whole.classes, torch.tensor([of_paths[p] for p in whole.paths]))


def list_folder(name: str, folder: Path) -> Listing:
    """List a folder of class folders, or of the folders train, val (or validation) and test that hold such.

    Capitals make no difference to these three names. Where there is train and val and no test, as in ImageNet, the
    images of val are the test images.
    """
    where = str(folder.absolute())
    inside = _folders(folder)
    if not {"train"} < {entry.lower() for entry in inside} <= set(ROLES):
        return list_classes(name, class_folders(folder), where)
    splits = {ROLES[entry.lower()]: class_folders(folder / entry) for entry in inside}
    if len(splits) < len(inside):
        raise DataError(f"{where} has {', '.join(inside)}, several of which hold the same part.")
    for entry in inside:
        if [label.lower() for label in splits[ROLES[entry.lower()]]] == [INNER] and entry.lower() != "train":
            raise DataError(
                f"{folder / entry} holds images without folders of classes. Sort them into a folder for each class; "
                "Tiny-ImageNet's own folder is the data set `tiny-imagenet`."
            )
    if TEST not in splits:
        splits[TEST] = splits.pop(VALIDATION)
    return list_splits(name, splits, where)
