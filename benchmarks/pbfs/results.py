"""The tables and figures of PBFS, from the studies beside this file.

for study in census movielens student-math student-portuguese synthetic pools; do
    sparsemtl study benchmarks/pbfs/$study.yaml --jobs 2 --out RUNS/$study
done
python benchmarks/pbfs/results.py RUNS --out benchmarks/results   # adds the runs to the records: commit them
python benchmarks/pbfs/results.py --out benchmarks/results        # tables and figures of the records alone
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from scipy import stats

from sparsemtl.storage.run_folder import RunFolder

sys.path.append(str(Path(__file__).parents[1]))

import records

SHOWN: dict[str, Mapping[str, tuple[str, ...]]] = {
    "census": {"income": ("f1_macro", "accuracy", "auroc"), "never-married": ("f1_macro", "accuracy", "auroc")},
    "movielens": {"rating": ("auroc",), "age": ("mse",)},
    "student-math": dict.fromkeys(("G1", "G2", "G3"), ("mse",)),
    "student-portuguese": dict.fromkeys(("G1", "G2", "G3"), ("mse",)),
    "synthetic": dict.fromkeys(("first", "second"), ("mse",)),
    "pools": {
        **dict.fromkeys(("G3", "absences", "Walc", "goout"), ("mse", "r2")),
        "romantic": ("accuracy",),
    },
    "units": {"income": ("f1_macro", "accuracy"), "never-married": ("f1_macro", "accuracy")},
}
"""Study -> task -> metrics of its table."""
SWEPT, RATE = "sharing.target_sparsity", "optimizer.lr"


def with_tuned_rates(frame: pd.DataFrame, shown: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """The rows of the learning rate per setting that validation chose, by the mean of the tasks' first metrics."""
    if RATE not in frame:
        return frame
    keys = ["method", *(key for key in frame.columns if "." in key and key != RATE)]
    first = {task: metric for task, (metric, *_) in shown.items()}
    judged = frame[(frame["split"] == "validation") & (frame["metric"] == frame["task"].map(first))]
    signed = judged["value"].where(judged["higher_is_better"].astype(bool), -judged["value"])
    scale = judged["value"].abs().groupby(judged["task"]).transform("mean")
    means = judged.assign(score=signed / scale).groupby([*keys, RATE], dropna=False, sort=False)["score"].mean()
    scores = means.reset_index()
    best = scores.loc[scores.groupby(keys, dropna=False, sort=False)["score"].idxmax(), [*keys, RATE]]
    return frame.merge(best, on=[*keys, RATE])


def settings_of(frame: pd.DataFrame) -> pd.Series:
    """Every row's method, with its values of the grid."""
    keys = [key for key in frame.columns if "." in key]
    words = [frame[key].map(lambda value, key=key: f", {key.rpartition('.')[2]} {value:g}").fillna("") for key in keys]
    missing = [frame[key].isna() for key in keys]
    named = [word.where(~absent, "") for word, absent in zip(words, missing, strict=True)]
    return frame["method"].str.cat(named) if named else frame["method"]


def gain(rows: pd.DataFrame, base: pd.DataFrame, shown: Mapping[str, tuple[str, ...]]) -> pd.Series:
    """Δm in % of every seed: mean over the tasks of the change of their first metric against single-task training.

    Both are of the same seed, and so of the same split.
    """
    changes = []
    for task, (metric, *_) in shown.items():
        of_task = rows[(rows["task"] == task) & (rows["metric"] == metric)]
        single = base[(base["task"] == task) & (base["metric"] == metric)].set_index("seed")["value"]
        sign = 1 if str(of_task["higher_is_better"].iloc[0]) == "True" else -1
        changes.append(100 * sign * (of_task.set_index("seed")["value"] - single) / single.abs())
    return sum(changes[1:], start=changes[0]) / len(changes)


