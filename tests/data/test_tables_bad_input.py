"""Whatever is wrong with a table is said with its column, its row and what to do; nothing is dropped silently."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import pytest
from table_files import write

from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.tables.encoding import UnseenCategoryWarning
from sparsemtl.errors import DataError, MissingExtraError, ParameterError

HEADER = "age,city,bought,price"
ROWS = [f"{20 + n},{['Oslo', 'Rom'][n % 2]},{['no', 'yes'][n % 3 == 0]},{1.5 * n}" for n in range(30)]
TARGETS: dict[str, Any] = {"bought": "classification", "price": "regression"}


def table(path: Path | list[Path], targets: Any = None, **options: Any) -> TaskData:
    place = [str(each) for each in path] if isinstance(path, list) else str(path)
    return DATASETS.build("table", path=place, targets=TARGETS if targets is None else targets, **options)


def text(path: Path, rows: list[str], header: str = HEADER, text_encoding: str = "utf-8") -> Path:
    path.write_bytes("\n".join([header, *rows, ""]).encode(text_encoding))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return text(tmp_path / "good.csv", ROWS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"bad\.csv is empty\."),
        (HEADER + "\n", r"bad\.csv has no rows\."),
        ("\n".join([HEADER, *ROWS[:2]]), r"bad\.csv: 2 samples are too few to be split \[0\.7, 0\.15, 0\.15\]"),
        ("\n".join([HEADER, *ROWS]).replace(",", ";"), r"single column, 'age;city;bought;price'.*`separator: \";\"`"),
        ("\n".join([HEADER.replace("city", "age"), *ROWS]), r"columns 1 and 2 are both named 'age'"),
        ("\n".join([HEADER.replace("city", ""), *ROWS]), r"column 2 of 4 has no name"),
        (
            "\n".join([HEADER, *ROWS, "1,Oslo,no,3,7"]),
            r"different lengths: .*Expected 4 fields in line 32, saw 5",
        ),
        ("\n".join([HEADER, *(f"{row},1" for row in ROWS)]), r"rows of different lengths: .*`separator`"),
        (
            "\n".join([HEADER, *ROWS, "abc,Oslo,no,3"]),
            r"row 31: column 'age' holds numbers, as in .*bad\.csv, row 1",
        ),
        ("\n".join([HEADER, *ROWS, "inf,Oslo,no,3"]), r"row 31: column 'age' holds inf, which is not finite"),
        (
            "\n".join([HEADER, *ROWS, "1,Oslo,no,1e39"]),
            r"row 31: column 'price' holds 1e\+39, which is beyond the range",
        ),
        (
            "\n".join([HEADER, *ROWS, "1,Oslo,no,dear"]),
            r"row 31: the target 'price' must hold numbers, and here is 'd",
        ),
        ("\n".join([HEADER, *ROWS, "1,Oslo,no,-inf"]), r"row 31: column 'price' holds -inf, which is not finite"),
        ("\n".join([HEADER, *ROWS]).replace("yes", "no"), r"the target 'bought' is 'no' in all training rows"),
        ("\n".join([HEADER, *(f"{n},Oslo,{n % 2},3" for n in range(30))]), r"the target 'price' is 3 in all training"),
        ("\n".join([HEADER, *(f"{n},Oslo,,{n}" for n in range(30))]), r"'bought' has no value in the 21 training rows"),
        (
            "\n".join([HEADER, *(f"{n},Oslo,{n % 2}," for n in range(30))]),
            r"must hold numbers, and it holds none",
        ),
        (
            "\n".join([HEADER, *(f",Oslo,{n % 2},{n}" for n in range(30))]),
            r"'age' holds neither numbers nor texts",
        ),
        (
            "\n".join([HEADER, *(f"{n},c{n % 25},{n % 2},{n}" for n in range(90))]),
            r"'city' has 25 categories .* at most 20",
        ),
    ],
)
def test_a_table_that_does_not_do_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        table(tmp_path / "bad.csv", most_categories=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": {"bougth": "classification"}}, r"targets: .*unknown column 'bougth'\. Did you mean 'bought'"),
        ({"drop": ["aeg"]}, r"drop: .*unknown column 'aeg'\. Did you mean 'age'"),
        ({"categorical": ["town"]}, r"categorical: .*unknown column 'town'"),
        ({"split_column": "fold"}, r"split_column: .*unknown column 'fold'"),
        ({"drop": ["bought"]}, r"column 'bought' stands in `targets` and in `drop`"),
        ({"targets": {}}, r"targets: expected a mapping of columns to kinds"),
        ({"targets": {"bought": "clasification"}}, r"targets\.bought: unknown kind 'clasification'\. Did you mean"),
        ({"targets": {"bought": {"classes": ["a", "b"]}}}, r"targets\.bought: unknown kind None"),
        (
            {"targets": {"price": {"kind": "regression", "above": 3}}},
            r"price: unknown regression option 'above'",
        ),
        ({"targets": {"price": {"kind": "regression", "scale": 0}}}, r"targets\.price\.scale must be one of .*Got 0"),
        (
            {"targets": {"bought": {"kind": "classification", "above": 3, "equals": 4}}},
            r"only one of above, equals can be said",
        ),
        ({"targets": {"bought": {"kind": "classification", "classes": ["a", "a"]}}}, r"at least two different ones"),
        (
            {"targets": {"a b": {"kind": "regression", "column": "price"}, "a-b": "regression"}},
            r"two tasks would be named 'a-b'",
        ),
        ({"targets": {"type": {"kind": "regression", "column": "price"}}}, r"targets\.type: .*cannot be named 'type'"),
        (
            {"targets": {"price": "regression", "p": {"kind": "classification", "column": "price"}}},
            r"column 'price' is to hold numbers for one task and classes for another",
        ),
        ({"split": [0.5, 0.3, 0.3]}, r"must be above 0 and add up to 1"),
        ({"split": [0.5, 0.5]}, r"expected the shares of training, validation and test"),
        ({"text_encoding": "latin-9999"}, r"unknown encoding: latin-9999; `text_encoding` is a name that Python knows"),
        ({"encoding": "onehot"}, r"'encoding' parameter of table must be one of 'one-hot', 'embedding'"),
    ],
)
def test_an_argument_that_does_not_do_is_refused(good: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        table(good, **options)


def test_no_input_is_left(good: Path) -> None:
    with pytest.raises(DataError, match="no column is left for the inputs, beside age, bought, city, price"):
        table(good, drop=["age", "city"])


def test_what_is_refused_among_numbers_may_be_said_to_be_missing_or_a_category(tmp_path: Path) -> None:
    path = text(tmp_path / "mixed.csv", [*ROWS, "abc,Oslo,no,3"])
    with pytest.raises(DataError, match="add it to `missing_values`; if it holds categories, add 'age' to"):
        table(path)
    assert table(path, missing_values=["abc"], missing="mean").input_shape == (1 + 2,)
    with pytest.warns(UnseenCategoryWarning, match="column 'age'"):
        assert table(path, categorical=["age"]).input_shape == (22 + 2,)


def test_a_label_outside_of_the_classes_is_named_with_its_row(tmp_path: Path) -> None:
    paths = [text(tmp_path / f"{name}.csv", ROWS) for name in ("train", "validation", "test")]
    text(paths[2], [*ROWS[:4], "20,Rom,maybe,1"])
    with pytest.raises(DataError, match=r"test\.csv, row 5: 'maybe' in the target 'bought' is none of the classes no"):
        table(paths)
    classes = {"bought": {"kind": "classification", "classes": ["no", "maybe", "yes"]}}
    assert table(paths, classes, drop=["price"]).tasks[0].outputs == 3


def test_a_question_that_training_answers_in_one_way_is_refused(good: Path) -> None:
    above = {"price": {"kind": "classification", "above": 1000}}
    with pytest.raises(DataError, match=r"'price' lies in \S+ \.\. \S+ in all training rows; whether it is above 1000"):
        table(good, above, drop=["bought"])
    equals = {"bought": {"kind": "classification", "equals": "Yes"}}
    with pytest.raises(DataError, match=r"'bought' has in training: unknown value 'Yes'\. Did you mean 'yes'"):
        table(good, equals, drop=["price"])


def test_a_missing_value_is_refused_if_that_is_asked_for(tmp_path: Path) -> None:
    path = text(tmp_path / "gaps.csv", [*ROWS, ",Oslo,no,3", "4,,no,3", ",Rom,no,3"])
    with pytest.raises(DataError, match=r"row 31: column 'age' has no value here, and 2 in all have none\. `miss"):
        table(path, missing="refuse")
    with pytest.raises(DataError, match=r"row 32: column 'city' has no value here"):
        table(path, missing="refuse", drop=["age"])


def test_an_input_that_is_known_outside_of_training_only_is_refused(tmp_path: Path) -> None:
    bare = [row.partition(",")[2] for row in ROWS]
    paths = [text(tmp_path / f"{name}.csv", ROWS) for name in ("train", "validation", "test")]
    text(paths[0], [f",{row}" for row in bare])
    with pytest.raises(DataError, match=r"train\.csv: column 'age' has no value in the training rows\. Name it"):
        table(paths)


def test_a_file_in_another_encoding_is_named_with_its_byte_and_line(tmp_path: Path) -> None:
    path = text(tmp_path / "latin.csv", [*ROWS, "50,Røros,no,3"], text_encoding="latin-1")
    place = path.read_bytes().index(b"\xf8")
    with pytest.raises(DataError, match=rf"latin\.csv, line 32: byte {place}, 0xf8, is not utf-8\. Set `text"):
        table(path)
    (tmp_path / "latin.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=rf"latin\.csv\.gz, line 32: byte {place}, 0xf8"):
        table(tmp_path / "latin.csv.gz")


CUT_SHORT = gzip.compress(b"a,b\n1,2\n" * 99)[:-9]


@pytest.mark.parametrize("content", [CUT_SHORT, b"no gzip at all"], ids=["cut short", "no gzip"])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.csv\.gz cannot be read"):
        table(tmp_path / "bad.csv.gz")


def test_files_that_are_not_there_or_differ_are_named(tmp_path: Path, good: Path) -> None:
    with pytest.raises(DataError, match=r"shop\.csv does not exist, nor does .*`root` or SPARSEMTL_DATA"):
        table(tmp_path / "shop.csv")
    with pytest.raises(ParameterError, match="path: a list names the files"):
        table([good])
    other = write(tmp_path / "other.csv", [("age", "town", "bought", "price"), (1, 2, 3, 4)])
    with pytest.raises(DataError, match=r"good\.csv has a column 'city', .*other\.csv has none; 2 differ"):
        table([good, other])


def test_a_folder_has_one_file_for_every_part(tmp_path: Path) -> None:
    text(tmp_path / "train.csv", ROWS)
    with pytest.raises(DataError, match=r"has no file test\.csv"):
        table(tmp_path)
    text(tmp_path / "test.csv", ROWS)
    text(tmp_path / "test.tsv", ROWS)
    with pytest.raises(DataError, match=r"has test\.csv and test\.tsv; one file is to be test"):
        table(tmp_path)


@pytest.mark.parametrize(
    ("value", "shown"), [("tset", "unknown part 'tset'. Did you mean 't"), ("", "unknown part ''")]
)
def test_a_row_of_no_part_is_named(tmp_path: Path, value: str, shown: str) -> None:
    parts = ["train", "validation", "test"]
    rows = [f"{row},{parts[n % 3]}" for n, row in enumerate(ROWS)]
    path = text(tmp_path / "folds.csv", [*rows, f"1,Oslo,no,3,{value}"], f"{HEADER},fold")
    with pytest.raises(DataError, match=f"row 31: column 'fold': {shown}"):
        table(path, split_column="fold")
    text(path, [row.replace("validation", "train") for row in rows], f"{HEADER},fold")
    with pytest.raises(DataError, match="of 30 rows none is left for validation"):
        table(path, split_column="fold")


def test_a_part_without_a_label_is_named(tmp_path: Path) -> None:
    paths = [text(tmp_path / f"{name}.csv", ROWS) for name in ("train", "validation", "test")]
    text(paths[1], [f"{n},Oslo,,{n}" for n in range(4)])
    with pytest.raises(DataError, match="the target 'bought' has no value in the 4 validation rows"):
        table(paths)


@pytest.mark.parametrize(
    ("module", "package", "name"),
    [
        ("pandas", "pandas", "good.csv"),
        ("pyarrow", "pyarrow", "good.parquet"),
        ("sklearn.compose", "scikit-learn", "good.csv"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str, name: str
) -> None:
    (tmp_path / "good.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs '{package}': pip install 'sparsemtl\[tables\]'"):
        table(tmp_path / name)


def test_a_damaged_parquet_file_and_one_of_dates_are_named(tmp_path: Path, good: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.read_csv(good).assign(when=pd.Timestamp("2020-01-01"))
    frame.to_parquet(tmp_path / "dates.parquet")
    with pytest.raises(DataError, match=r"column 'when' holds times, .*Name it in `dates` \(days.*, or in `drop`"):
        table(tmp_path / "dates.parquet")
    table(tmp_path / "dates.parquet", drop=["when"])
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "dates.parquet").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"bad\.parquet is no whole Parquet file"):
        table(tmp_path / "bad.parquet")


def test_classes_so_rare_that_all_rows_train_are_refused_in_place_of_empty_parts(tmp_path: Path) -> None:
    rows = [f"{20 + n},Oslo,class {n},{1.5 * n}" for n in range(10)]  # each class has one row, which must train
    with pytest.raises(DataError, match=r"bad\.csv: 0 of 10 rows are left for validation.*`stratify: false`"):
        table(text(tmp_path / "bad.csv", rows), {"bought": "classification"})
