"""Numbers and dates as people write them are read when the file's form is said, and never taken for categories."""

from __future__ import annotations

import datetime
import io
import random
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_files import write

from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.tables.coded import CodedSplit
from sparsemtl.data.tables.formats import NumberFormat, Thousands
from sparsemtl.errors import DataError, ParameterError
from sparsemtl.tasks import Classification

PRICES = [round(1.37 * n * n, 2) for n in range(60)]
START = datetime.date(2023, 11, 27)
DAYS = [START + datetime.timedelta(days=3 * n) for n in range(60)]


def table(path: Path, targets: Any = None, **options: Any) -> TaskData:
    return DATASETS.build("table", path=str(path), targets=targets or {"y": "classification"}, **options)


def lay(tmp_path: Path, name: str, column: Sequence[str], separator: str = ",") -> Path:
    """A column beside a number and a target."""
    rows = [[text, n % 7, "ab"[n % 2]] for n, text in enumerate(column)]
    return write(tmp_path / name, [("v", "n", "y"), *rows], separator)


def column(data: TaskData, place: int = 0) -> torch.Tensor:
    """A column of the coded rows, in the file's order."""
    assert isinstance(data.train, CodedSplit)
    return data.train.coded[:, place]


def grouped(value: float, decimal: str, thousands: str) -> str:
    return f"{value:,.2f}".replace(",", "g").replace(".", decimal).replace("g", thousands)


