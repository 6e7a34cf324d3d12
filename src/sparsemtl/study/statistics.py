"""Statistical comparison of a study's methods over blocks, each a task with a seed.

Tests over data sets follow Demšar (JMLR 2006): the Friedman test with Nemenyi's critical difference, and Wilcoxon's
signed-rank test of every pair with Holm's correction. Blocks of one data set are not independent (tasks share inputs,
splits of several seeds overlap), so that p-values of one data set are too small: several data sets make them sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from sparsemtl.errors import ParameterError, missing_extra, unknown_name
from sparsemtl.study.results import DELTA, StudyResults, gains_per_seed, per_seed, signs
from sparsemtl.views.tables import Table, Value, Written

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["t", "bootstrap"]
"""Kind of a confidence interval."""


@dataclass(frozen=True)
class Friedman:
    """Friedman test of mean ranks.

    Attributes:
        ranks: setting -> mean rank over the blocks, the best one first; 1 is best, ties have the mean rank.
        blocks: number of blocks N.
        statistic: chi-square statistic, corrected for ties.
        p: its p-value, from the chi-square distribution with k - 1 degrees of freedom, k being the number of settings.
        f_statistic: statistic of Iman and Davenport, which is less conservative.
        f_p: its p-value, from the F distribution with k - 1 and (k - 1)(N - 1) degrees of freedom.
        level: confidence level of the critical difference.
        critical_difference: difference of mean ranks from which two settings differ (Nemenyi).
    """

    ranks: Mapping[str, float]
    blocks: int
    statistic: float
    p: float
    f_statistic: float
    f_p: float
    level: float
    critical_difference: float

    def groups(self) -> list[tuple[str, ...]]:
        """Return the largest groups of two settings or more whose mean ranks differ by less than the critical one."""
        names = list(self.ranks)
        found: list[tuple[str, ...]] = []
        for start, name in enumerate(names):
            near = [n for n in names[start:] if self.ranks[n] - self.ranks[name] < self.critical_difference]
            if len(near) > 1 and not (found and set(near) <= set(found[-1])):
                found.append(tuple(near))
        return found

    def __str__(self) -> str:
        return (
            f"Friedman test over {self.blocks} blocks: chi-square {self.statistic:.2f}, p {shown_p(self.p)}; "
            f"Iman and Davenport F {self.f_statistic:.2f}, p {shown_p(self.f_p)}. Critical difference of mean ranks "
            f"(Nemenyi, {100 * self.level:g} %): {self.critical_difference:.2f}."
        )


@dataclass(frozen=True)
class Pair:
    """Wilcoxon signed-rank test of two settings over the blocks, two-sided.

    Attributes:
        first, second: the settings.
        wins, ties, losses: numbers of blocks in which the first one is better, equal, worse.
        difference: median difference of the first to the second one in % of the reference; positive is better.
        p: p-value of this pair alone.
        holm: p-value corrected for all pairs (Holm 1979).
    """

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    difference: float
    p: float
    holm: float


@dataclass(frozen=True)
class Interval:
    """Confidence interval of the mean of Δm over seeds, in %.

    Attributes:
        setting: the setting.
        against: the setting that it is compared with, seed by seed.
        mean: mean of Δm.
        low, high: bounds; NaN with fewer than two seeds that both have.
        seeds: number of seeds n.
        level: confidence level.
        method: `t` (Student's t with n - 1 degrees of freedom) or `bootstrap` (BCa).
    """

    setting: str
    against: str
    mean: float
    low: float
    high: float
    seeds: int
    level: float
    method: Method

    @property
    def holds_zero(self) -> bool:
        """True if no difference is in the interval, or the interval is unknown."""
        return not (self.low > 0 or self.high < 0)


def blocks(results: StudyResults, *, baseline: bool = False) -> pd.DataFrame:
    """Return test figures by (task, seed), one column per setting; higher is better.

    Figures are in % of the size of the task's mean over seeds: that of the baseline, or of all settings where there is
    no baseline. A block in which a setting lacks its figure is left out.

    Args:
        results: results of a study, of one setting per method or all.
        baseline: keep the baseline as a column; published ranks leave it out.

    Raises:
        ParameterError: if fewer than two settings or no whole block are left.
    """
    import pandas as pd

    values = per_seed(results, results.primary, "test")
    own = results.settings.index[results.settings["method"] == results.baseline]
    there = values.loc[values.index.get_level_values("setting").isin(own)] if len(own) else values
    size = there.mean().abs().fillna(values.mean().abs())
    scaled = 100 * values * signs(results) / size.where(size > 0, 1.0)
    settings = [s for s in results.settings.index if baseline or s not in own]
    if len(settings) < 2:
        raise ParameterError(
            f"a comparison needs two settings{'' if baseline else ' beside the baseline'}, found {len(settings)}."
        )
    by_task = {task: scaled[task].unstack("setting") for task in scaled}
    wide = pd.concat(by_task, names=["task"]).reindex(columns=settings).dropna()
    whole: pd.DataFrame = wide.apply(
        lambda column: column.map(lambda value: float(f"{value:.12g}"))
    )  # equal figures are ties
    if whole.empty:
        raise ParameterError("there is no task and seed of which all settings have a test figure, so none is compared.")
    return whole


def friedman(results: StudyResults, *, level: float = 0.95, baseline: bool = False) -> Friedman:
    """Return the Friedman test of the settings over all tasks and seeds.

    Args:
        results: results of one or several studies.
        level: confidence level of the critical difference, in (0, 1).
        baseline: rank the baseline as well.

    Raises:
        ParameterError: if there are fewer than three settings or two blocks.
        MissingExtraError: if scipy is not installed.
    """
    _check_level(level)
    stats = _scipy_stats()
    figures = blocks(results, baseline=baseline)
    count, k = figures.shape
    if k < 3 or count < 2:
        raise ParameterError(
            f"the Friedman test needs three settings and two blocks (a task with a seed), found {k} and {count}. "
            "Two settings are compared by `pairs()`."
        )
    ranks = figures.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    equal = bool((figures.nunique(axis=1) == 1).all())  # which scipy divides by zero for
    statistic, p = (0.0, 1.0) if equal else map(float, stats.friedmanchisquare(*figures.to_numpy().T))
    rest = count * (k - 1) - statistic
    f_statistic = (count - 1) * statistic / rest if rest > 1e-9 * count else math.inf
    f_p = float(stats.f.sf(f_statistic, k - 1, (k - 1) * (count - 1)))
    critical = (
        float(stats.studentized_range.ppf(level, k, math.inf)) / math.sqrt(2) * math.sqrt(k * (k + 1) / 6 / count)
    )
    named = {str(name): float(rank) for name, rank in ranks.items()}
    return Friedman(named, count, statistic, p, f_statistic, f_p, level, critical)


def pairs(results: StudyResults, *, baseline: bool = False) -> list[Pair]:
    """Return the Wilcoxon signed-rank test of every two settings over all tasks and seeds, with Holm's correction.

    Blocks in which both are equal are left out of a test.

    Raises:
        ParameterError: if there are fewer than two settings.
        MissingExtraError: if scipy is not installed.
    """
    stats = _scipy_stats()
    figures = blocks(results, baseline=baseline)
    found = []
    for first, second in combinations(figures, 2):
        change = (figures[first] - figures[second]).map(lambda value: float(f"{value:.10g}"))
        won, lost = int((change > 0).sum()), int((change < 0).sum())
        p = float(stats.wilcoxon(change[change != 0]).pvalue) if won + lost else 1.0
        ties = len(change) - won - lost
        found.append(Pair(str(first), str(second), won, ties, lost, float(change.median()), p, math.nan))
    return [replace(pair, holm=p) for pair, p in zip(found, holm([pair.p for pair in found]), strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (1979), in the order given."""
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, largest = [0.0] * len(p), 0.0
    for step, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - step) * p[i]))
        corrected[i] = largest
    return corrected


