"""A table of the user's own, in CSV, Parquet or Excel files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsemtl.data.base import TaskData
from sparsemtl.data.lazy import GIGABYTE
from sparsemtl.data.options import ProperFraction, checked, resolve_root
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.tables.columns import Columns, Wanted, check_named, find_columns
from sparsemtl.data.tables.encoding import Missing
from sparsemtl.data.tables.files import Rows, find_files, open_table
from sparsemtl.data.tables.formats import Decimal, NumberFormat, Thousands, wrong_date_format
from sparsemtl.data.tables.kept import digest, kept
from sparsemtl.data.tables.looks import Looks, date_format, look
from sparsemtl.data.tables.parts import Division
from sparsemtl.data.tables.reading import MISSING_VALUES, Dialect, TableFile
from sparsemtl.data.tables.tabulate import Allocate, Encoding, Table, UnseenCategoryWarning, in_memory, tabulate
from sparsemtl.data.tables.targets import Target
from sparsemtl.data.tables.wanted import wanted_targets
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Natural, NonNegative

SHOWN = 30
"""Columns that are named in a note."""


@requires_files(
    remark="a CSV, Parquet or Excel file of your own. `sparsemtl run` reads it by a configuration such as "
    "examples/table.yaml; pandas, pyarrow for Parquet and openpyxl for Excel come with the extra `tables`."
)
@checked
def table(
    *,
    root: str | Path | None = None,
    path: str | Sequence[str],
    targets: Mapping[str, str | Mapping[str, Any]],
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    encoding: Encoding = "one-hot",
    missing: Missing = "indicator",
    missing_values: Sequence[str] = MISSING_VALUES,
    most_categories: Count = 1000,
    split: Sequence[ProperFraction] = (0.7, 0.15, 0.15),
    stratify: bool = True,
    split_column: str | None = None,
    separator: str | None = None,
    decimal: Decimal = ".",
    thousands: Thousands | None = None,
    units: Sequence[str] = (),
    dates: Sequence[str] | Mapping[str, str] = (),
    skip_rows: Natural = 0,
    sheet: str | None = None,
    text_encoding: str = "utf-8",
    memory: NonNegative = 2.0,
    seed: Natural = 0,
) -> TaskData:
    """Table: rows of your own, from CSV, Parquet or Excel files.

    A column whose every value is a number is an input number, one with none is an input category; one with both is
    refused until `categorical` or `missing_values` says what it is. Refused are also texts that look like numbers or
    dates in a local form, until `decimal`, `thousands`, `units` or `dates` says how to read them, and texts of which
    more than half of the rows have one of their own, until `drop` or `categorical` names them. `1` and `1.0` are one
    category. Numbers are standardised. Everything that is learned for the coding is learned from the training rows:
    means, categories, classes.

    A target is `column: classification` or `column: regression`, or a mapping of `kind` and, for a classification, one
    of `classes` (all of them, in order), `above` (yes where the number is greater) or `equals` (yes where the value is
    this); for a regression, `scale` (`standard`: mean 0 and standard deviation 1 in training; `unit`: 0 to 1 in
    training; or a number to divide by). `column` says the column where the task has another name; `weight`,
    `label_smoothing` and `criterion` are the task's own. A row without a value has no label for that task.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        path: a file; a list of two or three files (training, validation and test, or training and test); or a folder
            with files named train, validation (may be absent) and test. CSV may be compressed (.csv.gz, or .zip with
            one table in it). What is not there is looked for under `root`.
        targets: column -> what a task learns from it.
        drop: columns that are not read.
        categorical: columns that hold categories, though they look like numbers.
        encoding: of categories: a column for each (one-hot), or vectors that the network learns (embedding).
        missing: a missing number becomes the mean of training, with a column that says so where training has such
            (indicator) or without (mean), or is an error (refuse). A missing category is a category.
        missing_values: texts that stand for a missing value.
        most_categories: that a column may have in training; more are an error.
        split: shares of training, validation and test; where the test rows have a file of their own and the validation
            rows have none, the first two say what is held out of the training rows.
        stratify: give every class of a classification these shares, as nearly as numbers allow, and at least one
            training row; of several classifications, that with the fewest classes comes first.
        split_column: a column whose values train, validation and test say what a row belongs to.
        separator: between two values; by default a tab in .tsv files and a comma in others.
        decimal: before a number's fraction.
        thousands: what groups the digits of numbers by thousands, as the comma in 55,027.64; a blank stands for any
            kind of space.
        units: texts before or after numbers that are passed over, such as $ and %; 1.3% is 1.3.
        dates: columns of dates, which become days since 1970-01-01, with fractions for times; or a mapping of these to
            their formats, as `strptime` writes them. Without a format, the one by which all values can be read is
            found; day and month in either order is an error.
        skip_rows: lines above the header, such as a title.
        sheet: the sheet of an Excel file; the first by default.
        text_encoding: of text files, as Python names it; a byte order mark says more.
        memory: gigabytes that the coded table may take in memory; a larger one is kept under `root`, in `tables`.
        seed: of the split.

    Raises:
        DataError: if a file cannot be read as a table, or a value does not do; with its column and row.
        ParameterError: if a column is named that is not there, or an argument does not do.
        MissingExtraError: if pandas, or pyarrow for Parquet, or openpyxl for Excel, is not installed.
    """
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise ParameterError(f"separator: expected one character, other than a quotation mark; got {separator!r}.")
    asked = wanted_targets(targets)
    dialect = Dialect(
        numbers=_number_format(decimal, thousands, units),
        dates=_dates(dates),
        text_encoding=text_encoding,
        missing_values=tuple(missing_values),
        skip_rows=skip_rows,
        sheet=sheet,
    )
    beside = (split_column,) if split_column else ()
    plan = _Plan(
        tuple(open_table(place, dialect, separator) for place in find_files(path, root)),
        asked,
        Wanted(_columns(asked), tuple(drop), tuple(categorical), beside, tuple(dialect.dates)),
        Division(tuple(split), split_column, seed, stratify),
        missing,
        most_categories,
    )
    place = resolve_root(root) / "tables" / f"{plan.name}-{digest(plan.paths, repr(plan))}"
    large = place.is_dir() or plan.size > memory * GIGABYTE
    made = kept(place, plan.code) if large else plan.code(in_memory)
    for unseen in made.unseen:
        warnings.warn(f"{plan.paths[0]}: {unseen}.", UnseenCategoryWarning, stacklevel=4)
    return made.data("table", encoding)


@dataclass(frozen=True)
class _Plan:
    """What is to become of which files; each is read only when it must be."""

    files: tuple[TableFile, ...]
    targets: tuple[Target, ...]
    wanted: Wanted
    division: Division
    missing: Missing
    most_categories: int

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.files)

    @property
    def name(self) -> str:
        return self.paths[0].name.partition(".")[0]

    @cached_property
    def looks(self) -> tuple[Looks, ...]:
        check_named(self.files[0], self.wanted)
        return tuple(look(file, self.wanted.texts) for file in self.files)

    @cached_property
    def columns(self) -> Columns:
        return find_columns(self.files, self.looks, self.wanted)

    @cached_property
    def dated(self) -> tuple[TableFile, ...]:
        """The files with the formats of their dates."""
        seen = {
            name: [(file.path, looks.seen[name]) for file, looks in zip(self.files, self.looks, strict=True)]
            for name in self.wanted.dates
        }
        dates = {name: date_format(columns, name) for name, columns in seen.items()}
        return tuple(file.with_dialect(replace(file.dialect, dates=dates)) for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of the coded table, at most."""
        width = 2 * len(self.columns.numbers) + len(self.columns.categories)
        return 4 * width * sum(look.rows for look in self.looks)

    def code(self, allocate: Allocate) -> Table:
        """Read and code all rows."""
        counts = [look.rows for look in self.looks]
        rows = Rows.of(self.dated if self.wanted.dates else self.files, self.columns, self.targets, sum(counts))
        parts = self.division.divide(self.files, counts, rows, self.targets)
        return tabulate(
            rows,
            parts.of_rows,
            self.columns,
            self.targets,
            missing=self.missing,
            most_categories=self.most_categories,
            notes=(parts.note, *_inputs(self.columns)),
            allocate=allocate,
        )


