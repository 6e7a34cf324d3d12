from __future__ import annotations

import math

import pytest
from loops import each

from sparsemtl.report.words import arrow, duration, listing, number, percent, plural, scores, signed


@each(
    ("value", "text"),
    [
        (0.95321, "0.9532"),
        (58.574, "58.57"),
        (0.0, "0.000"),
        (1234567.0, "1,234,567"),
        (0.0000123, "1.23e-05"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.3, "30 %"), (0.042, "4.2 %"), (0.0031, "0.31 %"), (0, "0 %"), (1, "100 %"), (0.02, "2 %")],
)
def test_fractions_become_per_cent_that_do_not_break(fraction, text):
    assert percent(fraction) == text.replace(" ", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (45.2, "45 s"),
        (59.7, "1 min 0 s"),
        (192, "3 min 12 s"),
        (3900, "1 h 5 min"),
        (7199.9, "2 h 0 min"),
    ],
)
def test_times_are_read_in_the_largest_units_that_fit(seconds, text):
    assert duration(seconds) == text


def test_lists_end_in_and():
    assert [listing([]), listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_counts_agree_with_their_nouns():
    assert [plural(1, "task"), plural(0, "task"), plural(1200, "task")] == [
        "1 task",
        "0 tasks",
        "1,200 tasks",
    ]


def test_arrows_point_to_where_better_is():
    assert [arrow(True), arrow(False), arrow(None)] == [" ↑", " ↓", ""]


def test_minus_signs_are_typographic():
    assert signed("-2.0") == "\N{MINUS SIGN}2.0"


def test_scores_of_one_metric_stand_together():
    assert scores([("digit", "accuracy", 0.95), ("ink", "mse", 0.01), ("even", "accuracy", 0.99)]) == (
        "accuracy 0.9500 on digit and 0.9900 on even; mse 0.01000 on ink"
    )


def test_scores_of_many_tasks_become_their_mean_and_range():
    many = [(f"t{i}", "accuracy", value) for i, value in enumerate([0.5, 0.9, 0.7, 0.6, 0.8])]
    assert scores(many) == "accuracy 0.7000 on average over 5 tasks (from 0.5000 on t0 to 0.9000 on t1)"
