from __future__ import annotations

import json
import re
import shutil

import pandas as pd
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from reading import Page
from synthetic import make_study

from sparsemtl.errors import CheckpointError
from sparsemtl.report import write_report
from sparsemtl.report.study_lead import lead
from sparsemtl.study.evidence import DEAD_BASELINE
from sparsemtl.study.results import StudyResults, best_settings, read_results
from sparsemtl.study.tables import primary_table

TASKS = ("digit", "ink")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("studies") / "demo", tasks=TASKS, keeps=(0.1, 0.5), seeds=2, epochs=3)
    write_report(folder / "runs" / "stl-none-0")
    return folder


@pytest.fixture(scope="module")
def html(folder):
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def plotted(plot, *, width, height, label, only_ticks=False):
    """Plot a chart as `draw` does, without writing it as SVG, which takes most of the time of a page."""
    plot(Figure().add_subplot())
    return Markup('<svg role="img" aria-label="{}"></svg>').format(label)


@pytest.fixture
def copy(folder, tmp_path, monkeypatch):
    """A copy of the study to be changed, whose charts are plotted and not written."""
    for module in ("charts", "tradeoff"):
        monkeypatch.setattr(f"sparsemtl.report.{module}.draw", plotted)
    return shutil.copytree(folder, tmp_path / "copy")


def edit_results(folder, change):
    change(pd.read_csv(folder / "results.csv")).to_csv(folder / "results.csv", index=False)


def test_the_page_loads_nothing_from_anywhere(html, page):
    assert page.outside() == []
    assert "http:" not in html
    assert "https:" not in html


def test_ids_are_unique(page):
    assert len(page.ids()) == len(set(page.ids()))


def test_every_section_is_there(page):
    assert page.sections == [
        "Quality against cost",
        "Results on test data",
        "Gain or loss against single-task training",
        "Differences between methods",
        "Results over sharing.keep",
        "Learning curves",
        "Cost",
        "Runs",
        "Notes",
        "Configuration",
    ]


def test_the_table_shows_the_settings_that_validation_chose_and_marks_the_best(folder, page):
    results = StudyResults.of(read_results(folder / "results.csv"), baseline="stl")
    rows = list(primary_table(best_settings(results)).rows())
    assert len(rows) == 4
    best = [cell.text for row in rows for cell in row.cells if cell.best]
    for row in rows:
        assert row.label in page.text
        for cell in row.cells:
            assert cell.text.replace("-", "−") in page.text
    assert len(best) >= 4
    assert set(best) <= set(page.best)


def test_what_makes_the_evidence_weak_stands_below_the_lead(html, page):
    assert "The evidence of this study is weak." in page.text
    for part in (
        "All seeds have the same split (digits has no",
        "has fewer than 3 seeds (2)",
        "at the end of its grid",
    ):
        assert part in page.text
    assert "Add smaller values." in page.text or "Add larger values." in page.text
    assert "<code>seeds</code>" in html


def test_a_baseline_that_learned_nothing_comes_before_the_result(folder):
    best = best_settings(StudyResults.of(read_results(folder / "results.csv"), baseline="stl"))
    plain = lead(best, primary_table(best), "stl")
    dead = lead(best, primary_table(best), "stl", [f"{DEAD_BASELINE}: stl on digit. Check the labels."])
    assert dead == f"{DEAD_BASELINE} on some task, so that changes against it mean nothing there. {plain}"


def test_differences_are_intervals_ranks_profiles_and_pairs(html, page):
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert {"mean ranks with critical difference", "performance profiles"} <= set(labels)
    assert "Friedman test over 4 blocks" in page.text
    assert "t interval of its mean, paired by seed" in page.text
    assert "Wilcoxon signed-rank test over tasks and seeds, corrected by Holm's method" in page.text


def test_tasks_of_one_metric_have_bars(copy):
    def alike(rows):
        primary = rows["metric"].isin(["accuracy", "mse"])
        return rows.assign(metric=rows["metric"].where(~primary, "accuracy"))

    edit_results(copy, alike)
    for summary in copy.glob("runs/*/summary.json"):
        text = summary.read_text().replace('"mse"', '"accuracy"')
        summary.write_text(text)
    labels = [
        v for tag, name, v in Page(write_report(copy).read_text()).attributes if (tag, name) == ("svg", "aria-label")
    ]
    assert "accuracy of every task" in labels