NUMBERS: dict[str, tuple[Callable[[float], str], dict[str, Any], str]] = {
    "55,027.64": (lambda v: grouped(v, ".", ","), {"thousands": ","}, '`thousands: ","`'),
    "55.027,64": (lambda v: grouped(v, ",", "."), {"decimal": ",", "thousands": "."}, 'decimal: ",".*thousands: "."'),
    "55 027,64": (
        lambda v: grouped(v, ",", "\u202f"),
        {"decimal": ",", "thousands": " "},
        'decimal: ",".*thousands: " "',
    ),
    "55'027.64": (lambda v: grouped(v, ".", "'"), {"thousands": "'"}, 'thousands: "\'"'),
    "55027,64": (lambda v: f"{v:.2f}".replace(".", ","), {"decimal": ","}, '`decimal: ","`'),
    "$75.79": (lambda v: f"${v:.2f}", {"units": ["$"]}, r'`units: \["\$"\]`'),
    "-$75.79": (lambda v: f"-${v:.2f}", {"units": ["$"]}, r'`units: \["\$"\]`'),
    "1.3%": (lambda v: f"{v:.2f} %", {"units": ["%"]}, r'`units: \["%"\]`'),
    "€ 1.234,50": (lambda v: "€ " + grouped(v, ",", "."), {"decimal": ",", "thousands": ".", "units": ["€"]}, "€"),
    "12 kg": (lambda v: f"{v:.2f} kg", {"units": ["kg"]}, r'`units: \["kg"\]`'),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("values", [PRICES, [1234.5, 2345.25, 7.75, 3333.5] * 15], ids=["unlike", "few"])
def test_a_number_in_a_local_form_is_no_category_and_the_remedy_reads_it(
    tmp_path: Path, name: str, values: list[float]
) -> None:
    way, options, said = NUMBERS[name]
    sign = -1 if name.startswith("-") else 1
    path = lay(tmp_path, "local.csv", [way(value) for value in values], ";")
    with pytest.raises(DataError, match=rf"column 'v'.*look like numbers.*{said}"):
        table(path, separator=";")
    plain = lay(tmp_path, "plain.csv", [str(sign * value) for value in values])
    read = table(path, separator=";", **options)
    assert torch.equal(column(read), column(table(plain)))


@pytest.mark.parametrize("name", NUMBERS)
def test_it_is_a_category_where_that_is_said(tmp_path: Path, name: str) -> None:
    texts = [NUMBERS[name][0](value) for value in (1234.5, 2345.25, 7.75)]
    path = lay(tmp_path, "local.csv", texts * 20, ";")
    assert table(path, separator=";", categorical=["v"]).input_shape == (1 + 3,)


def test_a_mark_that_may_be_either_is_said_to_be_either(tmp_path: Path) -> None:
    path = lay(tmp_path, "either.csv", [f"{1 + n % 9},{100 + n}" for n in range(60)], ";")
    with pytest.raises(DataError, match=r'Set `decimal: ","` or `thousands: ","`'):
        table(path, separator=";")


@pytest.mark.parametrize("decimal", [".", ","])
def test_the_mark_that_was_named_stays_first_in_the_remedy(tmp_path: Path, decimal: str) -> None:
    other = {".": ",", ",": "."}[decimal]
    path = lay(tmp_path, "groups.csv", [f"{1 + n}{other}{100 + n}" for n in range(60)], ";")
    with pytest.raises(DataError, match=f'Set `thousands: "{other}"`|Set `decimal: ","` or `thousands: ","`') as raised:
        table(path, separator=";", decimal=decimal)
    assert decimal == "." or "Set `thousands" in str(raised.value)


def test_only_what_a_form_changes_is_in_the_remedy(tmp_path: Path) -> None:
    path = lay(tmp_path, "whole.csv", [f"${1 + n % 9}" for n in range(60)])
    with pytest.raises(DataError, match=r"look like numbers\. Set `units: \[\"\$\"\]`\. "):
        table(path)
    plain = lay(tmp_path, "plain.csv", [str(price) for price in PRICES])
    with pytest.raises(DataError, match=r"If it holds numbers, learn it by `kind: regression`\.$"):
        table(plain, {"v": "classification"})


def test_amounts_in_parentheses_are_negative(tmp_path: Path) -> None:
    texts = [f"(${grouped(price, '.', ',')})" if n % 3 else f"${price}" for n, price in enumerate(PRICES)]
    path = lay(tmp_path, "accounts.csv", texts, ";")
    with pytest.raises(DataError, match=r"look like numbers\. Set `thousands: \",\"` and `units: \[\"\$\"\]`"):
        table(path, separator=";")
    plain = lay(tmp_path, "plain.csv", [str(-price if n % 3 else price) for n, price in enumerate(PRICES)])
    read = table(path, separator=";", thousands=",", units=["$"])
    assert torch.equal(column(read), column(table(plain)))


def test_a_file_of_semicolons_and_decimal_commas_is_told_its_separator(tmp_path: Path) -> None:
    texts = [str(price).replace(".", ",") for price in PRICES]
    path = lay(tmp_path, "german.csv", texts, ";")
    with pytest.raises(DataError, match=r"single column, 'v;n;y', where ',' separates\. Set `separator: \";\"`"):
        table(path)
    titled = tmp_path / "titled.csv"
    titled.write_text(f"Umsatz\n{path.read_text()}")
    with pytest.raises(DataError, match=r"Set `separator: \";\"`"):
        table(titled)
    with pytest.raises(DataError, match=r"'Umsatz'.*set `skip_rows: 1`"):
        table(titled, separator=";")


def test_a_column_with_some_plain_numbers_gets_the_same_remedy(tmp_path: Path) -> None:
    path = lay(
        tmp_path, "mixed.csv", [grouped(value, ".", ",") if value > 999 else str(value) for value in PRICES], ";"
    )
    with pytest.raises(DataError, match='Set `thousands: ","`'):
        table(path, separator=";")


def test_a_few_other_texts_hide_no_remedy(tmp_path: Path) -> None:
    texts = ["-" if n % 9 == 0 else f"${value}" for n, value in enumerate(PRICES)]
    path = lay(tmp_path, "gaps.csv", texts)
    with pytest.raises(DataError, match=r"`units: \[\"\$\"\]`, and name '-' in `missing_values`"):
        table(path)
    assert table(path, units=["$"], missing_values=["-"]).input_shape == (3,)


def test_a_target_in_a_local_form_is_told_the_same(tmp_path: Path) -> None:
    path = lay(tmp_path, "prices.csv", [f"${value}" for value in PRICES])
    with pytest.raises(DataError, match=r"the target 'v' must hold numbers, and here is '\$0\.0'\. .*units"):
        table(path, {"v": "regression"})
    with pytest.raises(DataError, match=r"the target 'v' would have 60 classes in 60 rows.*kind: regression.*units"):
        table(path, {"v": "classification"})


@pytest.mark.parametrize("texts", [["Q1", "Q2", "Q3"], ["10-20", "20-30", "30-40"], ["A1", "B2"], ["S", "M", "L"]])
def test_categories_that_hold_digits_stay_categories(tmp_path: Path, texts: list[str]) -> None:
    path = lay(tmp_path, "kinds.csv", [texts[n % len(texts)] for n in range(60)])
    assert table(path).input_shape == (1 + len(texts),)


def test_texts_of_which_nearly_every_row_has_its_own_are_refused(tmp_path: Path) -> None:
    path = lay(tmp_path, "names.csv", [f"customer {n:x}" for n in range(60)])
    with pytest.raises(DataError, match=r"column 'v' holds 60 different texts in 60 rows.*`drop`.*`categorical`"):
        table(path)
    assert table(path, drop=["v"]).input_shape == (1,)


@pytest.mark.parametrize(
    ("wrong", "thousands"), [("12,5", ","), ("1,2,3", ","), ("1234,56", ","), (",123", ","), ("1.2.3", ".")]
)
def test_groups_that_are_not_of_three_digits_are_no_number(tmp_path: Path, wrong: str, thousands: Thousands) -> None:
    decimal = "," if thousands == "." else "."
    path = lay(tmp_path, "odd.csv", [*map(str, range(59)), wrong], ";")
    with pytest.raises(DataError, match=rf"row 60: column 'v' .*{wrong}"):
        table(path, separator=";", thousands=thousands, decimal=decimal)


@settings(deadline=None)
@given(
    st.floats(-1e9, 1e9).map(lambda value: round(value, 3)),
    st.sampled_from([(".", ","), (",", "."), (",", " "), (".", "'"), (".", "_")]),
    st.sampled_from(["{}", "{} %", "€{}"]),
)
def test_whatever_is_written_in_a_form_is_read_back(value: float, marks: tuple[Any, Any], around: str) -> None:
    pandas = pytest.importorskip("pandas")
    text = around.format(f"{value:,.3f}".replace(",", "g").replace(".", marks[0]).replace("g", marks[1]))
    found = NumberFormat(*marks, units=("%", "€")).parse(pandas.Series([text, "x", None]))
    assert found[0] == value
    assert found[1:].isna().all()


@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%y", "%Y-%m-%dT%H:%M:%S", "%d.%m.%Y %H:%M", "%d %b %Y"],
)
def test_dates_are_days_and_refused_before_they_are_named(tmp_path: Path, form: str) -> None:
    path = lay(tmp_path, "dates.csv", [day.strftime(form) for day in DAYS])
    with pytest.raises(DataError, match=r"column 'v'.*look like dates\. Name the column in `dates`.*or in `drop`"):
        table(path)
    numbers = lay(tmp_path, "days.csv", [str((day - datetime.date(1970, 1, 1)).days) for day in DAYS])
    expected = column(table(numbers))
    assert torch.equal(column(table(path, dates=["v"])), expected)
    assert torch.equal(column(table(path, dates={"v": form})), expected)


