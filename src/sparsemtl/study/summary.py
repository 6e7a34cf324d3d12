"""Summary of a study in Markdown: table, intervals, tests, and the weak points of the evidence."""

from __future__ import annotations

from collections.abc import Sequence

from sparsemtl.study.evidence import weak_points
from sparsemtl.study.results import StudyResults, best_settings
from sparsemtl.study.statistics import comparison
from sparsemtl.study.tables import primary_table, to_markdown


def summary_text(results: StudyResults) -> str:
    """Return the summary of results; see `StudyResults.summary`."""
    best = best_settings(results)
    tables = [table.markdown() for table in comparison(best).values()]
    parts = [to_markdown(primary_table(best)).rstrip(), *tables, weak_text(weak_points(results))]
    return "\n\n".join(part for part in parts if part)


def weak_text(points: Sequence[str]) -> str:
    """Return weak points as a list with a heading; "" without any."""
    return "\n".join(["The evidence of this study is weak:", *(f"- {point}" for point in points)]) if points else ""
