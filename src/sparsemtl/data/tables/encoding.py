"""From rows to a data set: inputs and labels coded by what the training rows hold, by scikit-learn's transformers.

A coded row has the standardised numbers first, then a 1 or 0 for every number that is missing in some training row,
then a code for every category: 0 stands for one that training never saw, and is nothing (no one-hot column, an
embedding of zeros).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from typing_extensions import Doc

from sparsemtl.data.base import TaskData
from sparsemtl.data.tables.coded import CodedSplit, OneHot
from sparsemtl.data.tables.embedding import ColumnEmbedding
from sparsemtl.data.tables.parts import PARTS, TRAIN, RowParts
from sparsemtl.data.tables.rows import Array, Rows
from sparsemtl.data.tables.targets import AnyTarget, in_order
from sparsemtl.errors import DataError, SparseMTLWarning, missing_extra

if TYPE_CHECKING:
    import pandas as pd

Encoding = Literal["one-hot", "embedding"]
"""Form of a category in a batch: a column for each, or a vector that the network learns."""
EncodingOption = Annotated[
    Encoding, Doc("Form of categories: a column for each (one-hot), or vectors that the network learns (embedding).")
]
Missing = Literal["indicator", "mean", "refuse"]
"""Treatment of a missing number."""
_GAP = "\0"
"""Category of a missing value."""


class UnseenCategoryWarning(SparseMTLWarning):
    """Rows have a category that training never saw."""


@dataclass(frozen=True)
class InputColumns:
    """Columns of the inputs.

    Attributes:
        numbers: columns of numbers.
        categories: columns of categories.
        missing: replace a missing number by the mean of training, with or without an indicator column where training
            has such; or refuse it. A missing category is a category.
        most_categories: largest number of categories in a column.
    """

    numbers: Sequence[str]
    categories: Sequence[str]
    missing: Missing = "refuse"
    most_categories: int = 1000


def tabulate(
    name: str,
    rows: Rows,
    parts: RowParts,
    inputs: InputColumns,
    targets: Sequence[AnyTarget],
    *,
    encoding: Encoding,
    notes: Sequence[str] = (),
    warn: bool = False,
) -> TaskData:
    """Make the data set of a table.

    Args:
        name: name of the data set.
        rows: columns of numbers (float64, NaN where missing) and texts (None where missing).
        parts: parts of the rows.
        inputs: columns of the inputs.
        targets: targets of the tasks.
        encoding: form of the categories in a batch.
        notes: remarks on rows and columns; those on missing, unknown and scaled values are added.
        warn: warn of categories that training never saw.

    Raises:
        DataError: naming the column and, where there is one, the row that does not do.
    """
    of_rows, train = parts.of_rows, rows.frame[parts.of_rows == TRAIN]
    _check_rows(rows, of_rows, [*inputs.numbers, *(target.column for target in targets if target.numeric)])
    for target in targets:
        _check_labels(rows, of_rows, target.column)
    targets = [target.fitted(train[target.column].dropna(), rows.path) for target in targets]
    coded, cardinalities = _encode(rows, of_rows, inputs)
    unseen = list(_unseen(rows, inputs.categories, coded))
    for remark in unseen if warn else ():
        warnings.warn(f"{rows.path}: {remark}.", UnseenCategoryWarning, stacklevel=5)
    numeric = coded.shape[1] - len(cardinalities)
    expand = OneHot(numeric, cardinalities) if encoding == "one-hot" else None
    labels = {target.name: torch.from_numpy(target.labels(rows)) for target in targets}
    train_split, validation, test = (
        CodedSplit(torch.from_numpy(coded), labels, torch.from_numpy((of_rows == part).nonzero()[0]), expand)
        for part in range(len(PARTS))
    )
    return TaskData(
        name,
        tuple(target.task() for target in targets),
        train_split,
        validation,
        test,
        notes=(parts.note, *notes, *_remarks(rows, of_rows, inputs, targets), *unseen),
        stem=partial(ColumnEmbedding, cardinalities, numeric) if encoding == "embedding" else None,
    )


def _check_rows(rows: Rows, of_rows: Array, numbers: Sequence[str]) -> None:
    """Raise if a part has no row, or a number is not finite in single precision."""
    for part, title in enumerate(PARTS):
        if not (of_rows == part).any():
            raise DataError(f"{rows.path}: of {len(of_rows)} rows none is left for {title}.")
    for name in numbers:
        values = rows.frame[name].to_numpy()
        if (beyond := np.abs(values) > np.finfo(np.float32).max).any():
            value = values[beyond][0]
            why = "is not finite" if np.isinf(value) else "is beyond the range of single precision"
            raise DataError(f"{rows.where(beyond)}: column {name!r} holds {value}, which {why}.")


def _check_labels(rows: Rows, of_rows: Array, name: str) -> None:
    """Raise if a part has no value of a target, or training has the same one in all rows."""
    title, column = f"{rows.path}: the target {name!r}", rows.frame[name]
    sizes = np.bincount(of_rows, minlength=len(PARTS))
    for part, size, missing in zip(PARTS, sizes, _missing(column, of_rows), strict=True):
        if size == missing:
            raise DataError(f"{title} has no value in the {size} {part} rows.")
    known = column[of_rows == TRAIN].dropna().unique()
    if len(known) == 1:
        shown = repr(known[0]) if isinstance(known[0], str) else f"{known[0]:g}"
        raise DataError(f"{title} is {shown} in all training rows; there is nothing to learn.")


def _encode(rows: Rows, of_rows: Array, inputs: InputColumns) -> tuple[Array, tuple[int, ...]]:
    """Return coded rows (N, columns), float32, and the number of codes per category, code 0 included."""
    try:
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OrdinalEncoder, StandardScaler
    except ImportError:
        raise missing_extra("scikit-learn", "tables", "a table") from None
    numbers, texts = list(inputs.numbers), list(inputs.categories)
    values, train = rows.frame[[*numbers, *texts]].copy(), rows.frame[of_rows == TRAIN]
    known = {name: _known(rows, train[name], inputs) for name in (*numbers, *texts)}
    categories = [in_order([*known[name]]) + [_GAP] * bool(train[name].isna().any()) for name in texts]
    scaled = make_pipeline(
        StandardScaler(),
        SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=inputs.missing == "indicator"),
    )
    codes = OrdinalEncoder(categories=categories, handle_unknown="use_encoded_value", unknown_value=-1)
    transformer = ColumnTransformer([("numbers", scaled, numbers), ("categories", codes, texts)])
    values[numbers] -= train[numbers].min()  # a column that is constant in training is then exactly 0
    values[texts] = values[texts].fillna(_GAP)
    coded: Array = transformer.fit(values[of_rows == TRAIN]).transform(values).astype(np.float32)
    coded[:, coded.shape[1] - len(texts) :] += 1
    return coded, tuple(len(of) + 1 for of in categories)


def _known(rows: Rows, train: pd.Series[Any], inputs: InputColumns) -> Array:
    """Return the different values of an input in training; raise if there is none, or more than are allowed."""
    name = str(train.name)
    gone = rows.frame[name].isna().to_numpy()
    if inputs.missing == "refuse" and gone.any():
        raise DataError(
            f"{rows.where(gone)}: column {name!r} has no value here, and {gone.sum()} in all have none. "
            "`missing: indicator` or `missing: mean` would replace it."
        )
    known: Array = np.asarray(train.dropna().unique())
    if not len(known):
        raise DataError(f"{rows.path}: column {name!r} has no value in the training rows. Name it in `drop`.")
    if name in inputs.categories and len(known) > inputs.most_categories:
        raise DataError(
            f"{rows.path}: column {name!r} has {len(known):,} categories in the training rows, as {min(known)!r}; at "
            f"most {inputs.most_categories:,} are taken. If it says nothing of other rows, name it in `drop`; else "
            "raise `most_categories`."
        )
    return known


def _unseen(rows: Rows, categories: Sequence[str], coded: Array) -> Iterator[str]:
    """Yield a remark per column of categories of which rows have one that training never saw."""
    for name, codes in zip(categories, coded.T[coded.shape[1] - len(categories) :], strict=True):
        if (unknown := codes == 0).any():
            value = rows.frame[name][unknown].iloc[0]
            first = repr(value) if isinstance(value, str) else "a missing value"
            yield (
                f"column {name!r}: {unknown.sum()} validation or test rows have a category that training never saw, "
                f"the first is {first} in {rows.where(unknown)}; it counts as unknown"
            )


def _remarks(rows: Rows, of_rows: Array, inputs: InputColumns, targets: Sequence[AnyTarget]) -> Iterator[str]:
    """Yield remarks on missing values, columns that are the same in all training rows, and labels."""
    names = (*inputs.numbers, *inputs.categories)
    for name in names:
        if (counts := _missing(rows.frame[name], of_rows)).any():
            if name in inputs.categories:
                way = "a category of their own" if counts[TRAIN] else "counted as unknown"
            else:
                marked = counts[TRAIN] and inputs.missing == "indicator"
                way = "replaced by the mean of training" + (", with a column that says so" if marked else "")
            yield f"column {name!r} is missing in {_by_part(counts)} rows, {way}"
    train = rows.frame[of_rows == TRAIN]
    if constant := [repr(name) for name in names if train[name].nunique(dropna=False) == 1]:
        yield f"the same in all training rows: {', '.join(constant)}"
    for target in targets:
        if (counts := _missing(rows.frame[target.column], of_rows)).any():
            yield f"{target.name}: {_by_part(counts)} rows have no label"
    yield from filter(None, (target.note() for target in targets))


def _missing(column: pd.Series[Any], of_rows: Array) -> Array:
    """Return the number of missing values per part."""
    return np.bincount(of_rows[column.isna()], minlength=len(PARTS))


def _by_part(counts: Array) -> str:
    return ", ".join(f"{count} {part}" for part, count in zip(PARTS, counts.tolist(), strict=True) if count)
