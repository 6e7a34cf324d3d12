"""Weak points of a study's evidence: what its own figures and records show against its conclusions, and what to do."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from sparsemtl.errors import MissingExtraError
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import parse_yaml
from sparsemtl.study.reading import study_results
from sparsemtl.study.results import StudyResults, best_settings, plain, tuned_settings
from sparsemtl.study.statistics import Interval, intervals

DEAD_BASELINE = "The baseline has learned nothing"
"""Beginning of the weak point that makes changes against the baseline meaningless."""
_FEWEST_SEEDS = 3
_UNLIKE = 10.0
"""Ratio of two tasks' training losses in the first epoch from which they count as unlike in scale."""
_MARGIN = 0.02
"""Distance to the figure of a constant prediction up to which a run has learned nothing."""
_FRACTIONS = ("keep", "keep_at", "target_sparsity", "initial_sparsity", "ratio", "dropout", "correlation")
"""Last words of keys whose values cannot exceed 1."""


def weak_points(results: StudyResults) -> list[str]:
    """Return the weak points of results as sentences, each with the settings and what to do; empty without any.

    Args:
        results: results of one study, with all its settings, or of several that were read together. What only a study
            folder records (epochs, splits, losses) is not checked for results of a frame.
    """
    if len(results.folders) < 2:
        folder = StudyFolder(results.folders[0]) if results.folders else None
        return list(_weak_points(results, _Runs(folder)))
    whole: list[str] = []
    for path in results.folders:
        one = study_results(StudyFolder(path))
        name = StudyFolder(path).read_about()["name"]
        whole += [f"{name}: {text}" for text in _weak_points(one, _Runs(StudyFolder(path)))]
    return whole


def _weak_points(results: StudyResults, runs: _Runs) -> Iterator[str]:
    best = best_settings(results)
    checks = (_learned_nothing, _one_split, _few_seeds, _last_epochs, _grid_ends, _uncertain, _unlike_losses)
    for check in checks:
        yield from check(results, best, runs)


