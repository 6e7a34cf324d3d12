"""Every expected figure here was computed by hand from the values of `frame`."""

from __future__ import annotations

import csv
import io
import math

import pandas as pd
import pytest

from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.study.results import DELTA, StudyResults, best_settings, gains, read_results, run_level
from sparsemtl.study.tables import (
    AVERAGE,
    RANK,
    StudyTable,
    TableRow,
    decimals,
    metric_tables,
    primary_table,
    table,
    to_csv,
    to_markdown,
)

NAN = math.nan

# (method, keep) -> test values of seeds 0 and 1: digit accuracy (up), ink mse (down)
TEST = {
    ("stl", NAN): ((0.80, 0.90), (0.10, 0.20)),
    ("mtl", NAN): ((0.88, 0.90), (0.11, 0.20)),
    ("fisher", 0.1): ((0.99, 0.99), (0.01, 0.01)),
    ("fisher", 0.5): ((0.96, 0.90), (0.09, 0.18)),
}
VALIDATION = {
    ("stl", NAN): (0.8, 0.2),
    ("mtl", NAN): (0.8, 0.2),
    ("fisher", 0.1): (0.70, 0.30),
    ("fisher", 0.5): (0.75, 0.25),
}
METRICS = {"digit": ("accuracy", True), "ink": ("mse", False)}


def record(method: str, keep: float, seed: int, split: str, task: str, value: float) -> dict[str, object]:
    metric, higher = METRICS[task]
    return {
        "run": f"{method}-{keep}-{seed}",
        "method": method,
        "seed": seed,
        "sharing.keep": keep,
        "split": split,
        "task": task,
        "metric": metric,
        "higher_is_better": higher,
        "value": value,
    }


def frame() -> pd.DataFrame:
    rows = []
    for (method, keep), values in TEST.items():
        for task, seeds, validation in zip(METRICS, values, VALIDATION[method, keep], strict=True):
            for seed, value in enumerate(seeds):
                rows.append(record(method, keep, seed, "test", task, value))
                rows.append(record(method, keep, seed, "validation", task, validation))
    return pd.DataFrame(rows)


def results(changed: pd.DataFrame | None = None, baseline: str | None = "stl") -> StudyResults:
    return StudyResults.of(frame() if changed is None else changed, baseline=baseline, methods=["stl", "mtl", "fisher"])


def without(method: str, task: str, seed: int) -> pd.DataFrame:
    rows = frame()
    gone = (rows.method == method) & (rows.task == task) & (rows.seed == seed) & (rows.split == "test")
    return rows[~gone]


def rows_of(shown: StudyTable) -> dict[str, TableRow]:
    return {row.label: row for row in shown.rows()}


def texts(shown: StudyTable, label: str) -> list[str]:
    return [cell.text for cell in rows_of(shown)[label].cells]


def test_rows_are_settings_in_the_order_of_the_methods_and_then_of_the_grid():
    shuffled = frame().sample(frac=1, random_state=3)
    assert list(results(shuffled).settings.index) == ["stl", "mtl", "fisher, keep 0.1", "fisher, keep 0.5"]


def test_two_grid_keys_with_the_same_last_word_are_told_apart_by_their_whole_names():
    twice = frame().assign(**{"head.keep": 2.0})
    label = results(twice).settings.index[-1]
    assert label == "fisher, sharing.keep 0.5, head.keep 2"


def test_deviations_are_of_a_sample_and_seeds_are_counted():
    figures = primary_table(results()).figures
    assert figures.mean.loc["mtl", "digit"] == pytest.approx(0.89)
    assert figures.std.loc["mtl", "digit"] == pytest.approx(0.02 / math.sqrt(2))
    assert figures.n.loc["mtl", "digit"] == 2


def test_gains_are_taken_seed_by_seed_and_turned_so_that_positive_is_better():
    found = gains(results())
    assert found.mean.loc["mtl"].tolist() == pytest.approx([5.0, -5.0, 0.0])
    assert found.std.loc["mtl"].tolist() == pytest.approx([10 / math.sqrt(2), 10 / math.sqrt(2), 0.0], abs=1e-9)
    assert found.mean.loc["fisher, keep 0.5"].tolist() == pytest.approx([10.0, 10.0, 10.0])
    assert found.std.loc["fisher, keep 0.5"].tolist() == pytest.approx(
        [20 / math.sqrt(2), 0.0, 10 / math.sqrt(2)], abs=1e-9
    )
    assert found.mean.loc["stl"].isna().all()