def test_dates_without_marks_are_read_in_one_way(tmp_path: Path) -> None:
    path = lay(tmp_path, "days.csv", [day.strftime("%Y%m%d") for day in DAYS])
    marked = lay(tmp_path, "marked.csv", [day.isoformat() for day in DAYS])
    assert torch.equal(column(table(path, dates=["v"])), column(table(marked, dates=["v"])))


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        ("v", r"'dates' parameter of table must be a sequence of strings or a mapping.* Got 'v'"),
        ({"v": 3}, r"'dates' parameter of table must be .*a mapping to strings.*3"),
        ({"v": "%Q"}, r"dates\.v: expected a format of strptime.*'%Q'"),
    ],
)
def test_what_is_no_format_of_dates_is_refused(tmp_path: Path, dates: Any, message: str) -> None:
    path = lay(tmp_path, "days.csv", [day.isoformat() for day in DAYS])
    with pytest.raises(ParameterError, match=message):
        table(path, dates=dates)


def test_the_time_of_a_day_is_a_fraction_of_it(tmp_path: Path) -> None:
    path = lay(tmp_path, "times.csv", [f"1970-01-{1 + n // 24:02} {n % 24:02}:00" for n in range(48)])
    data = table(path, {"v": "regression"}, dates=["v"], drop=["y"])
    assert isinstance(data.train, CodedSplit)
    assert torch.allclose(data.train.labels["v"], torch.arange(48) / 24)


