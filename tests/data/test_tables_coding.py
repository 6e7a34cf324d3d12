"""The parts by which a table is coded, each against a slow and obvious reference."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsemtl.data.tables.coded import OneHot
from sparsemtl.data.tables.embedding import WIDEST, ColumnEmbedding, embedding_width
from sparsemtl.data.tables.encoding import Category, in_order
from sparsemtl.data.tables.reading import Chunk, Texts
from sparsemtl.data.tables.survey import TRAIN, Names, Numbers
from sparsemtl.errors import ParameterError

few = settings(max_examples=40, deadline=None)
pieces = st.lists(st.lists(st.integers(-1000, 1000), min_size=1, max_size=6), min_size=1, max_size=6)


def numbers(values: list[float]) -> Chunk:
    return Chunk(Path("t.csv"), 0, {"n": np.array(values, dtype=np.float64)}, {})


def texts(values: list[str | None]) -> Chunk:
    names = tuple(dict.fromkeys(value for value in values if value is not None))
    codes = np.array([-1 if value is None else names.index(value) for value in values])
    return Chunk(Path("t.csv"), 0, {}, {"c": Texts(codes, names)})


@few
@given(pieces)
def test_moments_of_pieces_are_those_of_the_whole(drawn: list[list[int]]) -> None:
    found = Numbers()
    for piece in drawn:
        found.add(numbers([*piece, np.nan]), "n", np.full(len(piece) + 1, TRAIN, np.uint8))
    whole = [value for piece in drawn for value in piece]
    assert found.count == len(whole)
    assert found.mean == pytest.approx(fmean(whole), abs=1e-9)
    assert found.spread == pytest.approx(pstdev(whole), abs=1e-9)
    assert (found.low, found.high) == (min(whole), max(whole))
    assert found.missing.counts.tolist() == [len(drawn), 0, 0]
    assert found.constant == (len(set(whole)) == 1)


def test_a_column_far_from_zero_keeps_its_spread() -> None:
    found = Numbers()
    for offset in range(10):
        found.add(numbers([1e9 + 2 * offset, 1e9 + 2 * offset + 1]), "n", np.zeros(2, np.uint8))
    assert found.spread == pytest.approx(pstdev(range(20)), rel=1e-9)


def test_only_training_rows_are_counted_and_the_first_gap_is_where_it_is() -> None:
    found = Names()
    parts = np.array([0, 1, 0, 2, 0], np.uint8)
    found.add(texts(["a", "b", "a", None, "c"]), "c", parts)
    found.add(texts(["c", None, None, "d", "a"]), "c", parts)
    assert found.counts == {"a": 3, "c": 2}
    assert found.missing.counts.tolist() == [1, 1, 1]
    assert found.missing.first == "t.csv, row 4"


def test_codes_are_places_and_zero_is_the_unknown() -> None:
    category = Category("c", ("x", "y", None))
    assert category.code(texts(["y", "z", None, "x"])).tolist() == [2, 0, 3, 1]
    assert Category("c", ("x", "y")).code(texts(["y", "z", None, "x"])).tolist() == [2, 0, 0, 1]


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
    before = [table.weight.clone() for table in stem._tables()]
    for _ in range(3):
        optimizer.zero_grad()
        (stem(torch.tensor([[0.0, 1.0], [2.0, 0.0]])) + 1).square().sum().backward()
        optimizer.step()
    for table, old in zip(stem._tables(), before, strict=True):
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
