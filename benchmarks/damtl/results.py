"""The tables and figures of DAMTL, from the studies beside this file.

sparsemtl study benchmarks/damtl/learning-rates.yaml --jobs 2 --out RUNS/learning-rates
sparsemtl study benchmarks/damtl/comparison.yaml --jobs 2 --out RUNS/overlap
sparsemtl study benchmarks/damtl/comparison.yaml data.overlap=0 --jobs 2 --out RUNS/no-overlap
for study in readings sparsity unknown-classes printed; do
    sparsemtl study benchmarks/damtl/$study.yaml --jobs 2 --out RUNS/$study
done
python benchmarks/damtl/results.py RUNS --out benchmarks/results/damtl   # adds the runs to the records: commit them
python benchmarks/damtl/results.py --out benchmarks/results/damtl        # tables and figures of the records alone

Curves over the epochs are not in the records, so that `epochs.png` is drawn with RUNS alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsemtl.storage.metrics import METRIC_COLUMNS
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import read_yaml

sys.path.append(str(Path(__file__).parents[1]))

import records

SIZE = "samples per class"
STUDIES = {"overlap": "three classes in common", "no-overlap": "no class in common"}
COLUMNS = ["task1", "task2", "mean", "gain", "seconds"]
FILES = {"overlap": "comparison", "no-overlap": "comparison"}
"""Study -> its file, where that has another name."""


# ---- what the runs say ---------------------------------------------------------------------------------------


def read_study(name: str, runs: Path | None) -> pd.DataFrame:
    """One row per run of the record, after the runs below `runs` are added: settings, accuracies, density, seconds."""
    record = f"damtl/{name}"
    if runs is not None:
        records.update(record, run_rows(runs / name))
    frame = records.read(record)
    if not len(frame):
        return frame
    about = read_yaml(Path(__file__).parent / f"{FILES.get(name, name)}.yaml")
    frame = frame.assign(mean=lambda rows: rows[["task1", "task2"]].mean(axis=1))
    keys = [SIZE, "overlap", "seed"]
    base = best_by_validation(frame[frame["method"] == about["baseline"]]).groupby(keys)["mean"].mean()
    frame["gain"] = frame["mean"] - pd.MultiIndex.from_frame(frame[keys]).map(base).to_numpy()
    order = list(about["methods"])
    return frame.sort_values(["method", "seed"], key=lambda c: c.map(order.index) if c.name == "method" else c)


def run_rows(folder: Path) -> pd.DataFrame:
    """Lines of the record of the finished runs of a study: test and validation accuracies in %, and what they cost."""
    rows = []
    study = StudyFolder(folder)
    for run in study.run_folders() if study.exists else ():
        if not run.finished:
            continue
        summary, config = run.read_summary(), run.read_config()
        density = summary["sharing"].get("density", {})
        settings = {
            SIZE: config["data"]["samples_per_class"],
            "overlap": config["data"]["overlap"],
            "lr": config["optimizer"]["lr"],
            "lambda": config["sharing"].get("lambda"),
            "strength": config["architecture"].get("strength"),
        }
        named = [f"{key} {value}" for key, value in settings.items() if value is not None]
        rows.append(
            {
                "row": ", ".join([config["label"], *named]),
                "seed": config["seed"],
                "settings": records.fingerprint(config),
                "method": config["label"],
                **settings,
                **{name: 100 * task["test"]["accuracy"] for name, task in summary["tasks"].items()},
                "validation": 100 * fmean(task["validation"]["accuracy"] for task in summary["tasks"].values()),
                "kept": 100 * sum(density.values()) / len(density) if density else 100.0,
                "seconds": summary["seconds"],
                "before": seconds_before(study, config),
            }
        )
    return pd.DataFrame(rows, columns=None if rows else records.COLUMNS)


def best_by_validation(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the learning rate per method, size and overlap whose mean validation accuracy is the highest."""
    same = ["method", SIZE, "overlap", "strength", "lambda"]
    means = frame.groupby([*same, "lr"], sort=False, dropna=False)["validation"].mean().reset_index()
    best = means.loc[means.groupby(same, sort=False, dropna=False)["validation"].idxmax(), [*same, "lr"]]
    return frame.merge(best, on=[*same, "lr"])


def seconds_before(study: StudyFolder, config: dict) -> float:
    """Seconds of the pretraining run, 0 if there is none; the mean where a seed has several (several overlaps)."""
    if config["pretraining"] is None:
        return 0.0
    folders = map(RunFolder, study.pretraining.glob(f"seed-{config['seed']}-*"))
    return float(pd.Series([run.read_summary()["seconds"] for run in folders if run.ended]).mean())