def test_two_methods_are_not_ranked(copy):
    edit_results(copy, lambda rows: rows[rows["method"].isin(["stl", "mtl"])].drop(columns="sharing.keep"))
    page = Page(write_report(copy).read_text())
    assert "Differences between methods" not in page.sections
    assert "t interval" in page.text


def test_the_lead_names_who_gains_most_over_single_task_training(page):
    assert "gains most over single-task training: +" in page.text
    assert "fisher, keep" in page.text


def test_the_page_opens_with_quality_against_cost(html, page):
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert labels[:3] == [
        "mean change over tasks against multiply-adds",
        "digit: quality against multiply-adds",
        "ink: quality against multiply-adds",
    ]
    assert html.index("mean change over tasks against multiply-adds") < html.index("<table")
    assert "multiply-adds per sample, millions" in page.text


def test_the_lead_says_what_the_winner_costs_beside_the_baseline(folder, html):
    results = StudyResults.of(read_results(folder / "results.csv"), baseline="stl")
    winner = primary_table(best_settings(results)).figures.mean["Δm %"].idxmax()
    keep = float(winner.removeprefix("fisher, keep "))
    part = f"{100 * keep:.0f}\N{NO-BREAK SPACE}%"
    assert f"its networks need {part} of the multiply-adds of single-task training and {part} of the weights" in html


def test_a_method_as_good_as_the_baseline_is_named_with_its_cost_first(copy):
    def alike(rows):
        rows = rows[rows["method"].isin(["stl", "fisher"])].copy()
        rows.loc[rows["split"] == "test", "value"] = 0.5
        return rows

    edit_results(copy, alike)
    page = Page(write_report(copy).read_text())
    words = r"keeps the quality of single-task training within one standard deviation \(.+\) and, compacted, needs \d"
    assert re.search(words, page.text)


def test_a_study_of_runs_that_were_not_measured_has_no_cost(copy):
    edit_results(copy, lambda rows: rows[rows["split"] != "cost"])
    page = Page(write_report(copy).read_text())
    assert page.sections[0] == "Results on test data"
    assert "multiply-adds" not in page.text


def test_another_baseline_is_called_by_its_name(copy):
    about = json.loads((copy / "study.json").read_text())
    (copy / "study.json").write_text(json.dumps({**about, "baseline": "mtl"}))
    page = Page(write_report(copy).read_text())
    assert "Gain or loss against mtl" in page.sections
    assert "single-task training" not in page.text


def test_the_tasks_that_lose_are_named(copy):
    def spoil(rows):
        others = rows["method"] != "stl"
        rows.loc[others & (rows["metric"] == "mse"), "value"] = 0.5
        rows.loc[others & (rows["metric"] == "accuracy"), "value"] = 0.999
        return rows

    edit_results(copy, spoil)
    text = Page(write_report(copy).read_text()).text
    assert "No method beats single-task training on average" in text
    assert "It loses on 1 task of 2: ink (−" in text


def test_tasks_that_not_all_methods_have_are_left_out_of_the_lead_and_said_below_the_table(copy):
    edit_results(copy, lambda rows: rows[(rows["method"] == "stl") | (rows["task"] != "ink")])
    text = Page(write_report(copy).read_text()).text
    assert "% on average over the 1 task that all methods have" in text
    assert "Tasks that not all methods have are left out of rank, Δm %: ink." in text
    assert "common tasks" in text
    assert "all tasks Δm" not in text


def test_a_task_that_the_winner_does_not_have_is_not_counted_where_it_loses(copy):
    def spoil(rows):
        rows.loc[(rows["method"] != "stl") & (rows["metric"] == "accuracy"), "value"] = 0.01
        return rows[(rows["method"] == "stl") | (rows["task"] != "ink")]

    edit_results(copy, spoil)
    assert "It loses on 1 task of 1: digit (−" in Page(write_report(copy).read_text()).text


