"""Kinds of a table's columns: numbers or categories.

The rule: a column whose every value is a number holds numbers; one with none, and whatever `categorical` names, holds
categories. A column that has some numbers and some texts is refused: whether `abc` among ages stands for a missing
value, is a mistake or makes the ages categories, only its owner knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np

from sparsemtl.data.tables import formats
from sparsemtl.data.tables.formats import Dialect, load_pandas
from sparsemtl.data.tables.rows import Array, Rows
from sparsemtl.errors import DataError, ParameterError, unknown_name

_FEW = 20
"""Number of different texts that is never too large."""
_MOST_DIFFERENT = 0.5
"""Largest share of the texts that may differ in a column of categories or classes."""


@dataclass(frozen=True)
class ColumnRoles:
    """Roles that a configuration gives to columns; all others are inputs.

    Attributes:
        targets: column -> True if it must hold numbers, False if it holds classes.
        drop: columns that are not read.
        categorical: inputs that hold categories, whatever they look like.
        split_column: the column of the parts that rows belong to, if there is one.
    """

    targets: Mapping[str, bool]
    drop: Sequence[str]
    categorical: Sequence[str]
    split_column: Sequence[str]

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that hold texts, whatever they look like."""
        classes = (name for name, numeric in self.targets.items() if not numeric)
        return (*self.categorical, *self.split_column, *classes)

    def check(self, rows: Rows, dates: Collection[str]) -> None:
        """Raise a ParameterError if there is no column of a name, or a column has two roles."""
        named: dict[str, str] = {}
        for role, names in {**vars(self), "dates": dates}.items():
            for name in names:
                if name not in rows.columns:
                    raise ParameterError(f"{role}: {rows.path}: {unknown_name('column', name, rows.columns)}")
                both = {named.setdefault(name, role), role}
                if len(both) > 1 and not (both == {"targets", "dates"} and self.targets[name]):
                    raise ParameterError(f"column {name!r} stands in `{named[name]}` and in `{role}`; it is one thing.")


@dataclass(frozen=True, eq=False)
class _ColumnPreview:
    """Values of a column: numbers where they are numbers, texts elsewhere.

    Attributes:
        numbers: float64, NaN where a value is missing or a text, shape (N,).
        texts: names of categories, None where a value is missing or a number, shape (N,).
        is_text: rows with a text, bool, shape (N,).
        distinct: different texts, in the order in which they come.
    """

    numbers: Array
    texts: Array
    is_text: Array
    distinct: list[str]

    @property
    def nearly_all_differ(self) -> bool:
        """True if nearly every text stands in one row only."""
        return bool(len(self.distinct) > max(_FEW, _MOST_DIFFERENT * self.is_text.sum()))


def _preview(rows: Rows, name: str, dialect: Dialect, *, as_text: bool = False) -> _ColumnPreview:
    """Return the values of a column; with `as_text`, numbers are texts."""
    pandas, column = load_pandas(), rows.frame[name]
    as_text = as_text or pandas.api.types.is_bool_dtype(column)
    if pandas.api.types.is_numeric_dtype(column) and not as_text:
        numbers, texts = column.to_numpy(np.float64, na_value=np.nan), np.full(len(column), None, object)
        return _ColumnPreview(numbers, texts, np.zeros(len(column), bool), [])
    codes, found = pandas.factorize(column)  # each different value once; the code of a missing one is -1
    values = np.asarray(found, dtype=object)
    stripped = pandas.Series([str(value).strip() for value in values], dtype=object)
    parsed = np.full(len(values), np.nan)
    if not as_text:
        parsed = dialect.numbers.parse(stripped).to_numpy(copy=True)
        native = [isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) for value in values]
        parsed[native] = values[native].astype(np.float64)
    names = np.array([formats.whole_number(text, dialect.numbers.decimal) for text in stripped], dtype=object)
    missing = stripped.isin(dialect.missing_values).to_numpy()
    parsed[missing] = np.nan
    names[missing | ~np.isnan(parsed)] = None
    texts = np.array([*names, None], dtype=object)[codes]
    distinct = list(dict.fromkeys(name for name in names if name is not None))
    return _ColumnPreview(np.append(parsed, np.nan)[codes], texts, pandas.notna(texts), distinct)


def select(rows: Rows, dialect: Dialect, numbers: Collection[str], texts: Collection[str]) -> Rows:
    """Return some columns of known kinds.

    Raises:
        DataError: if there is no such column, or a value of `numbers` is no number, with its row and column.
    """
    columns: dict[str, Array] = {}
    for name in (*numbers, *texts):
        if name not in rows.columns:
            raise DataError(f"{rows.path}: {unknown_name('column', name, rows.columns)}")
        found = _preview(rows, name, dialect, as_text=name in texts)
        if name not in texts and found.distinct:
            text = found.distinct[0]
            raise DataError(f"{rows.where(found.is_text)}: column {name!r} holds numbers, and here {text!r}.")
        columns[name] = found.texts if name in texts else found.numbers
    return replace(rows, frame=load_pandas().DataFrame(columns))


