from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from table_files import REAL, lay_movielens

from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.download import ZipArchive
from sparsemtl.data.movielens import GENRES
from sparsemtl.data.tables.coded import CodedSplit
from sparsemtl.errors import DataError

LAYOUTS: list[Literal["official", "recbole"]] = ["official", "recbole"]


def movielens(root: Path, **options: Any) -> TaskData:
    return DATASETS.build("movielens-100k", root=root, **options)


def training(data: TaskData) -> CodedSplit:
    assert isinstance(data.train, CodedSplit)
    return data.train


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_and_genres_are_those_of_the_files(tmp_path: Path, layout: Literal["official", "recbole"]) -> None:
    rows = lay_movielens(tmp_path, layout)
    data = movielens(tmp_path)
    split = training(data)
    told = [rows[row] for row in split.rows.tolist()]
    loaded = split.load()
    assert loaded.targets["rating"].tolist() == [int(row[2] > 3) for row in told]
    ages = torch.tensor([row[3] for row in told]).float()
    assert torch.allclose(loaded.targets["age"], (ages - ages.min()) / (ages.max() - ages.min()))
    for place, genre in enumerate(GENRES, start=1):
        has = torch.tensor([genre in row[-1] for row in told])
        column = loaded.x[:, place]
        assert torch.equal(column > column.mean(), has) or column.unique().numel() == 1


def test_both_layouts_give_the_same_data_bit_for_bit(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        lay_movielens(tmp_path / layout, layout)
    official, recbole = (movielens(tmp_path / layout) for layout in LAYOUTS)
    assert torch.equal(training(official).coded, training(recbole).coded)
    assert all(
        torch.equal(training(official).labels[name], training(recbole).labels[name]) for name in ("rating", "age")
    )
    assert official.notes == recbole.notes


def test_validation_is_taken_from_seven_tenths(tmp_path: Path) -> None:
    lay_movielens(tmp_path, count=200)
    data = movielens(tmp_path, validation=0.2, seed=1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [112, 28, 60]
    assert data.notes[:2] == (
        "56 % training, 14 % validation, 30 % test at random (seed 1)",
        "not the whole data set: 200 ratings (officially 100,000)",
    )


def test_a_film_without_a_year_has_an_indicator_and_is_told(tmp_path: Path) -> None:
    rows = lay_movielens(tmp_path)
    data = movielens(tmp_path)
    split = training(data)
    lacks = torch.tensor([rows[row][6] is None for row in split.rows.tolist()])
    assert torch.equal(split.load().x[:, 20].bool(), lacks)
    assert any(note.startswith("column 'release_year' is missing in") for note in data.notes)


def test_users_and_films_can_be_inputs(tmp_path: Path) -> None:
    lay_movielens(tmp_path)
    without, with_them = movielens(tmp_path), movielens(tmp_path, identities=True)
    assert with_them.input_shape[0] - without.input_shape[0] == 8 + 6


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks u\.data, u\.user, u\.item\. `sparsemtl data check movielens-100k`"):
        movielens(tmp_path)
    lay_movielens(tmp_path)
    place = tmp_path / "ml-100k"
    text = (place / "u.data").read_text()
    (place / "u.data").write_text(text + "99\t1\t3\t0\n")
    with pytest.raises(DataError, match="rating 81 is of user '99', which is not listed"):
        movielens(tmp_path)
    (place / "u.data").write_text(text + "1\t1\tgood\t0\n")
    with pytest.raises(DataError, match=r"u\.data, row 81: column 'rating' holds numbers, and here 'good'"):
        movielens(tmp_path)
    (place / "u.data").write_text(text)
    users = (place / "u.user").read_text()
    (place / "u.user").write_text(users + users.splitlines()[0] + "\n")
    with pytest.raises(DataError, match="user '1' is listed twice"):
        movielens(tmp_path)


def test_the_official_files_are_downloaded_only_when_asked_and_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(self: ZipArchive, folder: Path, names: Any) -> None:
        asked.append((folder, tuple(names)))
        lay_movielens(tmp_path)

    monkeypatch.setattr(ZipArchive, "fetch", fetch)
    with pytest.raises(DataError, match="lacks"):
        movielens(tmp_path)
    movielens(tmp_path, download=True)
    movielens(tmp_path, download=True)
    assert asked == [(tmp_path / "ml-100k", ("u.data", "u.user", "u.item"))]


@pytest.mark.skipif(not (REAL / "ml-100k").is_dir(), reason="the official files are not here")
def test_the_official_files_have_the_known_correlation_of_labels() -> None:
    split = training(movielens(REAL))
    both = torch.stack([split.labels["rating"].float(), split.labels["age"]])
    assert both.shape[1] == 100_000
    assert torch.corrcoef(both)[0, 1].item() == pytest.approx(0.055, abs=0.01)
