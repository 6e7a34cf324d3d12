"""Caltech-101 and Caltech-256: photographs of objects, one class each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from typing_extensions import Doc, Unpack

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.classified.listing import choose_classes, class_folders, list_classes
from sparsemtl.data.images.classified.loader import SplitOptions, one_task
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files

TASK = "object"


@dataclass(frozen=True)
class Caltech:
    """Declaration of one of the two data sets.

    Attributes:
        name: registered name of the data set.
        about: description, the docstring of the data set's function.
        folders: folders of class folders, under the root; the first that exists is read.
        clutter: class folder of images that show nothing in particular.
        images: official number of images, without clutter.
        numbered: whether the names of class folders begin with a number and a point.
        source: address of the official distribution.
        get: instructions to get the files.
    """

    name: str
    about: str
    folders: tuple[str, ...]
    clutter: str
    images: int
    numbered: bool
    source: str
    get: str


def caltech(declared: Caltech) -> Callable[..., TaskData]:
    """Make the data set's function."""

    def build(
        *,
        classes: Annotated[Sequence[str] | None, Doc("Classes to read; all by default.")] = None,
        clutter: Annotated[bool, Doc("Add the class of images that show nothing in particular.")] = False,
        **options: Unpack[SplitOptions],
    ) -> TaskData:
        root = resolve_root(options["root"])
        folder = next((root / folder for folder in declared.folders if (root / folder).is_dir()), None)
        if folder is None:
            raise absent(declared.name, root, declared.folders, one_of=len(declared.folders) > 1)
        folders = class_folders(folder)
        images = sum(len(paths) for name, paths in folders.items() if name != declared.clutter)
        found = {
            name.partition(".")[2] if declared.numbered and "." in name else name: paths
            for name, paths in folders.items()
            if clutter or name != declared.clutter
        }
        listing = list_classes(TASK, choose_classes(found, classes, declared.name), str(folder))
        notes = counted({"images": images}, {"images": declared.images})
        return one_task(declared.name, listing, options, options["split"], notes)

    build.__name__, build.__doc__ = declared.name.replace("-", "_"), declared.about
    images = Expected("images", tuple(f"{folder}/*/*.jpg" for folder in declared.folders))
    files = Package(declared.name, (images,), declared.source, "CC BY 4.0 (CaltechDATA)", declared.get)
    return requires_files((files,))(checked(build))


CALTECH_101 = Caltech(
    "caltech-101",
    """Caltech-101: 101 kinds of objects, 8,677 photographs of about 300x200 pixels (Fei-Fei et al. 2004).

    Layout; `caltech101` instead of `caltech-101` will do as well:

        caltech-101/101_ObjectCategories/accordion/image_0001.jpg, ...

    Its one task is `object`. The class of clutter is BACKGROUND_Google. Needs the extra `vision`.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such class.
    """,
    ("caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories"),
    "BACKGROUND_Google",
    8677,
    numbered=False,
    source="https://data.caltech.edu/records/mzrjq-6wc02",
    get="unpack caltech-101.zip (137 MB, md5 3138e1922a9193bfa496528edbbc45d0) into the root, and "
    "101_ObjectCategories.tar.gz in it where it lies",
)
CALTECH_256 = Caltech(
    "caltech-256",
    """Caltech-256: 256 kinds of objects, 29,780 photographs, and 827 of clutter (Griffin et al. 2007).

    Layout; `caltech256/256_ObjectCategories` will do as well:

        256_ObjectCategories/001.ak47/001_0001.jpg, ...

    Its one task is `object`; classes are named without their numbers: `ak47`. The class of clutter is `clutter`. Needs
    the extra `vision`.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such class.
    """,
    ("256_ObjectCategories", "caltech256/256_ObjectCategories"),
    "257.clutter",
    29_780,
    numbered=True,
    source="https://data.caltech.edu/records/nyy15-4j048",
    get="unpack 256_ObjectCategories.tar (1.2 GB, md5 67b4f42ca05d46448c6bb8ecd2220f6d) into the root",
)