def test_gains_are_over_the_seeds_that_the_baseline_has_too():
    rows = frame()
    found = gains(results(rows[~((rows.method == "stl") & (rows.seed == 1))]))
    assert found.mean.loc["mtl"].tolist() == pytest.approx([10.0, -10.0, 0.0])  # of seed 0 alone
    assert set(found.n.loc["mtl"]) == {1}


def test_gains_without_a_common_seed_compare_means_without_deviation():
    rows = frame()
    rows.loc[rows.method == "stl", "seed"] += 10
    found = gains(results(rows))
    digit, ink = 100 * (0.89 - 0.85) / 0.85, 100 * (0.150 - 0.155) / 0.150
    assert found.mean.loc["mtl"].tolist() == pytest.approx([digit, ink, (digit + ink) / 2])
    assert found.std.loc["mtl"].isna().all()


def test_a_baseline_of_zero_gives_no_gain():
    rows = frame()
    rows.loc[(rows.method == "stl") & (rows.task == "ink"), "value"] = 0.0
    found = gains(results(rows))
    assert found.mean.loc["mtl", "digit"] == pytest.approx(5.0)
    assert math.isnan(found.mean.loc["mtl", "ink"])
    assert math.isnan(found.mean.loc["mtl", DELTA])


def test_ranks_leave_the_baseline_out_and_ties_share_the_average():
    rows = frame()
    rows.loc[(rows.method == "mtl") & (rows.task == "ink") & (rows.split == "test"), "value"] = 0.135
    shown = primary_table(results(rows))
    # digit: keep 0.1 first, keep 0.5 second, mtl third; ink: keep 0.1 first, the others share ranks 2 and 3
    ranks = shown.figures.mean[RANK]
    assert ranks.drop("stl").to_dict() == {"mtl": 2.75, "fisher, keep 0.1": 1.0, "fisher, keep 0.5": 2.25}
    assert math.isnan(ranks["stl"])


def test_means_that_differ_in_their_last_bits_are_ties():
    rows = frame()
    digits = (rows.task == "digit") & (rows.split == "test")
    rows.loc[digits & (rows.method == "mtl"), "value"] = [0.1, 0.5]
    rows.loc[digits & (rows["sharing.keep"] == 0.5), "value"] = [0.1 + 0.2 - 0.2, 0.5]
    assert 0.1 + 0.2 - 0.2 != 0.1
    found = table(results(rows), {"digit": "accuracy"}, title="accuracy").figures.mean[RANK]
    assert found["mtl"] == found["fisher, keep 0.5"] == 2.5


def test_the_setting_of_a_method_is_chosen_on_validation_even_where_test_says_otherwise():
    assert list(best_settings(results()).settings.index) == ["stl", "mtl", "fisher, keep 0.5"]


def test_test_figures_play_no_part_in_the_choice():
    rows = frame()
    rows.loc[rows.split == "test", "value"] *= -3
    assert list(best_settings(results(rows)).settings.index) == list(best_settings(results()).settings.index)


def test_a_setting_without_a_task_is_not_chosen_and_the_first_of_equal_ones_is():
    rows = frame()
    worse = (rows["sharing.keep"] == 0.5) & (rows.split == "validation")
    assert best_settings(results(rows[~(worse & (rows.task == "ink"))])).settings.index[-1] == "fisher, keep 0.1"
    rows.loc[worse, "value"] = [0.70, 0.70, 0.30, 0.30]
    assert best_settings(results(rows)).settings.index[-1] == "fisher, keep 0.1"


def test_a_setting_with_an_undefined_figure_of_a_seed_is_neither_chosen_nor_marked_best():
    rows = frame()
    lost = (rows["sharing.keep"] == 0.5) & (rows.task == "ink") & (rows.seed == 1)
    rows.loc[lost, "value"] = NAN  # its mean over the other seed would win
    assert best_settings(results(rows)).settings.index[-1] == "fisher, keep 0.1"
    rows.loc[lost & (rows.split == "test"), "value"] = math.inf
    marked = {label: row.cells[1] for label, row in rows_of(primary_table(results(rows))).items()}
    assert marked["fisher, keep 0.5"].note == "n=1"
    assert not marked["fisher, keep 0.5"].best


