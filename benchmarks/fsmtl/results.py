"""FSMTL's Table 1 from the studies beside this file, each row beside the paper's figures of other data.

for study in multi-fashion pair-attributes three-sources; do
    for file in $study $study-sparse-stl; do
        sparsemtl study benchmarks/fsmtl/$file.yaml --jobs 2 --no-run-reports --out RUNS/$file
    done
done
python benchmarks/fsmtl/results.py RUNS --paper ../shared/paper_tables   # adds the runs to the records: commit them
python benchmarks/fsmtl/results.py --paper ../shared/paper_tables        # tables of the records alone
sparsemtl compare RUNS/multi-fashion RUNS/pair-attributes RUNS/three-sources   # tests over all data sets

For a GPU, at full size: celeba.yaml, cityscapes.yaml and dkl.yaml. Tables of the first and the last stand beside the
paper's figures of the same data. Cityscapes (Table 2) has other measures, which `sparsemtl study` prints.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

from sparsemtl.study.results import StudyResults, tuned_settings

sys.path.append(str(Path(__file__).parents[1]))

import records

MEASURES = {"accuracy": "Acc", "precision_macro": "Precision", "recall_macro": "Recall", "f1_macro": "F-score"}
"""Metric of every task -> column, the mean over the tasks."""
STUDIES = {
    "multi-fashion": "",
    "pair-attributes": "CelebA",
    "three-sources": "DKL-mnist",
    "celeba": "CelebA",
    "dkl": "DKL-mnist",
}
"""Study -> data set of the paper's Table 1 that it stands in for; "" for none."""
FULL_SIZE = ("celeba", "dkl")
PAPER = {
    "stl": "STL",
    "mtl": "MTL",
    "gradnorm": "GradNorm",
    "mgda-ub": "MGDA-UB",
    "cagrad": "CAGrad",
    "nash-mtl": "Nash-MTL",
    "rlw": "RLW",
    "rgw": "RGW",
    "se": "SE",
    "tr": "TR",
    "mr": "MR",
    "rs": "RS",
    "fs": "FS",
}
"""Method -> its name in the paper."""
ALONE = ("stl", "narrow stl", "sparse stl")
"""Methods without sharing, which ranks leave out as the paper leaves out STL."""
KEPT, RATE = "sharing.keep", "optimizer.lr"
DIFFERENCES = (
    *((f"fs, keep {keep}", other) for keep in (0.9, 0.6, 0.3) for other in ("mtl", f"rs, keep {keep}")),
    *((f"efs, keep {keep}", f"fs, keep {keep}") for keep in (0.9, 0.6, 0.3)),
    *(("fs, keep 0.9", other) for other in ("mtl, tuned decay", "lottery", "se", "tr, keep 0.9", "mr, keep 0.9")),
    *(("fs, keep 0.9", other) for other in ("gradnorm", "mgda-ub", "cagrad", "nash-mtl", "rlw", "rgw", "uw", "stl")),
    *(
        (other, "mtl")
        for other in ("mtl, in turns", "mtl, tuned decay", "rs, keep 0.9", "rs, keep 0.6", "nash-mtl", "uw")
    ),
    *((other, "mtl, in turns") for other in ("fs, keep 0.9", "fs, keep 0.6", "rs, keep 0.9", "lottery", "se")),
    ("fs, keep 0.6", "sparse stl, keep 0.6"),
)
"""Pairs of rows whose difference is printed, where a study has both."""


def results(study: str) -> StudyResults:
    """Return the results of a study's record; of the values in it, validation chooses all but `KEPT`."""
    record = records.long(records.read(f"fsmtl/{study}"))
    settings = [column for column in record if "." in column]
    record = record.dropna(axis=1, how="all")
    return StudyResults.of(record, baseline=None, tuned=[key for key in settings if key != KEPT and key in record])


def figures(study: str) -> tuple[pd.DataFrame, pd.Series]:
    """Return the mean over the tasks per setting and seed, and the learning rate that validation chose per setting.

    The runs of one task each of `<study>-sparse-stl`, if they are there, are one setting.
    """
    both = [name for name in (study, f"{study}-sparse-stl") if len(records.read(f"fsmtl/{name}"))]
    frame = pd.concat([tuned_settings(results(name)).frame for name in both])
    frame = frame[(frame["split"] == "test") & frame["metric"].isin(MEASURES)].copy()
    frame["method"] = frame["method"].str.replace(r"^sparse stl, .*", "sparse stl", regex=True)
    kept = frame[KEPT] if KEPT in frame else pd.Series(float("nan"), frame.index)
    frame["row"] = frame["method"] + kept.map(lambda keep: "" if pd.isna(keep) else f", keep {keep:g}")
    means = frame.groupby(["row", "seed", "metric"], sort=False)["value"].mean().unstack("metric")
    rates = frame.groupby("row", sort=False)[RATE].unique() if RATE in frame else pd.Series(dtype=object)
    return means[list(MEASURES)], rates.map(lambda values: ", ".join(f"{value:g}" for value in sorted(values)))


