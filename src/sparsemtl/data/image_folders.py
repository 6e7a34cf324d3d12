"""Folders of the user's own: images in folders that are named as their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsemtl.data.base import TaskData
from sparsemtl.data.objects.assemble import Reading, several_tasks
from sparsemtl.data.objects.leaks import Deduplicate
from sparsemtl.data.objects.listing import list_folder
from sparsemtl.data.options import ROOT_VARIABLE, ProperFraction, checked, resolve_root
from sparsemtl.data.pictures import Size
from sparsemtl.data.requirements import requires_files
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.registry.parameters import Natural, NonNegative

AUXILIARY = "auxiliary"
"""Name of the auxiliary task."""


@requires_files(
    remark="folders of your own, which hold a folder of images for each class. `sparsemtl run` reads them by a "
    "configuration such as examples/folders.yaml; Pillow comes with the extra `vision`."
)
@checked
def image_folders(
    *,
    root: str | Path | None = None,
    tasks: Mapping[str, str],
    auxiliary: str | None = None,
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
    """Image folders: your own images in folders named as their classes, a folder of such folders for each task.

    A task's folder holds a folder for each of its classes, or the folders `train`, `val` (or `validation`) and `test`,
    each of which holds folders of classes. Without `val`, validation images are held out of the training images;
    without `test`, the images of `val` are the test images. Tasks may have other classes, and some or all in common.
    Photographs are turned as their EXIF orientation says. A picture that a task is validated or tested on trains no
    task, this one or another, as when some of a big folder's images were sorted into small ones (`deduplicate`).

        birds/wren/0001.jpg, ...                      or birds/train/wren/0001.jpg, ...
        birds/robin/one.png, ...                      and birds/test/wren/0091.jpg, ...

    Arguments are those of `Reading`. Needs the extra `vision`.

    Args:
        tasks: task -> its folder; one that is not there is looked for under `root`.
        auxiliary: folder of the images, usually many, of the task `auxiliary`, from which the others are to learn.

    Raises:
        DataError: if a folder or a class has no images, a class none in training, or an image cannot be decoded.
        ParameterError: if two tasks have one folder, or an argument does not do.
    """
    if not isinstance(tasks, Mapping) or not tasks:
        raise ParameterError(f"tasks: expected a mapping of tasks to folders, got {tasks!r}.")
    if AUXILIARY in tasks and auxiliary is not None:
        raise ParameterError(f"tasks: {AUXILIARY!r} is what `auxiliary` is called. Name this task otherwise.")
    named = {**tasks, **({AUXILIARY: auxiliary} if auxiliary is not None else {})}
    folders = {task: find_folder(folder, root) for task, folder in named.items()}
    _check_apart(folders)
    reading = Reading(root, size, grey, split, skip_broken, deduplicate, cache, workers, memory, seed)
    return several_tasks("image-folders", [list_folder(*folder) for folder in folders.items()], reading)


def find_folder(name: str, root: str | Path | None) -> Path:
    """A folder that is there, or under the root.

    Raises:
        DataError: if it is neither.
    """
    places = [Path(name).expanduser(), resolve_root(root) / name]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"{places[0].absolute()} is no folder, nor is {places[1].absolute()}. Folders are found from the one in which "
        f"the command runs, or under `root` or {ROOT_VARIABLE}."
    )


def _check_apart(folders: Mapping[str, Path]) -> None:
    """Raise a ParameterError if a task's folder is another's, or lies in it: it would be tested on what that learns."""
    places = {task: folder.resolve() for task, folder in folders.items()}
    for task, place in places.items():
        for other, around in places.items():
            if task != other and place.is_relative_to(around):
                raise ParameterError(
                    f"tasks {task!r} and {other!r} have the same images: {place} is {around}, or lies in it. Give each "
                    "task images of its own."
                )
