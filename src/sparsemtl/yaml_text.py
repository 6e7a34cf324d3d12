"""YAML as people write configurations: `1e-3` is a number, no key stands twice, and a mistake has its line.

PyYAML follows YAML 1.1, in which `1e-3` is text and of two equal keys the last one wins silently. What is written here
is read here as it was; text that looks like a number is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sparsemtl.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML's safe subset with the two repairs."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that stands twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Its counterpart."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Args:
        text: one document.
        where: what it is, for messages: a file's name, an override.

    Raises:
        ConfigError: naming the line and column that are not YAML, or the key that stands twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        context = f" {error.context}" if error.context else ""
        raise ConfigError(f"{where}{place}: not valid YAML{context}: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {error}.") from None


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
    """Dotted place -> line, for every key of a mapping that `read_yaml` reads: {"data": 3, "data.name": 3}."""
    return dict(_lines(yaml.compose(_text(Path(path)), _Loader), ""))


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; expected a YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8; expected a YAML file.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
