"""Office-31, Office-Caltech and Office-Home: the same objects, photographed and drawn in several ways, a task each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sparsemtl.data.base import TaskData
from sparsemtl.data.folders import absent, counted
from sparsemtl.data.objects.assemble import Reading, several_tasks
from sparsemtl.data.objects.leaks import Deduplicate
from sparsemtl.data.objects.listing import Listing, chosen, class_folders, listing
from sparsemtl.data.options import ProperFraction, checked
from sparsemtl.data.pictures import Size
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError, ParameterError, unknown_name
from sparsemtl.registry.parameters import Natural, NonNegative

Classes = Sequence[str] | Mapping[str, Sequence[str]] | None
"""Classes of all domains; or domain -> its classes; or None: all."""


@dataclass(frozen=True)
class Domain:
    """One way in which the objects are shown.

    Attributes:
        places: folders of class folders, under the data set's; the first that is there is read.
        images: how many the official distribution has.
    """

    places: tuple[str, ...]
    images: int


@dataclass(frozen=True)
class Office:
    """A data set of domains, each a task.

    Attributes:
        name: the data set, as it is registered.
        folder: where it lies under the root.
        domains: task -> domain.
        renamed: what a class folder may be called -> the class.
        classes: the classes; folders of others that lie beside them are passed over. Empty: every folder is a class.
    """

    name: str
    folder: str
    domains: Mapping[str, Domain]
    renamed: Mapping[str, str] = field(default_factory=dict)
    classes: frozenset[str] = frozenset()

    def package(self, *, source: str, licence: str, get: str) -> Package:
        """What it needs on disk."""
        files = tuple(
            Expected(
                f"images of {name}",
                tuple(f"{self.folder}/{place}/*/*.jpg" for place in domain.places),
                None if self.classes else domain.images,  # the images of other classes may lie beside them
            )
            for name, domain in self.domains.items()
        )
        return Package(self.name, files, source, licence, get)

    def read(self, reading: Reading, domains: Sequence[str] | None, classes: Classes) -> TaskData:
        """Read the domains that are asked for.

        Raises:
            DataError: if a domain's folder is absent, or a class has no image.
            ParameterError: if there is no such domain or class.
        """
        wanted = list(self.domains) if domains is None else list(domains)
        for name in [*wanted, *(classes if isinstance(classes, Mapping) else ())]:
            if name not in self.domains:
                raise ParameterError(f"{self.name}: {unknown_name('domain', name, self.domains)}")
        if not wanted or len(set(wanted)) < len(wanted):
            raise ParameterError(f"{self.name}: `domains` names one or more of them, each once; got {wanted}.")
        folders = self._find(reading.place / self.folder, wanted)
        found = {name: self._classes(folder) for name, folder in folders.items()}
        listings = [self._listing(name, found[name], folders[name], classes) for name in wanted]
        images = {f"images of {name}": sum(map(len, of.values())) for name, of in found.items()}
        official = {f"images of {name}": domain.images for name, domain in self.domains.items()}
        return several_tasks(self.name, listings, reading, counted(images, official))

    def _find(self, place: Path, wanted: Sequence[str]) -> dict[str, Path]:
        places = {name: [place / folder for folder in self.domains[name].places] for name in wanted}
        found = {name: next((path for path in paths if path.is_dir()), None) for name, paths in places.items()}
        there = {name: path for name, path in found.items() if path is not None}
        if len(there) < len(wanted):
            lacking = [" or ".join(self.domains[name].places) for name in wanted if name not in there]
            raise absent(self.name, place, lacking)
        return there

    def _classes(self, folder: Path) -> dict[str, list[str]]:
        """Class folders by the classes' names, in their order."""
        folders = {self.renamed.get(name, name): paths for name, paths in class_folders(folder).items()}
        known = [name for name in sorted(folders) if not self.classes or name in self.classes]
        if not known:
            raise DataError(
                f"{self.name}: none of the folders of {folder.absolute()} is a class ({', '.join(folders)}). "
                f"The classes are {', '.join(sorted(self.classes))}."
            )
        return {name: folders[name] for name in known}

    def _listing(self, name: str, found: Mapping[str, Sequence[str]], folder: Path, classes: Classes) -> Listing:
        asked = classes.get(name) if isinstance(classes, Mapping) else classes
        return listing(name, chosen(found, asked, f"{self.name}, {name}"), str(folder))


