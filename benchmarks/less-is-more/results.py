"""The tables and figures of Less is More, from the studies beside this file.

for study in lambda targets subsets deviations tuned; do
    sparsemtl study benchmarks/less-is-more/$study.yaml --jobs 2 --out RUNS/$study
done
python benchmarks/less-is-more/results.py RUNS --out benchmarks/results
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes

import sparsemtl as sm
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.changes import merge
from sparsemtl.runs.config import check
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder

MEASURES = {"segmentation": ("miou", 1), "depth": ("abs_err", -1), "normals": ("cosine", 1)}
"""Task -> its metric, and True if higher is better."""
TITLES = {"segmentation": "mIoU ↑", "depth": "abs. error (m) ↓", "normals": "cosine ↑"}
STUDIES = ("lambda", "targets", "subsets", "deviations", "tuned")
LETTERS = {"S": "segmentation", "D": "depth", "N": "normals"}


def read_study(folder: Path) -> pd.DataFrame:
    """One row per run: settings, test metrics, remaining part of the backbone."""
    rows = []
    for run in StudyFolder(folder).run_folders():
        if not run.ended:
            continue
        summary, config = run.read_summary(), run.read_config()
        sharing = summary.get("sharing", {})
        scores = {task: summary["tasks"][task]["test"][MEASURES[task][0]] for task in summary["tasks"]}
        chosen_by = {
            f"validation {task}": summary["tasks"][task]["validation"][MEASURES[task][0]] for task in summary["tasks"]
        }
        rows.append(
            {
                "method": config["label"],
                "lambda": config["sharing"].get("lambda"),
                "target": config["sharing"].get("target_sparsity"),
                "lr": config["optimizer"]["lr"],
                "seed": config["seed"],
                **scores,
                **chosen_by,
                "groups": 100 * sharing.get("group_sparsity", 0.0),
                "weights": 100 * sharing.get("parameter_sparsity", 0.0),
                "seconds": summary["seconds"],
                "folder": run.path,
            }
        )
    return pd.DataFrame(rows)


# ---- tables --------------------------------------------------------------------------------------------------


def text(values: pd.Series, digits: int) -> str:
    """Mean ± standard deviation over seeds."""
    if values.isna().all():
        return "–"
    return f"{round(values.mean(), digits) + 0.0:.{digits}f} ± {values.std():.{digits}f}"


def gain(rows: pd.DataFrame, single: pd.DataFrame) -> str:
    """Δm in %: mean over the tasks of the change against dense single-task training, seed by seed."""
    tasks = [task for task in MEASURES if task in rows and not rows[task].isna().all()]
    changes = []
    for task in tasks:
        base = single[task].dropna().mean()
        changes.append(100 * MEASURES[task][1] * (rows[task].to_numpy() - base) / base)
    return text(pd.Series(sum(changes) / len(changes)), 2)


def table(settings: Iterable[tuple[str, pd.DataFrame]], single: pd.DataFrame) -> str:
    """A Markdown table, one row per setting."""
    head = ["", *(f"{task} {TITLES[task]}" for task in MEASURES), "groups zero %", "weights zero %", "Δm % ↑"]
    lines = [f"| {' | '.join(head)} |", "| :--- |" + " ---: |" * (len(head) - 1)]
    for name, rows in settings:
        cells = [text(rows[task], 4) if task in rows else "–" for task in MEASURES]
        cells += [text(rows["groups"], 1), text(rows["weights"], 1), gain(rows, single)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by(rows: pd.DataFrame, *keys: str) -> list[tuple[tuple[object, ...], pd.DataFrame]]:
    """Settings in the order of their keys."""
    return [(key, part) for key, part in rows.groupby(list(keys), sort=True, dropna=False)]


def scientific(value: float) -> str:
    """1e-4 for 0.0001."""
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


# ---- compaction ----------------------------------------------------------------------------------------------


def backbone_costs(folders: Sequence[Path], batch: int = 16) -> pd.DataFrame:
    """Multiply-adds, weights and time of every run's backbone, after compaction."""
    rows = []
    x = torch.rand(batch, 3, 64, 64)
    for folder in folders:
        small_data = {"data": {"train_size": 8, "validation_size": 8, "test_size": 8}}
        config = check(merge(RunFolder(folder).read_config(), small_data))
        data = RunSpec(config).data
        model = make_trainer(config, data, None, progress=False).model
        model.load_state_dict(read_tensors(RunFolder(folder).model)[0])
        dense = model.eval().encoder
        small = sm.compact(dense, example_inputs=x)
        with torch.no_grad():
            error = float((small(x) - dense(x)).abs().max() / dense(x).std().clamp(min=1e-12))
        times = {"dense": [], "small": []}
        for _ in range(3):  # in turns, so that the machine's moods meet both
            times["dense"].append(sm.latency(dense, x))
            times["small"].append(sm.latency(small, x))
        rows.append(
            {
                "folder": folder,
                "macs": sm.macs(small, x) / sm.macs(dense, x),
                "size": sm.parameter_count(small) / sm.parameter_count(dense),
                "time": sorted(times["small"])[1] / sorted(times["dense"])[1],
                "ms": sorted(times["small"])[1],
                "error": error,
            }
        )
    return pd.DataFrame(rows)