def test_a_day_and_month_in_either_order_is_asked_for(tmp_path: Path) -> None:
    path = lay(tmp_path, "either.csv", [f"{1 + n % 12:02}/{1 + n // 12:02}/2024" for n in range(60)])
    with pytest.raises(ParameterError, match=r"'v' can be read as %d/%m/%Y and as %m/%d/%Y\. Say .*`dates: \{v: "):
        table(path, dates=["v"])
    first, second = (table(path, dates={"v": form}) for form in ("%d/%m/%Y", "%m/%d/%Y"))
    assert not torch.equal(column(first), column(second))


def test_a_text_among_dates_is_named_with_its_row(tmp_path: Path) -> None:
    path = lay(tmp_path, "odd.csv", [*(day.isoformat() for day in DAYS), "soon"])
    with pytest.raises(DataError, match=r"odd\.csv, row 61: column 'v' holds dates, and here 'soon'"):
        table(path, dates=["v"])
    assert table(path, dates=["v"], missing_values=["soon"], missing="mean").input_shape == (2,)


@pytest.mark.parametrize("stored", ["times", "dates", "texts"])
def test_dates_in_parquet_are_those_in_csv(tmp_path: Path, stored: str) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = lay(tmp_path, "dates.csv", [day.isoformat() for day in DAYS])
    frame = pandas.read_csv(path)
    if stored != "texts":
        frame["v"] = pandas.to_datetime(frame["v"]) if stored == "times" else DAYS
    frame.to_parquet(tmp_path / "dates.parquet")
    with pytest.raises(DataError, match=r"Name (it|the column) in `dates`"):
        table(tmp_path / "dates.parquet")
    assert torch.equal(column(table(tmp_path / "dates.parquet", dates=["v"])), column(table(path, dates=["v"])))


