"""The tables and figures of DAMTL, from the studies beside this file.

sparsemtl study benchmarks/damtl/learning-rates.yaml --jobs 2 --out RUNS/learning-rates
sparsemtl study benchmarks/damtl/comparison.yaml --jobs 2 --out RUNS/overlap
sparsemtl study benchmarks/damtl/comparison.yaml data.overlap=0 --jobs 2 --out RUNS/no-overlap
python benchmarks/damtl/results.py RUNS --out benchmarks/results/damtl
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

SIZE = "data.samples_per_class"
STUDIES = {"overlap": "Three classes in common", "no-overlap": "No class in common"}


def of_study(folder: Path) -> pd.DataFrame:
    """A study's test accuracies and times: method, size, seed, task, value."""
    frame = pd.read_csv(folder / "results.csv")
    accuracy = frame[(frame["split"] == "test") & (frame["metric"] == "accuracy")]
    times = frame[frame["metric"] == "seconds"].assign(task="seconds")
    return pd.concat([accuracy, times])[["method", SIZE, "seed", "task", "value"]]


def table(frame: pd.DataFrame, size: float) -> str:
    """A Markdown table of one size, a row a method: accuracy of every task, their mean and the gain, in %, and time."""
    rows = frame[frame[SIZE] == size]
    wide = rows.pivot_table(index=["method", "seed"], columns="task", values="value", sort=False)
    tasks = sorted(set(wide.columns) - {"seconds"})
    wide[tasks] *= 100
    wide["mean"] = wide[tasks].mean(axis=1)
    wide["gain"] = wide["mean"] - wide["mean"].xs("single-task", level="method").reindex(wide.index, level="seed")
    shown = [*tasks, "mean", "gain", "seconds"]
    methods = wide.groupby(level="method", sort=False)[shown]
    mean, std = methods.mean(), methods.std()
    lines = [f"| | {' | '.join([*shown[:-1], 'training s'])} |", "| :--- |" + " ---: |" * len(shown)]
    for method in mean.index:
        cells = [f"{mean.at[method, c]:.1f} ± {std.at[method, c]:.1f}" for c in shown]
        lines.append(f"| {method!s} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(frame: pd.DataFrame, path: Path, title: str) -> None:
    """Mean accuracy over both tasks against the samples a class."""
    tasks = frame[frame["task"] != "seconds"]
    mean = tasks.groupby(["method", SIZE], sort=False)["value"].mean().unstack()
    figure, axes = plt.subplots(figsize=(8, 5))
    for method, row in mean.iterrows():
        axes.plot(row.index, 100 * row, marker="o", label=str(method))
    axes.set(xlabel="training samples a class", ylabel="test accuracy, %, mean of the tasks", title=title)
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write `tables.md`, and a figure of every study that has several sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sections = []
    for study, title in STUDIES.items():
        if not (options.runs / study / "results.csv").exists():
            continue
        frame = of_study(options.runs / study)
        sizes = sorted(frame[SIZE].unique())
        sections += [f"## {title}, {size:g} samples a class\n\n{table(frame, size)}\n" for size in sizes]
        if len(sizes) > 1:
            curves(frame, options.out / f"{study}.png", title)
    (options.out / "tables.md").write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
