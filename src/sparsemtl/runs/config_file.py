"""Configuration files: YAML with changes of the command line, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsemtl.errors import ConfigError
from sparsemtl.registry.plugins import with_plugins
from sparsemtl.runs.changes import override
from sparsemtl.runs.config import check, origins_of
from sparsemtl.storage.yaml_text import read_yaml


def is_study_file(path: Path) -> bool:
    """Return True if a YAML file is a study: it has `methods`.

    Raises:
        ConfigError: if the file does not exist, or is no YAML.
    """
    return "methods" in read_yaml(path)


def read_changed(path: Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Read a configuration with its changes; only its plugins and named code are changed, to absolute paths.

    Args:
        path: the file.
        overrides: changes `section.key=value`.
        plugins: plugins to load beside those of the file.

    Raises:
        ConfigError: if the file does not exist, is no YAML, or is a study.
    """
    content = read_yaml(path)
    if "methods" in content:
        raise ConfigError(
            f"{path} is a study: it has `methods`. Run it with `sparsemtl study {path}`, or name a configuration, such "
            "as its `base`."
        )
    return override(with_plugins(content, path.parent, plugins), overrides)


def read_config(path: Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Read and check a configuration with its changes, and fill in every default; arguments as of `read_changed`.

    Raises:
        ConfigError: as `read_changed`; or naming every wrong key with its line.
    """
    content = read_changed(path, overrides, plugins)
    return check(content, where=str(path), origins=origins_of(path, overrides))
