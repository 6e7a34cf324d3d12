"""Data sets of objects: Office-31, Office-Caltech, Office-Home; Caltech-101 and Caltech-256."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc, Unpack

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.classified.listing import choose_classes, class_folders, list_classes
from sparsemtl.data.images.classified.loader import SplitOptions, one_task, several_tasks
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError, ParameterError, unknown_name


@dataclass(frozen=True)
class _ObjectSet:
    """Declaration of a data set of objects.

    A domain may have several folders of class folders, of which the first that exists is read.
    """

    name: str
    about: str  # docstring of the data set's function
    root: str  # folder under the root of all data sets
    domains: Mapping[str, tuple[tuple[str, ...], int]]  # task -> folders of class folders, official number of images
    source: str
    licence: str
    get: str
    remark: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)  # other names of class folders -> class
    classes: frozenset[str] = frozenset()  # other folders beside these are ignored; empty: every folder is a class
    clutter: str = ""  # class folder of images that show nothing in particular

    @property
    def package(self) -> Package:
        """Files that the data set needs."""
        files = []
        for name, (folders, count) in self.domains.items():
            patterns = tuple((Path(self.root) / folder / "*" / "*.jpg").as_posix() for folder in folders)
            official = None if self.classes or self.clutter else count  # images of other classes may lie beside them
            files.append(Expected("images" if self.clutter else f"images of {name}", patterns, official))
        return Package(self.name, tuple(files), self.source, self.licence, self.get)

    def find(self, root: Path, domains: Sequence[str]) -> dict[str, Path]:
        """Return domain -> its folder."""
        candidates = {name: [root / self.root / folder for folder in self.domains[name][0]] for name in domains}
        found = {name: path for name, paths in candidates.items() for path in paths[::-1] if path.is_dir()}
        lacking = [" or ".join(self.domains[name][0]) for name in domains if name not in found]
        if lacking:
            raise absent(self.name, root / self.root, lacking)
        return found

    def images(self, folder: Path) -> dict[str, list[str]]:
        """Return class -> paths of its images, for the classes of a domain in their order."""
        folders = {self.renamed.get(name, name): paths for name, paths in class_folders(folder).items()}
        known = [name for name in sorted(folders) if not self.classes or name in self.classes]
        if not known:
            raise DataError(
                f"{self.name}: none of the folders of {folder.absolute()} is a class ({', '.join(folders)}). "
                f"The classes are {', '.join(sorted(self.classes))}."
            )
        return {name: folders[name] for name in known}

    def registered(self, build: Callable[..., TaskData]) -> Callable[..., TaskData]:
        """Return the data set's function with its name, docstring, check and required files."""
        build.__name__, build.__doc__ = self.name.replace("-", "_"), self.about
        return requires_files((self.package,), remark=self.remark)(checked(build))


def _office(declared: _ObjectSet) -> Callable[..., TaskData]:
    """Make the function of a data set of domains, each a task."""

    def build(
        *,
        domains: Annotated[Sequence[str] | None, Doc("Domains to read; all by default.")] = None,
        classes: Annotated[
            Sequence[str] | Mapping[str, Sequence[str]] | None,
            Doc("Classes of every domain; or domain -> its classes; all by default."),
        ] = None,
        **options: Unpack[SplitOptions],
    ) -> TaskData:
        wanted = list(declared.domains) if domains is None else list(domains)
        for name in [*wanted, *(classes if isinstance(classes, Mapping) else ())]:
            if name not in declared.domains:
                raise ParameterError(f"{declared.name}: {unknown_name('domain', name, declared.domains)}")
        if not wanted or len(set(wanted)) < len(wanted):
            raise ParameterError(f"{declared.name}: `domains` names one or more of them, each once; got {wanted}.")
        listings, counts, official = [], {}, {}
        for name, folder in declared.find(resolve_root(options["root"]), wanted).items():
            images = declared.images(folder)
            named = classes.get(name) if isinstance(classes, Mapping) else classes
            chosen = choose_classes(images, named, f"{declared.name}, {name}")
            listings.append(list_classes(name, chosen, str(folder)))
            counts[f"images of {name}"] = sum(map(len, images.values()))
            official[f"images of {name}"] = declared.domains[name][1]
        return several_tasks(declared.name, listings, options, options["split"], counted(counts, official))

    return declared.registered(build)


def _caltech(declared: _ObjectSet) -> Callable[..., TaskData]:
    """Make the function of a data set of one task, with a class of clutter that is left out by default."""
    ((task, (_, official)),) = declared.domains.items()

    def build(
        *,
        classes: Annotated[Sequence[str] | None, Doc("Classes to read; all by default.")] = None,
        clutter: Annotated[bool, Doc("Add the class of images that show nothing in particular.")] = False,
        **options: Unpack[SplitOptions],
    ) -> TaskData:
        folder = declared.find(resolve_root(options["root"]), [task])[task]
        images = declared.images(folder)
        count = sum(len(paths) for name, paths in images.items() if name != declared.clutter)
        if not clutter:
            images.pop(declared.clutter, None)
        named = {name.partition(".")[2] if name[:3].isdecimal() else name: paths for name, paths in images.items()}
        listing = list_classes(task, choose_classes(named, classes, declared.name), str(folder))
        notes = counted({"images": count}, {"images": official})
        return one_task(declared.name, listing, options, options["split"], notes)

    return declared.registered(build)


_END = """Needs the extra `vision`.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such domain or class.
    """
