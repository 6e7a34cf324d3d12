"""Plugins: modules from outside the package that add members to its registries when they are imported.

A plugin is a file `my_methods.py` or a module `my_package.tasks`, named by the key `plugins` of a configuration or by
`--plugin`; or an installed package with an entry point of the group `sparsemtl.plugins`, which is always loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sparsemtl.errors import ConfigError, PluginWarning

GROUP = "sparsemtl.plugins"
"""Group of the entry points of installed plugins."""
NAMED_CODE = re.compile(r"(?P<home>.+\.py|\w+(\.\w+)*):(?P<name>[A-Za-z_]\w*(\.\w+)*)")
"""Function or object that a configuration names: `file.py:name` or `package.module:name`."""
_CODE_KEYS = ("task_options", "pretraining")
"""Keys of a configuration whose values may name code."""


def load_plugins(names: Iterable[str] = ()) -> None:
    """Import installed plugins and the named ones; each is imported once per process.

    Args:
        names: files that end with `.py`, and names of modules.

    Raises:
        ConfigError: if a named plugin does not exist, or raises an error while it is imported.
    """
    _load_installed()
    for name in names:
        _load(str(Path(name).resolve()) if name.endswith(".py") else name)


def plugins_of(config: Mapping[str, Any]) -> list[str]:
    """Return the plugins that a configuration names; none if the key holds anything else, which validation refuses."""
    names = config.get("plugins") or []
    return list(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def with_plugins(config: Mapping[str, Any], folder: Path, more: Iterable[str] = ()) -> dict[str, Any]:
    """Return a configuration whose plugins and named code have absolute paths, so that it can be read from any folder.

    Args:
        config: a configuration as read from a file.
        folder: folder of the file, at which relative paths in it start.
        more: plugins of the command line, whose relative paths start at the working folder.
    """
    named = [*_absolute_plugins(plugins_of(config), folder), *_absolute_plugins(more, Path())]
    config = with_absolute_code(config, folder)
    return {**config, "plugins": list(dict.fromkeys(named))} if named else config


def with_absolute_code(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a configuration in which files of named code have absolute paths; relative ones start at a folder."""
    return {**config, **{key: absolute_code(config[key], folder) for key in _CODE_KEYS if key in config}}


def absolute_code(value: Any, folder: Path) -> Any:
    """Return a nest of values in which files of named code have absolute paths; relative ones start at a folder."""
    if isinstance(value, Mapping):
        return {key: absolute_code(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [absolute_code(each, folder) for each in value]
    match = NAMED_CODE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    return f"{_absolute_plugins([match['home']], folder)[0]}:{match['name']}"


def _absolute_plugins(names: Iterable[str], folder: Path) -> list[str]:
    """Return plugins with absolute paths; relative ones start at a folder."""
    return [str((folder / name).resolve()) if name.endswith(".py") else name for name in names]


@cache
def _load(name: str) -> None:
    try:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"plugin {name!r} failed to load: {error}") from error
        raise ConfigError(
            f"plugin {name!r}: there is no such module. Install the package, run the command from the folder that "
            "holds it, or name a file that ends with '.py'."
        ) from error
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"plugin {name!r} failed to load: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> None:
    """Import a file as a module of its name, so that objects of its classes can be pickled."""
    if not path.is_file():
        raise ConfigError(f"plugin {path}: there is no such file.")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return
        raise ConfigError(f"plugin {path}: a module {name!r} is loaded already. Give the file another name.")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


@cache
def _load_installed() -> None:
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # one broken package must not stop the others
            warnings.warn(
                f"the installed plugin {point.name!r} ({point.value}) failed to load: {type(error).__name__}: {error}",
                PluginWarning,
                stacklevel=3,
            )
