"""The parts by which a table is coded, each against a slow and obvious reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsemtl.data.tables.coded import CodedSplit, OneHot
from sparsemtl.data.tables.embedding import WIDEST, ColumnEmbedding, embedding_width
from sparsemtl.data.tables.encoding import InputColumns, tabulate
from sparsemtl.data.tables.parts import RowParts
from sparsemtl.data.tables.rows import Rows
from sparsemtl.data.tables.targets import NumberTarget, in_order
from sparsemtl.errors import ParameterError

pandas = pytest.importorskip("pandas")
few = settings(max_examples=40, deadline=None)


def coded(column: Sequence[Any], parts: Sequence[int], *, numeric: bool) -> Tensor:
    """Coded column of rows that belong to these parts, beside a target; a further row of each part is left out here."""
    values = [*column, *[column[parts.index(0)]] * 4]
    rows = Rows(
        pandas.DataFrame(
            {
                "x": np.array(values, np.float64 if numeric else object),
                "y": np.arange(len(values), dtype=np.float64),
            }
        ),
        ((Path("t.csv"), len(values)),),
    )
    of_rows = np.array([*parts, 0, 0, 1, 2], np.uint8)
    inputs = InputColumns(["x"] if numeric else [], [] if numeric else ["x"], missing="indicator")
    data = tabulate("t", rows, RowParts(of_rows, ""), inputs, [NumberTarget("y", "y")], encoding="embedding")
    assert isinstance(data.train, CodedSplit)
    return data.train.coded[: len(column)]


@few
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), st.lists(st.integers(-9999, 9999), max_size=5))
def test_numbers_have_mean_0_and_deviation_1_in_training_whatever_the_other_rows_hold(
    train: list[int], rest: list[int]
) -> None:
    seen = [*train, train[0], train[0]]
    spread = pstdev(seen) or 1
    expected = [(value - fmean(seen)) / spread for value in (*train, *rest)]
    found = coded([*train, *rest], [0] * len(train) + [1] * len(rest), numeric=True)
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_a_column_far_from_zero_keeps_its_spread() -> None:
    values = [1e9 + number for number in range(20)]
    seen = [*values, values[0], values[0]]
    expected = [(value - fmean(seen)) / pstdev(seen) for value in values]
    assert coded(values, [0] * 20, numeric=True)[:, 0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_codes_are_places_and_zero_is_what_training_never_saw() -> None:
    assert coded(["y", "x", "z", None], [0, 0, 1, 2], numeric=False)[:, 0].tolist() == [2, 1, 0, 0]
    assert coded(["y", "x", None, "z", None], [0, 0, 0, 1, 2], numeric=False)[:, 0].tolist() == [2, 1, 3, 0, 3]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "-1", "2.5"], ["-1", "2.5", "9", "10"]),
        (["01", "1", "1.0"], ["01", "1", "1.0"]),
        (["b", "10", "9"], ["10", "9", "b"]),
        (["nan", "2", "10"], ["10", "2", "nan"]),
    ],
)
def test_texts_are_in_the_order_of_their_numbers_only_if_all_are_numbers(names: list[str], expected: list[str]) -> None:
    assert in_order(names) == expected
    assert in_order(names[::-1]) == expected


def one_hot_slowly(rows: Tensor, numeric: int, cardinalities: list[int]) -> list[list[float]]:
    made = []
    for row in rows.tolist():
        made.append(row[:numeric])
        for code, cardinality in zip(row[numeric:], cardinalities, strict=True):
            made[-1] += [float(code == place) for place in range(1, cardinality)]
    return made


@few
@given(st.integers(0, 3), st.lists(st.integers(2, 5), max_size=4), st.integers(0, 100))
def test_one_hot_rows_are_those_written_out(numeric: int, cardinalities: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(cardinality, (7,), generator=generator) for cardinality in cardinalities]
    rows = torch.cat([torch.randn(7, numeric, generator=generator), *(code[:, None].float() for code in codes)], dim=1)
    before = rows.clone()
    expand = OneHot(numeric, tuple(cardinalities))
    expected = torch.tensor(one_hot_slowly(rows, numeric, cardinalities)).reshape(7, -1)
    assert torch.equal(expand(rows), expected)
    assert expand.width == expected.shape[1]
    assert torch.equal(rows, before)


def test_every_category_is_a_vector_of_its_own_and_numbers_stay() -> None:
    stem = ColumnEmbedding([3, 4], numeric=2, widths=[2, 3])
    x = torch.tensor([[0.5, -1.0, 1, 3], [0.25, 2.0, 0, 0], [0.1, 0.2, 1, 2]])
    out = stem(x)
    assert out.shape == (3, stem.out_features) == (3, 7)
    assert torch.equal(out[:, :2], x[:, :2])
    assert torch.equal(out[0, 2:4], out[2, 2:4])
    assert not torch.equal(out[0, 4:], out[2, 4:])
    assert torch.equal(out[1, 2:], torch.zeros(5))


def test_the_unknown_never_learns() -> None:
    stem = ColumnEmbedding([3, 4], numeric=0)
    optimizer = torch.optim.AdamW(stem.parameters(), lr=0.1, weight_decay=0.1)
    before = [table.weight.clone() for table in stem.embeddings]
    for _ in range(3):
        optimizer.zero_grad()
        (stem(torch.tensor([[0.0, 1.0], [2.0, 0.0]])) + 1).square().sum().backward()
        optimizer.step()
    for table, old in zip(stem.embeddings, before, strict=True):
        assert torch.equal(table.weight[0], torch.zeros_like(table.weight[0]))
        assert not torch.equal(table.weight, old)


def test_widths_grow_with_the_number_of_codes_up_to_a_bound() -> None:
    widths = [embedding_width(cardinality) for cardinality in range(2, 2000)]
    assert widths == sorted(widths)
    assert (embedding_width(2), embedding_width(10), max(widths)) == (3, 6, WIDEST)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_half_precision_is_refused_where_it_would_confuse_categories(dtype: torch.dtype, most: int) -> None:
    assert torch.arange(most + 1).to(dtype).unique().numel() == most + 1
    x = torch.zeros(1, 1, dtype=dtype)
    ColumnEmbedding([most + 1], numeric=0, widths=[1])(x)
    with pytest.raises(ParameterError, match=rf"codes up to {most + 1}, which {dtype} does not hold"):
        ColumnEmbedding([most + 2], numeric=0, widths=[1])(x)


def test_every_category_needs_a_width() -> None:
    with pytest.raises(ParameterError, match="1 widths for 2 categories"):
        ColumnEmbedding([2, 2], numeric=0, widths=[3])
