"""Office-31, Office-Caltech and Office-Home: the same objects, photographed and drawn in domains, a task each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc, Unpack

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.classified.listing import choose_classes, class_folders, list_classes
from sparsemtl.data.images.classified.loader import SplitOptions, several_tasks
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError, ParameterError, unknown_name


@dataclass(frozen=True)
class Domain:
    """One way in which the objects are shown.

    Attributes:
        folders: folders of class folders, under the data set's folder; the first that exists is read.
        images: official number of images.
    """

    folders: tuple[str, ...]
    images: int


@dataclass(frozen=True)
class Office:
    """Declaration of a data set of domains, each a task.

    Attributes:
        name: registered name of the data set.
        about: description, the docstring of the data set's function.
        folder: folder under the root.
        domains: task -> domain.
        source: address of the official distribution.
        licence: terms of use.
        get: instructions to get the files.
        renamed: other names of class folders -> class.
        classes: the classes; other folders beside them are ignored. Empty: every folder is a class.
        remark: see `RequiredFiles`.
    """

    name: str
    about: str
    folder: str
    domains: Mapping[str, Domain]
    source: str
    licence: str
    get: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    classes: frozenset[str] = frozenset()
    remark: str = ""

    @property
    def package(self) -> Package:
        """Files that the data set needs."""
        files = tuple(
            Expected(
                f"images of {name}",
                tuple(f"{self.folder}/{folder}/*/*.jpg" for folder in domain.folders),
                None if self.classes else domain.images,  # the images of other classes may lie beside them
            )
            for name, domain in self.domains.items()
        )
        return Package(self.name, files, self.source, self.licence, self.get)

    def find(self, folder: Path, domains: Sequence[str]) -> dict[str, Path]:
        """Return domain -> its folder.

        Raises:
            DataError: if the folder of a domain is absent.
        """
        candidates = {name: [folder / inner for inner in self.domains[name].folders] for name in domains}
        found = {name: path for name, paths in candidates.items() for path in paths[::-1] if path.is_dir()}
        lacking = [" or ".join(self.domains[name].folders) for name in domains if name not in found]
        if lacking:
            raise absent(self.name, folder, lacking)
        return {name: found[name] for name in domains}

    def images(self, folder: Path) -> dict[str, list[str]]:
        """Return class -> paths of its images, for the classes of a domain in their order.

        Raises:
            DataError: if no folder is a class.
        """
        folders = {self.renamed.get(name, name): paths for name, paths in class_folders(folder).items()}
        known = [name for name in sorted(folders) if not self.classes or name in self.classes]
        if not known:
            raise DataError(
                f"{self.name}: none of the folders of {folder.absolute()} is a class ({', '.join(folders)}). "
                f"The classes are {', '.join(sorted(self.classes))}."
            )
        return {name: folders[name] for name in known}


def office(declared: Office) -> Callable[..., TaskData]:
    """Make the data set's function."""

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
        folders = declared.find(resolve_root(options["root"]) / declared.folder, wanted)
        found = {name: declared.images(folder) for name, folder in folders.items()}
        listings = []
        for name, images in found.items():
            named = classes.get(name) if isinstance(classes, Mapping) else classes
            chosen = choose_classes(images, named, f"{declared.name}, {name}")
            listings.append(list_classes(name, chosen, str(folders[name])))
        counts = {f"images of {name}": sum(map(len, of.values())) for name, of in found.items()}
        official = {f"images of {name}": domain.images for name, domain in declared.domains.items()}
        return several_tasks(declared.name, listings, options, options["split"], counted(counts, official))

    build.__name__, build.__doc__ = declared.name.replace("-", "_"), declared.about
    return requires_files((declared.package,), remark=declared.remark)(checked(build))


_RAISES = """Every domain is a task with images of its own. Needs the extra `vision`.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such domain or class.
    """
OFFICE_31 = Office(
    "office-31",
    f"""Office-31: 31 kinds of office objects from a shop, a camera and a webcam, 4,110 images (Saenko et al. 2010).

    Layout, by domain:

        office31/amazon/images/back_pack/frame_0001.jpg, ...   also without `images`
        office31/dslr/images/...
        office31/webcam/images/...

    {_RAISES}""",
    "office31",
    {
        "amazon": Domain(("amazon/images", "amazon"), 2817),
        "dslr": Domain(("dslr/images", "dslr"), 498),
        "webcam": Domain(("webcam/images", "webcam"), 795),
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
OFFICE_CALTECH = Office(
    "office-caltech",
    f"""Office-Caltech: the 10 classes that Office-31 and Caltech-256 have in common, 2,533 images (Gong et al. 2012).

    Layout, by domain:

        office_caltech_10/amazon/back_pack/frame_0001.jpg, ...
        office_caltech_10/caltech/..., dslr/..., webcam/...

    Class folders of `caltech` that have Caltech-256's names, such as 224.touring-bike, get those of Office-31. Folders
    of other classes, such as the other 21 of Office-31, are ignored; `images` may lie between a domain and its classes.
    {_RAISES}""",
    "office_caltech_10",
    {
        "amazon": Domain(("amazon/images", "amazon"), 958),
        "caltech": Domain(("caltech", "Caltech10"), 1123),
        "dslr": Domain(("dslr/images", "dslr"), 157),
        "webcam": Domain(("webcam/images", "webcam"), 295),
    },
    source="https://github.com/pykale/data/tree/main/image_data/office",
    licence="we have found none for Office-31's images; Caltech-256's are under CC BY 4.0",
    get="unpack amazon.zip, caltech.zip, dslr.zip and webcam.zip into office_caltech_10 under the root",
    renamed={
        **_OF_CALTECH_256,
        **{name.partition(".")[2]: label for name, label in _OF_CALTECH_256.items()},
        "laptop": "laptop_computer",
    },
    classes=frozenset(_OF_CALTECH_256.values()),
    remark="the images are those of Office-31 and of Caltech-256. The archives named here, which others have made, "
    "hold all 31 classes of Office-31; only the 10 are read.",
)
OFFICE_HOME = Office(
    "office-home",
    f"""Office-Home: 65 everyday objects in art, clip art, products and photographs (Venkateswara et al. 2017).

    The authors state "around 15,500 images"; others have counted 15,588 in their archive. Layout, by domain (`art`,
    `clipart`, `product`, `real-world`):

        OfficeHomeDataset_10072016/Art/Alarm_Clock/00001.jpg, ...
        OfficeHomeDataset_10072016/Clipart/..., Product/..., Real World/...

    {_RAISES}""",
    "OfficeHomeDataset_10072016",
    {
        "art": Domain(("Art",), 2427),
        "clipart": Domain(("Clipart",), 4365),
        "product": Domain(("Product",), 4439),
        "real-world": Domain(("Real World", "RealWorld", "Real_World"), 4357),
    },
    source="https://www.hemanthdv.org/officeHomeDataset.html",
    licence="non-commercial research and education only, by the page's Fair Use Notice",
    get="unpack OfficeHomeDataset_10072016.zip into the root",
)
