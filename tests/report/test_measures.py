"""What methods measure epoch by epoch stands under what it is about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from reading import Page
from synthetic import make_run

from sparsemtl.report import write_report
from sparsemtl.report.measures import ALIGNMENT, MASKS, OTHERS, WEIGHTS, Section, measured
from sparsemtl.storage.metrics import METRIC_COLUMNS
from sparsemtl.storage.run_folder import RunFolder

COLOURS = {"digit": 0, "ink": 1}
Logged = tuple[str, str, str]
"""Split, task and name of a figure."""


def run_of(tmp_path: Path, logged: Iterable[Logged], values: Iterable[float] = (0.5, 0.25, 0.1)) -> Path:
    """A dense run of two tasks that logged these figures beside its metrics."""
    folder = make_run(tmp_path / "run", tasks=list(COLOURS), keep=None, epochs=3)
    metrics = pd.read_csv(folder / "metrics.csv")
    rows = [(epoch, epoch, *figure, value) for figure in logged for epoch, value in enumerate(values, start=1)]
    kept = metrics[metrics["split"] != "balancing"]
    pd.concat([kept, pd.DataFrame(rows, columns=METRIC_COLUMNS)]).to_csv(folder / "metrics.csv", index=False)
    return folder


def sections(folder: Path) -> list[Section]:
    return list(measured(RunFolder(folder).read(), COLOURS))


@pytest.mark.parametrize(
    ("figure", "subject", "title"),
    [
        (("sharing", "digit", "changed"), MASKS, "weights replaced"),
        (("sharing", "digit", "density"), MASKS, "density"),
        (("sharing", "digit", "mean_mask"), MASKS, "mean mask"),
        (("sharing", "ink", "sparsity"), MASKS, "sparsity"),
        (("sharing", "", "overlap"), MASKS, "overlap"),
        (("sharing", "ink", "discrepancy"), ALIGNMENT, "discrepancy"),
        (("sharing", "", "lambda"), OTHERS, "lambda"),
        (("sharing", "", "channel_sparsity"), OTHERS, "channel sparsity"),
        (("sharing", "digit", "what_nobody_knows"), OTHERS, "what nobody knows"),
        (("balancing", "digit", "weight"), WEIGHTS, "loss weight"),
    ],
)
def test_a_figure_stands_under_its_own_subject_and_no_other(tmp_path, figure, subject, title) -> None:
    (section,) = sections(run_of(tmp_path, [figure]))
    assert section.subject is subject
    assert [chart.title for chart in section.charts] == [title]
    assert section.by_task == bool(figure[1])


def test_alignment_is_not_said_to_be_about_masks(tmp_path: Path) -> None:
    page = Page(write_report(run_of(tmp_path, [("sharing", task, "discrepancy") for task in COLOURS])).read_text())
    assert "How far the tasks are from the auxiliary network" in page.sections
    assert "How the masks changed" not in page.sections
    assert "mask" not in page.text


def test_several_subjects_are_sections_of_their_own_in_one_order(tmp_path: Path) -> None:
    logged = [
        ("balancing", "digit", "weight"),
        ("sharing", "", "lambda"),
        ("sharing", "digit", "discrepancy"),
        ("sharing", "", "overlap"),
        ("sharing", "digit", "density"),
    ]
    found = sections(run_of(tmp_path, logged))
    assert [section.subject for section in found] == [MASKS, ALIGNMENT, OTHERS, WEIGHTS]
    assert [chart.title for chart in found[0].charts] == ["density", "overlap"]


@pytest.mark.parametrize("values", [(0.5, 0.5, 0.5), (0.5,), (float("nan"),) * 3])
@pytest.mark.parametrize("figure", [("sharing", "digit", "discrepancy"), ("sharing", "", "overlap")])
def test_what_does_not_change_is_not_drawn(tmp_path, figure, values) -> None:
    assert sections(run_of(tmp_path, [figure], values)) == []


def test_a_chart_has_a_line_for_every_task_that_was_measured_even_one_that_stays(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [("sharing", "digit", "discrepancy")])
    (one,) = sections(folder)[0].charts
    metrics = pd.read_csv(folder / "metrics.csv")
    still = pd.DataFrame([(e, e, "sharing", "ink", "discrepancy", 0.3) for e in (1, 2, 3)], columns=METRIC_COLUMNS)
    pd.concat([metrics, still]).to_csv(folder / "metrics.csv", index=False)
    (both,) = sections(folder)[0].charts
    assert "var(--c1)" not in one.svg
    assert "var(--c0)" in both.svg
    assert "var(--c1)" in both.svg
