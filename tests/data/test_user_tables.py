"""A table of the user's own: every number in a batch follows from the file and the training rows, by a slow reading."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from table_files import write
from torch import Tensor

from sparsemtl.data import DATASETS, Split, TaskData
from sparsemtl.data.tables.coded import CodedSplit
from sparsemtl.data.tables.encoding import UnseenCategoryWarning
from sparsemtl.tasks import Classification, Regression

HEADER = ("age", "city", "member", "weight", "bought", "price")
CITIES = ("Oslo", "Rom", "Bonn", "")
TARGETS = {"bought": "classification", "price": {"kind": "regression", "scale": "standard"}}
PARTS = ("train", "validation", "test")


def shop(count: int = 60) -> list[list[Any]]:
    """Customers: two numbers, one now and then missing, two categories, one now and then missing, two targets."""
    return [
        [
            20 + 7 * n % 50,
            CITIES[n % 3] if n % 11 else "",
            n % 4 < 2,
            0.5 * (n % 13) if n % 5 else "",
            "yes" if n % 3 else "no",
            round(1.7 * n, 2),
        ]
        for n in range(count)
    ]


@pytest.fixture
def customers(tmp_path: Path) -> Path:
    return write(tmp_path / "shop.csv", [HEADER, *shop()])


def table(path: Path | str | Sequence[str], targets: Any = None, **options: Any) -> TaskData:
    place = [str(each) for each in path] if isinstance(path, list) else str(path)
    return DATASETS.build("table", path=place, targets=TARGETS if targets is None else targets, **options)


def part(data: TaskData, name: str = "train") -> CodedSplit:
    split = getattr(data, name)
    assert isinstance(split, CodedSplit)
    return split


def loaded(data: TaskData) -> list[Split]:
    return [part(data, name).load() for name in PARTS]


def same(one: TaskData, other: TaskData) -> bool:
    """Whether two data sets have the same samples and labels in every part, bit for bit."""
    return all(
        torch.equal(a.x, b.x)
        and all(torch.equal(a.targets[name].nan_to_num(9), b.targets[name].nan_to_num(9)) for name in a.targets)
        for a, b in zip(loaded(one), loaded(other), strict=True)
    )


def slowly(path: Path, train: list[int], rows: list[int]) -> list[list[float]]:
    """The inputs of some rows, worked out one value at a time from what the training rows hold."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    numbers, columns = [], []
    for name in ("age", "weight"):
        known = [float(lines[row][name]) for row in train if lines[row][name]]
        mean = sum(known) / len(known)
        spread = math.sqrt(sum((value - mean) ** 2 for value in known) / len(known))
        numbers.append([(float(lines[row][name] or mean) - mean) / spread for row in rows])
    indicators = [[float(lines[row]["weight"] == "") for row in rows]]
    for name in ("city", "member"):
        values = sorted({lines[row][name] for row in train}, key=lambda value: (value == "", value))
        columns += [[float(lines[row][name] == value) for row in rows] for value in values]
    return [list(row) for row in zip(*numbers, *indicators, *columns, strict=True)]


def test_inputs_are_what_a_slow_reading_of_the_training_rows_gives(customers: Path) -> None:
    data = table(customers)
    train = part(data).rows.tolist()
    for name in PARTS:
        split = part(data, name)
        expected = torch.tensor(slowly(customers, train, split.rows.tolist()))
        assert torch.allclose(split.load().x, expected, atol=1e-6)
        assert split.load().x.dtype == torch.float32
    assert data.input_shape == (2 + 1 + 4 + 2,)


def test_targets_are_the_columns_own_values(customers: Path) -> None:
    data, rows = table(customers), shop()
    prices = torch.tensor([row[5] for row in rows], dtype=torch.float64)
    spread, mean = torch.std_mean(prices[part(data).rows], correction=0)
    for split in (part(data, name) for name in PARTS):
        told = split.rows.tolist()
        assert split.load().targets["bought"].tolist() == [int(rows[row][4] == "yes") for row in told]
        assert torch.allclose(split.load().targets["price"].double(), (prices[told] - mean) / spread, atol=1e-6)
    bought, price = data.tasks
    assert isinstance(bought, Classification)
    assert bought.class_names == ["no", "yes"]
    assert isinstance(price, Regression)
    (note,) = [note for note in data.notes if note.startswith("price")]
    assert note == f"price: 'price' is {mean.item():.9g} + {spread.item():.9g} * its label"


