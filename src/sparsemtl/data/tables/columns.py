"""Which columns of a table are numbers and which are categories.

The rule: a column whose every value is a number holds numbers; one with none, and whatever `categorical` names, holds
categories. A column that has some numbers and some texts is refused: whether `abc` among ages stands for a missing
value, is a mistake or makes the ages categories, only its owner knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sparsemtl.data.tables.formats import remedy
from sparsemtl.data.tables.looks import MOST_SEEN, Looks, Seen
from sparsemtl.data.tables.reading import TableFile
from sparsemtl.errors import DataError, ParameterError, unknown_name

FEW = 20
"""Different texts of a column that are never too many."""
MOST_DIFFERENT = 0.5
"""Different texts of a category or class, as a share of the rows that have a value; more are no categories."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table's inputs.

    Attributes:
        numbers: names of those that hold numbers.
        categories: names of those that hold categories.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What is said of a table's columns.

    Attributes:
        targets: column -> True if it must hold numbers, False if whatever it holds is a class.
        drop: neither inputs nor targets.
        categorical: categories, whatever they look like.
        beside: needed, yet neither inputs nor targets.
        dates: become numbers of days.
    """

    targets: Mapping[str, bool]
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that hold texts, whatever they look like."""
        return (*self.categorical, *self.beside, *(name for name, numeric in self.targets.items() if not numeric))


def find_columns(files: Sequence[TableFile], looks: Sequence[Looks], wanted: Wanted) -> Columns:
    """Find the kinds of the inputs' columns.

    Args:
        files: files with the same columns, in any order.
        looks: what a first reading found in each.
        wanted: what is said of them.

    Raises:
        DataError: if files differ, no input is left, a column is of no kind or of both, or a target holds other things
            than it should; naming the column and, where there is one, the row.
    """
    first = files[0]
    _check_alike(files)
    apart = {*wanted.targets, *wanted.drop, *wanted.beside}
    kinds = {name: _is_number(name, files, looks, wanted) for name in first.columns if name not in apart}
    if not kinds:
        raise DataError(f"{first.path}: no column is left for the inputs, beside {', '.join(sorted(apart))}.")
    for name, numeric in wanted.targets.items():
        if numeric:
            _check_numeric(name, files, looks)
        else:
            _check_classes(name, files, looks)
    return Columns(
        tuple(name for name, number in kinds.items() if number),
        tuple(name for name, number in kinds.items() if not number),
    )


def _check_alike(files: Sequence[TableFile]) -> None:
    first = files[0]
    for file in files[1:]:
        odd = sorted({*first.columns} ^ {*file.columns})
        if odd:
            here, there = (first, file) if odd[0] in first.columns else (file, first)
            raise DataError(f"{here.path} has a column {odd[0]!r}, {there.path} has none; {len(odd)} differ.")


def check_named(file: TableFile, wanted: Wanted) -> None:
    """Raise a ParameterError if a column is named that is not there, or is to be two things."""
    named: dict[str, str] = {}
    places: dict[str, Collection[str]] = {
        "targets": wanted.targets,
        "drop": wanted.drop,
        "categorical": wanted.categorical,
        "split_column": wanted.beside,
        "dates": wanted.dates,
    }
    known = set(file.columns)
    for place, names in places.items():
        for name in names:
            if name not in known:
                raise ParameterError(f"{place}: {file.path}: {unknown_name('column', name, file.columns)}")
            both = {named.setdefault(name, place), place}
            if len(both) > 1 and not (both == {"targets", "dates"} and wanted.targets[name]):
                raise ParameterError(f"column {name!r} stands in `{named[name]}` and in `{place}`; it is one thing.")


def _is_number(name: str, files: Sequence[TableFile], looks: Sequence[Looks], wanted: Wanted) -> bool:
    if name in wanted.categorical:
        return False
    if name in wanted.dates:
        return True
    found = _found(name, files, looks)
    if found.time is not None:
        raise DataError(
            f"{found.in_time}: column {name!r} holds times, as {found.time!r}. Name it in `dates` (days since "
            "1970-01-01 become its number), or in `drop`."
        )
    if found.number is None and found.text is None:
        raise DataError(f"{found.in_text}: column {name!r} holds neither numbers nor texts. Name it in `drop`.")
    if found.text is None:
        return True
    if way := remedy(name, found.texts, files[0].dialect.numbers):
        raise DataError(
            f"{found.in_text}: column {name!r}: {way} If the column holds categories all the same, add {name!r} to "
            "`categorical`."
        )
    if found.number is not None:
        raise DataError(
            f"{found.in_text}: column {name!r} holds numbers, as in {found.in_number}, and here {found.text!r}. If "
            f"that stands for a missing value, add it to `missing_values`; if it holds categories, add {name!r} to "
            "`categorical`."
        )
    if found.too_many:
        raise DataError(
            f"{found.in_text}: column {name!r} holds {len(found.texts):,} different texts in {found.known:,} rows, as "
            f"{found.text!r}; nearly every row has one of its own. If it names rows or is free text, name it in "
            f"`drop`; if it holds categories all the same, add {name!r} to `categorical`."
        )
    return False


def _check_numeric(name: str, files: Sequence[TableFile], looks: Sequence[Looks]) -> None:
    found = _found(name, files, looks)
    if found.text is not None:
        way = remedy(name, found.texts, files[0].dialect.numbers)
        raise DataError(
            f"{found.in_text}: the target {name!r} must hold numbers, and here is {found.text!r}.{' ' * bool(way)}{way}"
        )
    if found.number is None and found.time is None:
        raise DataError(f"{found.in_number}: the target {name!r} must hold numbers, and it holds none.")
    if found.time is not None and name not in files[0].dialect.dates:
        raise DataError(f"{found.in_time}: the target {name!r} holds times. Name it in `dates` to learn its days.")


def _check_classes(name: str, files: Sequence[TableFile], looks: Sequence[Looks]) -> None:
    found = _found(name, files, looks)
    if found.too_many:
        way = remedy(name, found.texts, files[0].dialect.numbers)
        raise DataError(
            f"{found.in_text}: the target {name!r} would have {len(found.texts):,} classes in {found.known:,} rows, as "
            f"{found.text!r}. If it holds numbers, learn it by `kind: regression`.{' ' * bool(way)}{way}"
        )


@dataclass
class _Found:
    """A column in all files: its first number, text and time, and where each stands; its texts."""

    in_number: str
    in_text: str
    in_time: str
    number: str | None = None
    text: str | None = None
    time: str | None = None
    known: int = 0
    texts: dict[str, None] = field(default_factory=dict)

    @property
    def too_many(self) -> bool:
        """Return whether nearly every row has a text of its own; more than are held are `most_categories`' matter."""
        return FEW < len(self.texts) < MOST_SEEN and len(self.texts) > MOST_DIFFERENT * self.known


def _found(name: str, files: Sequence[TableFile], looks: Sequence[Looks]) -> _Found:
    where = str(files[0].path)
    found = _Found(where, where, where)
    for file, look in zip(files, looks, strict=True):
        seen: Seen = look.seen[name]
        for kind, spot in (("number", seen.number), ("text", seen.text), ("time", seen.time)):
            if spot is not None and getattr(found, kind) is None:
                setattr(found, kind, spot.value)
                setattr(found, f"in_{kind}", f"{file.path}, row {spot.row + 1}")
        found.known += seen.known
        found.texts |= seen.texts
    return found