def find_columns(rows: Rows, roles: ColumnRoles, dialect: Dialect) -> tuple[Rows, list[str], list[str]]:
    """Return the columns of inputs, targets and parts as float64 or texts, and which inputs are numbers and categories.

    Raises:
        DataError: if no input is left, a column is of no kind or of both, or a target holds other values than it
            should; naming the column and, where there is one, the row.
    """
    roles.check(rows, dialect.dates)
    apart = {*roles.targets, *roles.drop, *roles.split_column}
    inputs = [name for name in rows.columns if name not in apart]
    if not inputs:
        raise DataError(f"{rows.path}: no column is left for the inputs, beside {', '.join(sorted(apart))}.")
    columns = {}
    for name in (*inputs, *roles.targets, *roles.split_column):
        if name in dialect.dates:
            columns[name] = _days(rows, name, dialect)
        elif name in (*roles.categorical, *roles.split_column):
            columns[name] = _preview(rows, name, dialect, as_text=True).texts
        elif name in inputs:
            columns[name] = _input(rows, name, dialect)
        else:
            columns[name] = _target(rows, name, dialect, numeric=roles.targets[name])
    found = replace(rows, frame=load_pandas().DataFrame(columns))
    numbers = [name for name in inputs if columns[name].dtype == np.float64]
    return found, numbers, [name for name in inputs if name not in numbers]


def _input(rows: Rows, name: str, dialect: Dialect) -> Array:
    """Return an input's numbers, or its categories as texts."""
    found = _without_times(rows, name, dialect)
    is_number = ~np.isnan(found.numbers)
    if not found.distinct:
        if not is_number.any():
            raise DataError(f"{rows.path}: column {name!r} holds neither numbers nor texts. Name it in `drop`.")
        return found.numbers
    title, text = f"{rows.where(found.is_text)}: column {name!r}", found.distinct[0]
    if remedy := formats.suggest_option(found.distinct, dialect.numbers):
        otherwise = f"If the column holds categories all the same, add {name!r} to `categorical`."
        raise DataError(f"{title}: {remedy} {otherwise}")
    if is_number.any():
        raise DataError(
            f"{title} holds numbers, as in {rows.where(is_number)}, and here {text!r}. If that stands for a missing "
            f"value, add it to `missing_values`; if it holds categories, add {name!r} to `categorical`."
        )
    if found.nearly_all_differ:
        raise DataError(
            f"{title} holds {len(found.distinct):,} different texts in {found.is_text.sum():,} rows, as {text!r}; "
            "nearly every row has one of its own. If it names rows or is free text, name it in `drop`; if it holds "
            f"categories all the same, add {name!r} to `categorical`."
        )
    return found.texts


def _target(rows: Rows, name: str, dialect: Dialect, *, numeric: bool) -> Array:
    """Return a target's numbers, or its classes as texts."""
    if numeric:
        found = _without_times(rows, name, dialect)
        if not found.distinct and np.isnan(found.numbers).all():
            raise DataError(f"{rows.path}: the target {name!r} must hold numbers, and it holds none.")
        problem = "must hold numbers, and here is {text!r}."
    else:
        found = _preview(rows, name, dialect, as_text=True)
        problem = "would have {classes:,} classes in {rows:,} rows, as {text!r}. If it holds numbers, learn it by "
        problem += "`kind: regression`."
    if found.distinct if numeric else found.nearly_all_differ:
        problem = problem.format(text=found.distinct[0], classes=len(found.distinct), rows=found.is_text.sum())
        remedy = formats.suggest_option(found.distinct, dialect.numbers)
        raise DataError(f"{rows.where(found.is_text)}: the target {name!r} {problem} {remedy}".rstrip())
    return found.numbers if numeric else found.texts


def _without_times(rows: Rows, name: str, dialect: Dialect) -> _ColumnPreview:
    column = rows.frame[name]
    if load_pandas().api.types.is_datetime64_any_dtype(column):
        where, first = rows.where(column.notna().to_numpy()), str(column.dropna().iloc[0])
        raise DataError(
            f"{where}: column {name!r} holds times, as {first!r}. Name it in `dates` (days since 1970-01-01 become its "
            "number), or in `drop`."
        )
    return _preview(rows, name, dialect)


def _days(rows: Rows, name: str, dialect: Dialect) -> Array:
    """Return the days of a column of dates, by its own format or the one that reads all values."""
    pandas, column, form = load_pandas(), rows.frame[name], dialect.dates[name]
    if pandas.api.types.is_datetime64_any_dtype(column):
        return formats.days(column).to_numpy()
    codes, values = pandas.factorize(column)
    texts = pandas.Series([str(value).strip() for value in values], dtype="str")
    tried = formats.DATE_FORMATS if form is None else (form,)
    parsed = {each: formats.parse_dates(texts, each).to_numpy() for each in tried}
    fitting = [each for each, numbers in parsed.items() if not np.isnan(numbers).any()]
    if not fitting:
        wrong = np.isnan(min(parsed.values(), key=lambda numbers: np.isnan(numbers).sum()))
        raise DataError(
            f"{rows.where(np.append(wrong, False)[codes])}: column {name!r} holds dates, and here "
            f"{texts[wrong].iloc[0]!r}. If that stands for a missing value, add it to `missing_values`; else give the "
            f'format, as in `dates: {{{name}: "%d.%m.%Y"}}`.'
        )
    if len(fitting) > 1 and len(texts):
        raise ParameterError(
            f"dates: {rows.path}: all values of column {name!r} can be read as {' and as '.join(fitting[:3])}. Say "
            f'which it is, as in `dates: {{{name}: "{fitting[0]}"}}`.'
        )
    numbers: Array = np.append(parsed[fitting[0]], np.nan)[codes]
    return numbers
