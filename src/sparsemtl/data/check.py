"""Inspection of a data set: the files on disk and those that are missing, and whether it can be read.

A data set's module declares its files by `requires_files`; nothing in here knows any data set.
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
    """Files of a data set on disk.

    Attributes:
        name: name of the data set.
        root: folder under which its files were looked for.
        layout: files that it needs; None if its module declares nothing.
        alternatives: packages of each alternative of the layout, with the files that were found.
        required: its parameters without a default, such as those that name files of the user's own.
    """

    name: str
    root: Path
    layout: RequiredFiles | None
    alternatives: tuple[tuple[tuple[Package, list[Found]], ...], ...]
    required: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """State of the most complete alternative."""
        if not self.alternatives:
            return "files of your own" if self.required else "needs no files"
        for packages in self.alternatives:
            if not any(part.absent for _, found in packages for part in found):
                return "there"
        return "in part" if self.size else "absent"

    @property
    def size(self) -> int:
        """Bytes on disk; files of several alternatives count once."""
        packages = {id(package): found for packages in self.alternatives for package, found in packages}
        return sum(part.size for found in packages.values() for part in found)


@dataclass
class ReadResult:
    """Result of reading a data set.

    Attributes:
        data: the data set, if it could be made.
        problem: why it could not, or why its first sample cannot be decoded.
        errors: errors of single samples.
        remarks: kind -> number of samples that a remark concerns, and the first remark.
        samples: number of decoded samples.
    """

    data: TaskData | None = None
    problem: str | None = None
    errors: list[str] = field(default_factory=list)
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)
    samples: int = 0


def inspect(name: str, root: str | Path | None = None) -> Inspection:
    """Look for the files of a data set; raise a ConfigError if there is no such data set."""
    folder, layout = resolve_root(root), required_files(DATASETS[name])
    alternatives = layout.alternatives if layout else ()
    found = tuple(tuple((package, scan(package, folder)) for package in packages) for packages in alternatives)
    required = tuple(name for name, parameter in parameters_of(DATASETS[name]).items() if parameter.required)
    return Inspection(name, folder, layout, found, required)


def read(name: str, options: Mapping[str, Any], *, every: bool = False) -> ReadResult:
    """Make a data set and decode a sample of it.

    Args:
        name: name of the data set.
        options: its parameters, `root` among them.
        every: decode all samples instead of the first one.
    """
    result = ReadResult()
    try:
        result.data = DATASETS.build(name, **options)
        result.data.input_shape  # noqa: B018  # decodes a sample
    except SparseMTLError as error:
        result.problem = str(error)
    for split in _lazy_splits(result.data) if every and result.data is not None else ():
        for row in split.rows.tolist():
            result.samples += 1
            try:
                sample = split.source.sample(row, split.targets)
            except SparseMTLError as error:
                result.errors.append(str(error))
                continue
            for kind, text in sample.remarks.items():
                count, first = result.remarks.get(kind, (0, text))
                result.remarks[kind] = (count + 1, first)
    return result


def _lazy_splits(data: TaskData) -> Iterator[LazySplit]:
    for part in (data.train, data.validation, data.test):
        for split in part.values() if isinstance(part, Mapping) else [part]:
            if isinstance(split, LazySplit):
                yield split
