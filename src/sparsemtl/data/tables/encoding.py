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
from sparsemtl.data.tables.parts import PARTS, TRAIN, Parts
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
    parts: Parts,
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
    table = _Table(rows, parts.of_rows)
    table.check([*inputs.numbers, *(target.column for target in targets if target.numeric)])
    targets = [target.fitted(table.known_labels(target.column), rows.path) for target in targets]
    coded, cardinalities = table.code(inputs)
    unseen = list(table.unseen(inputs.categories, coded))
    for remark in unseen if warn else ():
        warnings.warn(f"{rows.path}: {remark}.", UnseenCategoryWarning, stacklevel=5)
    numeric = coded.shape[1] - len(cardinalities)
    expand = OneHot(numeric, cardinalities) if encoding == "one-hot" else None
    labels = {target.name: torch.from_numpy(target.labels(rows)) for target in targets}
    train, validation, test = (
        CodedSplit(torch.from_numpy(coded), labels, torch.from_numpy((parts.of_rows == part).nonzero()[0]), expand)
        for part in range(len(PARTS))
    )
    asked = (note for target in targets if (note := target.note()))
    return TaskData(
        name,
        tuple(target.task() for target in targets),
        train,
        validation,
        test,
        notes=(parts.note, *notes, *table.notes(inputs), *table.unlabelled(targets), *asked, *unseen),
        stem=partial(ColumnEmbedding, cardinalities, numeric) if encoding == "embedding" else None,
    )


class _Table:
    """Rows with their parts."""

    def __init__(self, rows: Rows, of_rows: Array) -> None:
        self.rows, self.frame, self.of_rows = rows, rows.frame, of_rows
        self.train = self.frame[of_rows == TRAIN]

    def check(self, numbers: Sequence[str]) -> None:
        """Raise if a part has no row, or a number is not finite in single precision."""
        for part, title in enumerate(PARTS):
            if not (self.of_rows == part).any():
                raise DataError(f"{self.rows.path}: of {len(self.of_rows)} rows none is left for {title}.")
        for name in numbers:
            values = self.frame[name].to_numpy()
            if (beyond := np.abs(values) > np.finfo(np.float32).max).any():
                value = values[beyond][0]
                why = "is not finite" if np.isinf(value) else "is beyond the range of single precision"
                raise DataError(f"{self.rows.where(beyond)}: column {name!r} holds {value}, which {why}.")

    def missing(self, name: str) -> Array:
        """Return the number of missing values per part."""
        return np.bincount(self.of_rows[self.frame[name].isna()], minlength=len(PARTS))

    def known_labels(self, name: str) -> pd.Series[Any]:
        """Return the values of a target in training; raise if a part has none, or training has the same in all rows."""
        where, sizes = f"{self.rows.path}: the target {name!r}", np.bincount(self.of_rows, minlength=len(PARTS))
        for part, size, missing in zip(PARTS, sizes, self.missing(name), strict=True):
            if size == missing:
                raise DataError(f"{where} has no value in the {size} {part} rows.")
        known: pd.Series[Any] = self.train[name].dropna()
        if known.nunique() == 1:
            shown = repr(known.iloc[0]) if isinstance(known.iloc[0], str) else f"{known.iloc[0]:g}"
            raise DataError(f"{where} is {shown} in all training rows; there is nothing to learn.")
        return known

    def code(self, inputs: InputColumns) -> tuple[Array, tuple[int, ...]]:
        """Return coded rows (N, columns), float32, and the number of codes per category, code 0 included."""
        try:
            from sklearn.compose import ColumnTransformer
            from sklearn.impute import SimpleImputer
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import OrdinalEncoder, StandardScaler
        except ImportError:
            raise missing_extra("scikit-learn", "tables", "a table") from None
        numbers, texts = list(inputs.numbers), list(inputs.categories)
        known = {name: self._known(name, inputs) for name in (*numbers, *texts)}
        scaled = make_pipeline(
            StandardScaler(),
            SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=inputs.missing == "indicator"),
        )
        categories = [in_order(known[name]) + [_GAP] * bool(self.train[name].isna().any()) for name in texts]
        codes = OrdinalEncoder(categories=categories, handle_unknown="use_encoded_value", unknown_value=-1)
        transformer = ColumnTransformer([("numbers", scaled, numbers), ("categories", codes, texts)])
        values = self.frame[[*numbers, *texts]].copy()
        values[numbers] -= self.train[numbers].min()  # a column that is constant in training is then exactly 0
        values[texts] = values[texts].fillna(_GAP)
        coded: Array = transformer.fit(values[self.of_rows == TRAIN]).transform(values).astype(np.float32)
        coded[:, coded.shape[1] - len(texts) :] += 1
        return coded, tuple(len(of) + 1 for of in categories)

    def _known(self, name: str, inputs: InputColumns) -> Sequence[Any]:
        """Return the different values of an input in training; raise if there is none, or more than are allowed."""
        gone = self.frame[name].isna().to_numpy()
        if inputs.missing == "refuse" and gone.any():
            raise DataError(
                f"{self.rows.where(gone)}: column {name!r} has no value here, and {gone.sum()} in all have none. "
                "`missing: indicator` or `missing: mean` would replace it."
            )
        known: Sequence[Any] = self.train[name].dropna().unique()
        if name in inputs.categories and len(known) > inputs.most_categories:
            raise DataError(
                f"{self.rows.path}: column {name!r} has {len(known):,} categories in the training rows, as "
                f"{min(known)!r}; at most {inputs.most_categories:,} are taken. If it says nothing of other rows, name "
                "it in `drop`; else raise `most_categories`."
            )
        if not len(known):
            raise DataError(f"{self.rows.path}: column {name!r} has no value in the training rows. Name it in `drop`.")
        return known

    def unseen(self, categories: Sequence[str], coded: Array) -> Iterator[str]:
        """Yield a remark per column of categories of which rows have one that training never saw."""
        for name, codes in zip(categories, coded.T[coded.shape[1] - len(categories) :], strict=True):
            if (unknown := codes == 0).any():
                value = self.frame[name][unknown].iloc[0]
                first = repr(value) if isinstance(value, str) else "a missing value"
                yield (
                    f"column {name!r}: {unknown.sum()} validation or test rows have a category that training never "
                    f"saw, the first is {first} in {self.rows.where(unknown)}; it counts as unknown"
                )

    def notes(self, inputs: InputColumns) -> Iterator[str]:
        """Yield remarks on missing values, and on columns that are the same in all training rows."""
        names = (*inputs.numbers, *inputs.categories)
        for name in names:
            if (counts := self.missing(name)).any():
                if name in inputs.categories:
                    way = "a category of their own" if counts[TRAIN] else "counted as unknown"
                else:
                    way = "replaced by the mean of training"
                    way += ", with a column that says so" if counts[TRAIN] and inputs.missing == "indicator" else ""
                yield f"column {name!r} is missing in {_by_part(counts)} rows, {way}"
        if constant := [repr(name) for name in names if self.train[name].nunique(dropna=False) == 1]:
            yield f"the same in all training rows: {', '.join(constant)}"

    def unlabelled(self, targets: Sequence[AnyTarget]) -> Iterator[str]:
        """Yield a remark per target with missing labels."""
        for target in targets:
            if (counts := self.missing(target.column)).any():
                yield f"{target.name}: {_by_part(counts)} rows have no label"


def _by_part(counts: Array) -> str:
    return ", ".join(f"{count} {part}" for part, count in zip(PARTS, counts.tolist(), strict=True) if count)
