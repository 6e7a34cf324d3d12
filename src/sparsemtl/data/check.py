"""What there is of a data set on disk, what is missing and how to get it, and whether it can be read.

A data set's module says what it needs with `requires_files`; nothing in here knows any data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.lazy import LazySplit
from sparsemtl.data.options import resolve_root
from sparsemtl.data.requirements import Found, Package, RequiredFiles, required_files, scan
from sparsemtl.errors import SparseMTLError
from sparsemtl.registry.parameters import parameters_of

State = Literal["needs no files", "files of your own", "there", "in part", "absent"]


@dataclass(frozen=True)
class Inspection:
    """What there is of a data set.

    Attributes:
        name: the data set.
        root: where it was looked for.
        layout: what it needs; None if its module does not say.
        alternatives: for every alternative of the layout the packages with what there is of them.
        required: its parameters that have no default, such as those that name files of the user's own.
    """

    name: str
    root: Path
    layout: RequiredFiles | None
    alternatives: tuple[tuple[tuple[Package, list[Found]], ...], ...]
    required: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """The best that can be said of any alternative."""
        if not self.alternatives:
            return "files of your own" if self.required else "needs no files"
        if any(all(complete(found) for _, found in packages) for packages in self.alternatives):
            return "there"
        return "in part" if self.size else "absent"

    @property
    def size(self) -> int:
        """Bytes on disk; files that several alternatives look for count once."""
        packages = {id(package): found for packages in self.alternatives for package, found in packages}
        return sum(part.size for found in packages.values() for part in found)


@dataclass
class Reading:
    """What came of reading a data set.

    Attributes:
        data: the data set, if it could be made.
        problem: why it could not, or why its first sample cannot be decoded.
        errors: what is wrong with single samples.
        remarks: kind -> how many samples a remark concerns, and the first of them.
        samples: how many samples were decoded.
    """

    data: TaskData | None = None
    problem: str | None = None
    errors: list[str] = field(default_factory=list)
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)
    samples: int = 0


def inspect(name: str, root: str | Path | None = None) -> Inspection:
    """Look for the files of a data set.

    Raises:
        ConfigError: if there is no such data set.
    """
    place = resolve_root(root)
    layout = required_files(DATASETS[name])
    alternatives = layout.alternatives if layout else ()
    found = tuple(tuple((package, scan(package, place)) for package in packages) for packages in alternatives)
    required = tuple(name for name, parameter in parameters_of(DATASETS[name]).items() if parameter.required)
    return Inspection(name, place, layout, found, required)


def complete(found: list[Found]) -> bool:
    """Tell whether there is a file of every kind that is needed."""
    return not any(part.absent for part in found)


def read(name: str, options: Mapping[str, Any], *, every: bool = False) -> Reading:
    """Make a data set and decode a sample of it.

    Args:
        name: the data set.
        options: its parameters, `root` among them.
        every: decode all samples, not the first one alone.
    """
    reading = Reading()
    try:
        reading.data = DATASETS.build(name, **options)
        reading.data.input_shape  # noqa: B018  # decodes a sample
    except SparseMTLError as error:
        reading.problem = str(error)
    if every and reading.data is not None:
        for split in _lazy_splits(reading.data):
            _read_all(split, reading)
    return reading


def _lazy_splits(data: TaskData) -> Iterator[LazySplit]:
    for part in (data.train, data.validation, data.test):
        for split in part.values() if isinstance(part, Mapping) else [part]:
            if isinstance(split, LazySplit):
                yield split


def _read_all(split: LazySplit, reading: Reading) -> None:
    """Decode every sample, whatever is wrong with some of them."""
    for row in split.rows.tolist():
        reading.samples += 1
        try:
            sample = split.source.sample(row, split.targets)
        except SparseMTLError as error:
            reading.errors.append(str(error))
            continue
        for kind, text in sample.remarks.items():
            count, first = reading.remarks.get(kind, (0, text))
            reading.remarks[kind] = (count + 1, first)
