"""Speed of tables: reading, encoding, and batches.

    python benchmarks/tables_speed.py [--quick]

A CSV file of 100,000 rows with 10 numbers, 28 categories and 2 classes, like Census-Income. Reading and encoding are
compared with pandas' `read_csv` of the same file; the batches of an epoch, which are made one-hot, with batches of a
one-hot table in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import Measure, main, paired, seconds, spread

from sparsemtl.data import DATASETS, Split, TaskData

ROWS, NUMBERS, CATEGORIES, CODES, BATCH = 100_000, 10, 28, 12, 1024


def write_table(path: Path) -> None:
    """Write a table of random values."""
    draw = np.random.default_rng(0)
    numbers = pd.DataFrame(draw.normal(size=(ROWS, NUMBERS)).round(3)).add_prefix("number")
    codes = pd.DataFrame(draw.integers(CODES, size=(ROWS, CATEGORIES))).add_prefix("category").astype(str)
    labels = pd.DataFrame(draw.integers(2, size=(ROWS, 2)), columns=["income", "marital"]).replace({0: "no", 1: "yes"})
    pd.concat([numbers, "c" + codes, labels], axis=1).to_csv(path, index=False)


def read(path: Path) -> TaskData:
    """Read and encode the table."""
    targets = {"income": "classification", "marital": "classification"}
    return DATASETS.build("table", path=str(path), targets=targets)


def measures(quick: bool) -> Iterator[Measure]:
    repeats = 1 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_table(path)
        data = read(path)
        yield Measure("read and encode 100,000 rows", spread(lambda: seconds(lambda: read(path)), repeats), 3, "s")
        ratio = paired(lambda: pd.read_csv(path), lambda: read(path), repeats)
        yield Measure("read and encode, over pandas' read_csv", ratio)
    x = torch.cat([x for x, _ in data.train.loader(BATCH)])
    labels = {name: torch.zeros(len(x), dtype=torch.long) for name in data.train.targets}
    plain, coded = Split(x, labels).loader(BATCH, shuffle=True), data.train.loader(BATCH, shuffle=True)
    ratio = paired(lambda: sum(1 for _ in plain), lambda: sum(1 for _ in coded), 2 * repeats + 1)
    yield Measure("batches of an epoch, made one-hot, over batches of a one-hot table", ratio)


if __name__ == "__main__":
    main(measures, __doc__)
