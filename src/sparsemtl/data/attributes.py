"""Lists of yes/no attributes, as CelebA and CelebAMask-HQ have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsemtl.errors import DataError, ParameterError, unknown_name


@dataclass(frozen=True, eq=False)
class Attributes:
    """Attributes of images.

    Attributes:
        path: file of the list.
        images: names of the images' files.
        names: names of the attributes.
        table: 0 or 1, float32, shape (images, attributes).
    """

    path: Path
    images: tuple[str, ...]
    names: tuple[str, ...]
    table: Tensor

    def columns(self, names: tuple[str, ...]) -> Tensor:
        """Return the columns of these attributes; raise a ParameterError if there is none of a name."""
        for name in names:
            if name not in self.names:
                raise ParameterError(f"{self.path}: {unknown_name('attribute', name, self.names)}")
        return self.table[:, [self.names.index(name) for name in names]]


def read_attributes(path: Path) -> Attributes:
    """Read a list: the number of images, the attributes' names, and a line per image with 1 or -1 for each.

    Raises:
        DataError: naming the file and the line that does not fit.
    """
    lines = text_lines(path)
    if len(lines) < 3 or not lines[0].strip().isdecimal():
        raise DataError(f"{path} must begin with the number of its images and a line of attributes' names.")
    count, names, rows = int(lines[0]), tuple(lines[1].split()), lines[2:]
    if len(rows) != count:
        raise DataError(f"{path} announces {count} images and lists {len(rows)}.")
    images, digits = [], []
    for number, line in enumerate(rows, start=3):
        image, _, values = line.partition(" ")
        ones = "".join(values.replace("-1", "0").split())
        if len(ones) != len(names) or ones.strip("01"):
            raise DataError(
                f"{path}, line {number}: expected a file's name and {len(names)} times 1 or -1, not {line!r}."
            )
        images.append(image)
        digits.append(ones)
    table = np.frombuffer("".join(digits).encode(), dtype=np.uint8).reshape(count, len(names)) - ord("0")
    return Attributes(path, tuple(images), names, torch.from_numpy(table).float())


def text_lines(path: Path) -> list[str]:
    """Return the lines of a list, without blank ones at its end; raise a DataError if it is absent or no text."""
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: {error}.") from None