def cost_table(settings: Iterable[tuple[str, pd.DataFrame]], costs: pd.DataFrame) -> str:
    """Costs of compacted backbones, ÷ those of the dense ones."""
    lines = ["| | multiply-adds | weights | time | largest difference |", "| :--- | ---: | ---: | ---: | ---: |"]
    for name, rows in settings:
        part = rows.merge(costs, on="folder")
        cells = [text(part[key], 3) for key in ("macs", "size", "time")]
        lines.append(f"| {name} | {' | '.join(cells)} | {part['error'].max():.0e} |")
    return "\n".join(lines)


# ---- figures -------------------------------------------------------------------------------------------------


def curve(axes: Axes, rows: pd.DataFrame, x: str, y: str, label: str) -> None:
    """Mean of y over mean of x by setting, with bars of one standard deviation."""
    parts = [part for _, part in by(rows, "target" if rows["target"].notna().any() else "lambda")]
    axes.errorbar(
        [part[x].mean() for part in parts],
        [part[y].mean() for part in parts],
        yerr=[part[y].std() for part in parts],
        marker="o",
        markersize=4,
        capsize=2,
        label=label,
    )


def against_lambda(rows: pd.DataFrame, costs: pd.DataFrame, path: Path) -> None:
    """The paper's Figure 4: performance, sparsity and backbone time against λ."""
    merged = rows.merge(costs, on="folder")
    merged["lambda"] = merged["lambda"].replace(0.0, 1e-8)
    merged["time %"] = 100 * merged["time"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2))
    for panel, task in zip(axes, MEASURES, strict=False):
        curve(panel, merged, "lambda", task, task)
        panel.set_title(f"{task}: {TITLES[task]}", fontsize=10)
    for column, label in (("groups", "groups zero"), ("weights", "weights zero"), ("time %", "backbone's time")):
        curve(axes[3], merged, "lambda", column, label)
    axes[3].set_title("% of the dense backbone", fontsize=10)
    axes[3].legend(fontsize=8)
    for panel in axes:
        panel.set_xscale("log")
        panel.set_xticks([1e-8, 1e-6, 1e-4, 1e-2], ["0", "1e-6", "1e-4", "1e-2"])
        panel.set_xlabel("λ")
        panel.grid(alpha=0.3)
    save(figure, path)


