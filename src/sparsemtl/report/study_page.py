"""Report of a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from sparsemtl.report.page import render
from sparsemtl.report.search_page import pareto_section
from sparsemtl.report.study_charts import gain_charts, key_charts, learning_curves
from sparsemtl.report.study_comparison import study_comparison
from sparsemtl.report.study_lead import baseline_name, lead
from sparsemtl.report.tradeoff import tradeoff
from sparsemtl.report.words import duration
from sparsemtl.storage.run_folder import RunRecord
from sparsemtl.study.costs import cost_table, with_costs
from sparsemtl.study.evidence import weak_points
from sparsemtl.study.record import StudyRecord
from sparsemtl.study.results import StudyResults, best_settings, per_seed, plain, run_level
from sparsemtl.study.tables import metric_tables, primary_table


@dataclass(frozen=True)
class _TrainingCost:
    """Cost of training a method.

    Attributes:
        label: the setting.
        method: the method.
        time: mean time of a run and its standard deviation over seeds, as text.
        length: the time as a fraction of the longest one; 0 if it is unknown.
        density: mean fraction of the maskable weights that a task uses; None if the runs had no masks.
    """

    label: str
    method: str
    time: str
    length: float
    density: float | None


@dataclass(frozen=True)
class _RunRow:
    """Row of the list of runs.

    Attributes:
        run: name of the run.
        link: relative address of its report, "" if it has none.
        method: the method.
        grid: values of the grid's keys, "" for keys that the run has not.
        seed: the seed.
        status: status at the end of the run.
        seconds: training time; None if unknown.
        values: every task's primary metric on test data; NaN if missing.
    """

    run: str
    link: str
    method: str
    grid: tuple[str, ...]
    seed: str
    status: str
    seconds: float | None
    values: tuple[float, ...]


def study_page(path: Path) -> str:
    """Return the report of a study as a page of HTML.

    Raises:
        CheckpointError: if `study.json` or `results.csv` is missing, or a file is damaged.
    """
    study = StudyRecord.read(path)
    results, best = study.results, best_settings(study.results)
    main, baseline = with_costs(primary_table(best), best), baseline_name(study)
    weak = weak_points(results)
    colours = {method: i for i, method in enumerate(results.settings["method"].unique())}
    return render(
        "study.html",
        study=study,
        title=study.about["name"],
        colours=colours,
        lead=lead(best, main, baseline, weak),
        baseline_name=baseline,
        weak=weak,
        comparison=study_comparison(best, colours),
        tradeoff=tradeoff(best, colours),
        pareto=pareto_section(results, colours),
        networks=cost_table(best),
        facts=list(_facts(study)),
        main=main,
        others=list(metric_tables(best).values()),
        grid=with_costs(primary_table(results), results) if len(results.settings) > len(best.settings) else None,
        gains=gain_charts(best, colours, baseline),
        keys={key: charts for key in results.grid if (charts := key_charts(results, best, key, colours))},
        levels=_without_grid(best),
        picks={row.label: colours[row.method] for row in main.rows()},
        curves=learning_curves(study, best, colours),
        costs=_costs(study, best),
        runs=list(_run_rows(study)),
    )


def _facts(study: StudyRecord) -> Iterator[tuple[str, str]]:
    """Yield name and value of the facts at the head of the page."""
    axes: Mapping[str, str] = next((run.summary.get("axes", {}) for run in study.runs.values()), {})
    for axis in ("data", "encoder"):
        if axes.get(axis):
            yield axis, str(axes[axis])
    results = study.results
    yield "tasks", str(len(results.tasks))
    yield "methods", str(results.settings["method"].nunique())
    yield "seeds", str(results.frame["seed"].nunique())
    for key in results.grid:
        yield f"values of {key}", str(results.frame[key].nunique())
    yield "runs", str(results.frame["run"].nunique())
    seconds = [run.summary["seconds"] for run in study.runs.values() if run.summary.get("seconds") is not None]
    if seconds:
        yield "time of all runs", duration(sum(seconds))


def _without_grid(results: StudyResults) -> set[str]:
    """Return the methods that have no key of the grid."""
    settings = results.settings
    return {str(m) for m in settings.loc[settings[list(results.grid)].isna().all(axis=1), "method"]}


def _costs(study: StudyRecord, best: StudyResults) -> list[_TrainingCost]:
    seconds = run_level(best, "seconds")
    mean, std = seconds.mean["seconds"], seconds.std["seconds"]
    lengths = (mean / mean.max()).fillna(0.0)
    return [
        _TrainingCost(str(label), str(method), _time(m, s), float(length), _density(study, best, str(label)))
        for (label, method), m, s, length in zip(best.settings["method"].items(), mean, std, lengths, strict=True)
    ]


def _time(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "time unknown"
    return duration(mean) + ("" if math.isnan(deviation) else f" ± {duration(deviation)}")


def _density(study: StudyRecord, results: StudyResults, setting: str) -> float | None:
    names = results.frame.loc[results.frame["setting"] == setting, "run"].unique()
    parameters = [study.runs[name].summary.get("parameters", {}) for name in names if name in study.runs]
    densities = [kept / entry["maskable"] for entry in parameters for kept in entry.get("kept", {}).values()]
    return sum(densities) / len(densities) if densities else None


def _run_rows(study: StudyRecord) -> Iterator[_RunRow]:
    results = study.results
    values = per_seed(results, results.primary, "test")
    for row in results.frame.drop_duplicates("run").to_dict("records"):
        name = str(row["run"])
        run = study.runs.get(name)
        key = (row["setting"], row["seed"])
        yield _RunRow(
            name,
            _link(run) if run else "",
            str(row["method"]),
            tuple("" if pd.isna(row[column]) else plain(row[column]) for column in results.grid),
            str(row["seed"]),
            str(run.summary.get("status", "")) if run else "folder is missing",
            run.summary.get("seconds") if run else None,
            tuple(values.loc[key]) if key in values.index else (math.nan,) * len(results.primary),
        )
    for name in dict.fromkeys([*study.unfinished, *study.failures]):
        gaps = ("",) * len(results.grid)
        status = f"no result: {study.failures[name]}" if name in study.failures else "not finished"
        yield _RunRow(name, "", "", gaps, "", status, None, (math.nan,) * len(results.primary))


def _link(run: RunRecord) -> str:
    report = run.folder.report
    return f"runs/{quote(run.folder.path.name)}/{report.name}" if report.is_file() else ""
