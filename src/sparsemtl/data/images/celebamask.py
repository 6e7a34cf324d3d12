"""CelebAMask-HQ: faces with the masks of their parts, and yes/no attributes (Lee et al. 2020)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.data.attributes import Attributes, read_attributes, text_lines
from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import absent, complete, counted
from sparsemtl.data.images.maps import Field, Frame, ImageSource, OneTarget, Values
from sparsemtl.data.images.photos import DecodingOptions, partitioned
from sparsemtl.data.images.pictures import Array, Size, as_size, colours, nearest, read_picture
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.data.splitting import partition
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.registry.parameters import Natural
from sparsemtl.tasks import Classification, Segmentation

FOLDER, IMAGES, MASKS = "CelebAMask-HQ", "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
LIST, MAPPING = "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-to-CelebA-mapping.txt"
_LESS_IS_MORE = "celebA_datasplit.json"
OFFICIAL = 30_000
SEGMENTATION = "segmentation"
ATTRIBUTES = {"male": "Male", "smile": "Smiling"}
"""Task -> attribute, as in Less is More."""
FIRST_VALIDATION, FIRST_TEST = 162_771, 182_638
"""Numbers of the first validation and the first test image in CelebA's partition, from 1."""
_PER_FOLDER = 2000
"""Number of images whose masks lie in one folder."""
# fmt: off
PARTS = (
    "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip",
    "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)
# fmt: on
"""In the order of the official script g_mask.py: a part covers those before it, and its class is its number from 1."""


class _FaceClasses(NamedTuple):
    """Names of classes, and (part, class) in the order in which masks are painted over each other."""

    names: tuple[str, ...]
    paint: tuple[tuple[str, int], ...]


CLASSES = {
    3: _FaceClasses(("background", "hair", "skin"), (("skin", 2), ("hair", 1))),
    19: _FaceClasses(("background", *PARTS), tuple((part, index) for index, part in enumerate(PARTS, start=1))),
}


@dataclass(frozen=True)
class _PartMasks(OneTarget):
    """Class of every pixel, painted from the masks of parts; class 0 where there is no mask."""

    folder: Path
    numbers: tuple[int, ...]
    paint: tuple[tuple[str, int], ...]

    def read(self, row: int, frame: Frame) -> dict[str, Tensor]:
        """Return the classes of a sample."""
        number, folder = self.numbers[row], self.folder / str(self.numbers[row] // _PER_FOLDER)
        classes = np.zeros(frame.size, dtype=np.uint8)
        found = {index: path for part, index in self.paint if (path := folder / f"{number:05d}_{part}.png").is_file()}
        for index, path in found.items():  # parts that are not visible have no mask
            classes[_mask(path, frame)] = index
        if not found and not any(folder.glob(f"{number:05d}_*.png")):
            raise DataError(f"{folder} has no mask of {frame.where}.")
        return {self.target: torch.from_numpy(classes)}


def _mask(path: Path, frame: Frame) -> Array:
    """Return the pixels of a part at the image's size; masks are drawn at half of it."""
    mask = read_picture(path, rgb=True)
    (height, width), (image_height, image_width) = mask.shape[:2], frame.native
    if height * image_width != width * image_height:
        raise DataError(
            f"{path} has {height}x{width} pixels, its image {frame.where} {image_height}x{image_width}: other "
            "proportions. They do not belong together."
        )
    return nearest(np.asarray(mask.any(axis=2)), frame.size)


def _official(folder: Path, images: Sequence[str], seed: int) -> list[Tensor]:
    path = folder / MAPPING
    numbers: dict[str, int] = {}
    for number, line in enumerate(text_lines(path)[1:], start=2):
        words = line.split()
        original = words[2].removesuffix(".jpg") if len(words) > 2 else ""
        if not original.isdecimal():
            raise DataError(f"{path}, line {number}: expected a number, another and CelebA's NUMBER.jpg, not {line!r}.")
        numbers[f"{words[0]}.jpg"] = int(original)
    lacking = [image for image in images if image not in numbers]
    if lacking:
        raise DataError(f"{path} lacks {len(lacking)} of {len(images)} images, the first is {lacking[0]}.")
    originals = torch.tensor([numbers[image] for image in images])
    parts = (originals >= FIRST_VALIDATION).long() + (originals >= FIRST_TEST).long()
    for part in range(3):
        if not (parts == part).any():
            raise DataError(f"{path}: no image is in CelebA's part {part}. Choose another `split`.")
    return [(parts == part).nonzero().squeeze(1) for part in range(3)]


def _less_is_more(folder: Path, images: Sequence[str], seed: int) -> list[Tensor]:
    path = folder / _LESS_IS_MORE
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. It is src/dataset/{_LESS_IS_MORE} of https://github.com/ricupa/"
            "Less-is-More-Towards-parsimonious-multi-task-models-using-structured-sparsity."
        )
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        names: list[list[str]] = [list(lists[part]) for part in ("train", "val", "test")]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a JSON object of lists train, val and test: {error!r}.") from None
    together = [name for part in names for name in part]
    if len(set(together)) < len(together):
        raise DataError(f"{path} lists {len(together) - len(set(together))} images twice.")
    rows = {image: row for row, image in enumerate(images)}
    unknown = [name for name in together if name not in rows]
    if unknown:
        raise DataError(f"{path} lists {len(unknown)} images that are not there, the first is {unknown[0]}.")
    return [torch.tensor([rows[name] for name in part], dtype=torch.long) for part in names]


def _random(folder: Path, images: Sequence[str], seed: int) -> list[Tensor]:
    return partition(len(images), (0.7, 0.15, 0.15), seed=seed)


SPLITS: dict[str, tuple[Callable[[Path, Sequence[str], int], list[Tensor]], str]] = {
    "official": (_official, "CelebA's official partition"),
    "less-is-more": (_less_is_more, "the list of Less is More"),
    "random": (_random, "70 % training, 15 % validation, 15 % test at random (seed {seed})"),
}
"""Name -> function (folder, images in the order of the attributes' list, seed) of the rows of the splits, and note."""

FILES = Package(
    "CelebAMask-HQ.zip",
    (
        Expected("images", (f"{FOLDER}/{IMAGES}/*.jpg",), OFFICIAL),
        Expected("masks of parts", (f"{FOLDER}/{MASKS}/*/*.png",)),
        Expected("40 attributes", (f"{FOLDER}/{LIST}",), 1),
        Expected("numbers of the images in CelebA", (f"{FOLDER}/{MAPPING}",), 1, optional=True),
        Expected("the split of Less is More", (f"{FOLDER}/{_LESS_IS_MORE}",), 1, optional=True),
    ),
    source="https://github.com/switchablenorms/CelebAMask-HQ",
    licence="non-commercial research and education only, no redistribution",
    get=f"agree to the terms, and unpack the archive (3 GB) so that {FOLDER}/{LIST} lies under the root",
)


@requires_files((FILES,))
@checked
def celebamask_hq(
    *,
    classes: Annotated[
        Literal[3, 19], Doc("19, background and all parts; or 3, background, hair and skin, as in Less is More.")
    ] = 3,
    attributes: Annotated[
        Mapping[str, str] | None,
        Doc("Task -> name of the attribute in the list; male -> Male and smile -> Smiling by default."),
    ] = None,
    split: Annotated[
        Literal["official", "less-is-more", "random"],
        Doc(
            "`official`, CelebA's own partition of the same images; `less-is-more`, that paper's list; `random`, 70 % "
            "training, 15 % validation, 15 % test."
        ),
    ] = "official",
    size: Annotated[Size, Doc("Height and width in pixels, or the shorter side.")] = 256,
    seed: Annotated[Natural, Doc("Seed of the split `random`.")] = 0,
    **options: Unpack[DecodingOptions],
) -> TaskData:
    """CelebAMask-HQ: 30,000 faces with masks of 18 parts and 40 attributes (Lee et al. 2020).

    The tasks are `segmentation` and one classification per attribute, `male` and `smile` by default. Layout:

        CelebAMask-HQ/CelebA-HQ-img/0.jpg, ...                            1024x1024
        CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_skin.png, ...       512x512; invisible parts have no file
        CelebAMask-HQ/CelebAMask-HQ-attribute-anno.txt
        CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt                     for `split: official`
        CelebAMask-HQ/celebA_datasplit.json                               for `split: less-is-more`

    Source: https://github.com/switchablenorms/CelebAMask-HQ, for non-commercial research. Needs the extra `vision`.

    Raises:
        DataError: if files are absent or do not fit each other.

    Differences from the papers:
        - Less is More trains on files that it merged into 3 classes and does not describe. Here skin is painted first
          and hair over it, in the official order; eyes, nose and mouth stay skin, as its mask covers the whole face.
          Its code reads the first third of every list of its split (`len / 3`); here all images count.
        - The paper's classification heads have one output and a sigmoid, ours two and a softmax: the same model of
          the difference of the two.
        - The official script g_partition.py counts from 0 and is off by one image at each border of CelebA's partition.
    """
    folder = resolve_root(options["root"]) / FOLDER
    lacking = [name for name in (IMAGES, MASKS, LIST) if not (folder / name).exists()]
    if lacking:
        raise absent("celebamask-hq", folder, lacking)
    table = read_attributes(folder / LIST)
    named = ATTRIBUTES if attributes is None else attributes
    if SEGMENTATION in named:
        raise ParameterError(f"celebamask-hq: no attribute's task can be called {SEGMENTATION!r}.")
    labels = table.columns(tuple(named.values())).long()
    tasks = (
        Segmentation(SEGMENTATION, CLASSES[classes].names),
        *(Classification(task, ["no", "yes"]) for task in named),
    )
    masks = _PartMasks(SEGMENTATION, folder / MASKS, _numbers(table), CLASSES[classes].paint)
    fields: tuple[Field, ...] = (masks, *(Values(task, labels[:, column]) for column, task in enumerate(named)))
    source = ImageSource(complete(folder / IMAGES, table.images, colours), fields, as_size(size))
    read, note = SPLITS[split]
    notes = (f"split: {note.format(seed=seed)}", *counted({"images": len(table.images)}, {"images": OFFICIAL}))
    return partitioned("celebamask-hq", tasks, source, read(folder, table.images, seed), options, notes)


def _numbers(table: Attributes) -> tuple[int, ...]:
    """Return the numbers of the images, by which their masks are named."""
    stems = [image.removesuffix(".jpg") for image in table.images]
    odd = next((stem for stem in stems if not stem.isdecimal()), None)
    if odd is not None:
        raise DataError(f"{table.path} names an image {odd!r}; images are 0.jpg, 1.jpg and so on.")
    return tuple(map(int, stems))
