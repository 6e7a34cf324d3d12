"""Census-Income (KDD): 299,285 persons of two surveys in the United States, 1994 and 1995."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from typing_extensions import Doc

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import Root, checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.data.splitting import partition
from sparsemtl.data.tables.columns import select
from sparsemtl.data.tables.encoding import EncodingOption, InputColumns, tabulate
from sparsemtl.data.tables.formats import Dialect
from sparsemtl.data.tables.parts import TRAIN, RowParts, assigned, draw
from sparsemtl.data.tables.rows import read_rows
from sparsemtl.data.tables.targets import ClassTarget
from sparsemtl.registry.parameters import Natural

FOLDER = "census-income"
TRAIN_FILE, TEST_FILE = "census-income.data", "census-income.test"
OFFICIAL = {"training": 199_523, "test": 99_762}
SHARES = (0.7, 0.15, 0.15)
"""Shares of the test file alone: training, validation and test."""
NUMBERS = (
    *("age", "wage per hour", "capital gains", "capital losses", "dividends from stocks"),
    *("num persons worked for employer", "own business or self employed", "veterans benefits"),
    *("weeks worked in year", "year"),
)
INCOME, MARITAL, WEIGHT = "income", "marital stat", "instance weight"
HEADER = (
    *("age", "class of worker", "detailed industry recode", "detailed occupation recode", "education"),
    *("wage per hour", "enroll in edu inst last wk", MARITAL, "major industry code", "major occupation code", "race"),
    *("hispanic origin", "sex", "member of a labor union", "reason for unemployment"),
    *("full or part time employment stat", "capital gains", "capital losses", "dividends from stocks"),
    *("tax filer stat", "region of previous residence", "state of previous residence"),
    *("detailed household and family stat", "detailed household summary in household", WEIGHT),
    *("migration code-change in msa", "migration code-change in reg", "migration code-move within reg"),
    *("live in this house 1 year ago", "migration prev res in sunbelt", "num persons worked for employer"),
    *("family members under 18", "country of birth father", "country of birth mother", "country of birth self"),
    *("citizenship", "own business or self employed", "fill inc questionnaire for veteran's admin"),
    *("veterans benefits", "weeks worked in year", "year", INCOME),
)
"""Columns of the files, which have no header, by census-income.names."""
INPUTS = InputColumns(NUMBERS, tuple(name for name in HEADER if name not in (*NUMBERS, INCOME, MARITAL, WEIGHT)))
TARGETS = (
    ClassTarget(INCOME, INCOME, classes=("- 50000.", "50000+.")),
    ClassTarget("never-married", MARITAL, equals="Never married"),
)
_DIALECT = Dialect(missing_values=("",), header=HEADER)  # `?` and `NA` are answers of their own

FILES = Package(
    "the official files, plain or as .gz",
    (
        Expected("training rows", (f"{FOLDER}/{TRAIN_FILE}.gz", f"{FOLDER}/{TRAIN_FILE}"), 1, optional=True),
        Expected("test rows", (f"{FOLDER}/{TEST_FILE}.gz", f"{FOLDER}/{TEST_FILE}"), 1),
    ),
    source="https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip",
    licence="CC BY 4.0 (UCI Machine Learning Repository)",
    get=(
        f"unpack the archive, and put {TRAIN_FILE}.gz and {TEST_FILE}.gz into {FOLDER} under the root; the test file "
        "alone will do, and is then split 70/15/15"
    ),
)


@requires_files((FILES,))
@checked
def census_income(
    *,
    root: Root = None,
    encoding: EncodingOption = "one-hot",
    seed: Annotated[Natural, Doc("Seed of the split.")] = 0,
) -> TaskData:
    """Census-Income (KDD): who earns more than 50,000 dollars, and who was never married (Lane and Kohavi 2000).

    Layout, plain or as .gz:

        census-income/census-income.data              199,523 rows for training
        census-income/census-income.test              99,762 rows, halved into validation and test

    Without the training file, the test file is split into 70 % training, 15 % validation and 15 % test, which every
    figure must say. Inputs are 10 numbers, standardised, and 29 categories; the instance weight is none, as
    the data's own documentation asks. Needs the extra `tables`.

    Raises:
        DataError: if the test file is absent or damaged.

    Differences from the paper:
        - Which columns are categories is as in keras-mmoe, which PBFS's data follow; the instance weight, which that
          code leaves in, is dropped.
        - Rows of the training file that stand in the test file as well are not removed, as officially.
    """
    folder = resolve_root(root) / FOLDER
    train, test = _find(folder, TRAIN_FILE), _find(folder, TEST_FILE)
    if test is None:
        raise absent("census-income", folder, [f"{TEST_FILE}.gz"])
    rows = read_rows([test] if train is None else [train, test], _DIALECT, (*INPUTS.categories, INCOME, MARITAL))
    rows = select(rows, _DIALECT, NUMBERS, (*INPUTS.categories, INCOME, MARITAL))
    counts = dict(zip(("test", "training"), (count for _, count in reversed(rows.files)), strict=False))
    parts = _divide(counts.get("training", 0), counts["test"], seed)
    notes = counted(dict(reversed(counts.items())), OFFICIAL)
    return tabulate("census-income", rows, parts, INPUTS, TARGETS, encoding=encoding, notes=notes)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _divide(train: int, test: int, seed: int) -> RowParts:
    if not train:
        parts = draw(test, SHARES, seed)
        return RowParts(parts.of_rows, f"of the official test file alone: {parts.note}")
    held_out = 1 + assigned(test, partition(test, (0.5, 0.5), seed=seed))
    note = f"training: the official training file; the official test file is halved at random (seed {seed})"
    return RowParts(np.concatenate([np.full(train, TRAIN, np.uint8), held_out]), note)
