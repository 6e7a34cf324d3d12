"""The pages of docs/ agree with the classes, and their examples run and print what the pages show."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from loops import each

from sparsemtl.registry.registry import Registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def load(name: str) -> ModuleType:
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR, HOOKS = load("generate"), load("hooks")
GENERATED = dict(GENERATOR.pages())
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for path in sorted(DOCS.rglob("*.md")) if path not in GENERATED),
]
PUBLIC = list(HOOKS.public_names())


class Block(NamedTuple):
    """A block of code of a page."""

    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(m[1], m[2], text[: m.start()].count("\n") + 1) for m in found]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def missing_modules(code: str) -> list[str]:
    """Return the top-level modules that the code imports and that are not installed."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    tops = {name.partition(".")[0] for name in names}
    return sorted(top for top in tops if top not in sys.modules and importlib.util.find_spec(top) is None)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d]+", text)


def figures(text: str) -> list[float]:
    return [float(figure) for figure in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))]


@pytest.fixture
def unchanged_registries() -> Iterator[None]:
    """Remove the members that examples add to registries."""
    registries = [value for _, value in PUBLIC if isinstance(value, Registry)]
    before = [dict(registry._members) for registry in registries]
    yield
    for registry, members in zip(registries, before, strict=True):
        registry._members = members


@pytest.mark.parametrize(
    "page",
    [page for page in WRITTEN if any(block.language == "python" for block in blocks(page))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
@pytest.mark.usefixtures("unchanged_registries")
def test_the_examples_of_a_page_run_and_print_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of Python run in order, in one namespace; a block of text right behind one is what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMTL_DATA", str(tmp_path / "data"))
    module = ModuleType("page")  # classes of the page are looked up in it, as in a user's file
    monkeypatch.setitem(sys.modules, "page", module)
    printed, skipped = "", []
    for block in blocks(page):
        if block.language == "python":
            if missing := missing_modules(block.code):
                skipped += missing
                break
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                code = "\n" * block.line + block.code  # errors name the line of the page
                exec(compile(code, str(page), "exec"), vars(module))
            printed = output.getvalue()
        elif block.language in ("", "text") and printed:
            assert words(printed) == words(block.code), f"line {block.line}, printed:\n{printed}"
            # Processors round differently.
            assert figures(printed) == pytest.approx(figures(block.code), abs=0.05, rel=0.05), printed
            printed = ""
    if skipped:
        pytest.skip(f"not installed: {', '.join(skipped)}")


@each("page", WRITTEN)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose(page))
    api = {DOCS / "api" / "index.md", *(DOCS / public.page for public in PUBLIC)}
    results = ROOT / "benchmarks" / "results"
    broken = []
    for link in links:
        target = (page.parent / link).resolve()
        if target.is_relative_to(DOCS / "results"):  # the site has the results beside its other pages
            target = results / target.relative_to(DOCS / "results")
        if not target.exists() and target not in api:
            broken.append(link)
    assert broken == []


def commands(page: Path) -> list[str]:
    """Return the subcommands of `sparsemtl` that a page names in code."""
    return re.findall(r"(?:^    |`)sparsemtl ([a-z-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_pages_name_commands_that_are_there() -> None:
    from sparsemtl.cli.main import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    assert {command for page in WRITTEN for command in commands(page)} <= known


@each("path", GENERATED)
def test_a_reference_page_is_what_its_classes_say(path: Path) -> None:
    assert path.is_file(), "run `make docs`"
    assert path.read_text(encoding="utf-8") == GENERATED[path], "run `make docs`"


def test_no_page_is_of_something_that_is_gone() -> None:
    found = {path for folder in ("methods", "architectures", "reference") for path in (DOCS / folder).iterdir()}
    assert found == set(GENERATED)


def test_every_public_name_has_a_page_and_a_summary() -> None:
    import sparsemtl

    pages = {public.path: HOOKS.api_page(public, {}) for public in PUBLIC}
    assert {f"sparsemtl.{name}" for name in sparsemtl.__all__ if not name.startswith("__")} <= set(pages)
    assert "Fraction of the maskable weights" in pages["sparsemtl.FisherSharing"]
    assert "`target_sparsity`" in pages["sparsemtl.FisherSharing"], "options of `**options` are missing"
    undocumented = [
        public.path for public in PUBLIC if HOOKS.has_docstring(public.value) and not HOOKS.summary(public.value)
    ]
    assert undocumented == []


def test_every_name_of_the_package_has_an_example_that_runs() -> None:
    import sparsemtl

    snippets = {page.stem for page in (DOCS / "snippets").glob("*.md")}
    named = [name for name in sparsemtl.__all__ if HOOKS.has_docstring(getattr(sparsemtl, name))]
    examples = {name: getattr(sparsemtl, name).__doc__ or "" for name in named}
    run = {name for name, text in examples.items() if any(">>>" in s and "SKIP" not in s for s in text.splitlines())}
    assert set(named) - snippets - run == set()
    assert snippets <= set(named)


def test_pages_of_the_api_are_different_files_where_capitals_do_not_count() -> None:
    pages = [public.page.lower() for public in PUBLIC]
    assert len(set(pages)) == len(pages)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in WRITTEN if page.is_relative_to(DOCS)]
    assert [page for page in pages if page not in navigation and not page.startswith("snippets/")] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
