"""Drawings of a study's results on axes of matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.study.results import DELTA, StudyResults, gains, task_level
from sparsemtl.study.statistics import friedman, profiles
from sparsemtl.views.comparisons import Ranked, draw_profiles, draw_ranks, draw_task_bars, ranks_height
from sparsemtl.views.plots import Gain, axes_or_new, draw_bars, draw_gains

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(results: StudyResults, what: str | None, ax: Axes | None) -> Axes:
    """Draw results; arguments as those of `StudyResults.plot`."""
    if what is None:
        return _draw_changes(results, ax)
    if what in results.primary:
        return _draw_task(results, what, ax)
    if what in _COMPARISONS:
        return _COMPARISONS[what](results, ax)
    raise ParameterError(unknown_name("task", what, [*results.tasks, *_COMPARISONS]))


def _colours_of(results: StudyResults) -> dict[str, int]:
    """Return setting -> index of its method's colour."""
    methods = {method: i for i, method in enumerate(results.settings["method"].unique())}
    return {str(setting): methods[method] for setting, method in results.settings["method"].items()}


def _draw_ranks(results: StudyResults, ax: Axes | None) -> Axes:
    test, colours = friedman(results), _colours_of(results)
    ax = axes_or_new(ax, width=7.5, height=0.55 * ranks_height(len(test.ranks), len(test.groups())))
    ranked = [Ranked(name, colours[name], rank) for name, rank in test.ranks.items()]
    draw_ranks(ax, ranked, test.groups(), test.critical_difference)
    return ax


def _draw_profiles(results: StudyResults, ax: Axes | None) -> Axes:
    shares = profiles(results)
    ax = axes_or_new(ax)
    columns = {str(name): shares[name].tolist() for name in shares}
    draw_profiles(ax, shares.index.tolist(), columns, _colours_of(results))
    ax.set_ylabel("fraction of tasks and seeds")
    ax.legend(frameon=False)
    return ax


def _draw_tasks(results: StudyResults, ax: Axes | None) -> Axes:
    metrics = set(results.primary.values())
    if len(metrics) > 1:
        raise ParameterError(
            f"bars of tasks share one axis, and the tasks have several primary metrics: {', '.join(sorted(metrics))}. "
            f"Draw one task: plot({results.tasks[0]!r})."
        )
    figures = task_level(results, results.primary, "test")
    ax = axes_or_new(ax, width=max(6.4, 1.2 * len(results.tasks)))
    means, deviations = (
        {str(name): [float(part.loc[name, task]) for task in results.tasks] for name in results.settings.index}
        for part in (figures.mean, figures.std)
    )
    draw_task_bars(ax, results.tasks, means, deviations, _colours_of(results))
    ax.set_ylabel(metrics.pop())
    ax.legend(frameon=False, ncols=min(len(means), 4), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


_COMPARISONS: dict[str, Callable[[StudyResults, Axes | None], Axes]] = {
    "ranks": _draw_ranks,
    "profiles": _draw_profiles,
    "tasks": _draw_tasks,
}
"""Name of a drawing of several tasks -> its function."""


def _draw_changes(results: StudyResults, ax: Axes | None) -> Axes:
    """Draw Δm of every setting."""
    figures = gains(results)
    settings = list(results.settings.index[figures.mean[DELTA].notna()])
    if not settings:
        raise ParameterError(
            "no setting has a change against a baseline to draw. Name the baseline, "
            f"`StudyResults.of(frame, baseline=...)`, or draw one task: plot(task={next(iter(results.tasks), '')!r})."
        )
    ax = axes_or_new(ax, height=1.0 + 0.4 * len(settings))
    colours = {method: i for i, method in enumerate(results.settings["method"].unique())}
    mean, std, method = figures.mean[DELTA], figures.std[DELTA], results.settings["method"]
    draw_gains(ax, [Gain(str(s), colours[method[s]], float(mean[s]), float(std[s])) for s in settings])
    ax.set_xlabel(f"{DELTA} against {results.baseline}")
    return ax


def _draw_task(results: StudyResults, task: str, ax: Axes | None) -> Axes:
    """Draw the primary metric of a task for every setting."""
    if task not in results.primary:
        raise ParameterError(unknown_name("task", task, results.tasks))
    figures = task_level(results, results.primary, "test")
    labels = list(map(str, results.settings.index))
    ax = axes_or_new(ax, height=1.0 + 0.4 * len(labels))
    draw_bars(ax, labels, figures.mean[task].tolist(), errors=figures.std[task].tolist())
    ax.set_xlabel(f"{results.primary[task]} of {task}")
    return ax