def intervals(
    results: StudyResults, *, against: str | None = None, level: float = 0.95, method: Method = "t"
) -> list[Interval]:
    """Return the confidence interval of Δm of every setting, paired by seed.

    Args:
        results: results of one or several studies.
        against: setting or method to compare with; by default the baseline.
        level: confidence level, in (0, 1).
        method: `t` assumes normal differences; `bootstrap` does not, and is too narrow for fewer than about ten seeds.

    Raises:
        ParameterError: if there is no baseline and no `against`, or it is unknown.
        MissingExtraError: if scipy is not installed.
    """
    _check_level(level)
    if method not in ("t", "bootstrap"):
        raise ParameterError(unknown_name("method of an interval", method, ("t", "bootstrap")))
    compared = _against(results, against)
    deltas = gains_per_seed(compared)[DELTA]
    name = against or str(results.baseline)
    found = []
    for setting in compared.settings.index[compared.settings["method"] != compared.baseline]:
        own = deltas[deltas.index.get_level_values("setting") == setting].dropna()
        low, high = _bounds(own.to_numpy(), level, method)
        mean = float(own.mean()) if len(own) else math.nan
        found.append(Interval(str(setting), name, mean, low, high, len(own), level, method))
    return found


def profiles(results: StudyResults) -> pd.DataFrame:
    """Return performance profiles (Dolan and Moré 2002): a column per setting, a row per distance to the best in %.

    A value is the fraction of blocks (tasks with seeds) in which the setting's figure is at most that much worse than
    the best figure of the block, in % of the best. The baseline takes part.
    """
    import numpy as np
    import pandas as pd

    figures = blocks(results, baseline=True)
    best = figures.max(axis=1)
    size = best.abs()
    loss = figures.rsub(best, axis=0).div(size.where(size > 0, np.nan), axis=0) * 100
    loss = loss.where(figures.ne(best, axis=0), 0.0).fillna(math.inf)
    places = np.unique(np.r_[0.0, loss.to_numpy().ravel()])
    places = places[np.isfinite(places)]
    share = {name: (loss[name].to_numpy()[None, :] <= places[:, None]).mean(axis=1) for name in figures}
    return pd.DataFrame(share, index=pd.Index(places, name="within %"))


