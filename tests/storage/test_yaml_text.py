"""YAML as people write it: numbers are numbers, no key twice, and a mistake has its line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loops import each

from sparsemtl.errors import ConfigError
from sparsemtl.storage.yaml_text import dump_yaml, line_numbers, parse_yaml, read_yaml

TEXT = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))
KEYS = st.text("abcde", min_size=1, max_size=3)
LEAVES = st.integers() | st.lists(st.integers(), max_size=3)
NESTED = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6),
    min_size=1,
    max_size=3,
)
few = settings(max_examples=40, deadline=None)


@few
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_as_python_writes_it_is_that_float(value: float) -> None:
    parsed = parse_yaml(repr(value), "x")
    assert type(parsed) is float
    assert math.copysign(1, parsed) == math.copysign(1, value)
    assert parsed == value


@each("text", ["1e-3", "1E-3", "1.e-3", "+1e-3", "0.1e-2", ".1e-2", "0.001", "1.0e-3"])
def test_a_small_number_can_be_written_in_every_way(text: str) -> None:
    assert parse_yaml(text, "x") == 0.001


@pytest.mark.parametrize("text", ["1e", "e3", "v1e-3", "1e-3x", "'1e-3'", "1e3.5", "."])
def test_what_only_looks_like_a_number_stays_text(text: str) -> None:
    assert isinstance(parse_yaml(text, "x"), str)


@few
@given(NESTED)
def test_what_pyyaml_writes_is_read_as_pyyaml_reads_it(value: dict[str, Any]) -> None:
    text = yaml.safe_dump(value)
    assert parse_yaml(text, "x") == yaml.safe_load(text) == value


@few
@given(st.dictionaries(TEXT, TEXT | st.floats(allow_nan=False) | st.booleans() | st.none()))
@example({"1e-05": "1e-05", "a": ".1e3", "b": "1.e5", "c": "5", "d": "no", "e": "é", "f": 1e-5, "g": 1e300})
def test_what_is_written_is_read_as_it_was(value: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(value), "x") == value


@few
@given(NESTED, st.booleans())
def test_the_line_of_a_place_is_where_its_key_stands(tmp_path_factory: Any, value: dict[str, Any], flow: bool) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.yaml"
    path.write_text("# first\n" + yaml.safe_dump(value, default_flow_style=flow, width=20), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()
    places = dict(every_place(value))
    assert set(line_numbers(path)) == set(places)
    for place, line in line_numbers(path).items():
        assert f"{places[place]}:" in lines[line - 1].replace("? ", "")


def every_place(value: Any, prefix: str = "") -> Any:
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield f"{prefix}{key}", key
        yield from every_place(inner, f"{prefix}{key}.")


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\nb: 2\na: 3\n", 3), ("a:\n  b: 1\n  b: 1\n", 3), ("{a: 1, b: {c: 1, c: 2}}", 1)]
)
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"^x\.yaml, line {line}, column \d+: not valid YAML: duplicate key '[abc]'"):
        parse_yaml(text, "x.yaml")


def test_one_key_may_stand_in_several_mappings_and_be_merged_from_another() -> None:
    text = "x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}"
    assert parse_yaml(text, "x") == {"x": {"a": 1, "b": 2}, "y": {"a": 3, "b": 2}}


@each(
    ("text", "message"),
    [
        ("a: [1", r"x, line 1, column 6: not valid YAML while parsing a flow sequence: expected"),
        ("a:\n\tb: 1", r"x, line 2, column 1: not valid YAML .* cannot start any token"),
        ("a: 1\n---\nb: 1", r"x, line 2, column 1: not valid YAML .* but found another document"),
        ("a: *b", r"x, line 1, column 4: not valid YAML: found undefined alias 'b'"),
        ("a: !!python/object:os.system {}", r"x, line 1, column 4: not valid YAML: could not determine a constructor"),
        ("a: \x00", "x: not valid YAML: unacceptable character"),
        ("a: 2020-13-45", "x: not valid YAML: month must be in"),
        ("? [1]\n: 2", "x, line 1, column 3: not valid YAML while constructing a mapping: found unhashable key"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "x")


READ_DIFFERENTLY = {
    "010": "10",
    "08": "8",
    "-07": "-7",
    "1:30": "one plain number",
    "1:30.5": "one plain number",
    "1_000": "1000",
    "0.5_0": "0.50",
    "0b101": "5",
    "0o17": "15",
    "-0x1F": "-31",
    "0x1_0": "16",
    **dict.fromkeys(("yes", "Yes", "YES", "on", "On", "ON"), "true"),
    **dict.fromkeys(("no", "No", "NO", "off", "Off", "OFF"), "false"),
}
"""Plain text that YAML 1.1 and 1.2 read differently -> what to write."""


@each("text", READ_DIFFERENTLY)
def test_what_two_versions_of_yaml_read_differently_is_refused_with_what_to_write(text: str) -> None:
    message = rf"^x, line 2, column 4: not valid YAML: {text} is read differently .*; write {READ_DIFFERENTLY[text]}"
    for document in (f"\na: {text}", f"\na: [{text}]".replace("a: [", "a: ["), f"\n - {text}"):
        with pytest.raises(ConfigError, match=message.replace("column 4", r"column \d")):
            parse_yaml(document, "x")
    with pytest.raises(ConfigError, match="is read differently"):
        parse_yaml(f"{text}: 1", "x")
    assert parse_yaml(f"a: '{text}'", "x") == {"a": text}
    assert parse_yaml(dump_yaml({text: text}), "x") == {text: text}


@pytest.mark.parametrize(("text", "value"), [("0x1F", 31), ("-.5", -0.5), ("y", "y"), ("2020-01-31", "2020-01-31")])
def test_what_both_versions_of_yaml_read_alike_is_read(text: str, value: object) -> None:
    assert parse_yaml(text, "x") == value


def aliases(first: str, one: str, levels: int = 14) -> str:
    """Ten uses of an anchor with ten uses of an anchor, and so on: 10^14 values in less than a kilobyte."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {one % ','.join([f'*a{i - 1}'] * 10)}" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (aliases("[x]", "[%s]"), "anchors and aliases stand for more than 100,000 values"),
        (aliases("{x: 1}", "{<<: [%s]}"), "anchors and aliases stand for more than 100,000 values"),
        ("a: &a [*a]", "line 1, column 4: not valid YAML: an anchor that holds itself"),
        ("a: &a {b: *a}", "an anchor that holds itself"),
        ("[" * 5000, "nested more than 50 deep"),
        ("a: " + "{a: " * 5000, "nested more than 50 deep"),
        ("- " * 5000, "nested more than 50 deep"),
        ("!!bool x", "a value does not fit its tag"),
        ('!!int ""', "a value does not fit its tag"),
        ("!!timestamp x", "a value does not fit its tag"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("a: !!set {b}", "could not determine a constructor"),
        ("true: 1", "the key 'true' is not text"),
        ("~: 1", "the key '~' is not text"),
        ("1: 2\n'1': 3", "duplicate key '1'"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_would_hang_or_break_a_reader_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert len(text) < 25_000
    for read in (lambda: parse_yaml(text, "x"), lambda: read_yaml(path)):
        with pytest.raises(ConfigError, match=message):
            read()


def test_a_file_that_begins_with_a_mark_of_its_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "x.yaml") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a mapping of sections"),
        (b"# nothing\n", "is empty; expected a mapping of sections"),
        (b"- a", "expected a mapping of sections, got a list"),
        (b"a", "expected a mapping of sections, got a str"),
        (b"\xff\xfe", "is not text in UTF-8"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"some\.yaml:? {message}"):
        read_yaml(path)


def test_a_missing_file_and_a_folder_are_refused_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"is a folder; expected a YAML file"):
        read_yaml(tmp_path)
