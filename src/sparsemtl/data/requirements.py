"""Files that data sets need on disk, declared by the data sets' modules: where the files lie, and how to get them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Expected:
    """Files of one kind.

    Attributes:
        about: description, such as "training images".
        patterns: paths under the root, `*` for any part of a name; the patterns after the first are other places or
            forms of the same files.
        count: number in the official distribution; None if unknown.
        optional: the data set can do without these files.
    """

    about: str
    patterns: tuple[str, ...]
    count: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Package:
    """Files that are distributed together.

    Attributes:
        title: name of the package.
        files: its files.
        source: address of the official distribution.
        licence: terms of use.
        get: instructions to get the files.
    """

    title: str
    files: tuple[Expected, ...]
    source: str
    licence: str
    get: str


@dataclass(frozen=True)
class RequiredFiles:
    """Files that a data set needs.

    Attributes:
        alternatives: packages, all of which are needed; any one alternative will do. Empty: no files are needed.
        remark: further information about the origin of the samples.
    """

    alternatives: tuple[tuple[Package, ...], ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Found:
    """Files that were found for an `Expected`.

    Attributes:
        expected: the declaration.
        count: number of files.
        size: their size in bytes.
    """

    expected: Expected
    count: int
    size: int

    @property
    def absent(self) -> bool:
        """True if files are needed and there is none."""
        return self.count == 0 and not self.expected.optional


def requires_files(*alternatives: tuple[Package, ...], remark: str = "") -> Callable[[F], F]:
    """Declare the files that a data set's function needs; for the arguments see `RequiredFiles`."""

    def mark(build: F) -> F:
        build.__dict__["required_files"] = RequiredFiles(alternatives, remark)
        return build

    return mark


def required_files(build: Callable[..., Any]) -> RequiredFiles | None:
    """Return the files that a data set's function declares; None if it declares nothing."""
    declared = getattr(build, "required_files", None)
    return declared if isinstance(declared, RequiredFiles) else None


def scan(package: Package, root: Path) -> list[Found]:
    """Look for the files of a package under a root."""
    return [_found(expected, root) for expected in package.files]


def _found(expected: Expected, root: Path) -> Found:
    """Count the files of the first pattern that has any."""
    for pattern in expected.patterns:
        sizes = [path.stat().st_size for path in root.glob(pattern) if path.is_file()]
        if sizes:
            return Found(expected, len(sizes), sum(sizes))
    return Found(expected, 0, 0)