def structured_or_not(groups: pd.DataFrame, singles: pd.DataFrame, dense: pd.DataFrame, path: Path) -> None:
    """Performance against the share of weights that are zero, structured and not."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for panel, task in zip(axes, MEASURES, strict=True):
        curve(panel, groups, "weights", task, "group lasso (whole channels)")
        curve(panel, singles, "weights", task, "l1 (single weights)")
        panel.axhline(dense[task].mean(), color="black", linewidth=0.8, linestyle=":", label="dense")
        panel.set_title(f"{task}: {TITLES[task]}", fontsize=10)
        panel.set_xlabel("weights zero, %")
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save(figure, path)


def channels_left(rows: pd.DataFrame, strengths: Sequence[float], path: Path) -> None:
    """The paper's Figure 3: input channels of every convolution before and after."""
    figure, axes = plt.subplots(figsize=(11, 3.4))
    groups = [RunFolder(folder).read_summary()["sharing"]["groups"] for folder in rows["folder"]]
    names = list(groups[0])
    axes.bar(range(len(names)), [groups[0][name]["all"] for name in names], color="0.88", label="dense")
    for place, strength in enumerate(strengths):
        chosen = [g for g, value in zip(groups, rows["lambda"], strict=True) if value == strength]
        left = [sum(g[name]["left"] for g in chosen) / len(chosen) for name in names]
        shift = 0.8 * (place + 0.5) / len(strengths) - 0.4
        axes.bar(
            [i + shift for i in range(len(names))],
            left,
            width=0.8 / len(strengths),
            label=f"λ = {scientific(strength)}",
        )
    short = [name.removeprefix("encoder.").removesuffix(".weight").replace("downsample.0", "down") for name in names]
    axes.set_xticks(range(len(names)), short, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("input channels")
    axes.legend(fontsize=8)
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a picture."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- all -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Write the figures, and the tables to be put into less-is-more.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures = options.out / "less-is-more"
    pictures.mkdir(parents=True, exist_ok=True)
    studies = {name: read_study(options.runs / name) for name in STUDIES}
    strengths, targets, subsets, deviations, tuned = studies.values()
    lasso = strengths[strengths["method"] == "group-lasso"]
    l1 = strengths[strengths["method"] == "l1"]
    dense = lasso[lasso["lambda"] == 0]
    single = subsets[subsets["method"].isin(list(LETTERS)) & (subsets["lambda"] == 0)]
    three = lasso[lasso["lambda"].isin(subsets["lambda"].unique())].assign(method="S+D+N")
    every_set = pd.concat([subsets, three])
    order = ["S", "D", "N", "S+D", "S+N", "D+N", "S+D+N"]
    sets = [
        (f"{method}, λ = {scientific(strength)}", part)
        for method in order
        for (strength,), part in by(every_set[every_set["method"] == method], "lambda")
    ]
    costs = backbone_costs([*lasso["folder"], *l1["folder"], *targets["folder"]])
    print("## Strength\n")
    rows = [(f"group lasso, λ = {scientific(s)}", part) for (s,), part in by(lasso, "lambda")]
    rows += [(f"l1, λ = {scientific(s)}", part) for (s,), part in by(l1, "lambda")]
    plain = strengths[strengths["method"] == "plain"]
    rows += [(f"plain training, learning rate {lr}", part) for (lr,), part in by(plain, "lr")]
    print(table(rows, single), "\n\n## Sets of tasks\n")
    print(table(sets, single), "\n\n## Sparsity asked for\n")
    asked = [(f"{m}, target {100 * t:.0f} %", part) for (m, t), part in by(targets, "method", "target")]
    print(table(asked, single))
    print("\n## Backbone, compacted\n")
    print(cost_table(rows[:-2] + asked, costs), "\n\n## Deviations\n")
    chosen = [("dense, as ours", dense), ("sparse, λ = 1e-4, as ours", lasso[lasso["lambda"] == 1e-4])]
    names = list(dict.fromkeys(deviations["method"]))
    listed = StudyFolder(options.runs / "deviations").read_about()["methods"]
    print(table(chosen + [(n, deviations[deviations["method"] == n]) for n in listed if n in names], single))
    print("\n## At the learning rate that suits plain training\n")
    fast = [(f"plain training, learning rate {lr}", part) for (lr,), part in by(plain[plain["lr"] == 0.01], "lr")]
    fast += [
        (
            f"{method}, λ = {scientific(s)}, learning rate {lr}" if s == s else f"plain training, learning rate {lr}",
            part,
        )
        for (method, lr, s), part in by(tuned, "method", "lr", "lambda")
    ]
    print(table(fast, single))
    print(f"\n{sum(map(len, studies.values()))} runs, {sum(s['seconds'].sum() for s in studies.values()) / 60:.0f} min")
    against_lambda(lasso, costs, pictures / "lambda.png")
    groups = targets[targets["method"] == "group-lasso"]
    structured_or_not(groups, targets[targets["method"] == "l1"], dense, pictures / "structured.png")
    channels_left(lasso, [s for s in (1e-4, 1e-3) if s in set(lasso["lambda"])], pictures / "channels.png")


if __name__ == "__main__":
    main()
