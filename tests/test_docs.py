"""The pages of docs/ say what the classes say, and the README's example prints what the README shows."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("path", "text"), [pytest.param(p, t, id=p.name) for p, t in generator().pages()])
def test_a_reference_page_is_what_its_classes_say(path: Path, text: str) -> None:
    assert path.is_file(), "run `make docs`"
    assert path.read_text(encoding="utf-8") == text, "run `make docs`"


def test_no_page_is_of_something_that_is_gone() -> None:
    known = {path for path, _ in generator().pages()}
    found = {
        path for folder in ("methods", "architectures", "reference") for path in (ROOT / "docs" / folder).iterdir()
    }
    assert found == known


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readmes_example_prints_what_the_readme_shows() -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (example, shown) = next((code, after) for (kind, code), (_, after) in pairwise(blocks) if kind)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), {})
    assert labels(printed.getvalue()) == labels(shown)
    assert figures(printed.getvalue()) == pytest.approx(figures(shown), abs=0.05)  # processors round differently


def labels(table: str) -> list[str]:
    return re.findall(r"[a-z]+", table)


def figures(table: str) -> list[float]:
    return [float(figure) for figure in re.findall(r"\d\.\d+", table)]
