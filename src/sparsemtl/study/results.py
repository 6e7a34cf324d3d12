"""Results of a study: mean and deviation over seeds, ranks, gains over the baseline, and selection by validation.

Results are one long frame with a row per run, task, split and metric (`results.csv` of a study). A *setting* is a
method with its values of the grid: "fisher, keep 0.3".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemtl.errors import CheckpointError, ParameterError, missing_extra, unknown_name
from sparsemtl.views.plots import Gain, axes_or_new, draw_bars, draw_gains
from sparsemtl.views.tables import MISSING, Table, Value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLUMNS = ("run", "method", "seed", "split", "task", "metric", "higher_is_better", "value")
"""Columns of every frame of results; any other column is a key of the grid."""
DELTA = "Δm %"


def read_results(path: str | Path) -> pd.DataFrame:
    """Read a study's `results.csv`.

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
    """

    frame: pd.DataFrame
    settings: pd.DataFrame
    grid: tuple[str, ...]
    primary: Mapping[str, str]
    baseline: str | None

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        *,
        baseline: str | None = None,
        methods: Sequence[str] = (),
        primary: Mapping[str, str] | None = None,
    ) -> StudyResults:
        """Check and order a frame of results.

        Args:
            frame: columns `COLUMNS`, and one per key of the grid; values that are not finite count as missing.
            baseline: name of the baseline.
            methods: order of the methods; others follow in order of appearance.
            primary: task -> primary metric; by default the first one in the frame that is not the loss.

        Raises:
            ParameterError: if a column is missing, or a setting has a figure of one seed twice.
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
        return cls(frame, _settings(frame, methods, grid), grid, judges, baseline)

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
        figures = spread(per_seed(self, self.primary, "test"), self.settings)
        rows: list[list[Value]] = [
            [str(label), *(_mean_and_std(figures, label, task) for task in self.tasks), int(figures.n.loc[label].max())]
            for label in self.settings.index
        ]
        head = ["setting", *(f"{task}: {metric}" for task, metric in self.primary.items()), "seeds"]
        return Table(head, rows, "Test data, mean ± standard deviation over seeds").html()

    def plot(self, task: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw every setting on test data, mean and standard deviation over seeds, and return the axes.

        Args:
            task: a task, whose primary metric is drawn; by default Δm, the mean change against the baseline in %.
            ax: axes of matplotlib; by default those of a new figure.

        Raises:
            ParameterError: if there is no such task, or no baseline and no task.
            MissingExtraError: if matplotlib is not installed.
        """
        return _draw_changes(self, ax) if task is None else _draw_task(self, task, ax)


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (ddof 1) and number of seeds; one row per setting, one column per task."""

    mean: pd.DataFrame
    std: pd.DataFrame
    n: pd.DataFrame


def spread(values: pd.DataFrame, settings: pd.DataFrame) -> Spread:
    """Return mean and deviation over seeds of values indexed by (setting, seed); missing values are left out."""
    groups = values.groupby(level="setting")
    labels = settings.index
    n = groups.count().reindex(labels).fillna(0).astype(int)
    return Spread(groups.mean().reindex(labels), groups.std().reindex(labels), n)


def per_seed(results: StudyResults, metrics: Mapping[str, str], split: str) -> pd.DataFrame:
    """Return figures by (setting, seed), one column per task.

    Args:
        results: the study's results.
        metrics: task -> its metric.
        split: `validation` or `test`.
    """
    frame = results.frame
    rows = frame[(frame["split"] == split) & (frame["metric"] == frame["task"].map(metrics))]
    return rows.pivot(index=["setting", "seed"], columns="task", values="value").reindex(columns=list(metrics))


def run_level(results: StudyResults, metric: str = "seconds") -> Spread:
    """Return a figure of whole runs, such as their time, in the column `metric`."""
    frame = results.frame
    rows = frame[(frame["task"] == "") & (frame["metric"] == metric)]
    values = rows.groupby(["setting", "seed"])[["value"]].mean().rename(columns={"value": metric})
    return spread(values, results.settings)


def best_settings(results: StudyResults) -> StudyResults:
    """Return the results of one setting per method: the one with the best validation figures.

    Settings of a method are compared by the mean over tasks of (M - R) / |R|, signed so that higher is better, where M
    is a setting's mean primary metric on validation data and R the mean of M over the method's settings. Test figures
    have no influence. A setting without a figure of a task loses to all that have one; of equal settings the first one
    wins.

    Raises:
        ParameterError: if a method has several settings and no validation figures.
    """
    figures = spread(per_seed(results, results.primary, "validation"), results.settings)
    sign = _signs(results)
    winners = []
    for method, group in results.settings.groupby("method", sort=False):
        winner = group.index[0]
        if len(group) > 1:
            own = figures.mean.loc[group.index].dropna(axis=1, how="all")
            if own.empty:
                raise ParameterError(
                    f"method {method!r} has {len(group)} settings and no validation figures to select by; test "
                    "figures must not select."
                )
            reference = own.mean()
            scale = reference.abs().where(reference != 0, own.abs().mean())
            merit = sign[own.columns] * (own - reference) / scale.where(scale != 0, 1.0)
            seeds = figures.n.loc[group.index, own.columns]
            whole = merit.mean(axis=1, skipna=False).where((seeds == seeds.max()).all(axis=1))
            winner = (merit.mean(axis=1) if whole.isna().all() else whole).fillna(-math.inf).idxmax()
        winners.append(winner)
    return results.only(label for label in results.settings.index if label in winners)


def gains(results: StudyResults, split: str = "test") -> Spread:
    """Return the change of every task's primary metric against the baseline, in %, and Δm, their mean.

    100 * (M - M_STL) / |M_STL|, signed so that positive is better; per seed if the baseline has a run of every seed of
    the setting, else from the means, without deviation. Δm is over the tasks in `StudyResults.common`; it is missing if
    the gain of one of them is. The baseline's own row is missing, and all rows without a baseline. Of a baseline with
    several settings, the one that validation selects counts.
    """
    pandas = _pandas()
    values = per_seed(results, results.primary, split)
    parts = {}
    reference = _reference(results)
    base = values.loc[values.index.get_level_values("setting") == reference].droplevel("setting")
    for setting, rows in values.groupby(level="setting"):
        if str(setting) == reference or base.empty:
            continue
        own = rows.droplevel("setting")
        paired = bool(own.index.isin(base.index).all())
        own = own if paired else own.mean().to_frame().T
        against = base.loc[own.index] if paired else base.mean()
        size = against.abs().replace(0, math.nan)
        parts[str(setting)] = 100 * _signs(results) * (own - against) / size
    columns = list(results.primary)
    frame = pandas.concat(parts, names=["setting", "seed"]) if parts else values.iloc[:0]
    frame = frame.reindex(columns=columns)
    frame[DELTA] = frame[list(results.common)].mean(axis=1, skipna=False)
    return spread(frame, results.settings)


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
    figures = spread(per_seed(results, results.primary, "test"), results.settings)
    labels = list(map(str, results.settings.index))
    ax = axes_or_new(ax, height=1.0 + 0.4 * len(labels))
    draw_bars(ax, labels, figures.mean[task].tolist(), errors=figures.std[task].tolist())
    ax.set_xlabel(f"{results.primary[task]} of {task}")
    return ax


def _reference(results: StudyResults) -> str | None:
    own = results.settings.index[results.settings["method"] == results.baseline]
    return None if own.empty else str(best_settings(results.only(own)).settings.index[0])


def _signs(results: StudyResults) -> pd.Series[float]:
    signs = {task: 1.0 if results.higher_is_better(task, m) else -1.0 for task, m in results.primary.items()}
    series: pd.Series[float] = _pandas().Series(signs)
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
