"""Image folders of the user: images in folders that are named as their classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc, Unpack

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.classified.listing import list_folder
from sparsemtl.data.images.classified.loader import SplitOptions, several_tasks
from sparsemtl.data.options import ROOT_VARIABLE, checked, resolve_root
from sparsemtl.data.requirements import requires_files
from sparsemtl.errors import DataError, ParameterError

AUXILIARY = "auxiliary"
"""Name of the auxiliary task."""


@requires_files(
    remark="folders of your own, which hold a folder of images for each class. `sparsemtl run` reads them by a "
    "configuration such as examples/folders.yaml; Pillow comes with the extra `vision`."
)
@checked
def image_folders(
    *,
    tasks: Annotated[Mapping[str, str], Doc("Task -> its folder; one that does not exist is searched under `root`.")],
    auxiliary: Annotated[
        str | None,
        Doc("Folder of the images, usually many, of the task `auxiliary`, from which the other tasks are to learn."),
    ] = None,
    **options: Unpack[SplitOptions],
) -> TaskData:
    """Image folders: your own images in folders named as their classes, a folder of such folders for each task.

    A task's folder holds a folder for each of its classes, or the folders `train`, `val` (or `validation`) and `test`,
    each of which holds folders of classes. Without `val`, validation images are held out of the training images;
    without `test`, the images of `val` are the test images. Tasks may have other classes, and some or all in common.
    Photographs are turned by their EXIF orientation. An image that validates or tests a task trains no task, as
    when some of a big folder's images were sorted into small ones (`deduplicate`).

        birds/wren/0001.jpg, ...                      or birds/train/wren/0001.jpg, ...
        birds/robin/one.png, ...                      and birds/test/wren/0091.jpg, ...

    Needs the extra `vision`.

    Raises:
        DataError: if a folder or a class has no images, a class none in training, or an image cannot be decoded.
        ParameterError: if two tasks have one folder, or an argument is not valid.
    """
    if not isinstance(tasks, Mapping) or not tasks:
        raise ParameterError(f"tasks: expected a mapping of tasks to folders, got {tasks!r}.")
    if AUXILIARY in tasks and auxiliary is not None:
        raise ParameterError(f"tasks: {AUXILIARY!r} is what `auxiliary` is called. Name this task otherwise.")
    named = {**tasks, **({AUXILIARY: auxiliary} if auxiliary is not None else {})}
    folders = {task: _find_folder(folder, options["root"]) for task, folder in named.items()}
    _check_disjoint(folders)
    listings = [list_folder(*folder) for folder in folders.items()]
    return several_tasks("image-folders", listings, options, options["split"])


def _find_folder(name: str, root: str | Path | None) -> Path:
    """Return a folder that exists, or exists under the root."""
    candidates = [Path(name).expanduser(), resolve_root(root) / name]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(
        f"{candidates[0].absolute()} is no folder, nor is {candidates[1].absolute()}. Folders are found from the one "
        f"in which the command runs, or under `root` or {ROOT_VARIABLE}."
    )


def _check_disjoint(folders: Mapping[str, Path]) -> None:
    """Raise a ParameterError if the folder of a task is that of another task, or lies in it."""
    resolved = {task: folder.resolve() for task, folder in folders.items()}
    for task, folder in resolved.items():
        for other, around in resolved.items():
            if task != other and folder.is_relative_to(around):
                raise ParameterError(
                    f"tasks {task!r} and {other!r} have the same images: {folder} is {around}, or lies in it. Give "
                    "each task images of its own."
                )
