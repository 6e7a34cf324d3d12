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

    The patterns are paths under the root, `*` for any part of a name; those after the first are other places or forms
    of the same files.
    """

    about: str  # description, such as "training images"
    patterns: tuple[str, ...]
    count: int | None = None  # number in the official distribution, if it is known
    optional: bool = False  # the data set can do without these files


@dataclass(frozen=True)
class Package:
    """Files that are distributed together."""

    title: str
    files: tuple[Expected, ...]
    source: str  # address of the official distribution
    licence: str  # terms of use
    get: str  # instructions to get the files


@dataclass(frozen=True)
class RequiredFiles:
    """Files that a data set needs: all packages of any one alternative. Without alternatives no files are needed."""

    alternatives: tuple[tuple[Package, ...], ...] = ()
    remark: str = ""  # further information about the origin of the samples


@dataclass(frozen=True)
class Found:
    """Files that were found for a declaration."""

    expected: Expected
    count: int
    size: int  # in bytes

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
    """Look for the files of a package under a root; those of the first pattern that has any count."""
    found = []
    for expected in package.files:
        each = ([path.stat().st_size for path in root.glob(p) if path.is_file()] for p in expected.patterns)
        sizes = next(filter(None, each), [])
        found.append(Found(expected, len(sizes), sum(sizes)))
    return found
