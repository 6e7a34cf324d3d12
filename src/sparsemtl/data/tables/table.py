"""A table of the user's own, in CSV, Parquet or Excel files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from typing_extensions import Doc, Unpack

from sparsemtl.data.base import TaskData
from sparsemtl.data.options import ProperFraction, Root, checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.tables.columns import ColumnRoles, find_columns
from sparsemtl.data.tables.encoding import EncodingOption, InputColumns, Missing, tabulate
from sparsemtl.data.tables.formats import (
    MISSING_VALUES,
    Decimal,
    Dialect,
    NumberFormat,
    Thousands,
    wrong_date_format,
)
from sparsemtl.data.tables.parts import by_column, divide
from sparsemtl.data.tables.rows import find_files, read_rows
from sparsemtl.data.tables.targets import parse_targets
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Default, Natural

_SHOWN = 30
"""Columns that are named in a note."""


class TableOptions(TypedDict, total=False):
    """Options of a table: its columns, its split and the form of its files."""

    drop: Annotated[Sequence[str], Default(()), Doc("Columns that are not read.")]
    categorical: Annotated[Sequence[str], Default(()), Doc("Columns of categories that look like numbers.")]
    missing: Annotated[
        Missing,
        Default("indicator"),
        Doc(
            "Treatment of a missing number: the mean of training, with a column that marks it where training has such "
            "(indicator) or without (mean), or an error (refuse). A missing category is a category."
        ),
    ]
    missing_values: Annotated[Sequence[str], Default(MISSING_VALUES), Doc("Texts that stand for a missing value.")]
    most_categories: Annotated[Count, Default(1000), Doc("Largest number of categories per column in training.")]
    split: Annotated[
        Sequence[ProperFraction],
        Default((0.7, 0.15, 0.15)),
        Doc("Shares of training, validation and test; of two files, the first two divide the training file."),
    ]
    stratify: Annotated[bool, Default(True), Doc("Give every class these shares, as nearly as numbers allow.")]
    split_column: Annotated[str | None, Default(None), Doc("Column of each row's part: train, validation or test.")]
    separator: Annotated[
        str | None, Default(None), Doc("Character between two values; by default a tab in .tsv files, else a comma.")
    ]
    decimal: Annotated[Decimal, Default("."), Doc("Mark before a number's fraction.")]
    thousands: Annotated[
        Thousands | None, Default(None), Doc("Mark between groups of three digits; a blank is any kind of space.")
    ]
    units: Annotated[Sequence[str], Default(()), Doc("Texts beside numbers to leave out, as $ and %: 1.3% is 1.3.")]
    dates: Annotated[
        Sequence[str] | Mapping[str, str],
        Default(()),
        Doc(
            "Columns of dates, which become days since 1970-01-01, with fractions for times; or a mapping of columns "
            "to formats, as `strptime` writes them. Without a format, the one that reads all values is found."
        ),
    ]
    skip_rows: Annotated[Natural, Default(0), Doc("Lines above the header, such as a title.")]
    sheet: Annotated[str | None, Default(None), Doc("Sheet of an Excel file; by default the first.")]
    text_encoding: Annotated[str, Default("utf-8"), Doc("Encoding of text files; a byte order mark goes first.")]


@requires_files(
    remark="a CSV, Parquet or Excel file of your own. `sparsemtl run` reads it by a configuration such as "
    "examples/table.yaml; it needs the extra `tables`."
)
@checked
def table(
    *,
    root: Root = None,
    path: Annotated[
        str | Sequence[str],
        Doc(
            "A file; a list of two or three files (training, validation and test, or training and test); or a folder "
            "with files named train, validation (may be absent) and test. An absent path is looked for under `root`."
        ),
    ],
    targets: Annotated[Mapping[str, str | Mapping[str, Any]], Doc("Column -> kind of its task, or a mapping.")],
    encoding: EncodingOption = "one-hot",
    seed: Annotated[Natural, Doc("Seed of the split.")] = 0,
    **options: Unpack[TableOptions],
) -> TaskData:
    """Table: rows of your own, from CSV (plain, .gz, .bz2, .xz or .zip), Parquet or Excel files.

    A column whose every value is a number is an input number, one with none is an input category; one with both is
    refused until `categorical` or `missing_values` says what it is. Refused are also texts that look like numbers or
    dates in a local form, until `decimal`, `thousands`, `units` or `dates` says how to read them, and texts of which
    more than half of the rows have one of their own, until `drop` or `categorical` names them. `1` and `1.0` are one
    category. Numbers are standardised. The coding is computed from the training rows alone: means, categories, classes.

    A target is `column: classification` or `column: regression`, or a mapping of `kind` and, for a classification, one
    of `classes` (all of them, in order), `above` (yes where the number is greater) or `equals` (yes where the value is
    this); for a regression, `scale` (`standard`: mean 0 and standard deviation 1 in training; `unit`: 0 to 1 in
    training; or a number to divide by). `column` names the column where the task has another name; `weight`,
    `label_smoothing` and `criterion` are the task's own. A row without a value has no label for that task.

    Raises:
        DataError: if a file cannot be read as a table, or a value does not do; with its column and row.
        ParameterError: if there is no column of a name, or an argument does not do.
        MissingExtraError: if a package of the extra `tables` is not installed.
    """
    parsed, dialect, column = parse_targets(targets), _dialect(options), options["split_column"]
    numeric = {target.column: target.numeric for target in parsed}
    roles = ColumnRoles(numeric, options["drop"], options["categorical"], [] if column is None else [column])
    rows, numbers, categories = find_columns(read_rows(find_files(path, root), dialect, roles.texts), roles, dialect)
    if column is None:
        parts = divide(rows, parsed, options["split"], seed, stratify=options["stratify"])
    else:
        parts = by_column(rows, column)
    notes = []
    for kind, names in (("numbers", numbers), ("categories", categories)):
        rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        notes += [f"input {kind}: {', '.join(names[:_SHOWN])}{rest}"] if names else []
    inputs = InputColumns(numbers, categories, options["missing"], options["most_categories"])
    return tabulate("table", rows, parts, inputs, parsed, encoding=encoding, notes=notes, warn=True)


def _dialect(options: TableOptions) -> Dialect:
    """Return the form of the files.

    Raises:
        ParameterError: if one mark is to stand for two things, or a separator, unit or date format is none.
    """
    separator, dates = options["separator"], options["dates"]
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise ParameterError(f"separator: expected one character, other than a quotation mark; got {separator!r}.")
    if options["decimal"] == options["thousands"]:
        raise ParameterError(f"decimal and thousands are both {options['decimal']!r}. Give each a mark of its own.")
    for unit in options["units"]:
        if not unit.strip() or any(mark.isdecimal() for mark in unit):
            raise ParameterError(f"units: expected texts without digits, such as $ and %; got {unit!r}.")
    for name, form in dates.items() if isinstance(dates, Mapping) else ():
        if wrong := wrong_date_format(form):
            raise ParameterError(f'dates.{name}: expected a format of strptime, as "%d.%m.%Y"; got {form!r}: {wrong}.')
    units = tuple(sorted(map(str.strip, options["units"]), key=len, reverse=True))
    return Dialect(
        separator,
        NumberFormat(options["decimal"], options["thousands"], units),
        dict(dates) if isinstance(dates, Mapping) else dict.fromkeys(dates),
        options["text_encoding"],
        tuple(options["missing_values"]),
        skip_rows=options["skip_rows"],
        sheet=options["sheet"],
    )
