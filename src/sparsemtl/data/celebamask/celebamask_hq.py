"""CelebAMask-HQ: faces with the masks of their parts, and yes/no attributes (Lee et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sparsemtl.data.attributes import Attributes, read_attributes
from sparsemtl.data.base import TaskData
from sparsemtl.data.celebamask.masks import CLASSES, PartMasks
from sparsemtl.data.celebamask.splits import LESS_IS_MORE, MAPPING, SPLITS, Split
from sparsemtl.data.folders import absent, complete, counted
from sparsemtl.data.lazy import LazySplit
from sparsemtl.data.maps import Field, ImageSource, Values
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.pictures import Size, as_size, colours
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.registry.parameters import Natural, NonNegative
from sparsemtl.tasks import Classification, Segmentation, Task

FOLDER, IMAGES, MASKS = "CelebAMask-HQ", "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
LIST = "CelebAMask-HQ-attribute-anno.txt"
OFFICIAL = 30_000
SEGMENTATION = "segmentation"
ATTRIBUTES = {"male": "Male", "smile": "Smiling"}
"""Task -> attribute, as Less is More chose them."""

FILES = Package(
    "CelebAMask-HQ.zip",
    (
        Expected("images", (f"{FOLDER}/{IMAGES}/*.jpg",), OFFICIAL),
        Expected("masks of parts", (f"{FOLDER}/{MASKS}/*/*.png",)),
        Expected("40 attributes", (f"{FOLDER}/{LIST}",), 1),
        Expected("numbers of the images in CelebA", (f"{FOLDER}/{MAPPING}",), 1, optional=True),
        Expected("the split of Less is More", (f"{FOLDER}/{LESS_IS_MORE}",), 1, optional=True),
    ),
    source="https://github.com/switchablenorms/CelebAMask-HQ",
    licence="non-commercial research and education only, no redistribution",
    get=f"agree to the terms, and unpack the archive (3 GB) so that {FOLDER}/{LIST} lies under the root",
)


@requires_files((FILES,))
@checked
def celebamask_hq(
    *,
    root: str | Path | None = None,
    classes: Literal[3, 19] = 3,
    attributes: Mapping[str, str] | None = None,
    split: Split = "official",
    size: Size = 256,
    seed: Natural = 0,
    workers: Natural | None = None,
    memory: NonNegative = 1.0,
) -> TaskData:
    """CelebAMask-HQ: 30,000 faces with masks of 18 parts and 40 attributes (Lee et al. 2020).

    The tasks are `segmentation` and one classification an attribute, `male` and `smile` by default. Layout:

        CelebAMask-HQ/CelebA-HQ-img/0.jpg, ...                            1024x1024
        CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_skin.png, ...       512x512; parts that are not seen have no file
        CelebAMask-HQ/CelebAMask-HQ-attribute-anno.txt
        CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt                     for `split: official`
        CelebAMask-HQ/celebA_datasplit.json                               for `split: less-is-more`

    Source: https://github.com/switchablenorms/CelebAMask-HQ, for non-commercial research. Needs the extra `vision`.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        classes: 19, background and all parts; or 3, background, hair and skin, as Less is More has them.
        attributes: task -> name of the attribute in the list; male -> Male and smile -> Smiling by default.
        split: `official`, CelebA's own partition of the same images; `less-is-more`, that paper's list; `random`,
            70 % training, 15 % validation, 15 % test.
        size: height and width in pixels, or the shorter side's.
        seed: of the split `random`.
        workers: threads that decode; 0 decodes in the training thread; by default one a processor, at most 4.
        memory: gigabytes a split may take in memory, in which case it is decoded once.

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
    place = resolve_root(root) / FOLDER
    _check_there(place)
    table = read_attributes(place / LIST)
    tasks, fields = _tasks(place, table, classes, ATTRIBUTES if attributes is None else attributes)
    source = ImageSource(complete(place / IMAGES, table.images, colours), fields, as_size(size))
    whole = LazySplit.of(source, workers=workers, memory=memory)
    train, validation, test = SPLITS[split].rows(place, table.images, seed)
    return TaskData(
        "celebamask-hq",
        tasks,
        whole.select(train),
        whole.select(validation),
        whole.select(test),
        notes=(
            f"split: {SPLITS[split].note}{f' (seed {seed})' if SPLITS[split].seeded else ''}",
            *counted({"images": len(table.images)}, {"images": OFFICIAL}),
        ),
    )


def _check_there(place: Path) -> None:
    lacking = [name for name in (IMAGES, MASKS, LIST) if not (place / name).exists()]
    if lacking:
        raise absent("celebamask-hq", place, lacking)


def _tasks(
    place: Path, table: Attributes, classes: int, attributes: Mapping[str, str]
) -> tuple[tuple[Task, ...], tuple[Field, ...]]:
    if SEGMENTATION in attributes:
        raise ParameterError(f"celebamask-hq: no attribute's task can be called {SEGMENTATION!r}.")
    labels: Tensor = table.columns(tuple(attributes.values())).to(torch.long)
    tasks = (
        Segmentation(SEGMENTATION, CLASSES[classes].names),
        *(Classification(task, ["no", "yes"]) for task in attributes),
    )
    masks = PartMasks(SEGMENTATION, place / MASKS, _numbers(table), CLASSES[classes].paint)
    return tasks, (masks, *(Values(task, labels[:, column]) for column, task in enumerate(attributes)))


def _numbers(table: Attributes) -> tuple[int, ...]:
    """Numbers of the images, by which their masks are named."""
    stems = [image.removesuffix(".jpg") for image in table.images]
    odd = next((stem for stem in stems if not stem.isdecimal()), None)
    if odd is not None:
        raise DataError(f"{table.path} names an image {odd!r}; images are 0.jpg, 1.jpg and so on.")
    return tuple(map(int, stems))
