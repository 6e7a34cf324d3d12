"""The result of a study in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sparsemtl.report.folders import StudyFolder
from sparsemtl.report.words import listing, percent, plural, signed
from sparsemtl.study.costs import MACS, WEIGHTS, measured
from sparsemtl.study.results import DELTA, Results, gains, run_level
from sparsemtl.study.tables import RANK, Table


def baseline_name(study: StudyFolder) -> str:
    """Return what the baseline is called in a sentence: "single-task training" where that is what it is."""
    frame, baseline = study.results.frame, study.results.baseline
    runs = frame.loc[frame["method"] == baseline, "run"].unique()
    kinds = {study.runs[run].summary.get("axes", {}).get("architecture") for run in runs if run in study.runs}
    return "single-task training" if kinds == {"single-task"} else str(baseline)


def lead(best: Results, main: Table, baseline: str) -> str:
    """Say which method gains most over the baseline, on which tasks it loses, and what it costs.

    Args:
        best: one setting per method.
        main: its table of primary metrics.
        baseline: what the baseline is called.
    """
    figures = gains(best)
    delta = figures.mean[DELTA].dropna()
    if delta.empty:
        return _lead_by_rank(best, main)
    winner = str(delta.idxmax())
    mean, deviation = float(delta.max()), float(figures.std[DELTA][winner])
    over = f"on average {_over(best)}"
    unsure = ", which is within one standard deviation of no change" if abs(mean) < deviation else ""
    changes = {task: (float(figures.mean[task][winner]), float(figures.std[task][winner])) for task in best.tasks}
    tasks = {task: change for task, change in changes.items() if not math.isnan(change[0])}
    lost = [f"{task} ({_change(*change)})" for task, change in tasks.items() if change[0] < 0]
    if mean > 0:
        first = f"{winner} gains most over {baseline}: {_change(mean, deviation)} {over}{unsure}."
    else:
        first = f"No method beats {baseline} {over}; the closest is {winner} with {_change(mean, deviation)}{unsure}."
    second = (
        f"It loses on {plural(len(lost), 'task')} of {len(tasks)}: {listing(lost)}." if lost else "It loses on no task."
    )
    return " ".join([first, second, *_cost(best, winner, baseline)])


def _cost(best: Results, winner: str, baseline: str) -> Iterator[str]:
    """What the winner's compacted networks need, as a part of what the baseline's need.

    Times of different runs are not compared: other work on the machine may have met one of them alone.
    """
    own = best.settings.index[best.settings["method"] == best.baseline]
    if not measured(best) or own.empty:
        return
    parts = {}
    for metric, what in ((MACS, "multiply-adds"), (WEIGHTS, "weights")):
        mean = run_level(best, metric).mean[metric]
        if not (mean[winner] > 0 and mean[own[0]] > 0):
            return
        parts[what] = percent(float(mean[winner] / mean[own[0]]))
    yield (
        f"Compacted, its networks need {parts['multiply-adds']} of the multiply-adds of {baseline} and "
        f"{parts['weights']} of the weights."
    )


def _change(mean: float, deviation: float) -> str:
    return signed(f"{mean:+.2f}") + ("" if math.isnan(deviation) else f" ± {deviation:.2f}") + " %"


def _lead_by_rank(best: Results, main: Table) -> str:
    if not best.common:
        return "There is no task that all methods have, so that nothing is compared over tasks."
    if RANK not in main.higher or main.figures.mean[RANK].isna().all():
        return "Nothing to compare with yet."
    rank = main.figures.mean[RANK]
    return f"{rank.idxmin()} ranks best: {rank.min():.2f} on average {_over(best)}."


def _over(best: Results) -> str:
    """What a mean over tasks is taken over."""
    whole = len(best.common) == len(best.tasks)
    return "over tasks" if whole else f"over the {plural(len(best.common), 'task')} that all methods have"
