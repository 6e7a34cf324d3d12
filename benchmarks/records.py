"""Records of the benchmarks: the figures of every finished run, one line per row of a table and seed.

Run folders are lost with their machine. A record is committed: a later session adds seeds and rows to it, and a page's
tables are computed from it. A record is `results/records/NAME.csv` with the columns

- `row`: method and values of its grid, as in "fisher, keep 0.3, lr 0.01"; `seed`;
- `settings`: fingerprint of the configuration, equal for all seeds of a row;
- values of the grid, by key, and the figures. A figure of a study is called `split/task/metric/direction`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sparsemtl.runs.validation import completed
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.study.results import plain, read_results
from sparsemtl.training.settings import FREE

FOLDER = Path(__file__).parent / "results" / "records"
COLUMNS = ["row", "seed", "settings"]
"""Columns of every record, the first ones of its file."""
_PER_RUN = ("seed", *FREE)
_LONG = ["run", "method", "seed", "split", "task", "metric", "higher_is_better", "value"]
_DIRECTIONS = {True: "up", False: "down"}


class RecordError(ValueError):
    """Lines that do not go together."""


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return eight digits that two configurations share if their results compare.

    Seed, names, and keys on which no result depends do not count. Nor do values that switch something off (null,
    false, 0, an empty list), so that a key which is added later changes nothing. An absolute path counts as a path.
    """
    text = json.dumps(_essential(completed(config)) or {}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _essential(value: Any, place: str = "") -> Any:
    """Return a value without what does not count; None if nothing is left."""
    if isinstance(value, Mapping):
        inner = {key: _essential(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item is not None} or None
    if place in _PER_RUN or not value:
        return None
    if isinstance(value, (list, tuple)):
        return [_essential(item) for item in value]
    return "<path>" if isinstance(value, str) and os.path.isabs(value) else value


def read(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """Return a record; without lines if there is no file."""
    path = folder / f"{name}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    texts = {"row": str, "settings": str, "method": str}
    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=texts)


def merge(before: pd.DataFrame, new: pd.DataFrame, name: str = "the record") -> pd.DataFrame:
    """Return both records as one; a new line replaces that of the same row and seed.

    Raises:
        RecordError: if a line is there twice among the new ones, or the seeds of a row have different settings.
    """
    if len(twice := new[new.duplicated(["row", "seed"])]):
        first = twice.iloc[0]
        raise RecordError(f"{name}: expected one new line of row {first['row']!r}, seed {first['seed']}, found two.")
    parts = [part for part in (before, new) if len(part)]
    both = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    both = both.drop_duplicates(["row", "seed"], keep="last")
    for row, lines in both.groupby("row", sort=False):
        if len(settings := lines["settings"].unique()) > 1:
            seeds = {one: lines[lines["settings"] == one]["seed"].tolist() for one in settings}
            found = ", ".join(f"{one} for seeds {', '.join(map(str, seeds[one]))}" for one in settings)
            raise RecordError(
                f"{name}: row {row!r} has seeds with different settings: {found}. Delete the lines of the row that are "
                "out of date, or give the row another name."
            )
    order = {row: place for place, row in enumerate(dict.fromkeys([*before["row"], *new["row"]]))}
    both = both.assign(place=both["row"].map(order)).sort_values(["place", "seed"]).drop(columns="place")
    return both[[*COLUMNS, *(column for column in both if column not in COLUMNS)]].reset_index(drop=True)


def update(name: str, new: pd.DataFrame, folder: Path = FOLDER) -> pd.DataFrame:
    """Merge lines into a record, write its file, with six digits per figure, and return its content.

    Raises:
        RecordError: as `merge`; the file is left as it is.
    """
    path = folder / f"{name}.csv"
    merged = merge(read(name, folder), new, str(path))
    if len(new):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        merged.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")
        part.replace(path)
    return read(name, folder)


def of_study(
    path: Path, metrics: Collection[str], extra: Callable[[RunFolder], Mapping[str, Any]] | None = None
) -> pd.DataFrame:
    """Return the lines of the finished runs of a study; none if it has no results.

    Args:
        path: the study folder.
        metrics: metrics to take, of validation and test data and of whole runs, such as "seconds".
        extra: run folder -> further figures of a run.
    """
    study = StudyFolder(path)
    if not study.has_results:
        return pd.DataFrame(columns=COLUMNS)
    frame = read_results(study.results)
    frame = frame[frame["metric"].isin(list(metrics))]
    grid = [column for column in frame if column not in _LONG]
    lines = []
    for name, rows in frame.groupby("run", sort=False):
        run, first = study.run(str(name)), rows.iloc[0]
        values = {key: first[key] for key in grid if not pd.isna(first[key])}
        words = [f"{key.rpartition('.')[2]} {plain(value)}" for key, value in values.items()]
        line = {"row": ", ".join([first["method"], *words]), "seed": first["seed"]}
        line |= {"settings": fingerprint(run.read_config()), "method": first["method"], **values}
        line |= {_figure(row): row["value"] for _, row in rows.iterrows()}
        lines.append({**line, **(extra(run) if extra else {})})
    return pd.DataFrame(lines)


def _figure(row: pd.Series) -> str:
    task = "" if pd.isna(row["task"]) else row["task"]
    return f"{row['split']}/{task}/{row['metric']}/{_DIRECTIONS[bool(row['higher_is_better'])]}"


def long(record: pd.DataFrame) -> pd.DataFrame:
    """Return a record of a study in the form of its `results.csv`, `row` as `run`: a line per figure."""
    figures = [column for column in record if column.endswith(tuple(f"/{word}" for word in _DIRECTIONS.values()))]
    others = [column for column in record if column not in figures]
    frame = record.melt(id_vars=others, value_vars=figures, var_name="figure", value_name="value")
    frame = frame.dropna(subset=["value"]).drop(columns="settings").rename(columns={"row": "run"})
    split = frame["figure"].str.partition("/")
    rest = split[2].str.rsplit("/", n=2, expand=True)
    names = {"split": split[0], "task": rest[0], "metric": rest[1], "higher_is_better": rest[2] == "up"}
    return frame.drop(columns="figure").assign(**names).reset_index(drop=True)
