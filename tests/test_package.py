"""What the wheel holds: every file of the package."""

from __future__ import annotations

from pathlib import Path

import pytest

import sparsemtl

tomllib = pytest.importorskip("tomllib", reason="in Python from 3.11 on")
ROOT = Path(__file__).parent.parent


def test_every_file_of_the_package_that_is_no_code_is_named_as_package_data() -> None:
    package = ROOT / "src" / "sparsemtl"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["sparsemtl"]
    named = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files
    assert files <= named
    assert package / "py.typed" in named


def test_every_folder_with_code_is_a_package() -> None:
    package = ROOT / "src" / "sparsemtl"
    folders = {path.parent for path in package.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    assert Path(sparsemtl.__file__).name == "__init__.py"
