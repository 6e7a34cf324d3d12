"""Code that a configuration names: `losses.py:focal` or `my_package.losses:focal`, with or without parameters.

The file or module is imported as a plugin is: once per process, under the name of the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.registry.plugins import NAMED_CODE, load_plugins


def names_code(value: object) -> bool:
    """Return whether a value of a configuration names code: `file.py:name`, or a mapping with a `name` of that form."""
    name = value.get("name") if isinstance(value, Mapping) else value
    return isinstance(name, str) and NAMED_CODE.fullmatch(name) is not None


def load_code(value: str | Mapping[str, Any]) -> Any:
    """Return the function or object that a configuration names.

    Args:
        value: `file.py:name` or `package.module:name`; or a mapping of such a `name` and parameters. A class is called
            with the parameters, a function has them fixed.

    Raises:
        ConfigError: if the file or module cannot be imported, has no such name, or refuses the parameters.
    """
    parameters = {} if isinstance(value, str) else {key: each for key, each in value.items() if key != "name"}
    text = value if isinstance(value, str) else value["name"]
    match = NAMED_CODE.fullmatch(text)
    if match is None:
        raise ConfigError(f"expected `file.py:name` or `package.module:name`, got {text!r}.")
    found = _attribute(match["home"], match["name"])
    if not isinstance(found, type):
        return partial(found, **parameters) if parameters else found
    try:
        return found(**parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{text}({', '.join(f'{k}={v!r}' for k, v in parameters.items())}): {error}") from error


def _attribute(home: str, name: str) -> Any:
    load_plugins([home])
    found: Any = sys.modules[Path(home).stem if home.endswith(".py") else home]
    for part in name.split("."):
        if not hasattr(found, part):
            own = [each for each in vars(found) if not each.startswith("_")]
            raise ConfigError(f"{home}: {unknown_name('function or class', part, own)}")
        found = getattr(found, part)
    return found
