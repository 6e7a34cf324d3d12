"""Results of a study: mean and deviation over seeds, ranks, gains over the baseline, and selection by validation.

Results are one long frame with a row per run, task, split and metric (`results.csv` of a study). A *setting* is a
method with its values of the grid: "fisher, keep 0.3".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from sparsemtl.errors import CheckpointError, ParameterError, missing_extra, unknown_name
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.study.figures import SplitFigures, Spread, spread
from sparsemtl.views.tables import MISSING, Table, Value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sparsemtl.study.statistics import Friedman, Interval, Pair
    from sparsemtl.study.tables import StudyTable

COLUMNS = ("run", "method", "seed", "split", "task", "metric", "higher_is_better", "value")
"""Columns of every frame of results; any other column is a key of the grid."""
DELTA = "Δm %"


def read_results(path: str | Path | TextIO) -> pd.DataFrame:
    """Read a study's `results.csv`, or an open file with its text.

    Raises:
        CheckpointError: if the file is missing, empty or no table.
    """
    pandas = _pandas()
    try:
        # Only an empty cell is missing: a task may be called "NA".
        frame: pd.DataFrame = pandas.read_csv(
            path, keep_default_na=False, na_values=[""], dtype={"run": str, "method": str, "task": str}
        )
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist. A study writes it at its end; resume it with the same `sparsemtl study` command."
        ) from None
    except ValueError as error:  # pandas' own parser errors are ValueErrors
        raise CheckpointError(f"{path} is not a table of results: {error}.") from None
    return frame


@dataclass(frozen=True)
class StudyResults:
    """Figures of a study, checked and in order; made by `StudyResults.of`.

    Attributes:
        frame: the rows, with a column `setting` beside `COLUMNS` and those of the grid; figures of a run have task "".
        settings: one row per setting, by its label, in the order of the rows of tables; columns are the method and the
            keys of the grid.
        grid: keys of the grid.
        primary: task -> its primary metric.
        baseline: method that Δm compares with and ranks leave out, or None.
        tuned: key of the grid whose value validation chooses -> its values.
        folders: study folders that the figures were read from.
        objectives: names of the objectives of a search.
    """

    frame: pd.DataFrame
    settings: pd.DataFrame
    grid: tuple[str, ...]
    primary: Mapping[str, str]
    baseline: str | None
    tuned: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    objectives: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        *,
        baseline: str | None = None,
        methods: Sequence[str] = (),
        primary: Mapping[str, str] | None = None,
        tuned: Sequence[str] = (),
    ) -> StudyResults:
        """Check and order a frame of results.

        Args:
            frame: columns `COLUMNS`, and one per key of the grid; values that are not finite count as missing.
            baseline: name of the baseline.
            methods: order of the methods; others follow in order of appearance.
            primary: task -> primary metric; by default the first one in the frame that is not the loss.
            tuned: keys of the grid whose value validation chooses for every row of a table.

        Raises:
            ParameterError: if a column is missing, a setting has a figure of one seed twice, or `tuned` names no key.
        """
        pandas = _pandas()
        for column in COLUMNS:
            if column not in frame:
                raise ParameterError(f"expected the column {column!r} in results, found {', '.join(map(str, frame))}.")
        grid = tuple(str(column) for column in frame if column not in (*COLUMNS, "setting"))
        value = pandas.to_numeric(frame["value"], errors="coerce").replace([math.inf, -math.inf], math.nan)
        frame = frame.assign(task=frame["task"].fillna(""), value=value, setting=_labels(frame, grid))
        _refuse_duplicates(frame)
        judges = {
            str(task): (primary or {}).get(str(task)) or _first_metric(rows["metric"])
            for task, rows in frame[frame["task"] != ""].groupby("task", sort=False)
        }
        for key in tuned:
            if key not in grid:
                raise ParameterError(unknown_name("key of the grid", key, grid))
        settings = _settings(frame, methods, grid)
        values = {key: tuple(sorted(settings[key].dropna().unique())) for key in tuned}
        return cls(frame, settings, grid, judges, baseline, values)

    @classmethod
    def read(cls, *folders: str | Path, baseline: str | None = None) -> StudyResults:
        """Read the results of the finished runs of one study, or of several.

        Several studies are several data sets: a task is called `<study>: <task>`, and every method stands with the
        setting that was best on the validation data of each study.

        Args:
            folders: study folders.
            baseline: baseline in place of the studies' own.

        Raises:
            CheckpointError: if a folder is no study, or a file of it is missing or damaged.
            ParameterError: if there is no folder, two studies have one name, the baselines differ or none has
                `baseline`.
        """
        from sparsemtl.study.reading import read_studies

        return read_studies([StudyFolder(folder) for folder in folders], baseline)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks, in the order of the rows."""
        return tuple(self.primary)

    @cached_property
    def common(self) -> tuple[str, ...]:
        """Tasks of which every setting has rows; means over tasks are over these, so that they compare."""
        count = self.frame.groupby("task")["setting"].nunique()
        return tuple(task for task in self.tasks if count.get(task) == len(self.settings))

    def higher_is_better(self, task: str, metric: str) -> bool:
        """Return the direction of a task's metric.

        Raises:
            ParameterError: if the frame does not have it.
        """
        if (task, metric) not in self._directions:
            raise ParameterError(
                f"expected `higher_is_better` of metric {metric!r} of task {task!r} in results, found none."
            )
        return self._directions[task, metric]

    @cached_property
    def _gains(self) -> dict[str, pd.DataFrame]:
        """Split -> gains per seed, computed at their first use: tables and reports read them many times."""
        return {}

    @cached_property
    def _splits(self) -> dict[str, SplitFigures]:
        """Split -> its figures, collected at their first use."""
        return {}

    @cached_property
    def _of_runs(self) -> Spread:
        """Figures of whole runs, one column per metric."""
        frame = self.frame
        values = frame[frame["task"] == ""].groupby(["setting", "seed", "metric"])["value"].mean().unstack("metric")
        return spread(values, self.settings)

    @cached_property
    def _best(self) -> StudyResults:
        return _selected(tuned_settings(self), ["method"])

    @cached_property
    def _directions(self) -> dict[tuple[str, str], bool]:
        """(task, metric) -> whether higher is better, as far as the frame has it."""
        rows = self.frame.dropna(subset=["higher_is_better"]).drop_duplicates(["task", "metric"])
        values = rows["higher_is_better"].astype(str).str.lower().isin(["true", "1", "1.0"])
        return dict(zip(zip(rows["task"], rows["metric"], strict=True), values, strict=True))

    def only(self, settings: Iterable[str]) -> StudyResults:
        """Return the results of these settings, and of the tasks that one of them has."""
        chosen = list(settings)
        frame = self.frame[self.frame["setting"].isin(chosen)]
        there = set(frame["task"])
        primary = {task: metric for task, metric in self.primary.items() if task in there}
        return replace(self, frame=frame, settings=self.settings.loc[chosen], primary=primary)

    def _repr_html_(self) -> str:
        """Return the primary metrics on test data as a table, for notebooks."""
        figures = task_level(self, self.primary, "test")
        rows: list[list[Value]] = [
            [str(label), *(_mean_and_std(figures, label, task) for task in self.tasks), int(figures.n.loc[label].max())]
            for label in self.settings.index
        ]
        head = ["setting", *(f"{task}: {metric}" for task, metric in self.primary.items()), "seeds"]
        return Table(head, rows, "Test data, mean ± standard deviation over seeds").html()

    def best(self) -> StudyResults:
        """Return the results of one setting per method: the best one on validation data; see `best_settings`."""
        return best_settings(self)

    def table(self, metric: str | None = None, *, split: str = "test") -> StudyTable:
        """Return the table of settings against tasks, with ranks and Δm.

        Args:
            metric: a metric, of all tasks that have it; by default the primary metric of every task.
            split: `test` or `validation`.

        Raises:
            ParameterError: if no task has the metric.
        """
        from sparsemtl.study import tables

        if metric is None:
            return tables.primary_table(self, split)
        return tables.metric_table(self, metric, split)

    def friedman(self, *, level: float = 0.95, baseline: bool = False) -> Friedman:
        """Return the Friedman test over tasks and seeds, with Nemenyi's critical difference; see `study.statistics`."""
        from sparsemtl.study import statistics

        return statistics.friedman(self, level=level, baseline=baseline)

    def pairs(self, *, baseline: bool = False) -> list[Pair]:
        """Return Wilcoxon's signed-rank test of every two settings, with Holm's correction."""
        from sparsemtl.study import statistics

        return statistics.pairs(self, baseline=baseline)

    def intervals(
        self, *, against: str | None = None, level: float = 0.95, method: Literal["t", "bootstrap"] = "t"
    ) -> list[Interval]:
        """Return the confidence interval of every setting's Δm, paired by seed."""
        from sparsemtl.study import statistics

        return statistics.intervals(self, against=against, level=level, method=method)

    def profiles(self) -> pd.DataFrame:
        """Return performance profiles: setting -> fraction of tasks and seeds within a distance of the best, in %."""
        from sparsemtl.study import statistics

        return statistics.profiles(self)

    def warnings(self) -> list[str]:
        """Return why the evidence of the study is weak, and what to do; empty if nothing was found.

        Results of a frame, without study folders, are judged by their figures alone.
        """
        from sparsemtl.study.evidence import weak_points

        return weak_points(self)

    def summary(self) -> str:
        """Return the table of one setting per method, intervals, tests, and `warnings` as text."""
        from sparsemtl.study.summary import summary_text

        return summary_text(self)

    def plot(self, what: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw every setting on test data, and return the axes.

        Args:
            what: a task, for its primary metric; by default Δm, the mean change against the baseline in %; or `ranks`
                (critical-difference diagram), `profiles` (performance profiles) or `tasks` (bars per task, all of one
                metric). A task of one of these names is drawn as a task.
            ax: axes of matplotlib; by default those of a new figure.

        Raises:
            ParameterError: if there is no such task, no baseline and no task, or too little to compare.
            MissingExtraError: if matplotlib, or scipy for `ranks`, is not installed.
        """
        from sparsemtl.study.plots import draw

        return draw(self, what, ax)


def per_seed(results: StudyResults, metrics: Mapping[str, str], split: str) -> pd.DataFrame:
    """Return figures by (setting, seed), one column per task.

    Args:
        results: the study's results.
        metrics: task -> its metric.
        split: `validation` or `test`.
    """
    return _figures(results, split).per_seed(metrics)


def task_level(results: StudyResults, metrics: Mapping[str, str], split: str) -> Spread:
    """Return the `spread` of `per_seed`, one row per setting and one column per task."""
    return _figures(results, split).per_setting(metrics)


def _figures(results: StudyResults, split: str) -> SplitFigures:
    """Return the figures of a split, which the results keep."""
    if split not in results._splits:
        frame = results.frame
        results._splits[split] = SplitFigures.of(frame[frame["split"] == split], results.settings)
    return results._splits[split]


def run_level(results: StudyResults, metric: str = "seconds") -> Spread:
    """Return a figure of whole runs, such as their time, in the column `metric`."""
    whole = results._of_runs
    mean, std, n = (part.reindex(columns=[metric]) for part in (whole.mean, whole.std, whole.n))
    return Spread(mean, std, n.fillna(0).astype(int))


def best_settings(results: StudyResults) -> StudyResults:
    """Return the results of one setting per method: the one with the best validation figures.

    Settings of a method are compared by the mean over tasks of (M - R) / |R|, signed so that higher is better, where M
    is a setting's mean primary metric on validation data and R the mean of M over the method's settings. Test figures
    have no influence. A setting without a figure of a task loses to all that have one; of equal settings the first one
    wins.

    Raises:
        ParameterError: if a method has several settings and no validation figures.
    """
    return results._best


def tuned_settings(results: StudyResults) -> StudyResults:
    """Return the results with one value of every tuned key per method and value of the other keys, by validation.

    Settings that differ in tuned keys alone are compared as `best_settings` compares those of a method.

    Raises:
        ParameterError: if there are several and no validation figures.
    """
    if not results.tuned:
        return results
    return _selected(results, ["method", *(key for key in results.grid if key not in results.tuned)])


def _selected(results: StudyResults, same: list[str]) -> StudyResults:
    """Return the results of the best setting, by validation, of every group with equal values in the columns `same`."""
    figures = task_level(results, results.primary, "validation")
    groups = results.settings.groupby(same, sort=False, dropna=False)
    winners = {_winner(results, figures, group) for _, group in groups}
    return results.only(label for label in results.settings.index if label in winners)


def _winner(results: StudyResults, figures: Spread, group: pd.DataFrame) -> str:
    """Return the setting of a group with the best validation figures."""
    if len(group) == 1:
        return str(group.index[0])
    sign = signs(results)
    own = figures.mean.loc[group.index].dropna(axis=1, how="all")
    if own.empty:
        raise ParameterError(
            f"method {group['method'].iloc[0]!r} has {len(group)} settings and no validation figures to select by; "
            "test figures must not select."
        )
    reference = own.mean()
    scale = reference.abs().where(reference != 0, own.abs().mean())
    merit = sign[own.columns] * (own - reference) / scale.where(scale != 0, 1.0)
    seeds = figures.n.loc[group.index, own.columns]
    whole = merit.mean(axis=1, skipna=False).where((seeds == seeds.max()).all(axis=1))
    return str((merit.mean(axis=1) if whole.isna().all() else whole).fillna(-math.inf).idxmax())


def gains(results: StudyResults, split: str = "test") -> Spread:
    """Return the change of every task's primary metric against the baseline, in %, and Δm, their mean.

    100 * (M - M_STL) / |M_STL|, signed so that positive is better; over the seeds that both have, or from the means,
    without deviation, where they have none in common. Δm is over the tasks in `StudyResults.common`; it is missing if
    the gain of one of them is. The baseline's own row is missing, and all rows without a baseline. Of a baseline with
    several settings, the one that validation selects counts.
    """
    return spread(gains_per_seed(results, split), results.settings)


def gains_per_seed(results: StudyResults, split: str = "test") -> pd.DataFrame:
    """Return the changes of `gains` by (setting, seed); one row per setting where the seeds are not paired."""
    if split not in results._gains:
        results._gains[split] = _gains_per_seed(results, split)
    return results._gains[split].copy()


def _gains_per_seed(results: StudyResults, split: str) -> pd.DataFrame:
    pandas = _pandas()
    values = per_seed(results, results.primary, split)
    parts = {}
    reference = _reference(results)
    base = values.loc[values.index.get_level_values("setting") == reference].droplevel("setting")
    for setting, rows in values.groupby(level="setting"):
        if str(setting) == reference or base.empty:
            continue
        own = rows.droplevel("setting")
        common = own.index.intersection(base.index)
        own, against = (own.loc[common], base.loc[common]) if len(common) else (own.mean().to_frame().T, base.mean())
        size = against.abs().replace(0, math.nan)
        parts[str(setting)] = 100 * signs(results) * (own - against) / size
    columns = list(results.primary)
    frame: pd.DataFrame = pandas.concat(parts, names=["setting", "seed"]) if parts else values.iloc[:0]
    frame = frame.reindex(columns=columns)
    frame[DELTA] = frame[list(results.common)].mean(axis=1, skipna=False)
    return frame


def ranks(results: StudyResults, mean: pd.DataFrame, higher: Mapping[str, bool]) -> pd.DataFrame:
    """Return the rank of every setting per column, 1 is best; ties have the mean rank, baseline and gaps have none.

    Args:
        results: the study's results.
        mean: figures, one row per setting.
        higher: column -> whether higher is better.
    """
    entrants = results.settings.index[results.settings["method"] != results.baseline]
    # Means of the same numbers in another order differ in their last bits; they count as ties.
    figures = {column: mean.loc[entrants, column].map(lambda value: float(f"{value:.12g}")) for column in higher}
    ranked = {column: figures[column].rank(ascending=not up) for column, up in higher.items()}
    frame: pd.DataFrame = _pandas().DataFrame(ranked).reindex(mean.index)
    return frame


def _mean_and_std(figures: Spread, label: Any, task: str) -> str:
    mean, std = float(figures.mean.loc[label, task]), float(figures.std.loc[label, task])
    return MISSING if math.isnan(mean) else f"{mean:.4g}" + ("" if math.isnan(std) else f" ± {std:.2g}")


def _reference(results: StudyResults) -> str | None:
    own = results.settings.index[results.settings["method"] == results.baseline]
    if len(own) < 2:
        return None if own.empty else str(own[0])
    return str(best_settings(results.only(own)).settings.index[0])


def signs(results: StudyResults) -> pd.Series[float]:
    """Return task -> 1 if higher is better of its primary metric, else -1."""
    series: pd.Series[float] = _pandas().Series(
        {task: 1.0 if results.higher_is_better(task, m) else -1.0 for task, m in results.primary.items()}, dtype=float
    )
    return series


def _labels(frame: pd.DataFrame, grid: Sequence[str]) -> list[str]:
    short = [key.rsplit(".", 1)[-1] for key in grid]
    words = [name if short.count(name) == 1 else key for name, key in zip(short, grid, strict=True)]
    return [
        ", ".join([str(method), *(f"{word} {plain(v)}" for word, v in zip(words, row, strict=True) if v == v)])
        for method, *row in frame[["method", *grid]].itertuples(index=False)
    ]


def plain(value: Any) -> str:
    """Return the text of a value of the grid: a whole number without a point, even from a column of floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _first_metric(metrics: Iterable[str]) -> str:
    names = list(dict.fromkeys(metrics))
    return next((name for name in names if name != "loss"), names[0])


def _settings(frame: pd.DataFrame, methods: Sequence[str], grid: Sequence[str]) -> pd.DataFrame:
    pandas = _pandas()
    settings = frame.drop_duplicates("setting").set_index("setting")[["method", *grid]]
    index = {method: i for i, method in enumerate(dict.fromkeys([*methods, *settings["method"]]))}
    order = settings.assign(method=settings["method"].map(index))
    for key in grid:
        if not pandas.api.types.is_numeric_dtype(order[key]):
            order[key] = pandas.factorize(order[key])[0]
    return settings.loc[order.sort_values(["method", *grid]).index]


def _refuse_duplicates(frame: pd.DataFrame) -> None:
    duplicates = frame[frame.duplicated(["setting", "seed", "split", "task", "metric"], keep=False)]
    if len(duplicates):
        first = duplicates.iloc[0]
        raise ParameterError(
            f"expected one value of {first['metric']!r} of task {first['task']!r} ({first['split']}), found more "
            f"for {first['setting']!r}, seed {first['seed']}: see run {duplicates.iloc[-1]['run']!r}."
        )


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise missing_extra("pandas", "report", "Reading a study's results") from None
    return pandas