def test_numbers_in_a_local_form_in_parquet_are_told(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = lay(tmp_path, "local.csv", [f"${value}" for value in PRICES])
    pandas.read_csv(path).to_parquet(tmp_path / "local.parquet")
    with pytest.raises(DataError, match=r"`units: \[\"\$\"\]`"):
        table(tmp_path / "local.parquet")
    assert torch.equal(column(table(tmp_path / "local.parquet", units=["$"])), column(table(path, units=["$"])))


@pytest.mark.parametrize("text_encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, text_encoding: str, packed: bool) -> None:
    path = lay(tmp_path, "plain.csv", [("Ärger", "Öl")[n % 2] for n in range(60)])
    marked = tmp_path / "marked.csv"
    marked.write_text(path.read_text(encoding="utf-8"), encoding=text_encoding)
    if packed:
        archive = tmp_path / "marked.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.write(marked, "marked.csv")
        marked = archive
    assert torch.equal(column(table(marked), 1), column(table(path), 1))


def test_text_without_a_mark_that_is_no_utf_8_is_told_its_encoding(tmp_path: Path) -> None:
    path = lay(tmp_path, "plain.csv", [("Ärger", "Öl")[n % 2] for n in range(60)])
    bare = tmp_path / "bare.csv"
    bare.write_bytes(path.read_text(encoding="utf-8").encode("utf-16-le"))
    with pytest.raises(DataError, match="Try `text_encoding: utf-16-le`"):
        table(bare)
    assert torch.equal(column(table(bare, text_encoding="utf-16-le"), 1), column(table(path), 1))


@pytest.mark.parametrize("above", ["Sales of 2024", "Sales of 2024,,", '"Sales, all of 2024"', "Sales\nof 2024"])
def test_a_title_above_the_header_is_told_and_can_be_skipped(tmp_path: Path, above: str) -> None:
    path = lay(tmp_path, "plain.csv", [str(n % 5) for n in range(60)])
    titled = tmp_path / "titled.csv"
    titled.write_text(f"{above}\n{path.read_text()}")
    lines = 1 + above.count("\n")
    with pytest.raises(DataError, match=rf"row 1, 'Sales.*is no header.*row {lines + 1}, set `skip_rows: {lines}`"):
        table(titled)
    assert torch.equal(column(table(titled, skip_rows=lines)), column(table(path)))


def mac_zip(path: Path, *tables: Path) -> Path:
    """An archive as the Finder of macOS makes it."""
    with zipfile.ZipFile(path, "w") as archive:
        for table in tables:
            archive.write(table, f"folder/{table.name}")
            archive.writestr(f"__MACOSX/folder/._{table.name}", b"\0\5\26\7")
        archive.writestr("folder/.DS_Store", b"\0")
    return path


def test_the_one_table_of_a_zip_from_a_mac_is_read(tmp_path: Path) -> None:
    path = lay(tmp_path, "plain.tsv", [str(n % 5) for n in range(60)], "\t")
    assert torch.equal(column(table(mac_zip(tmp_path / "one.zip", path))), column(table(path)))
    other = lay(tmp_path, "other.tsv", ["1", "2"])
    with pytest.raises(DataError, match=r"holds folder/plain\.tsv, folder/other\.tsv; expected one table\. Unpack it"):
        table(mac_zip(tmp_path / "two.zip", path, other))


def test_a_zip_whose_one_file_has_lost_its_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr(".", "x,y\n1,2\n")
    with pytest.raises(DataError, match="holds no file; expected one table"):
        table(tmp_path / "one.zip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("table.csv", b"PK\x03\x04" + bytes(60), "is a ZIP archive or Excel file, not text"),
        ("table.csv", b"PAR1" + bytes(60), "is a Parquet file, not text"),
        ("table.xls", b"\xd0\xcf\x11\xe0", r"table\.xls cannot be read\. Save it as CSV, \.parquet or \.xlsx"),
        ("table.json", b"{}", r"table\.json cannot be read\. Save it as CSV"),
        ("table.zip", b"no archive", r"table\.zip cannot be read"),
    ],
)
def test_another_format_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        table(tmp_path / name)


def test_one_and_one_point_zero_are_one_class_and_one_category(tmp_path: Path) -> None:
    texts = [("1", "1.0", "2", "2.00", "", "-3")[n % 6] for n in range(60)]
    path = write(tmp_path / "whole.csv", [("n", "c", "y"), *([n, text, text] for n, text in enumerate(texts))])
    data = table(path, categorical=["c"])
    (task,) = data.tasks
    assert isinstance(task, Classification)
    assert task.class_names == ["-3", "1", "2"]
    assert data.input_shape == (1 + 3 + 1,)
    named = table(path, {"y": {"kind": "classification", "classes": ["1.0", "2.0", "-3"]}}, categorical=["c"])
    assert isinstance(named.train, CodedSplit)
    assert named.train.labels["y"][:6].tolist() == [0, 0, 1, 1, -100, 2]
    asked = table(path, {"y": {"kind": "classification", "equals": 1.0}}, categorical=["c"])
    assert isinstance(asked.train, CodedSplit)
    assert asked.train.labels["y"][:6].tolist() == [1, 1, 0, 0, -100, 0]


def test_one_and_one_comma_zero_are_one_class_where_a_comma_stands_before_the_fraction(tmp_path: Path) -> None:
    path = lay(tmp_path, "commas.csv", [("1", "1,0", "0", "0,00")[n % 4] for n in range(60)], ";")
    target = {"v": "classification"}
    (task,) = table(path, target, separator=";", decimal=",", drop=["y"]).tasks
    assert isinstance(task, Classification)
    assert list(task.class_names) == ["0", "1"]
    (task,) = table(path, target, separator=";", drop=["y"]).tasks
    assert isinstance(task, Classification)
    assert task.classes == 4


@pytest.mark.parametrize("mark", ["?", "-", "None", "unknown"])
def test_a_class_that_may_be_a_missing_label_is_named_in_the_notes(tmp_path: Path, mark: str) -> None:
    path = lay(tmp_path, "marks.csv", [("yes", "no", mark)[n % 3] for n in range(60)])
    target = {"v": "classification"}
    assert any(f"v: {mark!r} counts as a class" in note for note in table(path, target, drop=["y"]).notes)
    known = table(path, target, drop=["y"], missing_values=[mark])
    assert not any("counts as a class" in note for note in known.notes)
    signs = lay(tmp_path, "signs.csv", ["+-"[n % 2] for n in range(60)])
    assert not any("counts as a class" in note for note in table(signs, target, drop=["y"]).notes)


def test_whole_numbers_of_parquet_keep_their_digits_as_categories(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    large = 2**60
    frame = pandas.DataFrame({"n": range(60), "c": [large, large + 1, None] * 20, "y": ["a", "b"] * 30})
    frame["c"] = pandas.array([large, large + 1, None] * 20, dtype="Int64")
    frame.to_parquet(tmp_path / "ids.parquet")
    assert table(tmp_path / "ids.parquet", categorical=["c"]).input_shape == (1 + 3,)


def test_white_space_around_a_text_makes_no_category(tmp_path: Path) -> None:
    path = lay(tmp_path, "blanks.csv", [("yes", "yes ", " yes", "no")[n % 4] for n in range(60)])
    assert table(path).input_shape == (1 + 2,)


@pytest.mark.parametrize("seed", range(8))
def test_every_class_of_every_task_is_trained_and_has_its_share(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    rows = [[n, "rare" if n < 2 else draw.choice("abcd"), draw.choice(["x", "y", "y", "y"]), n] for n in range(100)]
    rows[50][2] = "once"
    draw.shuffle(rows)
    path = write(tmp_path / "rare.csv", [("n", "one", "two", "size"), *rows])
    targets = {"one": "classification", "two": "classification", "size": "regression"}
    data = table(path, targets, seed=seed)
    parts = [getattr(data, part) for part in ("train", "validation", "test")]
    assert abs(len(parts[0]) - 70) <= 2
    assert torch.equal(torch.cat([part.rows for part in parts]).sort().values, torch.arange(100))
    for name in ("one", "two"):
        counts = [torch.bincount(part.labels[name][part.rows], minlength=5) for part in parts]
        total = sum(counts)
        assert bool((counts[0][total > 0] > 0).all())
        for part, share in zip(counts, (0.7, 0.15, 0.15), strict=True):
            assert bool(((part - share * total).abs() <= 4).all())
    assert "of every class" in data.notes[0]
    assert "of every class" not in table(path, {"size": "regression"}, seed=seed, drop=["two"]).notes[0]


def test_one_classification_is_divided_as_nearly_as_numbers_allow(tmp_path: Path) -> None:
    path = write(tmp_path / "one.csv", [("n", "y"), *([n, "aaab"[n % 4]] for n in range(400))])
    data = table(path)
    for part, share in zip((data.train, data.validation, data.test), (0.7, 0.15, 0.15), strict=True):
        assert isinstance(part, CodedSplit)
        assert torch.bincount(part.labels["y"][part.rows]).tolist() == [round(300 * share), round(100 * share)]


def test_rows_can_be_divided_without_a_look_at_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "one.csv", [("n", "y"), *([n, "aaab"[n % 4]] for n in range(400))])
    data = table(path, stratify=False)
    assert data.notes[0] == "70 % training, 15 % validation, 15 % test at random (seed 0)"


EXCEL = "openpyxl"


def excel(path: Path, sheets: dict[str, list[Sequence[Any]]]) -> Path:
    openpyxl = pytest.importorskip(EXCEL)
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    book.save(path)
    return path


def test_an_excel_file_gives_the_same_as_csv(tmp_path: Path) -> None:
    rows = [[n / 4 if n % 7 else None, ("Rom", "Oslo", None)[n % 3], day, n % 2] for n, day in enumerate(DAYS)]
    path = excel(tmp_path / "mine.xlsx", {"data": [("n", "city", "day", "y"), *rows], "notes": [["no table"]]})
    plain = write(tmp_path / "mine.csv", [("n", "city", "day", "y"), *rows])
    one, other = table(path, dates=["day"]), table(plain, dates=["day"])
    assert torch.equal(one.train.loader(60).split.coded, other.train.loader(60).split.coded)  # type: ignore[union-attr]
    assert one.notes == other.notes
    with pytest.raises(DataError, match="column 'day' holds times"):
        table(path)


def test_a_sheet_and_a_row_can_be_chosen(tmp_path: Path) -> None:
    rows = [("n", "y"), *((n, "ab"[n % 2]) for n in range(40))]
    path = excel(tmp_path / "mine.xlsx", {"cover": [["Sales"]], "data": [("Sales of 2024", None), *rows]})
    with pytest.raises(DataError, match=r"is no header\. If the header is in row 2, set `skip_rows: 1`"):
        table(path, sheet="data")
    assert table(path, sheet="data", skip_rows=1).input_shape == (1,)
    with pytest.raises(ParameterError, match=r"sheet: .*unknown sheet 'date'\. Did you mean 'data'"):
        table(path, sheet="date")


def test_a_damaged_excel_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip(EXCEL)
    (tmp_path / "bad.xlsx").write_bytes(b"no Excel file")
    with pytest.raises(DataError, match=r"bad\.xlsx is no whole Excel file"):
        table(tmp_path / "bad.xlsx")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a")
    (tmp_path / "bad.xlsx").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"bad\.xlsx is no whole Excel file"):
        table(tmp_path / "bad.xlsx")


@pytest.mark.parametrize("ending", [".csv.gz", ".csv.zip", ".xlsx"])
def test_a_flipped_bit_of_a_packed_table_is_named_or_changes_nothing(tmp_path: Path, ending: str) -> None:
    path = lay(tmp_path, "plain.csv", [str(price) for price in PRICES])
    expected, packed = column(table(path)), tmp_path / f"packed{ending}"
    if ending == ".xlsx":
        pytest.importorskip(EXCEL)
    frame = pytest.importorskip("pandas").read_csv(path)
    frame.to_excel(packed, index=False) if ending == ".xlsx" else frame.to_csv(packed, index=False)
    content, draws = packed.read_bytes(), random.Random(0)
    for bit in draws.sample(range(8 * len(content)), 40):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        packed.write_bytes(damaged)
        with suppress(DataError, ParameterError):
            assert torch.equal(column(table(packed)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decimal": ",", "thousands": ","}, "decimal and thousands are both ','"),
        ({"units": ["4"]}, "units: expected texts without digits"),
        ({"dates": ["wehn"]}, "dates: .*unknown column 'wehn'"),
        ({"dates": ["n"], "drop": ["n"]}, "column 'n' stands in `drop` and in `dates`"),
        ({"dates": ["y"]}, "column 'y' stands in `targets` and in `dates`"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        table(lay(tmp_path, "plain.csv", [str(n) for n in range(60)]), **options)