def test_a_reference_of_zero_does_not_take_a_task_out_of_the_choice():
    rows = frame()
    validation = (rows.split == "validation") & rows.method.eq("fisher")
    rows.loc[validation & (rows.task == "digit"), "value"] = 0.5
    ink = validation & (rows.task == "ink")
    rows.loc[ink & (rows["sharing.keep"] == 0.1), "value"] = 0.1
    rows.loc[ink & (rows["sharing.keep"] == 0.5), "value"] = -0.1  # lower is better
    assert best_settings(results(rows)).settings.index[-1] == "fisher, keep 0.5"


def test_choosing_without_validation_figures_is_refused():
    rows = frame()
    with pytest.raises(ParameterError, match="'fisher' has 2 settings and no validation figures"):
        best_settings(results(rows[rows.split == "test"]))


def test_the_full_grid_shows_every_setting_and_the_chosen_table_one_a_method():
    everything = results()
    assert len(list(primary_table(everything).rows())) == 4
    assert [row.label for row in primary_table(best_settings(everything)).rows()] == [
        "stl",
        "mtl",
        "fisher, keep 0.5",
    ]


def test_the_best_value_of_each_column_is_marked_in_its_direction():
    shown = primary_table(best_settings(results()))
    marked = {label: [cell.best for cell in row.cells] for label, row in rows_of(shown).items()}
    assert list(shown.higher) == ["digit", "ink", RANK, DELTA]
    assert marked == {
        "stl": [False, False, False, False],
        "mtl": [False, False, False, False],
        "fisher, keep 0.5": [True, True, True, True],
    }


def test_values_that_look_equal_are_both_best():
    rows = frame()
    digits = (rows.task == "digit") & (rows.split == "test")
    rows.loc[digits & (rows.method == "mtl"), "value"] = 0.930001
    shown = rows_of(primary_table(best_settings(results(rows))))
    assert [shown[label].cells[0].text for label in shown] == ["0.8500", "0.9300", "0.9300"]
    assert [shown[label].cells[0].best for label in shown] == [False, True, True]


def test_a_missing_figure_is_an_en_dash_that_ranks_ignore():
    rows = frame()
    rows.loc[(rows.method == "mtl") & (rows.task == "ink"), "value"] = NAN
    shown = primary_table(results(rows))
    assert texts(shown, "mtl") == ["0.8900", "–", "3.00", "–"]
    assert texts(shown, "fisher, keep 0.1")[2] == "1.00"


def of_one_metric() -> pd.DataFrame:
    """Ink as an accuracy: a study whose table has an average."""
    return frame().assign(metric="accuracy", higher_is_better=True)


def lacking(rows: pd.DataFrame, *pairs: tuple[str, str]) -> pd.DataFrame:
    """The results without the tasks of these methods."""
    return rows[[pair not in pairs for pair in zip(rows.method, rows.task, strict=True)]]


@pytest.mark.parametrize("without", [("mtl", "ink"), ("fisher", "ink"), ("stl", "ink")])
def test_means_over_tasks_are_of_the_tasks_that_all_methods_have(without):
    part = primary_table(results(lacking(of_one_metric(), without)))
    alone = primary_table(results(of_one_metric().query("task == 'digit'")))
    for column in (RANK, DELTA):
        pd.testing.assert_series_equal(part.figures.mean[column], alone.figures.mean[column])
        pd.testing.assert_series_equal(part.figures.std[column], alone.figures.std[column])
    assert part.figures.mean[AVERAGE].tolist() == part.figures.mean["digit"].tolist()
    assert part.note == "Tasks that not all methods have are left out of average, rank, Δm %: ink."
    assert alone.note == primary_table(results()).note == ""


def test_a_task_of_the_baseline_alone_is_left_out_where_the_others_share_two():
    more = pd.concat([frame(), frame().query("task == 'ink' and method == 'stl'").assign(task="depth")])
    found, expected = gains(results(more)), gains(results())
    assert list(results(more).common) == ["digit", "ink"]
    pd.testing.assert_frame_equal(found.mean.drop(columns="depth"), expected.mean)
    assert found.mean["depth"].isna().all()


