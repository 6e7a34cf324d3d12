"""Modules from outside add members to the registries, once, and say clearly why they could not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsemtl.errors import ConfigError, PluginWarning
from sparsemtl.registry import plugins
from sparsemtl.registry.plugins import absolute_plugins, load_plugins
from sparsemtl.sharing import SHARING

METHOD = """
from sparsemtl.sharing import SHARING, DenseSharing

class Mine(DenseSharing):
    '''Dense, under another name.'''

SHARING[{name!r}] = Mine
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Any:
    members, modules = dict(SHARING), set(sys.modules)
    plugins._load.cache_clear()
    yield
    SHARING._members.clear()
    SHARING._members.update(members)
    for name in set(sys.modules) - modules:
        if name.startswith("plugged"):
            del sys.modules[name]
    plugins._load.cache_clear()
    plugins._load_installed.cache_clear()


def written(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text)
    return str(folder / f"{name}.py")


def test_a_file_and_a_module_register_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    written(tmp_path, "plugged_module", METHOD.format(name="by-module"))
    load_plugins([written(tmp_path, "plugged_file", METHOD.format(name="by-file")), "plugged_module"])
    assert {"by-file", "by-module"} <= set(SHARING)
    assert SHARING["by-file"].__module__ == "plugged_file"  # importable under this name, so that it can be pickled


def test_a_plugin_is_imported_once(tmp_path: Path) -> None:
    file = written(tmp_path, "plugged_once", "import sys\nsys.plugged = getattr(sys, 'plugged', 0) + 1\n")
    load_plugins([file, file])
    load_plugins([file])
    assert sys.plugged == 1  # type: ignore[attr-defined]
    del sys.plugged  # type: ignore[attr-defined]


def test_relative_files_start_at_the_configuration(tmp_path: Path) -> None:
    assert absolute_plugins(["a.py", "pkg.mod"], tmp_path) == [str(tmp_path.resolve() / "a.py"), "pkg.mod"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('broken')", "failed to load: ValueError: broken"),
        ("import nothing_of_that_name", "failed to load: No module named 'nothing_of_that_name'"),
        ("def", "SyntaxError"),
    ],
)
def test_a_broken_plugin_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plugins([written(tmp_path, "plugged_broken", text)])
    assert "plugged_broken" not in sys.modules


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_plugins([str(tmp_path / "absent.py")])
    with pytest.raises(ConfigError, match="there is no such module"):
        load_plugins(["absent_package.methods"])
    with pytest.raises(ConfigError, match="a module 'json' is loaded already"):
        load_plugins([written(tmp_path, "json", "")])


def test_installed_plugins_load_and_a_broken_one_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        SHARING["installed"] = SHARING["dense"]

    def fail() -> None:
        raise ImportError("old")

    points = [
        SimpleNamespace(name="bad", value="bad:it", load=fail),
        SimpleNamespace(name="good", value="g", load=load),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "sparsemtl.plugins" else [])
    plugins._load_installed.cache_clear()
    with pytest.warns(PluginWarning, match="'bad'"):
        load_plugins()
    assert "installed" in SHARING
