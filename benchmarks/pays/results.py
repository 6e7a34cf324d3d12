"""Tables of the studies of `settings.py`: methods, and for each task the network that its own validation chooses.

python benchmarks/pays/results.py        # from the records of all sessions, benchmarks/results/records/pays
python benchmarks/pays/results.py RUNS   # adds what has finished in RUNS to the records first

Errors are means over tasks and seeds on test data, in %: the normalised squared error of regressions, 1 - accuracy of
classifications. Learning rate, weight decay and keep of a method are those of the smallest validation error, mean over
seeds. "Every row": the choice of each task among all rows, with every learning rate and weight decay. Intervals are
paired t-intervals over the seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

sys.path.append(str(Path(__file__).parents[1]))

import records

SPARSE = ("fisher", "specific")
OTHERS = (*SPARSE, "auto")
"""Methods that are no dense baseline."""
KEYS = ["optimizer.lr", "optimizer.weight_decay", "sharing.keep"]
METRICS = ("mse", "accuracy")


def record(study: Path) -> None:
    """Add the finished runs of a study to its record."""
    records.update(f"pays/{study.name}", records.of_study(study, METRICS))


def errors(name: str) -> pd.DataFrame:
    """Return validation and test error per method, setting of it, task and seed."""
    frame = records.long(records.read(f"pays/{name}"))
    frame = frame[frame["split"].isin(["validation", "test"])]
    kinds = frame.groupby("task")["metric"].unique()
    judge = {task: "accuracy" if "accuracy" in metrics else "mse" for task, metrics in kinds.items()}
    frame = frame[frame["metric"] == frame["task"].map(judge)].copy()
    frame["value"] = 100 * frame["value"].where(frame["metric"] == "mse", 1 - frame["value"])
    values = frame.reindex(columns=KEYS).itertuples(index=False)
    frame["setting"] = ["/".join("" if pd.isna(value) else f"{value:g}" for value in row) for row in values]
    index = ["method", "setting", "task", "seed"]
    return frame.pivot_table(index=index, columns="split", values="value").reset_index()


def tuned(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the one setting per method whose mean validation error is the smallest."""
    means = found.groupby(["method", "setting"])["validation"].mean()
    best = {method: means[method].idxmin() for method in means.index.get_level_values("method").unique()}
    return found[found["setting"] == found["method"].map(best)]


def candidates(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one learning rate and weight decay per method and keep, chosen like those of `tuned`."""
    found = found[found["method"] != "auto"]
    keep = found["setting"].str.split("/").str[-1].where(found["method"].isin(SPARSE), "")
    return tuned(found.assign(method=found["method"] + " " + keep))


def chosen(found: pd.DataFrame) -> pd.Series:
    """Return the test error per seed of the networks that each task's validation chooses, mean over tasks."""
    best = found.loc[found.groupby(["task", "seed"])["validation"].idxmin()]
    return best.groupby("seed")["test"].mean()


def interval(difference: pd.Series) -> str:
    """Return mean ± half the width of the 95 % t-interval, with a star if it excludes 0; the mean alone of one seed."""
    difference = difference.dropna()
    if len(difference) < 2:
        return f"{difference.mean():+.1f}"
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
    return f"{difference.mean():+.1f} ± {half:.1f}{'*' if abs(difference.mean()) > half else ''}"


def row(found: pd.DataFrame, methods: list[str]) -> list[str]:
    """Return the cells of a setting, from its `errors`."""
    per_method = tuned(found).groupby(["method", "seed"])["test"].mean().unstack("seed")
    dense = per_method.drop(index=[name for name in OTHERS if name in per_method.index])
    validation = tuned(found).groupby("method")["validation"].mean()
    best = str(validation[validation.index.isin(dense.index)].idxmin())
    every = candidates(found)
    both, alone = chosen(every), chosen(every[~every["method"].str.startswith(SPARSE)])
    means = [f"{per_method.loc[name].mean():.1f}" if name in per_method.index else "–" for name in methods]
    cells = [str(per_method.shape[1]), *means]
    per_seed = {str(name): values for name, values in per_method.iterrows()}
    against = [interval(per_seed[name] - per_seed[best]) if name in per_seed else "–" for name in OTHERS]
    free = interval(chosen(found[found["method"] != "auto"]) - per_seed[best])
    return [*cells, best, *against, f"{both.mean():.1f}", f"{alone.mean():.1f}", interval(both - alone), free]


def main() -> None:
    """Print one table, a row per setting with a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder of studies to add to the records")
    if folder := parser.parse_args().runs:
        for path in sorted(folder.glob("*/results.csv")):
            record(path.parent)
    found = {path.stem: errors(path.stem) for path in sorted((records.FOLDER / "pays").glob("*.csv"))}
    methods = list(dict.fromkeys(method for frame in found.values() for method in frame["method"].unique()))
    gains = [f"{name} - best dense" for name in OTHERS]
    choices = ["choice: all", "choice: dense", "difference", "every row - best dense"]
    head = ["setting", "seeds", *methods, "best dense", *gains, *choices]
    print("| " + " | ".join(head) + " |\n" + "| :--- |" + " ---: |" * (len(head) - 1))
    for setting, frame in found.items():
        print(f"| {setting} | " + " | ".join(row(frame, methods)) + " |")


if __name__ == "__main__":
    main()
