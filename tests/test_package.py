"""The package as a whole: files of the wheel, and names that are imported on first use."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from loops import each

import sparsemtl

ROOT = Path(__file__).parent.parent


def test_every_file_of_the_package_that_is_no_code_is_named_as_package_data() -> None:
    tomllib = pytest.importorskip("tomllib", reason="in Python from 3.11 on")
    package = ROOT / "src" / "sparsemtl"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["sparsemtl"]
    named = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files
    assert files <= named
    assert package / "py.typed" in named


def test_the_version_is_that_of_the_newest_section_of_the_changelog() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## (\S+)( \(not released\))?", changes, re.MULTILINE)
    assert found is not None
    release, unreleased = found.groups()
    assert sparsemtl.__version__ == (f"{release}.dev0" if unreleased else release)


def test_every_folder_with_code_is_a_package() -> None:
    package = ROOT / "src" / "sparsemtl"
    folders = {path.parent for path in package.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    assert Path(sparsemtl.__file__).name == "__init__.py"


def test_names_for_type_checkers_are_those_imported_on_first_use() -> None:
    tree = ast.parse(Path(sparsemtl.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == {(module, name) for module, names in sparsemtl._EXPORTS.items() for name in names}
    assert {name for _, name in typed} == set(sparsemtl.__all__) - {"__version__"}


@each("name", sparsemtl.__all__)
def test_an_exported_name_is_the_one_of_its_module(name: str) -> None:
    found = getattr(sparsemtl, name)
    if name != "__version__":
        assert found is getattr(import_module(sparsemtl._MODULE_OF[name]), name)
        assert pickle.loads(pickle.dumps(found)) is found
        assert vars(sparsemtl)[name] is found  # later look-ups cost nothing


def test_packages_are_attributes_and_unknown_names_are_none() -> None:
    for name in (*sparsemtl._PACKAGES, *sparsemtl._INNER_PACKAGES):
        assert getattr(sparsemtl, name) is import_module(f"sparsemtl.{name}")
    with pytest.raises(AttributeError, match="module 'sparsemtl' has no attribute 'Fisher'"):
        getattr(sparsemtl, "Fisher")  # noqa: B009  (type checkers refuse the name as well)
    assert not hasattr(sparsemtl, "__wrapped__")


def test_a_star_import_has_all_exported_names() -> None:
    names: dict[str, object] = {}
    exec("from sparsemtl import *", names)
    assert set(sparsemtl.__all__) <= set(names)
    assert set(sparsemtl.__all__) <= set(dir(sparsemtl))


def imported(*words: str) -> set[str]:
    """Return the libraries that a new interpreter has imported after these arguments."""
    code = (
        "import sys, runpy\n"
        "try:\n    runpy.run_module('sparsemtl', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('imported', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("imported ")[2].split())


def test_importing_the_package_imports_no_other_library() -> None:
    code = "import sys, sparsemtl; assert not {'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)"
    heavy = "{'lightning_fabric', 'torchmetrics', 'torchjd', 'pandas', 'matplotlib', 'rich'}"  # seconds, on first use
    later = f"import sparsemtl.training, sparsemtl.runs.check_run; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; {later}"], check=True)


@pytest.mark.parametrize("words", ["--version", "--help", "data check --help"])
def test_a_command_that_computes_nothing_starts_without_torch(words: str) -> None:
    assert not {"torch", "numpy", "pandas", "matplotlib"} & imported(*words.split())