def validation_curves(folder: Path, size: int) -> pd.DataFrame:
    """Validation accuracy in %, mean over the tasks and the seeds: epoch x method."""
    parts = []
    for run in StudyFolder(folder).run_folders():
        config = run.read_config()
        if run.finished and config["data"]["samples_per_class"] == size:
            rows = pd.DataFrame(run.read_metrics(), columns=METRIC_COLUMNS)
            rows = rows[(rows["split"] == "validation") & (rows["metric"] == "accuracy")]
            parts.append(rows.assign(method=config["label"])[["epoch", "method", "value"]])
    return 100 * pd.concat(parts).pivot_table(index="epoch", columns="method", values="value", sort=False)


# ---- tables --------------------------------------------------------------------------------------------------


def table(frame: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> str:
    """A Markdown table: mean ± standard deviation over the seeds, one row per setting."""
    groups = frame.groupby(list(by), sort=False, dropna=False)[list(columns)]
    mean, std = groups.mean(), groups.std()
    lines = [f"| {' | '.join([*by, *columns])} |", "|" + " :--- |" * len(by) + " ---: |" * len(columns)]
    for (setting, own), (_, spread) in zip(mean.iterrows(), std.iterrows(), strict=True):  # a key may be NaN
        names = ("–" if pd.isna(name) else name for name in (setting if isinstance(setting, tuple) else (setting,)))
        cells = [f"{own[c]:.1f} ± {spread[c]:.1f}" for c in columns]
        lines.append(f"| {' | '.join(map(str, [*names, *cells]))} |")
    return "\n".join(lines)


def gains(frame: pd.DataFrame) -> str:
    """A Markdown table of the gain against single-task training, one row per method, one column per size."""
    groups = frame.groupby(["method", SIZE], sort=False)["gain"]
    mean, std = (spread.unstack().sort_index(axis=1) for spread in (groups.mean(), groups.std()))
    lines = [
        f"| method | {' | '.join(f'{size} {SIZE}' for size in mean.columns)} |",
        "| :--- |" + " ---: |" * mean.shape[1],
    ]
    for method in mean.index:
        cells = [f"{mean.at[method, size]:+.1f} ± {std.at[method, size]:.1f}" for size in mean.columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chosen_rates(folder: Path) -> str:
    """A Markdown table of the validation accuracy at every learning rate, the best one in bold."""
    rows = pd.read_csv(StudyFolder(folder).results)
    rows = rows[(rows["split"] == "validation") & (rows["metric"] == "accuracy")]
    mean = 100 * rows.pivot_table(index="method", columns="optimizer.lr", values="value", sort=False)
    mean = mean[sorted(mean.columns)]
    lines = [f"| method | {' | '.join(f'{rate:g}' for rate in mean.columns)} |", "| :--- |" + " ---: |" * mean.shape[1]]
    for method, row in mean.iterrows():
        shown = {rate: "–" if pd.isna(value) else f"{value:.1f}" for rate, value in row.items()}
        cells = [f"**{text}**" if rate == row.idxmax() else text for rate, text in shown.items()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- figures -------------------------------------------------------------------------------------------------


def looks(methods: Sequence[str], frame: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Method -> colour and line: dashed if trained from scratch, solid if from the auxiliary network."""
    scratch = set(frame[frame["before"] == 0]["method"])
    marks = cycle("osD^vP*X<>")
    return {
        method: {
            "color": plt.get_cmap("tab20")(index % 20),
            "linestyle": "--" if method in scratch else "-",
            "marker": next(marks),
        }
        for index, method in enumerate(methods)
    }


def panels(studies: dict[str, pd.DataFrame]) -> tuple[Figure, dict[str, Axes]]:
    """One panel per study, side by side, of equal height."""
    figure, axes = plt.subplots(1, len(studies), figsize=(5 * len(studies) + 2.5, 5), sharey=True, squeeze=False)
    named = dict(zip(studies, axes[0], strict=True))
    for study, panel in named.items():
        panel.set_title(STUDIES[study])
        panel.grid(alpha=0.3)
    return figure, named


def save(figure: Figure, path: Path) -> None:
    """Write a figure, with its legend beside it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_sizes(studies: dict[str, pd.DataFrame], path: Path) -> None:
    """Test accuracy against the samples per class."""
    figure, axes = panels(studies)
    for study, frame in studies.items():
        mean = frame.groupby(["method", SIZE], sort=False)["mean"].mean().unstack().sort_index(axis=1)
        for method, look in looks(list(mean.index), frame).items():
            axes[study].plot(mean.columns, mean.loc[method], label=method, markersize=5, **look)
        axes[study].set(xlabel=f"training {SIZE}", xscale="log", ylabel="test accuracy, %, mean of the tasks")
        axes[study].set_xticks(list(mean.columns), [str(size) for size in mean.columns], minor=False)
        axes[study].minorticks_off()
    save(figure, path)


def draw_epochs(studies: dict[str, pd.DataFrame], runs: Path, path: Path, size: int) -> None:
    """Validation accuracy over the epochs, at one size."""
    figure, axes = panels(studies)
    for study, frame in studies.items():
        curves = validation_curves(runs / study, size)
        for method, look in looks(list(dict.fromkeys(frame["method"])), frame).items():
            axes[study].plot(curves.index, curves[method], label=method, **look | {"marker": ""})
        axes[study].set(xlabel=f"epoch ({size} {SIZE})", ylabel="validation accuracy, %, mean of the tasks")
    save(figure, path)


def draw_times(frame: pd.DataFrame, path: Path, size: int) -> None:
    """Seconds of training of every method at one size, and of the pretraining before it."""
    mean = frame[frame[SIZE] == size].groupby("method", sort=False)[["seconds", "before"]].mean()[::-1]
    figure, axes = plt.subplots(figsize=(8, 5))
    axes.barh(list(mean.index), mean["seconds"], label="training")
    axes.barh(
        list(mean.index), mean["before"], left=mean["seconds"], color="lightgrey", label="the auxiliary network's, once"
    )
    axes.set(xlabel=f"seconds, {size} {SIZE}, two runs side by side on two cores")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_sparsity(frame: pd.DataFrame, path: Path) -> None:
    """Test accuracy against the fraction of the weights that a task computes with."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    groups = frame.groupby(["method", "lambda"], sort=False)[["kept", "mean"]]
    mean, std = groups.mean(), groups.std()
    for method in dict.fromkeys(frame["method"]):
        points, bars = mean.loc[method].sort_index(), std.loc[method].sort_index()
        axes.errorbar(
            points["kept"], points["mean"], xerr=bars["kept"], yerr=bars["mean"], marker="o", capsize=2, label=method
        )
        for strength, point in points[points["kept"] < 99].iterrows():
            axes.annotate(
                f"λ = {strength:g}", (point["kept"], point["mean"]), (4, 5), textcoords="offset points", fontsize=8
            )
    axes.set(xlabel="convolution weights that a task reads, %", ylabel="test accuracy, %, mean of the tasks")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- all of it -----------------------------------------------------------------------------------------------


def main() -> None:
    """Write `tables.md` and the figures of the studies that are there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder of studies to add to the records")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = (*STUDIES, "readings", "unknown-classes", "sparsity", "printed")
    there = {name: frame for name in names if len(frame := read_study(name, options.runs))}
    sections = []
    studies = {name: there[name] for name in STUDIES if name in there}
    for name, frame in studies.items():
        sections += [f"## Gain against single-task training, {STUDIES[name]}\n\n{gains(frame)}\n"]
        for size, part in frame.groupby(SIZE):
            sections += [f"## {STUDIES[name].capitalize()}, {size} {SIZE}\n\n{table(part, ['method'], COLUMNS)}\n"]
    if studies:
        draw_sizes(studies, options.out / "samples.png")
        if options.runs and all(StudyFolder(options.runs / name).exists for name in studies):
            draw_epochs(studies, options.runs, options.out / "epochs.png", size=20)
        draw_times(list(studies.values())[-1], options.out / "times.png", size=20)
    if "readings" in there:
        for overlap, part in there["readings"].groupby("overlap", sort=False):
            sections += [f"## Readings, {overlap} classes in common\n\n{table(part, ['method'], COLUMNS)}\n"]
    if "unknown-classes" in there:
        frame = there["unknown-classes"]
        sections += [f"## An auxiliary task without the classes\n\n{table(frame, ['method'], COLUMNS)}\n"]
    if "sparsity" in there:
        frame = there["sparsity"].sort_values("lambda", kind="stable")
        sections += [f"## Sparsity\n\n{table(frame, ['method', 'lambda'], ['kept', 'task1', 'task2', 'mean'])}\n"]
        draw_sparsity(frame, options.out / "sparsity.png")
    if "printed" in there:
        best = best_by_validation(there["printed"])
        sections += [f"## As printed\n\n{table(best, ['method', 'strength'], ['kept', *COLUMNS])}\n"]
    rates = options.runs / "learning-rates" if options.runs else None
    if rates and StudyFolder(rates).results.is_file():
        sections += [f"## Validation accuracy by learning rate\n\n{chosen_rates(rates)}\n"]
    (options.out / "tables.md").write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