def test_large_labels_that_are_not_scaled_are_noted(customers: Path) -> None:
    assert any(
        note.startswith("price: the largest label is") for note in table(customers, {"price": "regression"}).notes
    )
    scaled = table(customers, {"price": {"kind": "regression", "scale": 100}}).notes
    assert not any("the largest label" in note for note in scaled)


@pytest.mark.parametrize("encoding", ["one-hot", "embedding"])
def test_rows_of_validation_and_test_change_nothing_in_training(tmp_path: Path, encoding: str) -> None:
    paths = [write(tmp_path / f"{name}.csv", [HEADER, *shop(40)]) for name in PARTS]
    before = part(table(paths, encoding=encoding)).load()
    wild = [[1e6, "Rom", True, -1e6, "no", 1e6], [-1e6, "Bonn", False, "", "yes", -5]]
    for path in paths[1:]:
        write(path, [HEADER, *wild])
    after = part(table(paths, encoding=encoding)).load()
    assert torch.equal(before.x, after.x)
    assert all(torch.equal(before.targets[name], after.targets[name]) for name in before.targets)


def test_embedded_rows_are_the_same_before_they_become_one_hot(customers: Path) -> None:
    one_hot, embedded = table(customers), table(customers, encoding="embedding")
    assert embedded.input_shape == (5,)
    assert one_hot.stem is None
    assert embedded.stem is not None
    expand = part(one_hot).expand
    assert expand is not None
    for plain, coded in zip(loaded(one_hot), loaded(embedded), strict=True):
        assert torch.equal(plain.x, expand(coded.x))
    stem = embedded.stem()
    assert stem(part(embedded).load().x).shape == (42, stem.out_features)
    assert embedded.only(["price"]).stem is embedded.stem


def test_batches_are_the_loaded_rows_in_the_order_of_any_data_set(customers: Path) -> None:
    split = part(table(customers))
    plain = split.load()
    for shuffle in (False, True):
        torch.manual_seed(4)
        batches = list(split.loader(8, shuffle=shuffle, drop_last=shuffle))
        torch.manual_seed(4)
        expected = list(plain.loader(8, shuffle=shuffle, drop_last=shuffle))
        assert len(batches) == len(expected)
        for (x, labels), (y, others) in zip(batches, expected, strict=True):
            assert torch.equal(x, y)
            assert all(torch.equal(labels[name], others[name]) for name in others)


def test_taking_selecting_and_leaving_out_targets_keep_rows_with_their_labels(customers: Path) -> None:
    split = part(table(customers))
    whole = split.load()
    assert torch.equal(split.take(5).load().x, whole.x[:5])
    assert len(split.take(999)) == len(split)
    rows = torch.tensor([7, 1, 1])
    assert torch.equal(split.select(rows).load().targets["price"], whole.targets["price"][rows])
    assert split.only(["price"]).targets == ("price",)
    assert list(split.only(["price"]).load().targets) == ["price"]
    assert split.shape == tuple(whole.x.shape[1:])


def test_shares_divide_the_rows_and_the_seed_decides_which(customers: Path) -> None:
    data = table(customers, split=[0.5, 0.3, 0.2], seed=7)
    rows = [part(data, name).rows for name in PARTS]
    assert [len(each) for each in rows] == [30, 18, 12]
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(60))
    assert data.notes[0] == "50 % training, 30 % validation, 20 % test at random (seed 7), of every class"
    assert not torch.equal(rows[0], part(table(customers, split=[0.5, 0.3, 0.2], seed=8)).rows)


def test_files_can_be_one_a_part_whatever_the_order_of_their_columns(tmp_path: Path) -> None:
    sizes = {"train": 20, "validation": 8, "test": 5}
    paths = [write(tmp_path / "folder" / f"{name}.csv", [HEADER, *shop(size)]) for name, size in sizes.items()]
    write(paths[2], [HEADER[::-1], *(row[::-1] for row in shop(5))])
    listed, folder = table(paths), table(tmp_path / "folder")
    assert same(listed, folder)
    assert [len(part(listed, name)) for name in PARTS] == [20, 8, 5]
    assert torch.equal(part(listed, "test").load().x, part(listed).load().x[:5])
    assert listed.notes[0] == "training, validation and test rows are of files of their own"


