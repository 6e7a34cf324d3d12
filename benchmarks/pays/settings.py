"""Settings in which per-task sparsity may pay, each a study of 8 seeds with data of their own.

python benchmarks/pays/settings.py --out RUNS              # all settings; finished runs are skipped
python benchmarks/pays/settings.py C4-N100 vit --out RUNS  # some of them
python benchmarks/pays/settings.py C4-N100 --seeds 0 1 --out RUNS  # some seeds of one; more seeds go on from there
python benchmarks/pays/results.py                          # the tables

Each finished seed of a setting is added to its record, `benchmarks/results/records/pays/NAME.csv`. Commit it.

Files of MNIST, Fashion-MNIST and Student Performance lie under $SPARSEMTL_DATA; the other settings need none. A setting
has 152 to 320 runs, 19 to 40 per seed. One seed of C4-N100 takes about a minute of processor time (1.3 s per run of a
dense or masked network, four to five times as much per run of `auto`); the other settings have not been timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from results import record

from sparsemtl.study.grid import read_study
from sparsemtl.study.runner import run_study

HERE = Path(__file__).parent
KINDS = (
    "{G3: {kind: regression, scale: 20}, passed: {column: G2, kind: classification, above: 9}, school: classification}"
)
"""Targets of the second table: a regression and two classifications."""


class Setting(NamedTuple):
    """Study file of a setting, and its changes."""

    study: str
    changes: tuple[str, ...]


def regressions(clusters: int, rows: int, study: str = "study.yaml") -> Setting:
    """Return four regressions in some clusters, with as many training rows."""
    epochs = {100: 30, 400: 20, 1600: 10}[rows]
    size = {100: 16, 400: 32, 1600: 64}[rows]
    data = (f"data.clusters={clusters}", f"data.train_size={rows}")
    return Setting(study, (*data, f"training.epochs={epochs}", f"training.batch_size={size}"))


SETTINGS = {
    "C1-N100": regressions(1, 100),
    "C2-N100": regressions(2, 100),
    "C4-N100": regressions(4, 100),
    "C2-N400": regressions(2, 400),
    "C4-N400-h8": regressions(4, 400, "study-h8.yaml"),
    "C1-N1600": regressions(1, 1600),
    "C2-N1600": regressions(2, 1600),
    "C4-N1600": regressions(4, 1600),
    "hetero-200": Setting(
        "study.yaml",
        (
            "data={name: three-sources, train_size: 200, test_size: 1000}",
            "training.epochs=15",
            "training.batch_size=32",
        ),
    ),
    "overlay-400": Setting(
        "study.yaml",
        (
            "data={name: multi-fashion-mnist, train_size: 400, test_size: 1000, size: 28}",
            "training.epochs=15",
            "training.batch_size=32",
        ),
    ),
    "table-grades": Setting("study.yaml", ("data={name: student, subject: math}", "training.epochs=20")),
    "table-mixed": Setting(
        "study.yaml",
        (
            f"data={{name: table, path: student/student-por.csv, separator: ;, drop: [G1], targets: {KINDS}}}",
            "training.epochs=15",
        ),
    ),
    "vit": Setting("vit.yaml", ()),
}
"""Name -> setting: the ten of the first experiments, two tables, a vision transformer."""


def main() -> None:
    """Run the studies of the named settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="settings; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of the studies")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to run; those of the study by default")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.names) - set(SETTINGS):
        parser.error(f"unknown setting {', '.join(sorted(unknown))}; known: {', '.join(SETTINGS)}")
    for name in options.names or SETTINGS:
        setting = SETTINGS[name]
        for seed in options.seeds or read_study(HERE / setting.study).seeds:
            study = read_study(HERE / setting.study, [f"name={name}", *setting.changes, f"seeds=[{seed}]"])
            failures = run_study(study, options.out / name, jobs=options.jobs)
            record(options.out / name)
            for run, why in failures.items():
                print(f"no result of {run}: {why}")


if __name__ == "__main__":
    main()