def table(frame: pd.DataFrame, shown: Mapping[str, tuple[str, ...]]) -> str:
    """A Markdown table of test metrics, one row per setting."""
    columns = [(task, metric) for task, metrics in shown.items() for metric in metrics]
    compared = "single-task" in set(frame["method"])
    head = ["", *(f"{task} {metric}" for task, metric in columns), *(["Δm % ↑", "95 % interval"] if compared else [])]
    lines = [f"| {' | '.join(head)} |", "| :--- |" + " ---: |" * (len(head) - 1)]
    varied = [key for key in frame.columns if key.startswith("data.")]
    for setting, rows in frame.groupby("setting", sort=False):
        cells = [text(rows[(rows["task"] == task) & (rows["metric"] == metric)]["value"]) for task, metric in columns]
        if compared:
            base = frame[frame["method"] == "single-task"]
            for key in varied:
                base = base[base[key] == rows[key].iloc[0]]
            gained = gain(rows, base, shown)
            cells += [text(gained, 2), interval(gained)]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def text(values: pd.Series, digits: int = 4) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{round(values.mean(), digits) + 0.0:.{digits}f} ± {values.std():.{digits}f}" if len(values) else "–"


def sparsities(run: RunFolder) -> dict[str, float]:
    """Return of every task the mean sparsity of its network's layers, and its validation score, higher is better."""
    summary = run.read_summary()
    found: dict[str, float] = {}
    for task, layers in summary["sharing"].get("sparsity", {}).items():
        about = summary["tasks"][task]
        sign = 1 if about["directions"][about["primary"]] else -1
        found[f"sparsity/{task}"] = sum(layers.values()) / len(layers)
        found[f"score/{task}"] = sign * about["validation"][about["primary"]]
    return found


def interval(values: pd.Series) -> str:
    """95 % t-interval of the mean over seeds."""
    if len(values) < 2 or not values.std():
        return "–"
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return f"{low:+.2f} to {high:+.2f}"


def chosen_sparsity(record: pd.DataFrame, shown: Mapping[str, tuple[str, ...]]) -> str:
    """The paper's Tables 3 and 5: the sparsity of every task's best network over all targets, chosen by validation."""
    swept = record[record["method"].str.startswith("pbfs") & record[SWEPT].notna()]
    lines = ["| task | sparsity of its best network |", "| :--- | ---: |"]
    for task in shown:
        best = swept.sort_values(f"score/{task}").groupby("seed")[f"sparsity/{task}"].last()
        lines.append(f"| {task} | {text(best, 3)} |")
    return "\n".join(lines)


def against_sparsity(frame: pd.DataFrame, shown: Mapping[str, tuple[str, ...]], path: Path) -> None:
    """The paper's Figures 5 to 8: every task's metric against the target sparsity, the other methods as levels."""
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.6), squeeze=False, layout="constrained")
    for panel, (task, (metric, *_)) in zip(axes[0], shown.items(), strict=True):
        of_task = frame[(frame["task"] == task) & (frame["metric"] == metric)]
        for number, (method, rows) in enumerate(of_task.groupby("method", sort=False)):
            swept = rows.dropna(subset=[SWEPT]).groupby(SWEPT)["value"].agg(["mean", "std"])
            look = {"color": f"C{number % 10}", "label": method}
            if len(swept):
                panel.errorbar(swept.index, swept["mean"], yerr=swept["std"], marker="o", capsize=2, **look)
            else:
                panel.axhline(rows["value"].mean(), linewidth=1, linestyle="--", **look)
        panel.set_title(f"{task}: {metric}", fontsize=10)
        panel.set_xlabel("target sparsity")
        panel.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder of studies to add to the records")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    pictures = options.out / "pbfs"
    pictures.mkdir(parents=True, exist_ok=True)
    for study, shown in SHOWN.items():
        name, metrics = f"pbfs/{study}", {metric for metrics in shown.values() for metric in metrics}
        if options.runs:
            records.update(name, records.of_study(options.runs / study, metrics, sparsities))
        record = records.read(name)
        if not len(record):
            continue
        frame = with_tuned_rates(records.long(record), shown)
        frame = frame[frame["split"] == "test"].copy()
        frame["setting"] = settings_of(frame)
        print(f"## {study}\n\n{table(frame, shown)}\n")
        if SWEPT in frame and not any(key.startswith("data.") for key in frame.columns):
            against_sparsity(frame, shown, pictures / f"{study}.png")
            print(f"## {study}, sparsity\n\n{chosen_sparsity(record, shown)}\n")


if __name__ == "__main__":
    main()
