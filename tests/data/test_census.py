from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from table_files import REAL, lay_census

from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.census import HEADER, INCOME, INPUTS, MARITAL, NUMBERS, WEIGHT
from sparsemtl.data.tables.coded import CodedSplit
from sparsemtl.errors import DataError

FILE = "census-income/census-income.test.gz"


def census(root: Path, **options: Any) -> TaskData:
    return DATASETS.build("census-income", root=root, **options)


def part(data: TaskData, name: str) -> CodedSplit:
    split = getattr(data, name)
    assert isinstance(split, CodedSplit)
    return split


def test_the_columns_are_those_of_the_documentation() -> None:
    assert len(HEADER) == len(set(HEADER)) == 42
    assert set(NUMBERS) < set(HEADER)
    assert {INCOME, MARITAL, WEIGHT}.isdisjoint((*INPUTS.numbers, *INPUTS.categories))
    assert (len(INPUTS.numbers), len(INPUTS.categories)) == (10, 29)


@pytest.mark.parametrize("gzipped", [True, False])
def test_with_both_files_the_test_file_is_halved(tmp_path: Path, gzipped: bool) -> None:
    rows = lay_census(tmp_path, train=50, test=30, gzipped=gzipped)
    data = census(tmp_path)
    assert part(data, "train").rows.tolist() == list(range(50))
    halves = part(data, "validation").rows.tolist(), part(data, "test").rows.tolist()
    assert [len(half) for half in halves] == [15, 15]
    assert sorted([*halves[0], *halves[1]]) == list(range(50, 80))
    for name in ("train", "validation", "test"):
        split = part(data, name)
        told = [rows[row] for row in split.rows.tolist()]
        assert split.load().targets["income"].tolist() == [int(row[INCOME] == "50000+.") for row in told]
        assert split.load().targets["never-married"].tolist() == [int(row[MARITAL] == "Never married") for row in told]
    assert "training: the official training file; the official test file is halved at random (seed 0)" in data.notes


def test_without_the_training_file_the_test_file_is_split_and_every_figure_says_so(tmp_path: Path) -> None:
    lay_census(tmp_path, test=100)
    data = census(tmp_path, seed=3)
    parts = [part(data, name).rows for name in ("train", "validation", "test")]
    assert [len(rows) for rows in parts] == [70, 15, 15]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))
    assert data.notes[0] == (
        "of the official test file alone: 70 % training, 15 % validation, 15 % test at random (seed 3)"
    )


def test_neither_labels_nor_weights_are_inputs_and_question_marks_are_categories(tmp_path: Path) -> None:
    rows = lay_census(tmp_path)
    data = census(tmp_path)
    seen = [rows[row] for row in part(data, "train").rows.tolist()]
    width = len(NUMBERS) + sum(len({row[name] for row in seen}) for name in INPUTS.categories)
    assert data.input_shape == (width,)
    one_hot = part(data, "train").load().x[:, len(NUMBERS) :]
    assert torch.equal(one_hot.sum(1), torch.full((len(seen),), float(len(INPUTS.categories))))


def test_a_table_can_be_embedded(tmp_path: Path) -> None:
    lay_census(tmp_path)
    data = census(tmp_path, encoding="embedding")
    assert data.input_shape == (39,)
    assert data.stem is not None
    x, _ = next(iter(data.train.loader(4)))  # type: ignore[union-attr]
    assert data.stem()(x).shape == (4, data.stem().out_features)


def test_what_is_absent_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks census-income\.test\.gz.*sparsemtl data check census-income"):
        census(tmp_path)
    lay_census(tmp_path)
    text = gzip.decompress((tmp_path / FILE).read_bytes())
    short = text.decode().splitlines()
    short[3] = ", ".join(short[3].split(", ")[:20])
    (tmp_path / FILE).write_bytes(gzip.compress("\n".join(short).encode()))
    with pytest.raises(DataError, match=r"test\.gz, row 4: column '[\w ]+' has no value here"):
        census(tmp_path)
    (tmp_path / FILE).write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(DataError, match=r"test\.gz cannot be read: Compressed file ended"):
        census(tmp_path)
    (tmp_path / FILE).write_bytes(gzip.compress(text.replace(b"- 50000.", b"- 60000.", 1)))
    with pytest.raises(DataError, match=r"row 1: '- 60000\.' in the target 'income' is none of the classes - 50"):
        census(tmp_path)


@pytest.mark.slow  # a hundred thousand rows
@pytest.mark.skipif(not (REAL / FILE).is_file(), reason="the official file is not here")
def test_the_official_test_file_has_the_known_correlation_of_labels() -> None:
    data = census(REAL)
    assert (len(part(data, "train")), len(part(data, "validation")), len(part(data, "test"))) == (69833, 14965, 14964)
    labels = part(data, "train").labels
    both = torch.stack([labels["income"], labels["never-married"]]).double()
    assert both.shape[1] == 99762
    assert torch.corrcoef(both)[0, 1].item() == pytest.approx(-0.179, abs=5e-4)
