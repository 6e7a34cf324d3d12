"""Targets: what tasks learn from which columns, as a configuration writes it, and their labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sparsemtl.data.tables.formats import load_pandas, whole_number
from sparsemtl.data.tables.rows import Array, Rows
from sparsemtl.errors import DataError, ParameterError, unknown_name
from sparsemtl.registry.checking import check_value
from sparsemtl.registry.parameters import NonNegative, Positive, Share
from sparsemtl.tasks import Classification, Regression, Task

if TYPE_CHECKING:
    import pandas as pd

_UNLABELLED = -100
"""Class of a row that has no label."""
_GAP_NAMES = frozenset({"?", "-", "--", ".", "none", "missing", "unknown", "n.a."})
"""Names, in small letters, that stand for a missing value in some tables, and for a class in others."""
Scale = Literal["standard", "unit"]
_COMMON: dict[str, Any] = {"column": str, "weight": NonNegative}
_KINDS: dict[str, dict[str, Any]] = {
    "classification": {"classes": Sequence[Any], "above": float, "equals": Any, "label_smoothing": Share, **_COMMON},
    "regression": {"scale": Scale | Positive, "criterion": Literal["mse", "l1", "huber"], **_COMMON},
}
"""Options of a target by its kind."""
_OF_TASKS = ("label_smoothing", "criterion", "weight")


@dataclass(frozen=True)
class _Target:
    """Labels of one task, made of one column.

    Attributes:
        name: name of the task.
        column: name of the column.
        options: further arguments of the task.
    """

    name: str
    column: str
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class ClassTarget(_Target):
    """Classification: of the column's values, or of no and yes.

    Attributes:
        classes: values in order; by default those of the training rows, sorted.
        above: limit above which a number is a yes; None: no such question.
        equals: value that is a yes, as text; None: no such question.
    """

    classes: tuple[str, ...] = ()
    above: float | None = None
    equals: str | None = None

    @property
    def numeric(self) -> bool:
        """Need for a column of numbers."""
        return self.above is not None

    def fitted(self, known: pd.Series[Any], path: Path) -> ClassTarget:
        """Return the target with the classes of the training rows, unless they are given.

        Args:
            known: values of the training rows.
            path: the file, for messages.

        Raises:
            DataError: if training has no yes, or no number that is a no.
        """
        where = f"{path}: the target {self.column!r}"
        if self.above is not None:
            low, high = known.min(), known.max()
            if high <= self.above or low > self.above:
                raise DataError(
                    f"{where} lies in {low:g} .. {high:g} in all training rows; whether it is above {self.above:g} is "
                    "nothing to learn."
                )
        elif self.equals is not None:
            if not (known == self.equals).any():
                raise DataError(f"{where} has in training: {unknown_name('value', self.equals, known.unique())}")
        elif not self.classes:
            return replace(self, classes=tuple(in_order([*known.unique()])))
        return self

    def task(self) -> Task:
        """Make the classification."""
        return Classification(self.name, self.classes or ["no", "yes"], **self.options)

    def labels(self, rows: Rows) -> Array:
        """Return the classes, int64, shape (N,); `_UNLABELLED` where the value is missing.

        Raises:
            DataError: if a value is none of the classes, with its row and column.
        """
        column = rows.frame[self.column]
        missing = column.isna().to_numpy()
        if self.above is not None:
            classes = (column > self.above).to_numpy()
        elif self.equals is not None:
            classes = (column == self.equals).to_numpy()
        else:
            classes = load_pandas().Index(self.classes).get_indexer(column)
            if (wrong := (classes < 0) & ~missing).any():
                raise DataError(
                    f"{rows.where(wrong)}: {column[wrong].iloc[0]!r} in the target {self.column!r} is none of the "
                    f"classes {', '.join(self.classes)}. `targets: {{{self.column}: {{kind: classification, classes: "
                    "[...]}}}` names them all."
                )
        return np.where(missing, _UNLABELLED, classes).astype(np.int64)

    def note(self) -> str:
        """Return the question, or the classes whose names often stand for a missing value; "" if there are none."""
        if self.above is not None:
            return f"{self.name}: whether {self.column!r} is above {self.above:g}"
        if self.equals is not None:
            return f"{self.name}: whether {self.column!r} is {self.equals!r}"
        signs = {"-", "+"} <= {*self.classes}
        gaps = [repr(name) for name in self.classes if name.lower() in _GAP_NAMES and not (signs and name == "-")]
        remedy = "counts as a class. If it stands for a missing label, add it to `missing_values`"
        return f"{self.name}: {', '.join(gaps)} {remedy}" if gaps else ""


@dataclass(frozen=True)
class NumberTarget(_Target):
    """Regression of the column's number, which is `offset + factor * label`.

    Attributes:
        scale: choice of offset and factor by the training rows: labels of mean 0 and standard deviation 1 (`standard`),
            or from 0 to 1 (`unit`); None: as they are given.
        offset: number whose label is 0.
        factor: difference of numbers whose labels differ by 1, above 0.
        largest: largest size of a training label, where `scale` does not set it.
    """

    scale: Scale | None = None
    offset: float = 0.0
    factor: float = 1.0
    largest: float = 1.0

    @property
    def numeric(self) -> bool:
        """Need for a column of numbers."""
        return True

    def fitted(self, known: pd.Series[Any], path: Path) -> NumberTarget:
        """Return the target with offset and factor of the training rows; for the arguments see `ClassTarget`."""
        match self.scale:
            case "standard":
                return replace(self, offset=float(known.mean()), factor=float(known.std(ddof=0)))
            case "unit":
                return replace(self, offset=float(known.min()), factor=float(known.max() - known.min()))
        return replace(self, largest=float(known.abs().max()) / self.factor)

    def task(self) -> Task:
        """Make the regression."""
        return Regression(self.name, **self.options)

    def labels(self, rows: Rows) -> Array:
        """Return the scaled numbers, float32, shape (N,); NaN where the value is missing."""
        return ((rows.frame[self.column].to_numpy() - self.offset) / self.factor).astype(np.float32)

    def note(self) -> str:
        """Return the way from labels to numbers, or that labels are large or small; "" if neither."""
        if self.largest > 10 or self.largest < 0.1:
            return (
                f"{self.name}: the largest label is {self.largest:.4g} in size; `scale: standard` gives labels mean 0 "
                "and standard deviation 1, which most networks learn faster"
            )
        if self.offset == 0 and self.factor == 1:
            return ""
        start = f"{self.offset:.9g} + " if self.offset else ""
        return f"{self.name}: {self.column!r} is {start}{self.factor:.9g} * its label"


AnyTarget = ClassTarget | NumberTarget


def in_order(names: Sequence[str]) -> list[str]:
    """Return texts sorted; by size if all are finite numbers."""
    try:
        sizes = {name: float(name) for name in names}
    except ValueError:
        return sorted(names)
    return sorted(sizes, key=lambda name: (sizes[name], name)) if all(map(isfinite, sizes.values())) else sorted(sizes)


def parse_targets(targets: Mapping[str, Any]) -> tuple[AnyTarget, ...]:
    """Return the targets of a configuration: column -> kind, or a mapping of `kind` and options.

    Raises:
        ParameterError: naming the target, what was expected and what was found.
    """
    if not isinstance(targets, Mapping) or not targets:
        raise ParameterError(f"targets: expected a mapping of columns to kinds, got {targets!r}.")
    made = tuple(_parse_target(str(key), said) for key, said in targets.items())
    numeric: dict[str, bool] = {}
    counts = Counter(target.name for target in made)
    for target in made:
        if counts[target.name] > 1:
            raise ParameterError(f"targets: two tasks would be named {target.name!r}. Name one, and say its `column`.")
        if numeric.setdefault(target.column, target.numeric) != target.numeric:
            raise ParameterError(
                f"targets: column {target.column!r} is to hold numbers for one task and classes for another."
            )
    return made


def _parse_target(key: str, said: Any) -> AnyTarget:
    options = dict(said) if isinstance(said, Mapping) else {"kind": said}
    kind = options.pop("kind", None)
    if kind not in _KINDS:
        raise ParameterError(f"targets.{key}: {unknown_name('kind', kind, _KINDS)}")
    for option, value in options.items():
        if option not in _KINDS[kind]:
            raise ParameterError(f"targets.{key}: {unknown_name(f'{kind} option', option, _KINDS[kind])}")
        check_value(f"targets.{key}.{option}", value, _KINDS[kind][option])
    column, name = options.pop("column", key), re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-")
    try:
        Regression(name)
    except ParameterError as error:  # the task cannot have its name
        raise ParameterError(f"targets.{key}: {error} Here: `my-name: {{column: {column!r}, kind: ...}}`.") from None
    own = {option: options.pop(option) for option in _OF_TASKS if option in options}
    if kind == "regression":
        if isinstance(scale := options.get("scale"), (int, float)):
            return NumberTarget(name, column, factor=float(scale), options=own)
        return NumberTarget(name, column, scale, options=own)
    if len(options) > 1:
        raise ParameterError(f"targets.{name}: only one of {', '.join(options)} can be said.")
    classes = tuple(whole_number(str(each)) for each in options.get("classes", ()))
    if len(set(classes)) < len(classes) or len(classes) == 1:
        raise ParameterError(f"targets.{name}: `classes` must be at least two different ones, got {list(classes)}.")
    equals = whole_number(str(options["equals"])) if "equals" in options else None
    return ClassTarget(name, column, classes, options.get("above"), equals, options=own)