_OFFICE_31 = _ObjectSet(
    "office-31",
    f"""Office-31: 31 kinds of office objects from a shop, a camera and a webcam, 4,110 images (Saenko et al. 2010).

    Layout, by domain:

        office31/amazon/images/back_pack/frame_0001.jpg, ...   also without `images`
        office31/dslr/images/...
        office31/webcam/images/...

    Every domain is a task with images of its own. {_END}""",
    "office31",
    {
        "amazon": (("amazon/images", "amazon"), 2817),
        "dslr": (("dslr/images", "dslr"), 498),
        "webcam": (("webcam/images", "webcam"), 795),
    },
    source="https://faculty.cc.gatech.edu/~judy/domainadapt/",
    licence="we have found none; photographs of the authors' and of amazon.com",
    get="unpack domain_adaptation_images.tar.gz into office31 under the root",
)
_OF_CALTECH_256 = {
    "003.backpack": "back_pack",
    "224.touring-bike": "bike",
    "027.calculator": "calculator",
    "101.head-phones": "headphones",
    "045.computer-keyboard": "keyboard",
    "127.laptop-101": "laptop_computer",
    "046.computer-monitor": "monitor",
    "047.computer-mouse": "mouse",
    "041.coffee-mug": "mug",
    "238.video-projector": "projector",
}
"""Folder of Caltech-256 -> class of Office-31."""
_OFFICE_CALTECH = _ObjectSet(
    "office-caltech",
    f"""Office-Caltech: the 10 classes that Office-31 and Caltech-256 have in common, 2,533 images (Gong et al. 2012).

    Layout, by domain:

        office_caltech_10/amazon/back_pack/frame_0001.jpg, ...
        office_caltech_10/caltech/..., dslr/..., webcam/...

    Class folders of `caltech` that have Caltech-256's names, such as 224.touring-bike, get those of Office-31. Folders
    of other classes, such as the other 21 of Office-31, are ignored; `images` may lie between a domain and its classes.
    Every domain is a task with images of its own. {_END}""",
    "office_caltech_10",
    {
        "amazon": (("amazon/images", "amazon"), 958),
        "caltech": (("caltech", "Caltech10"), 1123),
        "dslr": (("dslr/images", "dslr"), 157),
        "webcam": (("webcam/images", "webcam"), 295),
    },
    source="https://github.com/pykale/data/tree/main/image_data/office",
    licence="we have found none for Office-31's images; Caltech-256's are under CC BY 4.0",
    get="unpack amazon.zip, caltech.zip, dslr.zip and webcam.zip into office_caltech_10 under the root",
    remark="the images are those of Office-31 and of Caltech-256. The archives named here, which others have made, "
    "hold all 31 classes of Office-31; only the 10 are read.",
    renamed={
        **_OF_CALTECH_256,
        **{name.partition(".")[2]: label for name, label in _OF_CALTECH_256.items()},
        "laptop": "laptop_computer",
    },
    classes=frozenset(_OF_CALTECH_256.values()),
)
_OFFICE_HOME = _ObjectSet(
    "office-home",
    f"""Office-Home: 65 everyday objects in art, clip art, products and photographs (Venkateswara et al. 2017).

    The authors state "around 15,500 images"; others have counted 15,588 in their archive. Layout, by domain (`art`,
    `clipart`, `product`, `real-world`):

        OfficeHomeDataset_10072016/Art/Alarm_Clock/00001.jpg, ...
        OfficeHomeDataset_10072016/Clipart/..., Product/..., Real World/...

    Every domain is a task with images of its own. {_END}""",
    "OfficeHomeDataset_10072016",
    {
        "art": (("Art",), 2427),
        "clipart": (("Clipart",), 4365),
        "product": (("Product",), 4439),
        "real-world": (("Real World", "RealWorld", "Real_World"), 4357),
    },
    source="https://www.hemanthdv.org/officeHomeDataset.html",
    licence="non-commercial research and education only, by the page's Fair Use Notice",
    get="unpack OfficeHomeDataset_10072016.zip into the root",
)
_CALTECH_101 = _ObjectSet(
    "caltech-101",
    f"""Caltech-101: 101 kinds of objects, 8,677 photographs of about 300x200 pixels (Fei-Fei et al. 2004).

    Layout; `caltech101` instead of `caltech-101` will do as well:

        caltech-101/101_ObjectCategories/accordion/image_0001.jpg, ...

    Its one task is `object`. The class of clutter is BACKGROUND_Google. {_END}""",
    "",
    {"object": (("caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories"), 8677)},
    source="https://data.caltech.edu/records/mzrjq-6wc02",
    licence="CC BY 4.0 (CaltechDATA)",
    get="unpack caltech-101.zip (137 MB, md5 3138e1922a9193bfa496528edbbc45d0) into the root, and "
    "101_ObjectCategories.tar.gz in it where it lies",
    clutter="BACKGROUND_Google",
)
_CALTECH_256 = _ObjectSet(
    "caltech-256",
    f"""Caltech-256: 256 kinds of objects, 29,780 photographs, and 827 of clutter (Griffin et al. 2007).

    Layout; `caltech256/256_ObjectCategories` will do as well:

        256_ObjectCategories/001.ak47/001_0001.jpg, ...

    Its one task is `object`; classes are named without their numbers: `ak47`. The class of clutter is `clutter`.
    {_END}""",
    "",
    {"object": (("256_ObjectCategories", "caltech256/256_ObjectCategories"), 29_780)},
    source="https://data.caltech.edu/records/nyy15-4j048",
    licence="CC BY 4.0 (CaltechDATA)",
    get="unpack 256_ObjectCategories.tar (1.2 GB, md5 67b4f42ca05d46448c6bb8ecd2220f6d) into the root",
    clutter="257.clutter",
)
OBJECT_SETS = {
    **{declared.name: _office(declared) for declared in (_OFFICE_31, _OFFICE_CALTECH, _OFFICE_HOME)},
    **{declared.name: _caltech(declared) for declared in (_CALTECH_101, _CALTECH_256)},
}
"""Registered name -> function of the data set."""
