from __future__ import annotations

import json

import pytest

from sparsemtl.errors import ParameterError
from sparsemtl.networks.declarations import Figure, SummaryTable, to_record


def test_declarations_survive_a_file_of_json() -> None:
    figures = (Figure("density", "Density", per_task=True), Figure("strength", "Strength", "", False, True))
    tables = (SummaryTable("Layers", ("layer", "left"), [["conv1", 0.5], ["conv2", None]], fractions=("left",)),)
    written = json.loads(json.dumps(to_record(figures, tables)))
    assert tuple(Figure(**figure) for figure in written["figures"]) == figures
    assert to_record((), [SummaryTable(**table) for table in written["tables"]])["tables"] == written["tables"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([["a"]], {}, r"'T': expected 2 cells per row, one per column, got \['a'\]"),
        ([], {"fractions": ["z"]}, r"'T': z is not among the columns \['x', 'y'\]"),
        ([], {"shaded": ["w", "z"]}, r"'T': w, z is not among"),
    ],
)
def test_tables_that_do_not_fit_their_columns_are_refused(rows, options, message) -> None:
    with pytest.raises(ParameterError, match=message):
        SummaryTable("T", ["x", "y"], rows, **options)
