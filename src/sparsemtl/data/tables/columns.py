"""Which columns of a table are numbers and which are categories.

The rule: a column whose every value is a number holds numbers; one with none, and whatever `categorical` names, holds
categories. A column that has some numbers and some texts is refused: whether `abc` among ages stands for a missing
value, is a mistake or makes the ages categories, only its owner knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sparsemtl.data.tables.reading import Looks, Seen, TableFile
from sparsemtl.errors import DataError, ParameterError, unknown_name


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
    """

    targets: Mapping[str, bool]
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

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
        ParameterError: if a column is named that is not there, or is to be two things.
    """
    first = files[0]
    _check_alike(files)
    _check_named(first, wanted)
    apart = {*wanted.targets, *wanted.drop, *wanted.beside}
    kinds = {name: _is_number(name, files, looks, wanted) for name in first.columns if name not in apart}
    if not kinds:
        raise DataError(f"{first.path}: no column is left for the inputs, beside {', '.join(sorted(apart))}.")
    for name, numeric in wanted.targets.items():
        if numeric:
            _check_numeric(name, files, looks)
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


def _check_named(file: TableFile, wanted: Wanted) -> None:
    named: dict[str, str] = {}
    places: dict[str, Collection[str]] = {
        "targets": wanted.targets,
        "drop": wanted.drop,
        "categorical": wanted.categorical,
        "split_column": wanted.beside,
    }
    for place, names in places.items():
        for name in names:
            if name not in file.columns:
                raise ParameterError(f"{place}: {file.path}: {unknown_name('column', name, file.columns)}")
            if named.setdefault(name, place) != place:
                raise ParameterError(f"column {name!r} stands in `{named[name]}` and in `{place}`; it is one thing.")


def _is_number(name: str, files: Sequence[TableFile], looks: Sequence[Looks], wanted: Wanted) -> bool:
    if name in wanted.categorical:
        return False
    (number, in_number), (text, in_text) = _first(name, files, looks)
    if number is None and text is None:
        raise DataError(f"{in_text}: column {name!r} holds neither numbers nor texts. Name it in `drop`.")
    if number is not None and text is not None:
        raise DataError(
            f"{in_text}: column {name!r} holds numbers, as in {in_number}, and here {text!r}. If that stands for a "
            f"missing value, add it to `missing_values`; if the column holds categories, add {name!r} to `categorical`."
        )
    return number is not None


def _check_numeric(name: str, files: Sequence[TableFile], looks: Sequence[Looks]) -> None:
    (number, in_number), (text, in_text) = _first(name, files, looks)
    if text is not None:
        raise DataError(f"{in_text}: the target {name!r} must hold numbers, and here is {text!r}.")
    if number is None:
        raise DataError(f"{in_number}: the target {name!r} must hold numbers, and it holds none.")


def _first(name: str, files: Sequence[TableFile], looks: Sequence[Looks]) -> list[tuple[str | None, str]]:
    """The first number and the first text of a column, each with where it stands."""
    found: list[tuple[str | None, str]] = [(None, str(files[0].path))] * 2
    for file, look in zip(files, looks, strict=True):
        seen: Seen = look.seen[name]
        for place, spot in enumerate((seen.number, seen.text)):
            if spot is not None and found[place][0] is None:
                found[place] = (spot.value, f"{file.path}, row {spot.row + 1}")
    return found
