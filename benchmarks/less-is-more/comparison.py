"""Less is More with tuned rows, eight seeds and rooms of their own: tables of the record of `comparison.yaml`.

sparsemtl study benchmarks/less-is-more/learning-rates.yaml --jobs 2 --no-run-reports --out RUNS/learning-rates
sparsemtl study benchmarks/less-is-more/comparison.yaml --jobs 2 --no-run-reports --out RUNS/comparison
python benchmarks/less-is-more/comparison.py RUNS   # adds the runs to the records: commit them
python benchmarks/less-is-more/comparison.py        # tables of the records alone

The change Δm is the mean over the tasks of the relative change on test data, in per cent, positive is better. All
intervals are paired 95 % t-intervals over the seeds, without a correction for their number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from scipy import stats

from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.views.tables import Table

sys.path.append(str(Path(__file__).parents[1]))

import records

MEASURES = {"segmentation": ("miou", 1), "depth": ("abs_err", -1), "normals": ("cosine", 1)}
"""Task -> its metric, and 1 if higher is better, otherwise -1."""
STUDIES = ("learning-rates", "comparison")
COSTS = ("macs", "weights", "milliseconds")


def costs(run: RunFolder) -> dict[str, float]:
    """Return what the run's networks cost once they are compacted."""
    compacted = run.read_summary()["cost"]["compacted"]
    return {key: float(compacted[key]) for key in COSTS}


def scores(record: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the metric of every task, by row and seed."""
    columns = {}
    for task, (metric, sign) in MEASURES.items():
        columns[task] = record[f"{split}/{task}/{metric}/{'up' if sign > 0 else 'down'}"]
    return pd.DataFrame(columns).set_index([record["row"], record["seed"]])


def changes(found: pd.DataFrame, base: str) -> pd.DataFrame:
    """Return the change of every task and their mean against a row, by row and seed, in per cent."""
    ratio = 100 * (found / found.loc[base].reindex(found.index, level="seed") - 1)
    signed = ratio * pd.Series({task: sign for task, (_, sign) in MEASURES.items()})
    return signed.assign(mean=signed.mean(axis=1))


def interval(values: Iterable[float]) -> str:
    """Return mean and 95 % t-interval."""
    one = pd.Series(list(values)).dropna()
    if len(one) < 2 or not one.std():
        return f"{one.mean():+.2f}"
    half = stats.t.ppf(0.975, len(one) - 1) * stats.sem(one)
    return f"{one.mean():+.2f} ({one.mean() - half:+.2f} to {one.mean() + half:+.2f})"


def chosen(record: pd.DataFrame) -> Table:
    """Return the setting of every method that validation chose: the mean change against the first dense row."""
    found = changes(scores(record, "validation"), record["row"].iloc[0])["mean"].groupby("row", sort=False).mean()
    methods = record.drop_duplicates("row").set_index("row")["method"]
    best = found.groupby(methods.reindex(found.index), sort=False).idxmax()
    return Table(["method", "chosen"], [[method, row.removeprefix(f"{method}, ")] for method, row in best.items()])


def quality(record: pd.DataFrame, base: str) -> Table:
    """Return the rows with the test metrics of their tasks, costs, and the change against a row."""
    found = scores(record, "test")
    change = changes(found, base)
    cost = record.set_index(["row", "seed"])[list(COSTS)]
    whole = cost.loc[base].mean()
    lines = []
    for row in dict.fromkeys(record["row"]):
        own, price = found.loc[row], cost.loc[row].mean()
        cells = [f"{own[task].mean():.4f} ± {own[task].std():.4f}" for task in MEASURES]
        prices = [f"{price['macs'] / whole['macs']:.0%}", f"{price['weights'] / whole['weights']:.0%}"]
        time = f"{price['milliseconds'] / whole['milliseconds']:.0%}"
        lines.append([row, len(own), *cells, *prices, time, interval(change.loc[row]["mean"])])
    tasks = [f"{task} {metric} {'↑' if sign > 0 else '↓'}" for task, (metric, sign) in MEASURES.items()]
    return Table(["method", "seeds", *tasks, "multiply-adds", "weights", "time", "Δm, %"], lines)


def differences(record: pd.DataFrame, base: str) -> Table:
    """Return the paired differences of Δm between all pairs of the other rows."""
    means = changes(scores(record, "test"), base)["mean"].unstack("seed")
    rows = [row for row in dict.fromkeys(record["row"]) if row != base]
    pairs = [(one, other) for place, one in enumerate(rows) for other in rows[place + 1 :]]
    return Table(
        ["difference", "points"],
        [[f"{one} − {other}", interval(means.loc[one] - means.loc[other])] for one, other in pairs],
    )


def main() -> None:
    """Add finished runs to the records, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the studies, whose runs the records get")
    folder = parser.parse_args().runs
    metrics = [metric for metric, _ in MEASURES.values()]
    for study in STUDIES if folder else ():
        records.update(f"less-is-more/{study}", records.of_study(folder / study, metrics, costs))
    tuning, comparison = (records.read(f"less-is-more/{study}") for study in STUDIES)
    if len(tuning):
        print(chosen(tuning).markdown())
    if len(comparison):
        print(quality(comparison, "dense").markdown(), differences(comparison, "dense").markdown(), sep="\n\n")


if __name__ == "__main__":
    main()
