"""Reports as a browser shows them: no error, legible in light and dark, sortable, quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import make_study

from sparsemtl.report import write_report

pytestmark = pytest.mark.slow
KEEPS = tuple(n / 10 for n in range(1, 10))


@pytest.fixture(scope="module")
def large_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report of a made-up study of 200 runs."""
    folder = make_study(tmp_path_factory.mktemp("large") / "large", keeps=KEEPS, seeds=10, epochs=4)
    assert len(list((folder / "runs").iterdir())) == 200
    return write_report(folder)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Path:
    """Page of the report that the test names."""
    place = request.getfixturevalue(request.param)
    return place if place.is_file() else write_report(place)


every_report = pytest.mark.parametrize("report", ["finished_run", "finished_study", "large_study"], indirect=True)


@every_report
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_opens_without_an_error_and_is_legible(
    report: Path, scheme: str, open_page: Any, low_contrast: Any
) -> None:
    page, errors, _ = open_page(report, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert errors == []
    assert low_contrast(page) == []


@every_report
def test_a_report_is_no_wider_than_the_window(report: Path, open_page: Any) -> None:
    page, _, _ = open_page(report)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_study_of_200_runs_opens_within_2_seconds(large_study: Path, open_page: Any) -> None:
    assert open_page(large_study).milliseconds < 2000


def test_a_click_on_a_heading_sorts_the_runs(large_study: Path, open_page: Any) -> None:
    page, errors, _ = open_page(large_study)
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    table = page.locator("table", has=page.locator("th", has_text="status")).last
    headings = table.locator("th[data-sort]")
    names = headings.all_inner_texts()
    place = next(i for i, name in enumerate(names) if name.startswith("digit"))

    def column() -> list[float]:
        values = f"rows => rows.map(row => parseFloat(row.cells[{place}].dataset.value))"
        return table.locator("tbody tr").evaluate_all(values)

    before = column()
    assert len(before) == 200
    assert before != sorted(before)
    headings.nth(place).click()
    assert column() == sorted(before)
    headings.nth(place).click()
    assert column() == sorted(before, reverse=True)
    headings.first.click()
    first = table.locator("tbody tr").evaluate_all("rows => rows.map(row => row.cells[0].textContent)")
    assert first == sorted(first)
    assert errors == []
