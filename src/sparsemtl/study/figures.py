"""Figures of a study as arrays, from which tables and charts take theirs: searches in a long frame are slow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_Array = np.ndarray[Any, Any]


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


@dataclass(frozen=True)
class SplitFigures:
    """Figures of a split.

    Attributes:
        seeds: (setting, seed) of every row of the values.
        settings: settings, in the order of the rows of the spread.
        columns: (task, metric) -> its column in all arrays.
        values: (rows, columns), NaN where there is no figure.
        there: (rows, columns), True where the results have a row; its value may be NaN.
        spread: mean, deviation and number of seeds of the values, (settings, columns) each.
    """

    seeds: pd.Index
    settings: pd.Index
    columns: dict[tuple[str, str], int]
    values: _Array
    there: _Array
    spread: tuple[_Array, _Array, _Array]

    @classmethod
    def of(cls, frame: pd.DataFrame, settings: pd.DataFrame) -> SplitFigures:
        """Collect the figures of a long frame.

        Args:
            frame: the rows of a split, with the columns `setting`, `seed`, `task`, `metric` and `value`.
            settings: one row per setting, by its label.
        """
        import pandas as pd

        by_run = frame.groupby(["setting", "seed"], dropna=False)
        by_figure = frame.groupby(["task", "metric"], sort=False, dropna=False)
        seeds, columns = by_run.size().index, by_figure.size().index
        cell = by_run.ngroup().to_numpy(), by_figure.ngroup().to_numpy()
        values = np.full((len(seeds), len(columns)), math.nan)
        there = np.zeros(values.shape, dtype=bool)
        values[cell], there[cell] = frame["value"].to_numpy(dtype=float), True
        whole = spread(pd.DataFrame(values, index=seeds), settings)
        parts = (whole.mean.to_numpy(), whole.std.to_numpy(), whole.n.to_numpy())
        return cls(seeds, settings.index, {key: i for i, key in enumerate(columns)}, values, there, parts)

    def per_seed(self, metrics: Mapping[str, str]) -> pd.DataFrame:
        """Return figures by (setting, seed), one column per task; without the rows that have none of them.

        Args:
            metrics: task -> its metric.
        """
        known = [self.columns[figure] for figure in metrics.items() if figure in self.columns]
        rows: Any = self.there[:, known].any(axis=1)
        chosen: pd.DataFrame = self._chosen(self.values, metrics, self.seeds).loc[rows]
        return chosen

    def per_setting(self, metrics: Mapping[str, str]) -> Spread:
        """Return the `spread` of `per_seed`, one row per setting and one column per task."""
        mean, std, n = (self._chosen(part, metrics, self.settings) for part in self.spread)
        return Spread(mean, std, n.fillna(0).astype(int))

    def _chosen(self, array: _Array, metrics: Mapping[str, str], rows: pd.Index) -> pd.DataFrame:
        """Return columns of an array as a frame with one column per task; NaN for a task without its metric."""
        import pandas as pd

        chosen = np.full((len(metrics), len(rows)), math.nan)
        for i, figure in enumerate(metrics.items()):
            if figure in self.columns:
                chosen[i] = array[:, self.columns[figure]]
        return pd.DataFrame(chosen.T, index=rows, columns=pd.Index(list(metrics), name="task"))
