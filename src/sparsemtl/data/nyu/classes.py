"""The classes of NYU-v2: the 40 of Gupta et al. (2013), and the 13 of Couprie et al. (2013) into which they merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from sparsemtl.data.maps import IGNORE, LabelTable

Classes = Literal[13, 40]

FORTY = (
    "wall",
    "floor",
    "cabinet",
    "bed",
    "chair",
    "sofa",
    "table",
    "door",
    "window",
    "bookshelf",
    "picture",
    "counter",
    "blinds",
    "desk",
    "shelves",
    "curtain",
    "dresser",
    "pillow",
    "mirror",
    "floor mat",
    "clothes",
    "ceiling",
    "books",
    "refrigerator",
    "television",
    "paper",
    "towel",
    "shower curtain",
    "box",
    "whiteboard",
    "person",
    "night stand",
    "toilet",
    "sink",
    "lamp",
    "bathtub",
    "bag",
    "other structure",
    "other furniture",
    "other prop",
)
THIRTEEN = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "television",
    "wall",
    "window",
)
# fmt: off
FORTY_TO_THIRTEEN = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6,
    8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
    7, 3, 2, 6, 11, 7, 7, 7, 7, 7,
    7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)
# fmt: on
"""For every one of the 40 the number, from 1, of its class among the 13 (class13Mapping.mat)."""
NAMES: Mapping[int, tuple[str, ...]] = {13: THIRTEEN, 40: FORTY}


def arrays_table() -> LabelTable:
    """Ids of the preprocessed arrays: the 13 from 0, -1 for unknown."""
    return LabelTable("NYU-v2 with 13 classes", THIRTEEN, {-1: IGNORE, IGNORE: IGNORE, **dict(enumerate(range(13)))})


def pictures_table(classes: Classes) -> LabelTable:
    """Ids of the pictures: the 40 from 1, 0 and 255 for unknown."""
    return LabelTable("NYU-v2 with 40 classes", NAMES[classes], {0: IGNORE, IGNORE: IGNORE, **_from_forty(classes)})


def labelled_table(classes: Classes, to_forty: Sequence[int]) -> LabelTable:
    """Ids of the labelled file: 894 names from 1, each of which is one of the 40; 0 for unknown."""
    forty = _from_forty(classes)
    ids = {number: forty[forty_id] for number, forty_id in enumerate(to_forty, start=1)}
    return LabelTable("the labelled NYU-v2", NAMES[classes], {0: IGNORE, **ids})


def _from_forty(classes: Classes) -> dict[int, int]:
    """Number of a class among the 40, from 1 -> index of the class that it becomes."""
    merged = range(1, 41) if classes == 40 else FORTY_TO_THIRTEEN
    return {number: index - 1 for number, index in enumerate(merged, start=1)}