def gains(means: pd.DataFrame) -> pd.Series:
    """Return the change of the mean accuracy against single-task training of the same seed and split, in %."""
    accuracy = means["accuracy"].unstack("seed")
    return (100 * (accuracy / accuracy.loc["stl"] - 1)).stack()


def ranks(means: pd.DataFrame) -> pd.Series:
    """Return the mean rank over the four measures, ties averaged, of all rows that share."""
    over_seeds = means.groupby("row", sort=False).mean()
    sharing = over_seeds[[row.partition(", keep")[0] not in ALONE for row in over_seeds.index]]
    return sharing.rank(ascending=False).mean(axis=1)


def differences(means: pd.DataFrame) -> str:
    """Return a Markdown table of paired differences of the mean accuracy, in points, with 95 % t-intervals."""
    accuracy = 100 * means["accuracy"].unstack("seed")
    lines = ["| difference | points | 95 % interval |", "| :--- | ---: | ---: |"]
    for one, other in DIFFERENCES:
        if one in accuracy.index and other in accuracy.index:
            paired = (accuracy.loc[one] - accuracy.loc[other]).dropna()
            half = stats.t.ppf(0.975, len(paired) - 1) * paired.std() / len(paired) ** 0.5
            mean = paired.mean()
            lines.append(f"| {one} − {other} | {mean:+.1f} | {mean - half:+.1f} to {mean + half:+.1f} |")
    return "\n".join(lines)


def paper_table(folder: Path, dataset: str) -> pd.DataFrame:
    """Return the paper's Table 1 on a data set: method x (Acc, F-score, rank, p)."""
    path = folder / "fsmtl_table1.csv"
    if not dataset or not path.is_file():
        return pd.DataFrame()
    rows = pd.read_csv(path)
    rows = rows[rows["dataset"] == dataset]
    table = rows.pivot_table(index="method", columns="metric", values="mean")
    return table.assign(p=rows.groupby("method")["setting"].first())


def table(study: str, dataset: str, paper: Path, *, same_data: bool) -> str:
    """Return a Markdown table in the paper's form."""
    means, rates = figures(study)
    gain, rank, printed = gains(means), ranks(means), paper_table(paper, dataset)
    whose = f"{dataset}{'' if same_data else ', other data'}"
    beside = [f"paper ({whose}): Acc", "F-score", "Avg Rank"] if len(printed) else []
    head = ["method", *MEASURES.values(), "Avg Rank", "Acc against stl, %", "lr", *beside]
    lines = [f"| {' | '.join(head)} |", "| :--- |" + " ---: |" * (len(head) - 1)]
    for row, own in means.groupby("row", sort=False):
        cells = [spread(own[metric], 3) for metric in MEASURES]
        cells += [f"{rank[row]:.2f}" if row in rank else "–", spread(gain.loc[[row]], 2), rates.get(row, "–")]
        lines.append(f"| {row} | {' | '.join([*cells, *_printed(str(row), printed)])} |")
    return "\n".join(lines)


def _printed(row: str, printed: pd.DataFrame) -> list[str]:
    if not len(printed):
        return []
    method = PAPER.get(row.partition(", keep")[0], "")
    if method not in printed.index:
        return ["–"] * 3
    found = printed.loc[method]
    rank = found.get("avg_rank")
    accuracy = f"{found['accuracy']:.3f} ({found['p']})"
    return [accuracy, f"{found['fscore_macro']:.3f}", "–" if pd.isna(rank) else f"{rank:g}"]


def spread(values: pd.Series, digits: int) -> str:
    """Return mean ± standard deviation over seeds."""
    return f"{round(values.mean(), digits) + 0.0:.{digits}f} ± {values.std():.{digits}f}"


def main() -> None:
    """Print the tables of the studies that have records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder of studies to add to the records")
    parser.add_argument("--paper", type=Path, default=Path("../shared/paper_tables"))
    options = parser.parse_args()
    for study, dataset in STUDIES.items():
        for name in (study, f"{study}-sparse-stl") if options.runs else ():
            records.update(f"fsmtl/{name}", records.of_study(options.runs / name, MEASURES))
        if len(records.read(f"fsmtl/{study}")):
            print(f"## {study}\n\n{table(study, dataset, options.paper, same_data=study in FULL_SIZE)}\n")
            print(f"{differences(figures(study)[0])}\n")


if __name__ == "__main__":
    main()
