"""What a data set needs on disk, said by its own module: where the files lie, and how to get them."""

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
        about: what they are.
        patterns: where they lie under the root, `*` for any part of a name; the patterns after the first are other
            places or forms of the same files.
        count: how many the official distribution has; None if nothing says.
        optional: the data set can do without them.
    """

    about: str
    patterns: tuple[str, ...]
    count: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Package:
    """Files that are had together.

    Attributes:
        title: what it is called.
        files: what it consists of.
        source: address of the official distribution.
        licence: under which terms.
        get: how to get it there.
    """

    title: str
    files: tuple[Expected, ...]
    source: str
    licence: str
    get: str


@dataclass(frozen=True)
class Layout:
    """What a data set needs.

    Attributes:
        alternatives: packages, all of which are needed; any one alternative will do. None at all: no files are needed.
        remark: what else to say of where the samples come from.
    """

    alternatives: tuple[tuple[Package, ...], ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Found:
    """What there is of an `Expected`.

    Attributes:
        expected: what was looked for.
        count: number of files.
        size: their bytes.
    """

    expected: Expected
    count: int
    size: int

    @property
    def absent(self) -> bool:
        """True if files are needed and there is none."""
        return self.count == 0 and not self.expected.optional


def laid_out(layout: Layout) -> Callable[[F], F]:
    """Say of a data set's function what it needs on disk."""

    def mark(build: F) -> F:
        build.__dict__["layout"] = layout
        return build

    return mark


def layout_of(build: Callable[..., Any]) -> Layout | None:
    """What a data set's function needs on disk; None if it does not say."""
    layout = getattr(build, "layout", None)
    return layout if isinstance(layout, Layout) else None


def look(package: Package, root: Path) -> list[Found]:
    """What there is of a package under a root."""
    return [_found(expected, root) for expected in package.files]


def _found(expected: Expected, root: Path) -> Found:
    """Count the files of the first pattern that has any."""
    for pattern in expected.patterns:
        sizes = [path.stat().st_size for path in root.glob(pattern) if path.is_file()]
        if sizes:
            return Found(expected, len(sizes), sum(sizes))
    return Found(expected, 0, 0)