@dataclass(frozen=True)
class _Runs:
    """Records of a study's runs, each read on first use.

    Attributes:
        folder: the study folder; None for results without one.
    """

    folder: StudyFolder | None

    @cached_property
    def _summaries(self) -> dict[str, dict[str, Any] | None]:
        return {}

    def summaries(self, results: StudyResults, setting: str) -> dict[str, dict[str, Any]]:
        """Return run -> summary of a setting's runs that ended."""
        frame = results.frame
        names = list(map(str, frame.loc[frame["setting"] == setting, "run"].unique())) if self.folder else []
        for name in names:
            if name not in self._summaries:
                run = self.run(name)
                self._summaries[name] = run.read_summary() if run.ended else None
        return {name: found for name in names if (found := self._summaries[name]) is not None}

    def run(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        assert self.folder is not None
        return self.folder.run(name)


def _learned_nothing(results: StudyResults, best: StudyResults, runs: _Runs) -> Iterator[str]:
    """Yield the settings and tasks whose test figures are those of a constant prediction."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for setting, method in best.settings["method"].items():
        summaries = runs.summaries(best, str(setting)).values()
        for task in best.tasks:
            entries = [summary["tasks"][task] for summary in summaries if task in summary["tasks"]]
            dead = [figure for entry in entries if (figure := _constant_figure(entry))]
            if 2 * len(dead) > len(entries):
                found[method == results.baseline].append(f"{method} on {task} ({dead[0]})")
    advice = "Check the labels, and try another `optimizer.lr`, scaled inputs or another encoder."
    if found[True]:
        yield f"{DEAD_BASELINE}: {_listed(found[True])}. Changes against it mean nothing. {advice}"
    if found[False]:
        yield f"A constant prediction is as good as {_listed(found[False])}. {advice}"


def _constant_figure(entry: Mapping[str, Any]) -> str:
    """Return the figure by which a task's test is that of a constant prediction, in words; "" if none is."""
    metric, chance, words = _CONSTANT.get(entry.get("kind", ""), ("", 0.0, ""))
    value = entry.get("test", {}).get(metric)
    if value is None or (chance is None and not entry.get("classes")):
        return ""
    level = 1 / len(entry["classes"]) if chance is None else chance
    return f"test {metric} {value:.3g}, {words} {level:.3g}" if value <= level + _MARGIN * (1 - level) else ""


_CONSTANT: Mapping[str, tuple[str, float | None, str]] = {
    "Classification": ("recall_macro", None, "by chance"),
    "Regression": ("r2", 0.0, "at the labels' variance"),
}
"""Kind of task -> metric whose value a constant prediction determines, the value (None: 1 / classes), and its name."""


def _one_split(results: StudyResults, best: StudyResults, runs: _Runs) -> Iterator[str]:
    """Yield that all seeds of a method have one split of the data."""
    if runs.folder is None or best.frame["seed"].nunique() < 2:
        return
    sections = [_section(runs.run(name), "data") for name in best.frame["run"].unique()]
    fixed = {section["seed"] for section in sections if section and section.get("seed") is not None}
    without = {str(section.get("name")) for section in sections if section and "seed" not in section}
    so = "deviations and intervals are those of initialisation and batch order only, and too small"
    if fixed:
        values = ", ".join(map(str, sorted(fixed)))
        yield f"All seeds have the same split (`data.seed: {values}`): {so}. Set `data.seed: null`, a split per seed."
    if without:
        yield f"All seeds have the same split ({', '.join(sorted(without))} has no `seed`): {so}."


def _few_seeds(results: StudyResults, best: StudyResults, runs: _Runs) -> Iterator[str]:
    """Yield the settings with too few seeds."""
    counts = best.frame[best.frame["split"] == "test"].groupby("setting")["seed"].nunique()
    few = {str(method): int(counts.get(setting, 0)) for setting, method in best.settings["method"].items()}
    few = {method: count for method, count in few.items() if count < _FEWEST_SEEDS}
    if few:
        everyone = len(few) == len(best.settings) and len(set(few.values())) == 1
        which = "Every method" if everyone else _listed(few)
        counted = ", ".join(str(count) for count in dict.fromkeys(few.values()))
        yield (
            f"{which} has fewer than {_FEWEST_SEEDS} seeds ({counted}): chance can decide. Give more `seeds`; five "
            "halve the interval of three."
        )


def _last_epochs(results: StudyResults, best: StudyResults, runs: _Runs) -> Iterator[str]:
    """Yield the settings whose best epoch is the last one in more than half of the runs."""
    late, epochs = {}, set()
    for setting, method in best.settings["method"].items():
        summaries = runs.summaries(best, str(setting)).values()
        ended = [s for s in summaries if any(_ends_best(entry, s) for entry in s["tasks"].values())]
        if 2 * len(ended) > len(summaries):
            late[method] = f"{method} ({len(ended)} of {_runs(len(summaries))})"
            epochs |= {summary["epochs"] for summary in ended}
    if late:
        trained = f"{min(epochs)} to {max(epochs)}" if len(epochs) > 1 else str(*epochs)
        yield (
            f"The best epoch is the last one: {_listed(late.values())}. Longer training may change the order: raise "
            f"`training.epochs` above {trained}."
        )


def _ends_best(entry: Mapping[str, Any], summary: Mapping[str, Any]) -> bool:
    """Return True if the best epoch of a task is the last one of its run."""
    return entry.get("best_epoch") is not None and entry["best_epoch"] == summary.get("epochs")


def _grid_ends(results: StudyResults, best: StudyResults, runs: _Runs) -> Iterator[str]:
    """Yield the chosen values that are the smallest or largest of their grid; a search draws values, and has none."""
    if results.objectives:
        return
    chosen = tuned_settings(results) if results.tuned else best
    for key in results.grid:
        shown = chosen if key in results.tuned else best
        ends: dict[str, list[str]] = {}
        for setting, row in shown.settings.iterrows():
            values = results.settings.loc[results.settings["method"] == row["method"], key].dropna().unique().tolist()
            side = _end(key, row[key], values)
            if side:
                tried = ", ".join(map(plain, sorted(values)))
                ends.setdefault(f"`{key}` {plain(row[key])}, the {side} of {tried}", []).append(
                    _name(shown, str(setting))
                )
        for end, settings in ends.items():
            more = "smaller" if "the smallest of" in end else "larger"
            yield f"The best value is at the end of its grid: {end}, for {_listed(settings)}. Add {more} values."


def _end(key: str, value: Any, values: Sequence[Any]) -> str:
    """Return "smallest" or "largest" if a value ends its grid and could be exceeded; "" otherwise."""
    numbers = [v for v in values if type(v) in (int, float)]
    if len(numbers) < 2 or len(numbers) < len(values) or value != value:
        return ""
    if value == min(numbers):
        return "" if value == 0 else "smallest"
    bounded = key.rpartition(".")[2] in _FRACTIONS
    return "largest" if value == max(numbers) and not (bounded and value == 1) else ""


def _uncertain(results: StudyResults, best: StudyResults, runs: _Runs) -> Iterator[str]:
    """Yield the settings whose Δm is not shown to differ from the baseline's, and the winner's from the next one's."""
    if results.baseline not in set(best.settings["method"]):
        return
    try:
        found = [interval for interval in intervals(best) if not math.isnan(interval.low)]
    except MissingExtraError:
        return  # an install without scipy has figures without intervals
    within = [_interval_text(best, interval) for interval in found if interval.holds_zero]
    if within:
        yield (
            f"No difference from {results.baseline} is shown for {_listed(within)}: the {_level(found)} interval of Δm "
            "holds zero. More `seeds` make it narrower."
        )
    ordered = sorted(found, key=lambda interval: -interval.mean)
    if len(ordered) > 1:
        first, second = ordered[0].setting, ordered[1].setting
        (gap,) = [i for i in intervals(best, against=second) if i.setting == first]
        if not math.isnan(gap.low) and gap.holds_zero:
            yield (
                f"The order of the best two is not shown: the {_level(found)} interval of their difference holds zero, "
                f"{_interval_text(best, gap)} against {_name(best, second)}. More `seeds` make it narrower."
            )


def _name(results: StudyResults, setting: str) -> str:
    """Return the method of a setting, with its values in brackets where the method has several settings."""
    method = str(results.settings["method"][setting])
    alone = (results.settings["method"] == method).sum() == 1
    return method if alone else f"{method} ({setting.removeprefix(method).lstrip(', ')})"


def _interval_text(results: StudyResults, interval: Interval) -> str:
    low, high = (f"{bound:+.2f}".replace("-", "\N{MINUS SIGN}") for bound in (interval.low, interval.high))
    return f"{_name(results, interval.setting)} ({low} to {high} %)"


def _level(found: list[Interval]) -> str:
    return f"{100 * found[0].level:g} %"


def _unlike_losses(results: StudyResults, best: StudyResults, runs: _Runs) -> Iterator[str]:
    """Yield the methods that add the losses of jointly trained tasks although one of them outweighs another."""
    found: dict[str, str] = {}
    for setting, method in best.settings["method"].items():
        for name, summary in list(runs.summaries(best, str(setting)).items())[:1]:
            plain_sum = summary.get("axes", {}).get("balancing") == "mean" and not summary.get("independent_tasks")
            losses = _first_losses(runs.run(name)) if plain_sum and len(summary["tasks"]) > 1 else {}
            positive = {task: loss for task, loss in losses.items() if loss > 0}
            if len(positive) < 2 or _section(runs.run(name), "weights"):
                continue
            low, high = min(positive, key=positive.__getitem__), max(positive, key=positive.__getitem__)
            if positive[high] > _UNLIKE * positive[low]:
                found[method] = f"{high} {positive[high]:.3g}, {low} {positive[low]:.3g}"
    if found:
        first = next(iter(found))
        yield (
            f"Losses of unlike scale are added by {_listed(found)} (first epoch of {first}: {found[first]}): the "
            "larger one decides alone. Set `weights`, or a balancer such as `balancing: uncertainty`."
        )


def _first_losses(run: RunFolder) -> dict[str, float]:
    """Return task -> training loss of the first epoch, without reading the epochs after it."""
    if not run.metrics.is_file():
        return {}
    losses: dict[str, float] = {}
    try:
        with run.metrics.open(newline="", encoding="utf-8") as file:
            first = None
            for row in csv.DictReader(file):
                first = first or row["epoch"]
                if row["epoch"] != first:
                    break
                if row["split"] == "train" and row["metric"] == "loss" and row["task"]:
                    losses[row["task"]] = float(row["value"])
    except (KeyError, TypeError, ValueError, csv.Error):
        return {}  # the report, which reads the whole file, names the damage
    return losses


def _section(run: RunFolder, key: str) -> dict[str, Any]:
    """Return a section of a run's configuration; empty if there is none. The other sections are not parsed."""
    text = run.config.read_text(encoding="utf-8") if run.config.is_file() else ""
    found = re.search(rf"^{key}:.*(?:\n[ -].*)*", text, re.MULTILINE)
    section = parse_yaml(found[0], str(run.config))[key] if found else None
    return section if isinstance(section, dict) else {}


def _listed(words: Iterable[str]) -> str:
    """Join words; more than five are counted."""
    names = list(words)
    if len(names) > 5:
        return f"{', '.join(names[:4])} and {len(names) - 4} more"
    return " and ".join(filter(None, chain([", ".join(names[:-1])], names[-1:])))


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"
