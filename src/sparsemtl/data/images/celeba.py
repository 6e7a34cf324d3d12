"""CelebA: faces with 40 yes/no attributes (Liu et al. 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor, tensor
from typing_extensions import Doc, Unpack

from sparsemtl.data.attributes import Attributes, read_attributes, text_lines
from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import absent, complete, counted
from sparsemtl.data.images.maps import ImageSource, Values
from sparsemtl.data.images.photos import DecodingOptions, partitioned
from sparsemtl.data.images.pictures import Size, as_size, colours
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.errors import DataError
from sparsemtl.tasks import Classification, MultiLabel, Task

FOLDER = "celeba"
ATTRIBUTES, PARTITION, IMAGES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"
OFFICIAL = 202_599
GROUPS = {
    "global": (2, 10, 13, 14, 18, 20, 25, 26, 39),
    "eyes": (3, 15, 23, 1, 12),
    "hair": (4, 5, 8, 9, 11, 17, 28, 32, 33),
    "mouth": (6, 21, 31, 36),
    "nose": (7, 27),
    "beard": (0, 16, 22, 24, 30),
    "cheeks": (19, 29),
    "worn": (34, 35, 37, 38),
}
"""FSMTL's and Maximum Roaming's 8 groups of attributes, by their indices in the list; the names are ours."""

FILES = Package(
    "aligned and cropped images",
    (
        Expected("images", (f"{FOLDER}/{IMAGES}/*.jpg", f"{FOLDER}/Img/{IMAGES}/*.jpg"), OFFICIAL),
        Expected("40 attributes", (f"{FOLDER}/{ATTRIBUTES}", f"{FOLDER}/Anno/{ATTRIBUTES}"), 1),
        Expected("the official partition", (f"{FOLDER}/{PARTITION}", f"{FOLDER}/Eval/{PARTITION}"), 1),
    ),
    source="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    licence="non-commercial research only, no redistribution",
    get=(
        f"accept the agreement, and put {ATTRIBUTES}, {PARTITION} and the unpacked {IMAGES}.zip (1.4 GB) into {FOLDER} "
        "under the root"
    ),
)


@requires_files((FILES,))
@checked
def celeba(
    *,
    attributes: Annotated[
        Literal["groups", "one", "each"],
        Doc("`groups`, FSMTL's 8 tasks of 2 to 9 attributes; `one` task of all 40; or `each` attribute a task."),
    ] = "groups",
    size: Annotated[Size, Doc("Pixels of the shorter side, or height and width; 64 gives 78x64, as in FSMTL.")] = 64,
    **options: Unpack[DecodingOptions],
) -> TaskData:
    """CelebA: 202,599 faces with 40 yes/no attributes, in the official partition (Liu et al. 2015).

    Layout; `Img`, `Anno` and `Eval` as in the official distribution will do as well:

        celeba/list_attr_celeba.txt
        celeba/list_eval_partition.txt
        celeba/img_align_celeba/000001.jpg, ...       218x178

    Source: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, for non-commercial research. Needs the extra `vision`.

    Raises:
        DataError: if files are absent or do not fit each other.

    Differences from the papers:
        - FSMTL does not print its 8 groups; these are of the code of Maximum Roaming, to which its figures point.
        - FSMTL's F1 score and accuracy are means over the 40 attributes; here every task has its own.
        - With `each`, a task is a classification of two outputs, as in Sener and Koltun (2018).
    """
    folder = resolve_root(options["root"]) / FOLDER
    candidates = {
        name: [folder / name, folder / official / name]
        for official, name in (("Anno", ATTRIBUTES), ("Eval", PARTITION), ("Img", IMAGES))
    }
    found = {name: path for name, paths in candidates.items() for path in paths[::-1] if path.exists()}
    if len(found) < len(candidates):
        raise absent("celeba", folder, [name for name in candidates if name not in found])
    table = read_attributes(found[ATTRIBUTES])
    parts = _partition(found[PARTITION], table)
    tasks, fields = _tasks(table, attributes)
    source = ImageSource(complete(found[IMAGES], table.images, colours), fields, as_size(size))
    rows = [(parts == part).nonzero().squeeze(1) for part in range(3)]
    notes = (
        "the official partition into training, validation and test images",
        *counted({"images": len(table.images)}, {"images": OFFICIAL}),
    )
    return partitioned("celeba", tasks, source, rows, options, notes)


def _partition(path: Path, table: Attributes) -> Tensor:
    """Return 0 for training, 1 for validation, 2 for test images, in the order of the attributes' list."""
    parts = dict(line.split(maxsplit=1) for line in text_lines(path) if len(line.split()) == 2)
    if set(parts) != set(table.images):
        odd = sorted(set(parts) ^ set(table.images))
        raise DataError(
            f"{path} and {table.path} list other images: {len(odd)} are in one only, the first is {odd[0]}."
        )
    wrong = next((image for image, part in parts.items() if part.strip() not in ("0", "1", "2")), None)
    if wrong is not None:
        raise DataError(f"{path}: image {wrong} is in part {parts[wrong]!r}; parts are 0, 1 and 2.")
    return tensor([int(parts[image]) for image in table.images])


def _tasks(table: Attributes, attributes: str) -> tuple[tuple[Task, ...], tuple[Values, ...]]:
    if attributes == "each":
        labels = table.table.long()
        each = [Values(name, labels[:, column]) for column, name in enumerate(table.names)]
        return tuple(Classification(name, ["no", "yes"]) for name in table.names), tuple(each)
    groups = {"attributes": table.names}
    if attributes == "groups":
        if len(table.names) != 40:
            raise DataError(f"{table.path} has {len(table.names)} attributes; FSMTL's groups are of 40.")
        groups = {name: tuple(table.names[column] for column in columns) for name, columns in GROUPS.items()}
    return (
        tuple(MultiLabel(name, list(members)) for name, members in groups.items()),
        tuple(Values(name, table.columns(members)) for name, members in groups.items()),
    )
