"""YAML of configurations: `1e-3` is a number, a duplicate key is an error, and errors name the line.

PyYAML follows YAML 1.1, in which `1e-3` is text, `010` is 8, `1:30` is 90 and `no` is false; YAML 1.2 reads them
otherwise. Numbers with an exponent are numbers here; other values that the two versions read differently are refused,
with a correction. `read_yaml` returns exactly what `dump_yaml` wrote; text that looks like a number is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sparsemtl.errors import ConfigError

_DEEPEST = 50
"""Deepest nesting of a configuration: no section needs more, and readers recurse."""
_MOST_NODES = 100_000
"""Most values of a configuration, every use of an anchor counted: a few anchors can stand for billions of values."""

_AMBIGUOUS = "!ambiguous"
_TWO_READINGS = re.compile(
    r"""[-+]?0\d[\d_]*                                          # 010: 8 or 10
    |[-+]?0o[0-7_]+|[-+]?0b[01_]+|[-+]0x[\da-fA-F_]+          # octal, binary, a hexadecimal number with a sign
    |0x[\da-fA-F]*_[\da-fA-F_]*                               # 0x1_0
    |[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?                     # 1:30: 90 or text
    |[-+]?(?=[\d._]*_)\d[\d_]*(\.[\d_]*)?([eE][-+]?\d+)? # 1_000: 1000 or text
    |yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF""",
    re.VERBOSE,
)


class _Loader(yaml.SafeLoader):
    """Loader of plain values, as far as both versions of YAML agree on them."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Raise if the nesting is too deep, while it is read."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.constructor.ConstructorError(None, None, f"nested more than {_DEEPEST} deep", self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Raise for a duplicate key, and for a key that is neither text nor a whole number."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                value = self.construct_object(key)
                if isinstance(value, bool) or not isinstance(value, (str, int)):
                    raise _error(f"the key {key.value!r} is not text; put it in quotes", key)
                if str(value) in seen:
                    raise _error(f"duplicate key {key.value!r}", key)
                seen.add(str(value))
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Raise for text that no file can hold."""
        text = self.construct_scalar(node)
        if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
            raise _error("text with half of a surrogate pair", node)
        return text

    def construct_date(self, node: yaml.ScalarNode) -> str:
        """Return a date as its text, after checking that it is a date."""
        self.construct_yaml_timestamp(node)
        return self.construct_text(node)

    def refuse_ambiguous(self, node: yaml.ScalarNode) -> None:
        """Raise for a value that YAML 1.1 and 1.2 read differently."""
        raise _error(
            f"{node.value} is read differently by YAML 1.1 and 1.2; write {_meant(node.value)}, or '{node.value}' in "
            "quotes if it is text",
            node,
        )


class _Dumper(yaml.SafeDumper):
    """Dumper whose output `_Loader` reads back unchanged."""


_MERGE = "tag:yaml.org,2002:merge"
_KNOWN = ("null", "bool", "int", "float", "seq", "map")


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _meant(text: str) -> str:
    """Return the correction of an ambiguous value: its plain number, true or false."""
    lowered = text.lower()
    if lowered in ("yes", "on"):
        return "true"
    if lowered in ("no", "off"):
        return "false"
    digits = lowered.replace("_", "")
    if ":" in digits:
        return "one plain number, such as the seconds"
    sign = "-" if digits.startswith("-") else ""
    bare = digits.lstrip("+-")
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if bare.startswith(prefix):
            return f"{sign}{int(bare[2:], base)}" if bare[2:] else "a number"
    return f"{sign}{int(bare)}" if bare.isdecimal() else f"{sign}{bare}"


def _constructors() -> dict[str | None, Any]:
    """Return tag -> constructor; a configuration has no tags of sets, bytes and Python's objects."""
    known = {f"tag:yaml.org,2002:{kind}": None for kind in _KNOWN}
    kept = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in known}
    return kept | {
        "tag:yaml.org,2002:str": _Loader.construct_text,
        "tag:yaml.org,2002:timestamp": _Loader.construct_date,
        _AMBIGUOUS: _Loader.refuse_ambiguous,
    }


def _add_first(side: Any, tag: str, pattern: re.Pattern[str], first: str) -> None:
    """Add a resolver of plain scalars, to be tried before all others."""
    whole = re.compile(f"(?:{pattern.pattern})$", pattern.flags)
    side.add_implicit_resolver(tag, whole, list(first))
    for character in first:
        resolvers = side.yaml_implicit_resolvers[character]
        resolvers.insert(0, resolvers.pop())


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$|[-+]\.\d+$"), list("-+.0123456789")
    )
    _add_first(_side, _AMBIGUOUS, _TWO_READINGS, "-+0123456789yYnNoO")
_Loader.yaml_constructors = _constructors()


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Args:
        text: one document.
        where: name of the text in messages: a file, an override.

    Raises:
        ConfigError: with line and column, if the text is no YAML, has a duplicate key or an ambiguous value, is nested
            too deeply or in itself, or has too many values.
    """
    with _yaml_errors(where):
        loader = _Loader(text)
        try:
            node = _compose(loader)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()


def _compose(loader: _Loader) -> yaml.Node | None:
    """Return the root node of the document, after checking the number of its values."""
    node: yaml.Node | None = loader.get_single_node()
    if node is not None and _size(node, {}) > _MOST_NODES:
        raise _error(f"anchors and aliases stand for more than {_MOST_NODES:,} values", node)
    return node


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of values of a node, those of its aliases included.

    Args:
        node: the node.
        sizes: id of a node -> its size, 0 while it is being counted.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _error("an anchor that holds itself", node)
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]


@contextmanager
def _yaml_errors(where: str) -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        context = f" {error.context}" if error.context else ""
        advice = " Text that begins with * stands in quotes." if "alias" in f"{context} {error.problem}" else ""
        raise ConfigError(f"{where}{position}: not valid YAML{context}: {error.problem}.{advice}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested more than {_DEEPEST} deep.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {error}.") from None
    except (KeyError, IndexError, TypeError, AttributeError) as error:  # PyYAML, of `!!bool x` or `!!int ""`
        raise ConfigError(f"{where}: not valid YAML: a value does not fit its tag ({error!r}).") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: if the file cannot be read, is no YAML, or is no mapping.
    """
    content = parse_yaml(_text(Path(path)), str(path))
    if content is None:
        raise ConfigError(f"{path} is empty; expected a mapping of sections, such as `data: digits`.")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got a {type(content).__name__}.")
    return content


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Write a mapping of plain values as YAML, keys in their order."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def line_numbers(path: str | Path) -> dict[str, int]:
    """Return dotted key -> line of every key of a YAML mapping: {"data": 3, "data.name": 3}."""
    with _yaml_errors(str(path)):
        loader = _Loader(_text(Path(path)))
        try:
            return dict(_lines(_compose(loader), ""))
        finally:
            loader.dispose()


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; expected a YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8; expected a YAML file.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
