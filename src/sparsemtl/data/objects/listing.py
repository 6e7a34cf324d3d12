"""What a folder of class-named folders holds: images, their classes, and maybe which part each belongs to."""

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
"""Endings of images' names, in small letters; other files are none of ours."""
INNER = "images"
"""Name, in small letters, of the folder that may lie between a class's folder and its images."""
TRAIN, VALIDATION, TEST = range(3)
ROLES = {"train": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}
"""Names of folders that hold a part each."""


@dataclass(frozen=True, eq=False)
class Listing:
    """Images of one task.

    Attributes:
        name: what messages call it: the task, or the folder.
        paths: the images' files.
        labels: the class of each, int64, shape (N,).
        classes: names of the classes.
        parts: which part each belongs to, shape (N,); None if nothing says.
    """

    name: str
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    parts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)


Folders = Mapping[str, Sequence[str]]
"""Class -> paths of its images."""


def class_folders(folder: Path) -> dict[str, list[str]]:
    """Images in the folders of a folder, by the folders' names, both in alphabetical order.

    Hidden folders, what macOS adds to archives, and files that no image has the name of, are passed over. A class's
    images may lie in a folder `images` of its own, as in Tiny-ImageNet.

    Raises:
        DataError: if there is no such folder, or none in it.
    """
    folders = _folders(folder)
    if not folders:
        raise DataError(f"{folder.absolute()} has no folders; expected one for each class, named as the class.")
    return {name: images_of(folder / name) or _inner_images(folder / name) for name in folders}


def _inner_images(folder: Path) -> list[str]:
    """Images of the one folder `images` in a class's folder; none if there are others."""
    inside = _folders(folder)
    return images_of(folder / inside[0]) if [name.lower() for name in inside] == [INNER] else []


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in alphabetical order, without hidden ones and those of archives from macOS."""
    names = [name for name in _entries(folder) if not name.startswith(".") and name != "__MACOSX"]
    return [name for name in names if (folder / name).is_dir()]


def images_of(folder: Path) -> list[str]:
    """Paths of the images that lie in a folder, in alphabetical order."""
    return [str(folder / name) for name in _entries(folder) if name.lower().endswith(IMAGES) and name[0] != "."]


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder.absolute()} is no folder.") from None


def chosen(folders: Folders, wanted: Iterable[str] | None, where: str) -> dict[str, Sequence[str]]:
    """Some of the classes, in the order in which they are named; all by default.

    Raises:
        ParameterError: if one is not there, or named twice.
    """
    if wanted is None:
        return dict(folders)
    names = [str(name) for name in wanted]
    counts = Counter(names)
    for name in names:
        if name not in folders:
            raise ParameterError(f"{where}: {unknown_name('class', name, folders)}")
        if counts[name] > 1:
            raise ParameterError(f"{where}: class {name!r} is named twice.")
    return {name: folders[name] for name in names}


def listing(name: str, folders: Folders, where: str) -> Listing:
    """List the images of all classes.

    Raises:
        DataError: if there are fewer than two classes, or one has no image.
    """
    _check(folders, where)
    labels = [label for label, paths in enumerate(folders.values()) for _ in paths]
    paths = tuple(path for paths in folders.values() for path in paths)
    return Listing(name, paths, torch.tensor(labels), tuple(folders))


def _check(folders: Folders, where: str) -> None:
    if len(folders) < 2:
        raise DataError(f"{where} has {len(folders)} class, a classification at least 2: {', '.join(folders)}.")
    empty = next((name for name, paths in folders.items() if not paths), None)
    if empty is not None:
        raise DataError(f"{where}: class {empty!r} has no image. Expected files that end in {', '.join(IMAGES)}.")


def listing_of_parts(name: str, parts: Mapping[int, Folders], where: str) -> Listing:
    """List the images of parts that have folders of their own.

    The classes are those of all parts together, in the order in which they come.

    Args:
        name: what messages call it.
        parts: part -> its class folders.
        where: the folder.
    """
    classes = dict.fromkeys(label for folders in parts.values() for label in folders)
    together = {label: [path for folders in parts.values() for path in folders.get(label, ())] for label in classes}
    of_paths = {path: part for part, folders in parts.items() for paths in folders.values() for path in paths}
    whole = listing(name, together, where)
    return Listing(name, whole.paths, whole.labels, whole.classes, torch.tensor([of_paths[p] for p in whole.paths]))


def list_folder(name: str, folder: Path) -> Listing:
    """List a folder of class folders, or of the folders train, val (or validation) and test that hold such.

    Capitals make no difference to the names of these three.

    Where there is train and val and no test, as in ImageNet, the images of val are the test images.

    Raises:
        DataError: if it is neither, or a class has no image.
    """
    where = str(folder.absolute())
    inside = _folders(folder)
    if not {"train"} < {entry.lower() for entry in inside} <= set(ROLES):
        return listing(name, class_folders(folder), where)
    roles = [ROLES[entry.lower()] for entry in inside]
    if len(set(roles)) < len(roles):
        raise DataError(f"{where} has {', '.join(inside)}, several of which hold the same part.")
    parts = {role: class_folders(folder / entry) for role, entry in zip(roles, inside, strict=True)}
    for role, entry in zip(roles, inside, strict=True):
        if [label.lower() for label in parts[role]] == [INNER] and role != TRAIN:
            raise DataError(
                f"{folder / entry} holds images without folders of classes. Sort them into a folder for each class; "
                "Tiny-ImageNet's own folder is the data set `tiny-imagenet`."
            )
    if TEST not in parts:
        parts[TEST] = parts.pop(VALIDATION)
    return listing_of_parts(name, parts, where)
