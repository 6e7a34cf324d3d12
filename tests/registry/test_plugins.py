"""Modules from outside add members to the registries, once, and say clearly why they could not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsemtl.errors import ConfigError, PluginWarning
from sparsemtl.registry import plugins
from sparsemtl.registry.plugins import load_plugins, plugins_of, with_plugins
from sparsemtl.runs.loaded import load_run
from sparsemtl.runs.run import run
from sparsemtl.sharing import SHARING
from sparsemtl.storage.yaml_text import dump_yaml

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
    config = with_plugins({"seed": 1, "plugins": ["a.py", "pkg.mod"]}, tmp_path, ["b.py", "pkg.mod"])
    assert config["plugins"] == [str(tmp_path.resolve() / "a.py"), "pkg.mod", str(Path("b.py").resolve())]
    assert with_plugins({"seed": 1}, tmp_path) == {"seed": 1}
    assert plugins_of({"plugins": "a.py"}) == []  # validation refuses it


RUN = {
    "data": "digits",
    "encoder": {"name": "mlp", "hidden": [8]},
    "sharing": "plugged-method",
    "training": {"epochs": 1, "batch_size": 512},
}


def test_a_run_and_its_resumption_and_its_folder_know_the_plugin(tmp_path: Path) -> None:
    written(tmp_path, "plugged_run", METHOD.format(name="plugged-method"))
    with pytest.raises(ConfigError, match="plugged-method"):
        run(RUN, tmp_path / "none", progress=False)
    config = with_plugins({**RUN, "plugins": ["plugged_run.py"]}, tmp_path)
    run(config, tmp_path / "run", progress=False)
    SHARING._members.pop("plugged-method")  # as in another process
    sys.modules.pop("plugged_run")
    plugins._load.cache_clear()
    loaded = load_run(tmp_path / "run")
    assert loaded.config["plugins"] == [str(tmp_path.resolve() / "plugged_run.py")]
    assert "plugged-method" in SHARING


@pytest.mark.slow
def test_a_study_in_two_processes_and_the_command_line_know_the_plugin(tmp_path: Path) -> None:
    written(tmp_path, "plugged_study", METHOD.format(name="plugged-method"))
    (tmp_path / "base.yaml").write_text(dump_yaml({**RUN, "plugins": ["plugged_study.py"]}))
    (tmp_path / "study.yaml").write_text(dump_yaml({"base": "base.yaml", "methods": {"mine": None}, "seeds": [0, 1]}))
    command = [sys.executable, "-m", "sparsemtl", "study", str(tmp_path / "study.yaml"), "--jobs", "2", "--quiet"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    command = [sys.executable, "-m", "sparsemtl", "list", "methods", "--plugin", str(tmp_path / "plugged_study.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "plugged-method" in done.stdout


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
