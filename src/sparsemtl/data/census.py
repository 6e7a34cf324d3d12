"""Census-Income (KDD): 299,285 persons of two surveys in the United States, 1994 and 1995."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.data.splitting import partition
from sparsemtl.data.tables.columns import Columns
from sparsemtl.data.tables.csv_file import CSVFile
from sparsemtl.data.tables.parts import Parts, assigned, random_note
from sparsemtl.data.tables.reading import Chunk, Dialect, chunks
from sparsemtl.data.tables.survey import TRAIN
from sparsemtl.data.tables.tabulate import Encoding, tabulate
from sparsemtl.data.tables.targets import Classes, Equals
from sparsemtl.errors import DataError
from sparsemtl.registry.parameters import Natural

FOLDER = "census-income"
TRAIN_FILE, TEST_FILE = "census-income.data", "census-income.test"
OFFICIAL = {"training": 199_523, "test": 99_762}
SHARES = (0.7, 0.15, 0.15)
"""Of the test file alone: training, validation and test."""

NUMBERS = (
    "age",
    "wage per hour",
    "capital gains",
    "capital losses",
    "dividends from stocks",
    "num persons worked for employer",
    "own business or self employed",
    "veterans benefits",
    "weeks worked in year",
    "year",
)
INCOME, MARITAL, WEIGHT = "income", "marital stat", "instance weight"
HEADER = (
    "age",
    "class of worker",
    "detailed industry recode",
    "detailed occupation recode",
    "education",
    "wage per hour",
    "enroll in edu inst last wk",
    MARITAL,
    "major industry code",
    "major occupation code",
    "race",
    "hispanic origin",
    "sex",
    "member of a labor union",
    "reason for unemployment",
    "full or part time employment stat",
    "capital gains",
    "capital losses",
    "dividends from stocks",
    "tax filer stat",
    "region of previous residence",
    "state of previous residence",
    "detailed household and family stat",
    "detailed household summary in household",
    WEIGHT,
    "migration code-change in msa",
    "migration code-change in reg",
    "migration code-move within reg",
    "live in this house 1 year ago",
    "migration prev res in sunbelt",
    "num persons worked for employer",
    "family members under 18",
    "country of birth father",
    "country of birth mother",
    "country of birth self",
    "citizenship",
    "own business or self employed",
    "fill inc questionnaire for veteran's admin",
    "veterans benefits",
    "weeks worked in year",
    "year",
    INCOME,
)
"""Columns of the files, which have no header, by census-income.names."""
COLUMNS = Columns(NUMBERS, tuple(name for name in HEADER if name not in (*NUMBERS, INCOME, MARITAL, WEIGHT)))
TARGETS = (
    Classes(INCOME, INCOME, classes=("- 50000.", "50000+.")),
    Equals("never-married", MARITAL, value="Never married"),
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
def census_income(*, root: str | Path | None = None, encoding: Encoding = "one-hot", seed: Natural = 0) -> TaskData:
    """Census-Income (KDD): who earns more than 50,000 dollars, and who was never married (Lane and Kohavi 2000).

    Layout, plain or as .gz:

        census-income/census-income.data              199,523 rows for training
        census-income/census-income.test              99,762 rows, halved into validation and test

    Without the training file, the test file is split into 70 % training, 15 % validation and 15 % test, which every
    figure must say. Inputs are 10 numbers, standardised, and 29 categories; the instance weight is none, as
    the data's own documentation asks. Needs the extra `tables`.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        encoding: of categories: a column for each (one-hot), or vectors that the network learns (embedding).
        seed: of the split.

    Raises:
        DataError: if the test file is absent or damaged.

    Differences from the paper:
        - Which columns are categories is as in keras-mmoe, which PBFS's data follow; the instance weight, which that
          code leaves in, is dropped.
        - Rows of the training file that stand in the test file as well are not removed, as officially.
    """
    place = resolve_root(root) / FOLDER
    train, test = _find(place, TRAIN_FILE), _find(place, TEST_FILE)
    if test is None:
        raise absent("census-income", place, [f"{TEST_FILE}.gz"])
    rows = {part: _read(path) for part, path in (("training", train), ("test", test)) if path is not None}
    counts = {part: sum(map(len, of)) for part, of in rows.items()}
    parts = _divide(counts.get("training", 0), counts["test"], seed)
    return tabulate(
        [chunk for of in rows.values() for chunk in of],
        parts.of_rows,
        COLUMNS,
        TARGETS,
        notes=(parts.note, *counted(counts, OFFICIAL)),
    ).data("census-income", encoding)


def _find(place: Path, name: str) -> Path | None:
    return next((path for path in (place / f"{name}.gz", place / name) if path.is_file()), None)


def _read(path: Path) -> list[Chunk]:
    rows = list(chunks(CSVFile(path, _DIALECT), COLUMNS.numbers, (*COLUMNS.categories, INCOME, MARITAL)))
    if not rows:
        raise DataError(f"{path} has no rows.")
    return rows


def _divide(train: int, test: int, seed: int) -> Parts:
    if not train:
        of_rows = assigned(test, partition(test, SHARES, seed=seed))
        return Parts(of_rows, f"of the official test file alone: {random_note(SHARES, seed)}")
    held_out = 1 + assigned(test, partition(test, (0.5, 0.5), seed=seed))
    note = f"training: the official training file; the official test file is halved at random (seed {seed})"
    return Parts(np.concatenate([np.full(train, TRAIN, np.uint8), held_out]), note)
