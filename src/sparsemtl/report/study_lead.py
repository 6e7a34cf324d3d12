"""Result of a study in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsemtl.report.words import listing, percent, plural, signed
from sparsemtl.study.costs import MACS, WEIGHTS, measured
from sparsemtl.study.evidence import DEAD_BASELINE
from sparsemtl.study.record import StudyRecord
from sparsemtl.study.results import DELTA, StudyResults, gains, run_level
from sparsemtl.study.tables import RANK, StudyTable


def baseline_name(study: StudyRecord) -> str:
    """Return the name of the baseline in sentences: "single-task training" if its tasks have no weight in common."""
    frame, baseline = study.results.frame, study.results.baseline
    runs = frame.loc[frame["method"] == baseline, "run"].unique()
    alone = {bool(study.runs[run].summary.get("independent_tasks")) for run in runs if run in study.runs}
    return "single-task training" if alone == {True} else str(baseline)


def lead(best: StudyResults, main: StudyTable, baseline: str, weak: Sequence[str] = ()) -> str:
    """Return the result of a study, after a caution where the baseline has learned nothing.

    Args:
        best: results of one setting per method.
        main: table of primary metrics.
        baseline: name of the baseline in sentences.
        weak: weak points of the evidence.
    """
    dead = any(point.startswith(DEAD_BASELINE) for point in weak)
    caution = f"{DEAD_BASELINE} on some task, so that changes against it mean nothing there. " if dead else ""
    return caution + _result(best, main, baseline)


def _result(best: StudyResults, main: StudyTable, baseline: str) -> str:
    """Return the best method beside the baseline, the tasks on which it loses, and its cost.

    The cost comes first if the method costs less and is as good as the baseline within one standard deviation.
    """
    figures = gains(best)
    delta = figures.mean[DELTA].dropna()
    if delta.empty:
        return _lead_by_rank(best, main)
    winner = str(delta.idxmax())
    mean, deviation = float(delta.max()), float(figures.std[DELTA][winner])
    unsure, change = abs(mean) <= deviation, f"{_change(mean, deviation)} on average {_over(best)}"
    parts = _parts_of_cost(best, winner)
    needs = (
        f"{percent(parts[0])} of the multiply-adds of {baseline} and {percent(parts[1])} of the weights"
        if parts
        else ""
    )
    beaten = f"No method beats {baseline} on average {_over(best)}"
    within = ", which is within one standard deviation of no change" if unsure else ""
    if unsure and parts and parts[0] < 1:
        kept = f"{winner} keeps the quality of {baseline} within one standard deviation ({change})"
        sentences = [f"{kept} and, compacted, needs {needs}.", _losses(best, winner)]
        return " ".join([*sentences, f"{beaten}."] if mean <= 0 else sentences)
    if mean > 0:
        first = f"{winner} gains most over {baseline}: {change}{within}."
    else:
        first = f"{beaten}; the closest is {winner} with {_change(mean, deviation)}{within}."
    return " ".join([first, _losses(best, winner), *([f"Compacted, its networks need {needs}."] if parts else [])])


def _losses(best: StudyResults, winner: str) -> str:
    """Return the tasks on which a method is worse than the baseline."""
    figures = gains(best)
    changes = {task: (float(figures.mean[task][winner]), float(figures.std[task][winner])) for task in best.tasks}
    tasks = {task: change for task, change in changes.items() if not math.isnan(change[0])}
    lost = [f"{task} ({_change(*change)})" for task, change in tasks.items() if change[0] < 0]
    return (
        f"It loses on {plural(len(lost), 'task')} of {len(tasks)}: {listing(lost)}." if lost else "It loses on no task."
    )


def _parts_of_cost(best: StudyResults, winner: str) -> tuple[float, float] | None:
    """Return multiply-adds and weights of the winner's compacted networks, as fractions of the baseline's.

    None if they are unknown. Times are not compared: other work on the machine may have slowed one run only.
    """
    own = best.settings.index[best.settings["method"] == best.baseline]
    if not measured(best) or own.empty:
        return None
    macs, weights = (run_level(best, metric).mean[metric] for metric in (MACS, WEIGHTS))
    if not all(mean[setting] > 0 for mean in (macs, weights) for setting in (winner, own[0])):
        return None
    return float(macs[winner] / macs[own[0]]), float(weights[winner] / weights[own[0]])


def _change(mean: float, deviation: float) -> str:
    return signed(f"{mean:+.2f}") + ("" if math.isnan(deviation) else f" ± {deviation:.2f}") + " %"


def _lead_by_rank(best: StudyResults, main: StudyTable) -> str:
    if not best.common:
        return "There is no task that all methods have, so that nothing is compared over tasks."
    if RANK not in main.higher or main.figures.mean[RANK].isna().all():
        return "Nothing to compare with yet."
    rank = main.figures.mean[RANK]
    return f"{rank.idxmin()} ranks best: {rank.min():.2f} on average {_over(best)}."


def _over(best: StudyResults) -> str:
    """Return the tasks of a mean over tasks, in words."""
    whole = len(best.common) == len(best.tasks)
    return "over tasks" if whole else f"over the {plural(len(best.common), 'task')} that all methods have"