def test_methods_without_a_common_task_have_dashes_and_a_sentence():
    shown = primary_table(results(lacking(of_one_metric(), ("stl", "ink"), ("mtl", "digit"), ("fisher", "digit"))))
    assert texts(shown, "mtl") == ["–", "0.1550", "–", "–", "–"]
    assert shown.note == "There is no task that all methods have: no average, rank, Δm %."


def test_without_a_mean_over_tasks_nothing_is_said_of_what_it_leaves_out():
    rows = lacking(frame(), ("mtl", "ink")).query("method != 'fisher'")
    shown = primary_table(results(rows, baseline=None))
    assert RANK in shown.higher
    assert shown.note != ""
    assert primary_table(results(rows.query("method == 'mtl'"))).note == ""


def test_the_note_stands_below_the_table_and_the_csv_names_the_tasks_of_every_figure():
    shown = primary_table(results(lacking(of_one_metric(), ("mtl", "ink"))))
    assert to_markdown(shown).endswith(f"|\n\n{shown.note}\n")
    found = {row["column"]: row["tasks"] for row in csv.DictReader(io.StringIO(to_csv([shown])))}
    assert found == {"digit": "digit", "ink": "ink", AVERAGE: "digit", RANK: "digit", DELTA: "digit"}
    whole = csv.DictReader(io.StringIO(to_csv([primary_table(results(of_one_metric()))])))
    assert {row["tasks"] for row in whole if row["column"] == AVERAGE} == {"digit, ink"}


def test_values_that_are_not_finite_count_as_missing():
    rows = frame()
    rows.loc[(rows.method == "mtl") & (rows.task == "ink") & (rows.seed == 0), "value"] = math.inf
    assert primary_table(results(rows)).figures.mean.loc["mtl", "ink"] == pytest.approx(0.20)


def test_a_figure_of_fewer_seeds_than_the_row_says_so():
    row = rows_of(primary_table(results(without("mtl", "ink", 0))))["mtl"]
    assert row.seeds == 2
    assert [(cell.note, cell.deviation == "") for cell in row.cells] == [
        ("", False),
        ("n=1", True),
        ("", True),
        ("n=1", True),
    ]


def test_the_average_over_tasks_is_taken_per_seed_and_only_where_all_have_one_metric():
    rows = frame().assign(metric="accuracy", higher_is_better=True)
    figures = primary_table(results(rows)).figures
    # stl: seeds (0.80 + 0.10) / 2 and (0.90 + 0.20) / 2
    assert figures.mean.loc["stl", AVERAGE] == pytest.approx(0.5)
    assert figures.std.loc["stl", AVERAGE] == pytest.approx(0.1 / math.sqrt(2))
    assert AVERAGE not in primary_table(results()).higher


def test_every_metric_has_a_table_of_the_tasks_that_have_it():
    found = metric_tables(results())
    assert {metric: list(shown.metrics) for metric, shown in found.items()} == {
        "accuracy": ["digit"],
        "mse": ["ink"],
    }


def test_the_table_of_primary_metrics_is_not_there_again_among_those_of_all_metrics():
    loss = of_one_metric().assign(metric="loss", higher_is_better=False)
    found = results(pd.concat([of_one_metric(), loss]))
    assert [primary_table(found).title, *metric_tables(found)] == ["accuracy", "loss"]


def test_a_task_is_judged_by_its_first_metric_that_is_no_loss_unless_told_otherwise():
    loss, more = (frame().query("task == 'digit'").assign(metric=metric) for metric in ("loss", "f1"))
    rows = pd.concat([loss, frame(), more])
    assert StudyResults.of(rows).primary == {"digit": "accuracy", "ink": "mse"}
    assert StudyResults.of(rows, primary={"digit": "f1"}).primary == {"digit": "f1", "ink": "mse"}


def test_without_a_baseline_there_is_no_gain_and_everything_is_ranked():
    shown = primary_table(results(baseline=None))
    assert list(shown.higher) == ["digit", "ink", RANK]
    assert shown.figures.mean[RANK].notna().all()


