"""Which images of CelebAMask-HQ train, validate and test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sparsemtl.data.attributes import text_lines
from sparsemtl.data.splitting import partition
from sparsemtl.errors import DataError

Split = Literal["official", "less-is-more", "random"]
MAPPING, LESS_IS_MORE = "CelebA-HQ-to-CelebA-mapping.txt", "celebA_datasplit.json"
FIRST_VALIDATION, FIRST_TEST = 162_771, 182_638
"""Numbers of the first validation and the first test image in CelebA's partition, from 1."""
SHARES = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class Splitting:
    """A way to split.

    Attributes:
        note: what to say of it beside figures.
        rows: (folder, images in the order of the attributes' list, seed) -> indices of the three parts.
        seeded: the seed decides.
    """

    note: str
    rows: Callable[[Path, Sequence[str], int], list[Tensor]]
    seeded: bool = False


def _official(place: Path, images: Sequence[str], seed: int) -> list[Tensor]:
    path = place / MAPPING
    numbers: dict[str, int] = {}
    for number, line in enumerate(text_lines(path)[1:], start=2):
        words = line.split()
        original = words[2].removesuffix(".jpg") if len(words) > 2 else ""
        if not original.isdecimal():
            raise DataError(f"{path}, line {number}: expected a number, another and CelebA's NUMBER.jpg, not {line!r}.")
        numbers[f"{words[0]}.jpg"] = int(original)
    absent = [image for image in images if image not in numbers]
    if absent:
        raise DataError(f"{path} lacks {len(absent)} of {len(images)} images, the first is {absent[0]}.")
    originals = torch.tensor([numbers[image] for image in images])
    parts = (originals >= FIRST_VALIDATION).long() + (originals >= FIRST_TEST).long()
    return [_rows(parts == part, f"{path}: no image is in CelebA's part {part}.") for part in range(3)]


def _rows(chosen: Tensor, otherwise: str) -> Tensor:
    if not chosen.any():
        raise DataError(f"{otherwise} Choose another `split`.")
    return chosen.nonzero().squeeze(1)


def _less_is_more(place: Path, images: Sequence[str], seed: int) -> list[Tensor]:
    path = place / LESS_IS_MORE
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. It is src/dataset/{LESS_IS_MORE} of https://github.com/ricupa/"
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
    places = {image: row for row, image in enumerate(images)}
    unknown = [name for name in together if name not in places]
    if unknown:
        raise DataError(f"{path} lists {len(unknown)} images that are not there, the first is {unknown[0]}.")
    return [torch.tensor([places[name] for name in part], dtype=torch.long) for part in names]


def _random(place: Path, images: Sequence[str], seed: int) -> list[Tensor]:
    return partition(len(images), SHARES, seed=seed)


SPLITS: dict[str, Splitting] = {
    "official": Splitting("CelebA's official partition", _official),
    "less-is-more": Splitting("the list of Less is More", _less_is_more),
    "random": Splitting("70 % training, 15 % validation, 15 % test at random", _random, seeded=True),
}
