"""Statistics against textbook tables, scipy and enumeration of all permutations."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sparsemtl.errors import MissingExtraError, ParameterError
from sparsemtl.study import statistics
from sparsemtl.study.results import DELTA, StudyResults, gains_per_seed
from sparsemtl.study.statistics import blocks, comparison, friedman, holm, intervals, pairs, profiles

# Table 6 of Demšar (2006): AUC of C4.5 with and without tuning of m and cf on 14 data sets. The rank of `voting` needs
# a digit that is not printed there.
DEMSAR = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""
METHODS = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")


def study(
    figures: Mapping[str, Sequence[Sequence[float]]], *, baseline: str | None = None, higher: bool = True
) -> StudyResults:
    """Results of method -> rows of tasks with a value per seed."""
    rows = [
        (f"{method}{seed}", method, seed, split, f"t{task}", "score", higher, value)
        for method, tasks in figures.items()
        for task, seeds in enumerate(tasks)
        for seed, value in enumerate(seeds)
        for split in ("validation", "test")
    ]
    columns = ["run", "method", "seed", "split", "task", "metric", "higher_is_better", "value"]
    return StudyResults.of(pd.DataFrame(rows, columns=columns), baseline=baseline, methods=list(figures))


def demsar() -> StudyResults:
    columns = zip(*(map(float, line.split()) for line in DEMSAR.split("\n") if line), strict=True)
    return study({method: [[value] for value in column] for method, column in zip(METHODS, columns, strict=True)})


def random_study(seed: int, tasks: int = 3, seeds: int = 4, *, higher: bool = True, ties: bool = False) -> StudyResults:
    rng = np.random.default_rng(seed)
    values = {m: rng.uniform(0.5, 1.5, (tasks, seeds)).round(1 if ties else 12) for m in ("stl", "a", "b", "c", "d")}
    return study({m: v.tolist() for m, v in values.items()}, baseline="stl", higher=higher)


def test_demsars_table_gives_his_ranks_statistic_and_critical_difference() -> None:
    test = friedman(demsar())
    assert test.ranks == pytest.approx({"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}, abs=5e-4)
    n, k = test.blocks, len(test.ranks)
    printed = 12 * n / (k * (k + 1)) * (sum(rank**2 for rank in test.ranks.values()) - k * (k + 1) ** 2 / 4)
    assert (n, k, round(printed, 2)) == (14, 4, 9.28)
    assert test.critical_difference == pytest.approx(1.25, abs=5e-3)
    # His post-hoc comparison (section 3.2.2): best and worst differ by 1.18, less than the critical 1.25.
    assert test.groups() == [("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")]
    assert len(friedman(demsar(), level=0.9).groups()) == 2  # at 10 % C4.5 differs from the two tuned ones


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_values_are_those_of_demsars_table_5(k: int, q: float) -> None:
    rng = np.random.default_rng(k)
    test = friedman(study({f"m{i}": rng.random((6, 1)).tolist() for i in range(max(k, 3))}))
    if k > 2:
        assert test.critical_difference / math.sqrt(k * (k + 1) / 6 / 6) == pytest.approx(q, abs=2e-3)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("higher", [False, True])
def test_the_friedman_test_is_that_of_the_ranks_without_the_baseline(higher: bool, ties: bool) -> None:
    results = random_study(1, higher=higher, ties=ties)
    rows = results.frame[(results.frame["split"] == "test") & (results.frame["method"] != "stl")]
    wide = rows.pivot(index=["task", "seed"], columns="method", values="value")
    test = friedman(results)
    assert test.ranks == pytest.approx(wide.rank(axis=1, ascending=not higher).mean().to_dict())
    assert list(test.ranks.values()) == sorted(test.ranks.values())
    expected = stats.friedmanchisquare(*wide.to_numpy().T)
    assert (test.statistic, test.p) == pytest.approx((expected.statistic, expected.pvalue))
    n, k = wide.shape
    assert test.f_statistic == pytest.approx((n - 1) * test.statistic / (n * (k - 1) - test.statistic))
    assert set(friedman(results, baseline=True).ranks) == {*test.ranks, "stl"}


def test_the_friedman_p_value_is_that_of_permutations_within_blocks() -> None:
    results = random_study(2, tasks=3, seeds=5)
    ranks = blocks(results).rank(axis=1).to_numpy()
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.broadcast_to(ranks, (4000, *ranks.shape)), axis=2)
    as_unlike = shuffled.sum(axis=1).var(axis=1) >= ranks.sum(axis=0).var() - 1e-12
    assert friedman(results).p == pytest.approx(as_unlike.mean(), abs=0.03)


def test_a_pairs_p_value_is_that_of_all_changes_of_sign() -> None:
    results = random_study(3, tasks=2, seeds=4)
    figures = blocks(results)
    for pair in pairs(results):
        change = (figures[pair.first] - figures[pair.second]).to_numpy()
        ranks = stats.rankdata(np.abs(change))
        sums = [sum(r for r, sign in zip(ranks, s, strict=True) if sign) for s in itertools.product([0, 1], repeat=8)]
        middle = ranks.sum() / 2
        observed = abs(ranks[change > 0].sum() - middle)
        assert pair.p == pytest.approx(np.mean([abs(s - middle) >= observed - 1e-9 for s in sums]))
        assert pair.wins == (change > 0).sum()
        assert pair.losses == (change < 0).sum()
        assert pair.difference == pytest.approx(np.median(change))


def test_equal_methods_are_ties_with_p_1() -> None:
    same = [[0.1 + 0.2, 0.5], [1.0, 2.0]]
    other = [[0.3, 0.5], [1.0, 2.0]]  # the same numbers to rounding
    (pair,) = pairs(study({"a": same, "b": other}))
    assert (pair.wins, pair.ties, pair.losses, pair.p, pair.holm) == (0, 4, 0, 1.0, 1.0)
    test = friedman(study({"a": same, "b": other, "c": same}))
    assert (test.statistic, test.p, set(test.ranks.values())) == (0.0, 1.0, {2.0})
    assert test.groups() == [("a", "b", "c")]


def test_holms_correction_is_that_of_his_paper() -> None:
    # p-values times 4, 3, 2, 1 in their order, never smaller than the one before, at most 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("higher", [False, True])
def test_an_interval_is_the_paired_t_interval_of_delta(higher: bool) -> None:
    results = random_study(5, higher=higher)
    deltas = gains_per_seed(results)[DELTA]
    for interval in intervals(results, level=0.9):
        own = deltas.loc[interval.setting].to_numpy()
        low, high = stats.t.interval(0.9, len(own) - 1, own.mean(), stats.sem(own))
        assert (interval.mean, interval.low, interval.high) == pytest.approx((own.mean(), low, high))
        assert (interval.against, interval.seeds, interval.method) == ("stl", 4, "t")
        p = stats.ttest_1samp(own, 0).pvalue
        assert interval.holds_zero == (p >= 0.1)


def test_an_interval_is_over_the_seeds_that_both_have() -> None:
    whole = random_study(5)
    frame = whole.frame.drop(columns="setting")
    results = StudyResults.of(frame[~((frame["method"] == "stl") & (frame["seed"] == 1))], baseline="stl")
    deltas = gains_per_seed(whole)[DELTA]
    for interval in intervals(results):
        own = deltas.loc[interval.setting].drop(1).to_numpy()
        low, high = stats.t.interval(0.95, len(own) - 1, own.mean(), stats.sem(own))
        assert (interval.mean, interval.low, interval.high, interval.seeds) == pytest.approx((own.mean(), low, high, 3))


def test_an_interval_against_another_method_is_that_with_it_as_the_baseline() -> None:
    results = random_study(6)
    assert intervals(results, against="b") == intervals(replace(results, baseline="b"))
    assert "b" not in [interval.setting for interval in intervals(results, against="b")]


def test_intervals_compare_with_one_setting_of_a_method() -> None:
    frame = random_study(7).frame.drop(columns="setting")
    both = pd.concat([frame.assign(keep=np.nan), frame[frame["method"] == "a"].assign(keep=0.5, run="x")])
    results = StudyResults.of(both, baseline="stl")
    found = {interval.setting: interval for interval in intervals(results, against="a, keep 0.5")}
    assert found["a"].mean == 0  # the same figures
    assert set(found) == {"stl", "a", "b", "c", "d"}


def test_a_bootstrap_interval_says_so_and_is_the_same_every_time() -> None:
    results = random_study(8, seeds=12)
    first, second = (intervals(results, method="bootstrap") for _ in range(2))
    assert first == second
    for interval, t in zip(first, intervals(results), strict=True):
        assert interval.method == "bootstrap"
        assert interval.low < interval.mean < interval.high
        assert interval.high - interval.low == pytest.approx(t.high - t.low, rel=0.5)


def test_one_seed_and_equal_seeds_have_no_width() -> None:
    (alone,) = intervals(study({"stl": [[1.0]], "a": [[2.0]]}, baseline="stl"))
    assert (alone.mean, alone.seeds, alone.holds_zero) == (100.0, 1, True)
    assert math.isnan(alone.low)
    (equal,) = intervals(study({"stl": [[1.0, 1.0]], "a": [[2.0, 2.0]]}, baseline="stl"))
    assert (equal.low, equal.high, equal.holds_zero) == (100.0, 100.0, False)


@pytest.mark.parametrize("higher", [False, True])
def test_a_profile_is_the_fraction_of_blocks_within_a_distance(higher: bool) -> None:
    results = random_study(9, higher=higher)
    found = profiles(results)
    rows = results.frame[results.frame["split"] == "test"]
    wide = rows.pivot(index=["task", "seed"], columns="setting", values="value")
    best = wide.max(axis=1) if higher else wide.min(axis=1)
    for distance in (0.0, 10.0, 33.0):
        for setting in wide:
            gap = (best - wide[setting]) if higher else (wide[setting] - best)
            expected = (gap <= distance / 100 * best.abs() + 1e-9).mean()
            assert found[setting][found.index <= distance + 1e-9].iloc[-1] == pytest.approx(expected)
    assert (found.iloc[-1] == 1).all()
    assert found.iloc[0].sum() == pytest.approx(1)  # every block has one best setting
    assert found.index[0] == 0


def test_a_block_that_a_method_lacks_is_left_out() -> None:
    results = random_study(10)
    frame = results.frame
    gone = (frame["method"] == "a") & (frame["task"] == "t0") & (frame["seed"] == 1)
    part = StudyResults.of(frame[~gone], baseline="stl")
    assert len(blocks(part)) == len(blocks(results)) - 1
    assert friedman(part).blocks == 11


def test_too_little_to_compare_is_said() -> None:
    with pytest.raises(ParameterError, match=r"needs three settings and two blocks .* found 2 and 2"):
        friedman(study({"a": [[1.0, 2.0]], "b": [[2.0, 3.0]]}))
    with pytest.raises(ParameterError, match="needs two settings beside the baseline, found 1"):
        pairs(study({"stl": [[1.0]], "a": [[1.0]]}, baseline="stl"))
    with pytest.raises(ParameterError, match="no baseline to compare with"):
        intervals(study({"a": [[1.0]], "b": [[1.0]]}))
    with pytest.raises(ParameterError, match="unknown setting 'x'"):
        intervals(random_study(0), against="x")
    with pytest.raises(ParameterError, match=r"`level` must be in \(0, 1\), got 95"):
        intervals(random_study(0), level=95)
    with pytest.raises(ParameterError, match="unknown method of an interval 'normal'"):
        intervals(random_study(0), method="normal")  # type: ignore[arg-type]
    apart = random_study(0).frame.query("(method == 'a') == (task == 't0')")
    with pytest.raises(ParameterError, match="no task and seed of which all settings"):
        pairs(StudyResults.of(apart))


def test_a_comparison_has_the_tables_that_there_is_enough_for() -> None:
    assert list(comparison(random_study(0))) == ["intervals", "ranks", "pairs"]
    assert list(comparison(study({"stl": [[1.0]], "a": [[1.0]]}, baseline="stl"))) == ["intervals"]
    assert list(comparison(study({"a": [[1.0]], "b": [[2.0]]}))) == ["pairs"]
    assert comparison(study({"a": [[1.0]]})) == {}
    assert "5 seeds" not in comparison(random_study(0))["intervals"].text()


def test_methods_of_results_are_these_functions() -> None:
    results = random_study(11)
    assert results.friedman() == friedman(results)
    assert results.pairs() == pairs(results)
    assert results.intervals(against="a") == intervals(results, against="a")
    pd.testing.assert_frame_equal(results.profiles(), profiles(results))
    assert "Mean ranks over tasks and seeds" in results.summary()


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsemtl\[report\]'"):
        friedman(random_study(0))
    assert statistics.shown_p(1e-9) == "< 0.0001"