def _number_format(decimal: Decimal, thousands: Thousands | None, units: Sequence[str]) -> NumberFormat:
    """Check and join what is said of numbers.

    Raises:
        ParameterError: if one mark is to stand for two things, or a unit is none.
    """
    if decimal == thousands:
        raise ParameterError(f"decimal and thousands are both {decimal!r}. Give each a mark of its own.")
    for unit in units:
        if not isinstance(unit, str) or not unit.strip() or any(mark.isdecimal() for mark in unit):
            raise ParameterError(f"units: expected texts without digits, such as $ and %; got {unit!r}.")
    return NumberFormat(decimal, thousands, tuple(sorted((unit.strip() for unit in units), key=len, reverse=True)))


def _dates(dates: Sequence[str] | Mapping[str, str]) -> dict[str, str | None]:
    """Return column -> format of its dates, None where it is to be found.

    Raises:
        ParameterError: if a column or a format is none.
    """
    if isinstance(dates, str):
        raise ParameterError(f"dates: expected a list of columns, or a mapping of columns to formats; got {dates!r}.")
    if not isinstance(dates, Mapping):
        return dict.fromkeys(dates)
    for name, form in dates.items():
        if wrong := wrong_date_format(form):
            raise ParameterError(f'dates.{name}: expected a format of strptime, as "%d.%m.%Y"; got {form!r}{wrong}.')
    return dict(dates)


def _columns(targets: Sequence[Target]) -> dict[str, bool]:
    """Column -> whether it must hold numbers.

    Raises:
        ParameterError: if a column is to hold both numbers and classes.
    """
    kinds: dict[str, bool] = {}
    for target in targets:
        if kinds.setdefault(target.column, target.numeric) != target.numeric:
            raise ParameterError(
                f"targets: column {target.column!r} is to hold numbers for one task and classes for another."
            )
    return kinds


def _inputs(columns: Columns) -> list[str]:
    """Say what every column was taken for."""
    kinds = {"numbers": columns.numbers, "categories": columns.categories}
    return [f"input {kind}: {_named(names)}" for kind, names in kinds.items() if names]


def _named(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