OFFICE_31 = Office(
    "office-31",
    "office31",
    {
        "amazon": Domain(("amazon/images", "amazon"), 2817),
        "dslr": Domain(("dslr/images", "dslr"), 498),
        "webcam": Domain(("webcam/images", "webcam"), 795),
    },
)
OFFICE_CALTECH = Office(
    "office-caltech",
    "office_caltech_10",
    {
        "amazon": Domain(("amazon/images", "amazon"), 958),
        "caltech": Domain(("caltech", "Caltech10"), 1123),
        "dslr": Domain(("dslr/images", "dslr"), 157),
        "webcam": Domain(("webcam/images", "webcam"), 295),
    },
    {
        "003.backpack": "back_pack",
        "backpack": "back_pack",
        "224.touring-bike": "bike",
        "touring-bike": "bike",
        "027.calculator": "calculator",
        "101.head-phones": "headphones",
        "head-phones": "headphones",
        "045.computer-keyboard": "keyboard",
        "computer-keyboard": "keyboard",
        "127.laptop-101": "laptop_computer",
        "laptop-101": "laptop_computer",
        "laptop": "laptop_computer",
        "046.computer-monitor": "monitor",
        "computer-monitor": "monitor",
        "047.computer-mouse": "mouse",
        "computer-mouse": "mouse",
        "041.coffee-mug": "mug",
        "coffee-mug": "mug",
        "238.video-projector": "projector",
        "video-projector": "projector",
    },
    frozenset(
        (
            "back_pack",
            "bike",
            "calculator",
            "headphones",
            "keyboard",
            "laptop_computer",
            "monitor",
            "mouse",
            "mug",
            "projector",
        )
    ),
)
OFFICE_HOME = Office(
    "office-home",
    "OfficeHomeDataset_10072016",
    {
        "art": Domain(("Art",), 2427),
        "clipart": Domain(("Clipart",), 4365),
        "product": Domain(("Product",), 4439),
        "real-world": Domain(("Real World", "RealWorld", "Real_World"), 4357),
    },
)


@requires_files(
    (
        OFFICE_31.package(
            source="https://faculty.cc.gatech.edu/~judy/domainadapt/",
            licence="we have found none; photographs of the authors' and of amazon.com",
            get="unpack domain_adaptation_images.tar.gz into office31 under the root",
        ),
    ),
)
@checked
def office_31(
    *,
    root: str | Path | None = None,
    domains: Sequence[Literal["amazon", "dslr", "webcam"]] | None = None,
    classes: Classes = None,
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
    """Office-31: 31 kinds of office objects from a shop, a camera and a webcam, 4,110 images (Saenko et al. 2010).

    Layout:

        office31/amazon/images/back_pack/frame_0001.jpg, ...   also without `images`
        office31/dslr/images/...
        office31/webcam/images/...

    Every domain is a task with images of its own. Arguments are those of `Reading`. Needs the extra `vision`.

    Args:
        domains: the domains; all three by default.
        classes: the classes of every domain; or domain -> its classes; all 31 by default.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such domain or class.
    """
    reading = Reading(root, size, grey, split, skip_broken, deduplicate, cache, workers, memory, seed)
    return OFFICE_31.read(reading, domains, classes)


@requires_files(
    (
        OFFICE_CALTECH.package(
            source="https://github.com/pykale/data/tree/main/image_data/office",
            licence="we have found none for Office-31's images; Caltech-256's are under CC BY 4.0",
            get="unpack amazon.zip, caltech.zip, dslr.zip and webcam.zip into office_caltech_10 under the root",
        ),
    ),
    remark="the images are those of Office-31 and of Caltech-256. The archives named here, which others have made, hold "
    "all 31 classes of Office-31; only the 10 are read.",
)
@checked
def office_caltech(
    *,
    root: str | Path | None = None,
    domains: Sequence[Literal["amazon", "caltech", "dslr", "webcam"]] | None = None,
    classes: Classes = None,
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
    """Office-Caltech: the 10 classes that Office-31 and Caltech-256 have in common, 2,533 images (Gong et al. 2012).

    Layout:

        office_caltech_10/amazon/back_pack/frame_0001.jpg, ...
        office_caltech_10/caltech/..., dslr/..., webcam/...

    Class folders of `caltech` that have Caltech-256's names, such as 224.touring-bike, get those of Office-31. Folders
    of other classes, such as the other 21 of Office-31, are passed over; `images` may lie between a domain and its
    classes. Every domain is a task with images of its own. Arguments are those of `Reading`. Needs the extra `vision`.

    Args:
        domains: the domains; all four by default.
        classes: the classes of every domain; or domain -> its classes; all 10 by default.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such domain or class.
    """
    reading = Reading(root, size, grey, split, skip_broken, deduplicate, cache, workers, memory, seed)
    return OFFICE_CALTECH.read(reading, domains, classes)


@requires_files(
    (
        OFFICE_HOME.package(
            source="https://www.hemanthdv.org/officeHomeDataset.html",
            licence="non-commercial research and education only, by the page's Fair Use Notice",
            get="unpack OfficeHomeDataset_10072016.zip into the root",
        ),
    ),
)
@checked
def office_home(
    *,
    root: str | Path | None = None,
    domains: Sequence[Literal["art", "clipart", "product", "real-world"]] | None = None,
    classes: Classes = None,
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
    """Office-Home: 65 everyday objects in art, clip art, products and photographs (Venkateswara et al. 2017).

    The authors say "around 15,500 images"; others have counted 15,588 in their archive.

    Layout:

        OfficeHomeDataset_10072016/Art/Alarm_Clock/00001.jpg, ...
        OfficeHomeDataset_10072016/Clipart/..., Product/..., Real World/...

    Every domain is a task with images of its own. Arguments are those of `Reading`. Needs the extra `vision`.

    Args:
        domains: the domains; all four by default.
        classes: the classes of every domain; or domain -> its classes; all 65 by default.

    Raises:
        DataError: if files are absent, or an image cannot be decoded.
        ParameterError: if there is no such domain or class.
    """
    reading = Reading(root, size, grey, split, skip_broken, deduplicate, cache, workers, memory, seed)
    return OFFICE_HOME.read(reading, domains, classes)