def test_without_a_common_task_the_lead_says_so(copy):
    edit_results(copy, lambda rows: rows[(rows["method"] == "stl") == (rows["task"] == "ink")])
    text = Page(write_report(copy).read_text()).text
    assert "There is no task that all methods have, so that nothing is compared over tasks." in text
    assert "Nothing to compare with yet" not in text


def test_a_task_that_only_the_baseline_has_is_not_drawn_over_a_wide_grid(copy):
    def wide(rows):
        keep = rows["sharing.keep"].map({0.1: 0.1, 0.5: 100.0})
        return rows.assign(**{"sharing.keep": keep})[(rows["method"] == "stl") | (rows["task"] != "ink")]

    edit_results(copy, wide)
    html = write_report(copy).read_text()
    assert "digit over sharing.keep" in html
    assert "ink over sharing.keep" not in html


def test_only_runs_with_a_report_are_linked(folder, page):
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["runs/stl-none-0/report.html"]
    assert (folder / links[0]).is_file()
    assert all(run.name in page.text for run in (folder / "runs").iterdir())


def test_runs_that_have_not_ended_are_listed(copy):
    (copy / "runs" / "fisher-0.3-9").mkdir()
    text = Page(write_report(copy).read_text()).text
    assert "fisher-0.3-9" in text
    assert "not finished" in text


def test_results_without_their_run_folders_make_a_page(copy):
    shutil.rmtree(copy / "runs")
    page = Page(write_report(copy).read_text())
    assert "Learning curves" not in page.sections
    assert "Results on test data" in page.sections
    assert "folder is missing" in page.text


def test_one_seed_has_no_deviations(copy):
    edit_results(copy, lambda rows: rows[rows["seed"] == 0])
    page = Page(write_report(copy).read_text())
    assert "±" not in page.text.replace("± standard deviation", "").replace("± one standard deviation", "")


def test_without_a_baseline_the_best_rank_leads_and_no_gain_is_drawn(copy):
    about = json.loads((copy / "study.json").read_text())
    (copy / "study.json").write_text(json.dumps({**about, "baseline": None}))
    page = Page(write_report(copy).read_text())
    assert "Gain or loss against single-task training" not in page.sections
    assert "ranks best" in page.text


def test_without_a_grid_nothing_is_drawn_over_it(copy):
    def only_dense(rows):
        return rows[rows["method"].isin(["stl", "mtl"])].drop(columns="sharing.keep")

    edit_results(copy, only_dense)
    page = Page(write_report(copy).read_text())
    assert "Results over sharing.keep" not in page.sections
    assert "Gain or loss against single-task training" in page.sections


def test_a_grid_of_words_is_a_table_and_no_chart(copy):
    def in_words(rows):
        return rows.assign(**{"sharing.keep": rows["sharing.keep"].map({0.1: "few", 0.5: "many"})})

    edit_results(copy, in_words)
    page = Page(write_report(copy).read_text())
    assert "Results over sharing.keep" not in page.sections
    assert "All settings of the grid" in page.text


def test_several_grid_keys_and_a_wide_range_make_a_chart_each(copy):
    def doubled(rows):
        parts = [rows.assign(**{"optimizer.lr": lr}, run=rows["run"] + f"-{lr}") for lr in (0.001, 1.0)]
        return pd.concat(parts)

    edit_results(copy, doubled)
    sections = Page(write_report(copy).read_text()).sections
    assert {"Results over sharing.keep", "Results over optimizer.lr"} <= set(sections)


def test_a_metric_that_is_missing_somewhere_is_an_en_dash(copy, page):
    edit_results(copy, lambda rows: rows[~((rows["method"] == "mtl") & (rows["task"] == "ink"))])
    shown = Page(write_report(copy).read_text()).text
    assert shown.count("–") > page.text.count("–")


def test_what_must_be_there_is_named_when_it_is_not(copy):
    (copy / "results.csv").unlink()
    with pytest.raises(CheckpointError, match=r"results\.csv does not exist\. .* the same `sparsemtl study` command"):
        write_report(copy)
