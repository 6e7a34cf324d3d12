"""Tables as text and as HTML, in which nothing of a user's is markup."""

from __future__ import annotations

from html.parser import HTMLParser

import torch
from loops import each

from sparsemtl.compaction.report import CompactionReport, LayerReport
from sparsemtl.compaction.verification.comparison import Verification
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.storage.metrics import MetricRow, metrics_frame
from sparsemtl.study.results import StudyResults
from sparsemtl.study.tables import primary_table
from sparsemtl.training.evaluation.results import Results
from sparsemtl.views.tables import Shaded, Table, Written, cell_text, short_names

EVIL = "<script>alert('&')</script>"


class Tags(HTMLParser):
    """Collects the tags and the text of a page, and checks that tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_texts_stand_left_and_numbers_right() -> None:
    table = Table(["name", "count"], [["a", 5], ["bcdef", 1234]], "title", ["note"])
    assert table.text() == "title\nname   count\na          5\nbcdef  1,234\nnote"


def test_cells_are_short() -> None:
    assert [cell_text(v) for v in (None, float("nan"), 0.123456, 1234567, "x", Shaded(0.5, 1))] == [
        "–", "–", "0.1235", "1,234,567", "x", "0.500",
    ]  # fmt: skip


def test_names_lose_what_all_share() -> None:
    assert short_names(["encoder.a.weight", "encoder.b.bias"]) == ["a", "b.bias"]
    assert short_names(["encoder.0.weight", "encoder.1.weight"]) == ["encoder.0", "encoder.1"]


def _frame() -> object:
    import pandas as pd

    rows = [
        {"run": f"{method}{seed}", "method": method, "seed": seed, "split": split, "task": EVIL, "metric": EVIL,
         "higher_is_better": True, "value": 0.5 + seed / 10 + (method != "stl") / 10}
        for method in ("stl", EVIL) for seed in (0, 1) for split in ("validation", "test")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _shown() -> dict[str, object]:
    masks = TaskMasks({EVIL: {EVIL: torch.tensor([True, False])}, "b": {EVIL: torch.tensor([True, True])}}, method=EVIL)
    study = StudyResults.of(_frame(), baseline="stl")  # type: ignore[arg-type]
    report = CompactionReport((LayerReport(EVIL, EVIL, (2, 1), (2, 1), EVIL),), (4, 2), None, Verification(reason=EVIL))
    return {
        "table": Table([EVIL], [[EVIL], [EVIL]], EVIL, [EVIL]),
        "masks": masks,
        "overlap": masks.overlap(),
        "compaction": report,
        "results": Results({EVIL: {"loss": 1.0, EVIL: 0.5}}),
        "study": study,
        "study table": primary_table(study),
        "history": metrics_frame([MetricRow(1, 2, "validation", EVIL, EVIL, 0.5)]),
    }


@each("kind", ["masks", "overlap", "compaction", "results", "study", "study table", "history", "table"])
def test_names_of_users_are_text_in_notebooks(kind: str) -> None:
    shown = _shown()[kind]
    page = shown.html() if isinstance(shown, Table) else shown._repr_html_()  # type: ignore[attr-defined]
    if kind == "history":
        page = page.replace("<style scoped>", "<style>")
    found = Tags(page)
    assert "script" not in found.tags
    assert EVIL in found.text


def test_a_long_table_of_masks_names_what_it_hides() -> None:
    masks = TaskMasks({"a": {f"w{i}": torch.ones(2, dtype=torch.bool) for i in range(45)}})
    page = masks._repr_html_()
    assert "5 more parameters" in page
    assert "w39" in page
    assert "w40" not in page
    assert "1.000" in page


def test_a_table_as_markdown_and_csv_keeps_bars_and_whole_numbers() -> None:
    table = Table(["name", "p"], [["a|b", Written(0.00012345, "0.00012")], ["c", None]], "Title", ["Note."])
    assert table.markdown() == "Title\n\n| name | p |\n| :--- | ---: |\n| a\\|b | 0.00012 |\n| c | – |\n\nNote."
    assert table.csv() == "name,p\na|b,0.00012345\nc,\n"