def _pairs_table(found: Sequence[Pair]) -> Table:
    """Return pairs as a table."""
    head = ["first", "second", "wins", "ties", "losses", "median difference, %", "p", "p (Holm)"]
    rows: list[Sequence[Value]] = [
        [p.first, p.second, p.wins, p.ties, p.losses, _signed(p.difference), _p(p.p), _p(p.holm)] for p in found
    ]
    return Table(head, rows, "Pairs: Wilcoxon signed-rank test over tasks and seeds, corrected by Holm's method")


def _intervals_table(found: Sequence[Interval]) -> Table:
    """Return intervals, at least one, as a table."""
    kind = {"t": "t interval", "bootstrap": "BCa bootstrap interval"}[found[0].method]
    rows: list[Sequence[Value]] = [
        [i.setting, _signed(i.mean), _signed(i.low), _signed(i.high), i.seeds] for i in found
    ]
    title = f"Δm against {found[0].against}: {100 * found[0].level:g} % {kind} of its mean, paired by seed"
    return Table(["method", "Δm, %", "from", "to", "seeds"], rows, title)


def _ranks_table(test: Friedman) -> Table:
    """Return mean ranks as a table, with the test below it."""
    rows: list[Sequence[Value]] = [[name, Written(rank, f"{rank:.2f}")] for name, rank in test.ranks.items()]
    return Table(["method", "mean rank"], rows, "Mean ranks over tasks and seeds, 1 is best", [str(test)])


def comparison(
    results: StudyResults, *, against: str | None = None, level: float = 0.95, method: Method = "t"
) -> dict[str, Table]:
    """Return `intervals`, `ranks` and `pairs` as tables, as far as there is enough to compare.

    Args:
        results: results with one setting per method.
        against: setting or method that intervals compare with; by default the baseline.
        level: confidence level, in (0, 1).
        method: kind of the intervals.
    """
    tables = {}
    compared = against is not None or results.baseline in set(results.settings["method"])
    if compared and (found := intervals(results, against=against, level=level, method=method)):
        tables["intervals"] = _intervals_table(found)
    if (entrants := int((results.settings["method"] != results.baseline).sum())) < 2:
        return tables
    try:
        count = len(blocks(results))
    except ParameterError:
        return tables  # the methods have no task in common
    if entrants > 2 and count > 1:
        tables["ranks"] = _ranks_table(friedman(results, level=level))
    return tables | {"pairs": _pairs_table(pairs(results))}


def shown_p(p: float) -> str:
    """Return a p-value with two significant digits, "< 0.0001" below that."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _signed(value: float) -> Written | None:
    return None if math.isnan(value) else Written(value, f"{value:+.2f}")


def _p(value: float) -> Written:
    return Written(value, shown_p(value))


def _bounds(values: Any, level: float, method: Method) -> tuple[float, float]:
    import numpy as np

    if len(values) < 2:
        return math.nan, math.nan
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if error == 0:
        return mean, mean
    if method == "t":
        half = float(_scipy_special().stdtrit(len(values) - 1, (1 + level) / 2)) * error
        return mean - half, mean + half
    drawn = _scipy_stats().bootstrap((values,), np.mean, confidence_level=level, random_state=0).confidence_interval
    return float(drawn.low), float(drawn.high)


def _against(results: StudyResults, against: str | None) -> StudyResults:
    """Return the results with `against` as the baseline."""
    methods = list(dict.fromkeys(results.settings["method"]))
    if against is None:
        if results.baseline not in methods:
            raise ParameterError(
                f"the results have no baseline to compare with. Name one: intervals(against={methods[0]!r})."
            )
        return results
    if against in results.settings.index:
        one = results.settings["method"].copy()
        one[against] = f"{against} "  # a method of its own, whatever the other settings of its method
        return replace(results, settings=results.settings.assign(method=one), baseline=f"{against} ")
    if against not in methods:
        raise ParameterError(unknown_name("setting", against, [*results.settings.index]))
    return replace(results, baseline=against)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ParameterError(f"`level` must be in (0, 1), got {level}. 0.95 is usual.")


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise missing_extra("scipy", "report", "A statistical comparison") from None
    return stats


def _scipy_special() -> Any:
    try:
        from scipy import special
    except ImportError:
        raise missing_extra("scipy", "report", "A confidence interval") from None
    return special