def test_markdown_is_exactly_this():
    assert to_markdown(primary_table(best_settings(results()))) == (
        "| method | digit accuracy ↑ | ink mse ↓ | rank ↓ | Δm % ↑ | seeds |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: |\n"
        "| stl | 0.8500 ± 0.0707 | 0.1500 ± 0.0707 | – | – | 2 |\n"
        "| mtl | 0.8900 ± 0.0141 | 0.1550 ± 0.0636 | 2.00 | +0.00 ± 0.00 | 2 |\n"
        "| fisher, keep 0.5 | **0.9300** ± 0.0424 | **0.1350** ± 0.0636 | **1.00** | **+10.00** ± 7.07 "
        "| 2 |\n"
    )


def test_html_cells_escape_mark_and_carry_the_value_to_sort_by():
    row = rows_of(primary_table(best_settings(results())))["fisher, keep 0.5"]
    assert row.cells[0].html() == '<td class="number best" data-value="0.93">0.9300<small> ± 0.0424</small></td>'


def test_csv_holds_the_unrounded_numbers():
    rows = list(csv.DictReader(io.StringIO(to_csv([primary_table(best_settings(results()))]))))
    wanted = next(row for row in rows if row["setting"] == "mtl" and row["column"] == "digit")
    assert float(wanted["mean"]) == pytest.approx(0.89, abs=1e-12)
    assert (wanted["metric"], wanted["n"], wanted["best"]) == ("accuracy", "2", "False")


def test_the_frame_of_numbers_holds_mean_deviation_and_seeds_of_every_column():
    numbers = primary_table(best_settings(results())).numbers()
    assert numbers.loc["mtl", ("digit", "mean")] == pytest.approx(0.89)
    assert list(numbers.columns[:3]) == [("digit", "mean"), ("digit", "std"), ("digit", "n")]


def test_run_level_figures_are_read_from_rows_without_a_task():
    seconds = pd.DataFrame([record("mtl", NAN, seed, "test", "ink", 10.0 + seed) for seed in (0, 1)])
    rows = pd.concat([frame(), seconds.assign(task=NAN, metric="seconds", higher_is_better=NAN)])
    found = run_level(results(rows))
    assert found.mean.loc["mtl", "seconds"] == 10.5
    assert math.isnan(found.mean.loc["stl", "seconds"])
    assert results(rows).tasks == ("digit", "ink")


def test_results_survive_their_file(tmp_path):
    renamed = frame().replace({"task": {"ink": "NA"}})
    renamed.to_csv(tmp_path / "results.csv", index=False)
    again = results(read_results(tmp_path / "results.csv"))
    assert again.tasks == ("digit", "NA")
    assert again.higher_is_better("NA", "mse") is False
    assert to_markdown(primary_table(again)) == to_markdown(primary_table(results(renamed)))


def test_bad_results_are_refused_with_what_is_wrong(tmp_path):
    with pytest.raises(ParameterError, match="expected the column 'split' in results"):
        StudyResults.of(frame().drop(columns="split"))
    with pytest.raises(ParameterError, match=r"'mse' of task 'ink' .* found more for 'mtl', seed 1"):
        StudyResults.of(pd.concat([frame(), frame().query("method == 'mtl' and task == 'ink' and seed == 1")]))
    with pytest.raises(
        ParameterError, match="expected `higher_is_better` of metric 'mse' of task 'ink' in results, found none"
    ):
        primary_table(results(frame().assign(higher_is_better=[True if t == "digit" else None for t in frame().task])))
    with pytest.raises(CheckpointError, match="does not exist"):
        read_results(tmp_path / "results.csv")
    (tmp_path / "results.csv").write_text("")
    with pytest.raises(CheckpointError, match="is not a table of results"):
        read_results(tmp_path / "results.csv")


@pytest.mark.parametrize(
    ("values", "digits"),
    [([0.95, 0.9], 4), ([58.57, 60.1], 2), ([0.0141], 5), ([12345.0], 0), ([0.0, math.nan], 3), ([1e-12], 6)],
)
def test_four_significant_digits_of_a_typical_value_are_shown(values, digits):
    assert decimals(values) == digits