def test_without_a_validation_file_some_training_rows_are_held_out(tmp_path: Path) -> None:
    for name, size in (("train", 40), ("test", 9)):
        write(tmp_path / f"{name}.csv", [HEADER, *shop(size)])
    data = table(tmp_path, split=[0.6, 0.2, 0.2], seed=2)
    assert [len(part(data, name)) for name in PARTS] == [30, 10, 9]
    assert part(data, "test").rows.tolist() == list(range(40, 49))
    assert data.notes[0] == "validation: 25 % of the training file's rows at random (seed 2), of every class"


def test_a_column_can_say_what_a_row_belongs_to(tmp_path: Path) -> None:
    rows = [[PARTS[n % 5 // 2], *row] for n, row in enumerate(shop(40))]
    path = write(tmp_path / "shop.csv", [("fold", *HEADER), *rows])
    data = table(path, split_column="fold")
    for number, name in enumerate(PARTS):
        assert part(data, name).rows.tolist() == [n for n in range(40) if n % 5 // 2 == number]
    assert data.input_shape == table(path, drop=["fold"]).input_shape


@pytest.mark.parametrize(
    ("name", "how", "options"),
    [
        ("shop.csv", {"separator": ";"}, {"separator": ";"}),
        ("shop.tsv", {"separator": "\t"}, {}),
        ("shop.csv", {"text_encoding": "utf-8-sig"}, {}),
        ("shop.csv", {"text_encoding": "utf-16"}, {"text_encoding": "utf-16"}),
    ],
)
def test_a_table_is_the_same_however_it_is_written(
    customers: Path, tmp_path: Path, name: str, how: dict[str, str], options: dict[str, str]
) -> None:
    path = write(tmp_path / "other" / name, [HEADER, *shop()], **how)
    assert same(table(path, **options), table(customers))


def test_a_table_is_the_same_compressed_and_with_a_decimal_comma(customers: Path, tmp_path: Path) -> None:
    path = tmp_path / "packed.csv.gz"
    path.write_bytes(gzip.compress(customers.read_bytes()))
    assert same(table(path), table(customers))
    german = tmp_path / "german.csv"
    german.write_text(customers.read_text().replace(",", ";").replace(".", ","))
    assert same(table(german, separator=";", decimal=","), table(customers))


@pytest.mark.parametrize("stored", ["plain", "dictionary"])
def test_parquet_gives_the_same_as_csv(customers: Path, tmp_path: Path, stored: str) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.read_csv(customers)
    if stored == "dictionary":
        frame["city"] = frame["city"].astype("category")
    frame.to_parquet(tmp_path / "shop.parquet", row_group_size=17)
    assert same(table(tmp_path / "shop.parquet"), table(customers))


def test_a_path_is_found_under_the_root(customers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(table("shop.csv", root=tmp_path), table(customers))
    monkeypatch.setenv("SPARSEMTL_DATA", str(tmp_path))
    assert same(table("shop.csv"), table(customers))


def test_numbers_can_be_categories_and_leading_zeros_stay(tmp_path: Path) -> None:
    rows = [[zip_code, n, n % 2] for n, zip_code in enumerate(["01", "1", "10"] * 10)]
    path = write(tmp_path / "zip.csv", [("zip", "n", "y"), *rows])
    targets = {"y": "classification"}
    assert table(path, targets).input_shape == (2,)
    assert table(path, targets, categorical=["zip"]).input_shape == (1 + 3,)


def test_texts_stand_for_missing_values_as_they_are_told(tmp_path: Path) -> None:
    rows = [["?" if n % 4 == 0 else n, "NA" if n % 5 == 0 else "a", n % 2] for n in range(40)]
    path = write(tmp_path / "gaps.csv", [("n", "c", "y"), *rows])
    data = table(path, {"y": "classification"}, missing_values=["?"])
    assert data.input_shape == (1 + 1 + 2,)
    data = table(path, {"y": "classification"}, missing_values=["?", "NA"], missing="mean")
    assert data.input_shape == (1 + 2,)
    gone = sum(n % 4 == 0 for n in part(data).rows.tolist())
    assert any(note.startswith(f"column 'n' is missing in {gone} training, ") for note in data.notes)


def test_rows_without_a_label_stay_and_are_counted(tmp_path: Path) -> None:
    rows = [[n, "" if n % 4 == 0 else n % 2, "" if n % 5 == 0 else n] for n in range(60)]
    path = write(tmp_path / "gaps.csv", [("n", "kind", "size"), *rows])
    data = table(path, {"kind": "classification", "size": "regression"})
    assert sum(len(part(data, name)) for name in PARTS) == 60
    for split in (part(data, name) for name in PARTS):
        numbers, labels = split.rows, split.load().targets
        for task, gone in ((data.tasks[0], numbers % 4 == 0), (data.tasks[1], numbers % 5 == 0)):
            assert torch.equal(task.labelled(task.labels(labels)), ~gone)
    gone = [(part(data, name).rows % 4 == 0).sum().item() for name in PARTS]
    assert f"kind: {gone[0]} training, {gone[1]} validation, {gone[2]} test rows have no label" in data.notes


def test_a_category_that_training_never_saw_is_unknown_counted_and_warned_of(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.csv", [HEADER, *shop(20)]) for name in PARTS]
    strange = [[30, "Paris", True, 1, "yes", 2], [30, "", True, 1, "yes", 2], [30, "Rom", True, 1, "yes", 2]]
    write(paths[2], [HEADER, *shop(2), *strange, [30, "Wien", True, 1, "no", 2]])
    write(paths[0], [HEADER, *(row for row in shop(20) if row[1])])
    expected = r"column 'city': \d+ validation or test rows have a category that training never saw, the first is"
    with pytest.warns(UnseenCategoryWarning, match=expected) as caught:
        data = table(paths)
    assert len(caught) == 1
    assert any("city" in note and "counts as unknown" in note for note in data.notes)
    city = part(data, "test").load().x[:, 3:6]
    assert city.sum(1).tolist() == [0, 1, 0, 0, 1, 0]
    with pytest.warns(UnseenCategoryWarning):
        embedded = table(paths, encoding="embedding")
    assert embedded.stem is not None
    vectors = embedded.stem()(part(embedded, "test").load().x)[:, 3:]
    width = embedded.stem().embeddings[0].embedding_dim
    assert (vectors[:, :width] == 0).all(1).tolist() == [True, False, True, True, False, True]


def test_columns_that_say_nothing_are_told_of(tmp_path: Path) -> None:
    path = write(tmp_path / "flat.csv", [("n", "year", "land", "y"), *([n, 0.1, "NO", n % 2] for n in range(30))])
    data = table(path, {"y": "classification"})
    assert "the same in all training rows: 'year', 'land'" in data.notes
    assert torch.equal(part(data).load().x[:, 1], torch.zeros(21))


def classes(data: TaskData) -> list[str]:
    task = data.tasks[0]
    assert isinstance(task, Classification)
    return task.class_names


def labels_of(data: TaskData, name: str) -> Tensor:
    """Labels of all rows, in the file's order."""
    return part(data).labels[name]


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "n.csv", [("n", "y"), *([n, [10, 9, 100][n % 3]] for n in range(30))])
    assert classes(table(path, {"y": "classification"})) == ["9", "10", "100"]
    data = table(path, {"y": {"kind": "classification", "classes": [100, 10, 9, 7]}})
    assert classes(data) == ["100", "10", "9", "7"]
    assert labels_of(data, "y")[:3].tolist() == [1, 2, 0]


def test_a_target_can_be_a_question_and_a_column_two_tasks(customers: Path) -> None:
    rows = shop()
    targets = {
        "dear": {"column": "price", "kind": "classification", "above": 20},
        "price": {"kind": "regression", "scale": 100, "criterion": "l1", "weight": 2},
        "in Rom": {"column": "city", "kind": "classification", "equals": "Rom", "label_smoothing": 0.1},
        "unit": {"column": "price", "kind": "regression", "scale": "unit"},
    }
    data = table(customers, targets, drop=["bought"])
    assert [task.name for task in data.tasks] == ["dear", "price", "in-Rom", "unit"]
    assert labels_of(data, "dear").tolist() == [int(row[5] > 20) for row in rows]
    assert labels_of(data, "price").tolist() == pytest.approx([row[5] / 100 for row in rows])
    city = labels_of(data, "in-Rom").tolist()
    assert city == [-100 if not row[1] else int(row[1] == "Rom") for row in rows]
    unit = labels_of(data, "unit")[part(data).rows]
    assert (unit.min().item(), unit.max().item()) == (0, 1)
    price, question = data.tasks[1], data.tasks[2]
    assert isinstance(price, Regression)
    assert (price.criterion, price.weight) == ("l1", 2)
    assert isinstance(question, Classification)
    assert question.label_smoothing == 0.1
    assert {"dear: whether 'price' is above 20", "in-Rom: whether 'city' is 'Rom'"} <= set(data.notes)
