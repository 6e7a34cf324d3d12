"""The official label ids of Cityscapes (Cordts et al. 2016), and the classes that are evaluated."""

from __future__ import annotations

from typing import NamedTuple

from sparsemtl.data.maps import IGNORE, LabelTable


class Label(NamedTuple):
    """A row of the official table (cityscapesScripts, helpers/labels.py)."""

    name: str
    id: int
    category: str
    evaluated: bool


LABELS = (
    Label("unlabeled", 0, "void", False),
    Label("ego vehicle", 1, "void", False),
    Label("rectification border", 2, "void", False),
    Label("out of roi", 3, "void", False),
    Label("static", 4, "void", False),
    Label("dynamic", 5, "void", False),
    Label("ground", 6, "void", False),
    Label("road", 7, "flat", True),
    Label("sidewalk", 8, "flat", True),
    Label("parking", 9, "flat", False),
    Label("rail track", 10, "flat", False),
    Label("building", 11, "construction", True),
    Label("wall", 12, "construction", True),
    Label("fence", 13, "construction", True),
    Label("guard rail", 14, "construction", False),
    Label("bridge", 15, "construction", False),
    Label("tunnel", 16, "construction", False),
    Label("pole", 17, "object", True),
    Label("polegroup", 18, "object", False),
    Label("traffic light", 19, "object", True),
    Label("traffic sign", 20, "object", True),
    Label("vegetation", 21, "nature", True),
    Label("terrain", 22, "nature", True),
    Label("sky", 23, "sky", True),
    Label("person", 24, "human", True),
    Label("rider", 25, "human", True),
    Label("car", 26, "vehicle", True),
    Label("truck", 27, "vehicle", True),
    Label("bus", 28, "vehicle", True),
    Label("caravan", 29, "vehicle", False),
    Label("trailer", 30, "vehicle", False),
    Label("train", 31, "vehicle", True),
    Label("motorcycle", 32, "vehicle", True),
    Label("bicycle", 33, "vehicle", True),
    Label("license plate", -1, "vehicle", False),
)
CATEGORIES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
NAMES = {7: CATEGORIES, 19: tuple(label.name for label in LABELS if label.evaluated)}
"""Number of classes -> their names, in the official order of train ids and categories."""


def official_table(classes: int) -> LabelTable:
    """Ids of gtFine's labelIds: labels that the official evaluation leaves out are unknown, whatever their category."""
    names = NAMES[classes]
    ids = {
        label.id: names.index(label.name if classes == 19 else label.category) if label.evaluated else IGNORE
        for label in LABELS
    }
    return LabelTable("Cityscapes", names, ids)


def arrays_table(classes: int) -> LabelTable:
    """Ids of the preprocessed arrays: the classes from 0, -1 for unknown."""
    names = NAMES[classes]
    return LabelTable(
        f"Cityscapes with {classes} classes", names, {-1: IGNORE, IGNORE: IGNORE, **dict(enumerate(range(len(names))))}
    )
