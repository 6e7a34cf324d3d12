"""Sections show what the architecture, the sharing method and the balancer declared, whoever they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from reading import Page
from synthetic import make_run

from sparsemtl.networks.declarations import Figure, SummaryTable, to_record
from sparsemtl.report import write_report
from sparsemtl.report.declared import TITLES, Section, section
from sparsemtl.storage.metrics import METRIC_COLUMNS, MetricRow
from sparsemtl.storage.run_folder import RunFolder

COLOURS = {"digit": 0, "ink": 1}
Logged = tuple[str, str, str]
"""Part, task and name of a figure."""


def run_of(
    tmp_path: Path,
    logged: Iterable[Logged] = (),
    *,
    values: Iterable[float] = (0.5, 0.25, 0.1),
    figures: Iterable[Figure] = (),
    tables: Iterable[SummaryTable] = (),
    part: str = "sharing",
) -> Path:
    """A dense run of two tasks that logged these figures beside its metrics, and declared figures and tables."""
    folder = make_run(tmp_path / "run", tasks=list(COLOURS), keep=None, epochs=3)
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join(METRIC_COLUMNS)
    rows = [MetricRow(epoch, epoch, *figure, value) for figure in logged for epoch, value in enumerate(values, start=1)]
    kept = [line for line in lines if ",balancing," not in line]
    (folder / "metrics.csv").write_text("\n".join([*kept, *(",".join(map(str, row)) for row in rows), ""]))
    summary = json.loads((folder / "summary.json").read_text())
    summary["declarations"] = {part: to_record(figures, tables)}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def shown(folder: Path) -> dict[str, Section]:
    sections = {part: section(RunFolder(folder).read(), part, COLOURS) for part in TITLES}
    return {part: found for part, found in sections.items() if found is not None}


FIGURE = Figure("x", "Level", "metres", higher_is_better=True)
TOGETHER = Figure("y", "Sum", "of all tasks", per_task=False, higher_is_better=False)


@pytest.mark.parametrize("part", TITLES)
def test_a_figure_is_drawn_as_it_was_declared_in_the_section_of_its_part(tmp_path: Path, part: str) -> None:
    folder = run_of(tmp_path, [(part, "digit", "x"), (part, "", "y")], figures=[FIGURE, TOGETHER], part=part)
    (found,) = shown(folder).values()
    assert found.title.startswith(TITLES[part])
    assert [(chart.title, chart.unit) for chart in found.charts] == [("Level", "metres ↑"), ("Sum", "of all tasks ↓")]
    assert found.by_task


def test_a_figure_without_a_declaration_is_drawn_under_its_name(tmp_path: Path) -> None:
    (found,) = shown(run_of(tmp_path, [("sharing", "ink", "what_nobody_knows"), ("sharing", "", "all")])).values()
    assert [chart.title for chart in found.charts] == ["what nobody knows", "all"]


def test_a_chart_has_a_line_for_every_task_that_was_measured_even_one_that_stays(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [("sharing", "digit", "x")], figures=[FIGURE])
    (one,) = shown(folder)["sharing"].charts
    with (folder / "metrics.csv").open("a") as file:
        file.writelines(f"{epoch},{epoch},sharing,ink,x,0.3\n" for epoch in (1, 2, 3))
    (both,) = shown(folder)["sharing"].charts
    assert "var(--c1)" not in one.svg
    assert "var(--c0)" in both.svg
    assert "var(--c1)" in both.svg


@pytest.mark.parametrize(("values", "text"), [((0.5, 0.5, 0.5), "0.5000"), ((0.25,), "0.2500")])
def test_a_declared_figure_that_does_not_change_is_named_with_its_value(tmp_path, values, text) -> None:
    folder = run_of(
        tmp_path, [("sharing", "digit", "x"), ("sharing", "", "y")], values=values, figures=[FIGURE, TOGETHER]
    )
    found = shown(folder)["sharing"]
    assert found.charts == []
    assert found.constants == {"Level": text, "Sum": text}
    assert f"because they did not change: Level {text}; Sum {text}." in Page(write_report(folder).read_text()).text


def test_constants_that_differ_per_task_are_named_per_task(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [("sharing", "digit", "x")], values=[0.5], figures=[FIGURE])
    with (folder / "metrics.csv").open("a") as file:
        file.write("1,1,sharing,ink,x,2\n")
    assert shown(folder)["sharing"].constants == {"Level": "0.5000 (digit), 2.000 (ink)"}


@pytest.mark.parametrize("values", [(0.5, 0.5, 0.5), (0.5,), (float("nan"),) * 3])
def test_without_declarations_nothing_constant_is_shown(tmp_path, values) -> None:
    assert shown(run_of(tmp_path, [("sharing", "digit", "x"), ("sharing", "", "y")], values=values)) == {}


def test_a_figure_that_was_declared_but_never_logged_is_left_out(tmp_path: Path) -> None:
    assert shown(run_of(tmp_path, figures=[FIGURE])) == {}


def test_tables_show_names_numbers_bars_and_shades(tmp_path: Path) -> None:
    table = SummaryTable(
        "Rest of <each> layer",
        ("layer", "size", "left", "alike", "note"),
        [["conv1", 12345, 0.5, -0.25, "digit"], ["ink", None, None, 0.8, None]],
        "At the end.",
        fractions=("left",),
        shaded=("alike",),
    )
    folder = run_of(tmp_path, tables=[table], part="architecture")
    (view,) = shown(folder)["architecture"].tables
    assert [kind for _, kind in view.columns] == ["text", "number", "fraction", "heat", "text"]
    assert [cell.text for cell in view.rows[0]] == ["conv1", "12,345", "50\N{NO-BREAK SPACE}%", "-0.25", "digit"]
    assert [cell.text for cell in view.rows[1]] == ["ink", "–", "–", "0.80", "–"]
    assert [cell.value for cell in view.rows[0]][2:4] == [0.5, 0.25]
    html = write_report(folder).read_text()
    page = Page(html)
    assert "Rest of &lt;each&gt; layer" in html
    assert "At the end." in page.text
    assert html.count('class="dot"') == 2 + 2 + 2 + 2, "the dots of tasks in results, two kinds of curves and the table"
    assert page.sections.index("Architecture: shared-bottom") > page.sections.index("Learning curves")


def test_texts_give_way_in_wide_heat_maps(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(12)]
    table = SummaryTable("Alike", ("task", *names), [["a", *[0.1] * 12]], shaded=names)
    (view,) = shown(run_of(tmp_path, tables=[table]))["sharing"].tables
    assert view.many
    assert 'class="turn"' in write_report(tmp_path / "run").read_text()
