"""Small networks of trained ones, on five seeds: quality against multiply-adds, beside dense training that is as long.

    python benchmarks/shrink/run.py table --out RUNS/shrink --macs 0.3 0.15 0.08

PROBLEM is the name of a file in this folder. Of every seed a dense network is trained (its configuration), trained on
as long as a small one is (`longer`), and shrunk to every budget, with and without a teacher. Runs that are finished
are not trained again. The table has the change of every task's primary metric on test data against dense training, mean
and standard deviation over the seeds in per cent, and the 95 % t-interval of their mean over the tasks.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemtl import load_run
from sparsemtl.cli.shrinking import shrunk_config
from sparsemtl.runs.config import check
from sparsemtl.runs.run import run
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.training.metric_facts import metric_facts
from sparsemtl.views.tables import Table

T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""Degrees of freedom -> quantile of the 95 % t-interval."""


def trained(config: Mapping[str, Any], folder: Path) -> None:
    """Train a run, or go on with it, unless it is finished."""
    own = RunFolder(folder)
    if not own.finished:
        run(config, folder, resume=own.begun, progress=False)


def runs_of(name: str, seed: int, out: Path, budgets: list[float]) -> dict[str, Path]:
    """Train the runs of a seed; return row of the table -> folder."""
    base = read_yaml(Path(__file__).parent / f"{name}.yaml")
    config = check({**base, "seed": seed, "plugins": []})
    dense = out / name / f"dense-{seed}"
    trained(config, dense)
    found, loaded, epochs = {"dense": dense}, load_run(dense), config["training"]["epochs"]
    found["longer"] = out / name / f"longer-{seed}"
    trained(check({**config, "start_from": str(dense)}), found["longer"])
    for teacher in (True, False):
        start = dense
        for macs in budgets:
            options = {"macs": macs, "reach_at": max(1, (epochs + 1) // 2 - 1)}
            small = shrunk_config(loaded, start, options, epochs)
            row = f"macs {macs:g}" + ("" if teacher else ", no teacher")
            start = found[row] = out / name / f"macs-{macs:g}{'' if teacher else '-alone'}-{seed}"
            trained(small if teacher else check({**small, "teacher": None}), start)
    return found


def changes(folder: Path, dense: Path) -> dict[str, float]:
    """Return task -> change of its primary metric on test data in per cent, positive is better."""
    own, before = load_run(folder), load_run(dense)
    found = {}
    for name, task in own.tasks.items():
        facts = metric_facts(task)
        value, base = own.metrics[name][facts.primary], before.metrics[name][facts.primary]
        found[name] = 100 * (value - base) / abs(base) * (1 if facts.directions[facts.primary] else -1)
    return found


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=["rooms", "table", "text"])
    parser.add_argument("--out", type=Path, default=Path("runs/shrink"))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.3, 0.15, 0.08])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in given.seeds:
        folders = runs_of(given.problem, seed, given.out, sorted(given.macs, reverse=True))
        for row, folder in folders.items():
            if row != "dense":
                rows.setdefault(row, []).append(changes(folder, folders["dense"]))
    tasks = list(next(iter(rows.values()))[0])
    lines = []
    for row, seeds in rows.items():
        means = [statistics.mean(each.values()) for each in seeds]
        cells = [_spread([each[task] for each in seeds]) for task in tasks]
        lines.append([row, *cells, _spread(means), _interval(means)])
    print(Table(["network", *tasks, "mean", "95 % interval"], lines).markdown())


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):+.2f} ± {spread:.2f}"


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    half = T_95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values) - half:+.2f} to {statistics.mean(values) + half:+.2f}"


if __name__ == "__main__":
    main()
