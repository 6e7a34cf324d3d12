"""Pages of the site that are not files of docs/: the API reference, and the results under benchmarks/.

MkDocs calls the functions `on_...` (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, is_typeddict

import sparsemtl
from sparsemtl.registry.parameters import parameters_of

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "architectures",
    "backbones",
    "balancing",
    "compaction",
    "criteria",
    "data",
    "heads",
    "networks",
    "optim",
    "report",
    "runs",
    "sharing",
    "study",
    "tasks",
    "training",
    "training.callbacks",
)
"""Sub-packages whose `__all__` is public, if they have one."""
GENERATED = {"Methods": "methods", "Architectures": "architectures", "Reference": "reference"}
"""Section of the navigation -> folder of pages that docs/generate.py writes."""


class PublicName(NamedTuple):
    """A name of the API and its page.

    Attributes:
        path: where users import it from, such as `sparsemtl.criteria.Random`.
        value: the object.
    """

    path: str
    value: Any

    @property
    def name(self) -> str:
        """Name without its package."""
        return self.path.rpartition(".")[2]

    @property
    def page(self) -> str:
        """Path of the page inside docs/."""
        return "api/" + "/".join(self.path.split(".")[1:]) + ".md"


def public_names() -> Iterator[PublicName]:
    """Yield the names of `sparsemtl.__all__`, then those of sub-packages that the top does not have."""
    seen: set[int] = set()
    for module in (sparsemtl, *public_packages()):
        for name in sorted(module.__all__, key=str.lower):
            value = getattr(module, name)
            if name.startswith("__") or isinstance(value, ModuleType) or id(value) in seen:
                continue
            seen.add(id(value))
            yield PublicName(f"{module.__name__}.{name}", value)


def public_packages() -> Iterator[ModuleType]:
    """Yield the sub-packages that declare an `__all__`."""
    for name in PACKAGES:
        try:
            module = importlib.import_module(f"sparsemtl.{name}")
        except ModuleNotFoundError:
            continue
        if hasattr(module, "__all__"):
            yield module


def api_page(public: PublicName, tutorials: Mapping[str, str]) -> str:
    """Return the page of a public name in Markdown.

    Args:
        public: the name.
        tutorials: path of a page inside docs/ -> its Markdown, for links to pages whose code uses the name.
    """
    if isinstance(public.value, Mapping) and hasattr(public.value, "kind"):
        members = [f"- `{name}`" for name in public.value]
        text = [f"# {public.name}", f"`{public.path}`", registry_summary(public.value), "\n".join(members)]
    else:
        text = [f"::: {public.path}"]
        if table := parameter_table(public.value):
            text += ["## Parameters", table]
    snippet = ROOT / "docs" / "snippets" / f"{public.name}.md"
    if snippet.is_file() and public.path.count(".") == 1:
        text += ["## Example", snippet.read_text(encoding="utf-8").strip()]
    if users := [path for path, page in tutorials.items() if uses(page, public)]:
        up = "../" * public.page.count("/")
        links = [f"- [{heading(tutorials[path])}]({up}{path})" for path in users]
        text += ["## Used in", "\n".join(links)]
    return "\n\n".join(text) + "\n"


def parameter_table(value: Any) -> str:
    """Return the table of the parameters that are documented where they stand, by `Doc`; "" without any.

    These are keyword-only parameters, also those behind `**options`, and the keys of a `TypedDict`. Parameters of an
    `Args:` section are in the docstring.
    """
    docstring = inspect.getdoc(value) or ""
    constructed = not inspect.isclass(value) or inspect.isfunction(value.__init__)  # others have no constructor of ours
    own = is_typeddict(value) or any(
        p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in _signature(value).values() if constructed
    )
    rows = [
        (f"`{p.keyword}`", p.kind, "required" if p.required else f"`{p.default!r}`", p.meaning)
        for p in (parameters_of(value).values() if own else ())
        if p.meaning and not re.search(rf"^    (?:\w+, )*{p.keyword}(?:, \w+)*:", docstring, re.MULTILINE)
    ]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    head = ["| Name | Type | Default | Description |", "| :--- | :--- | :--- | :--- |"]
    return "\n".join([*head, *lines]) if lines else ""


def _signature(value: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(value).parameters
    except (TypeError, ValueError):  # classes of protocols, C functions
        return {}


def registry_summary(registry: Any) -> str:
    """Return the sentence about a registry."""
    return f"Registry of members of one kind ({registry.kind}) by name; `[name] = member` adds one."


def uses(page: str, public: PublicName) -> bool:
    """Return True if a Python block of the page has the name as a word of its own or behind `sm.`."""
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    imported = re.search(
        rf"^from {re.escape(public.path.rpartition('.')[0])} import .*\b{public.name}\b", blocks, re.MULTILINE
    )
    top = public.path.count(".") == 1
    return bool(imported) or bool(top and re.search(rf"\bsm\.{public.name}\b", blocks))


def heading(page: str) -> str:
    """Return the first heading of a page."""
    found = re.search(r"^# (.+)$", page, flags=re.MULTILINE)
    return found[1] if found else "?"


def api_index() -> str:
    """Return the page that lists all public names by package."""
    lines = ["# API", "Every public name. `import sparsemtl as sm` has those of the first table.", ""]
    package = ""
    for public in public_names():
        here = public.path.rpartition(".")[0]
        if here != package:
            package = here
            lines += ["", f"## {package}", "", "| name | summary |", "| :--- | :--- |"]
        lines.append(f"| [`{public.name}`]({public.page.removeprefix('api/')}) | {summary(public.value)} |")
    return "\n".join(lines) + "\n"


def has_docstring(value: Any) -> bool:
    """Return True for classes and functions; constants and types have none at run time."""
    return inspect.isclass(value) or inspect.isroutine(value)


def summary(value: Any) -> str:
    """Return the first paragraph of an object's docstring, for a table's cell."""
    if isinstance(value, Mapping) and hasattr(value, "kind"):
        return registry_summary(value)
    if not has_docstring(value):
        return ""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split()).replace("|", "\\|")


def on_config(config: Any) -> Any:
    """Fill the sections of the navigation whose pages are generated."""
    docs = Path(config.docs_dir)
    for section in config.nav:
        (title,) = section
        if title in GENERATED:
            folder = GENERATED[title]
            section[title] = [{page.stem: f"{folder}/{page.name}"} for page in sorted((docs / folder).glob("*.md"))]
        elif title == "API":
            section[title] = ["api/index.md", *_api_sections()]
        elif title == "Results":
            pages = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
            section[title] = [f"results/{page.name}" for page in pages]
    return config


def _api_sections() -> list[dict[str, Any]]:
    sections: dict[str, list[dict[str, str]]] = {}
    for public in public_names():
        sections.setdefault(public.path.rpartition(".")[0], []).append({public.name: public.page})
    return [{title: pages} for title, pages in sections.items()]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the API, and the results with their pictures."""
    from mkdocs.structure.files import File

    docs = Path(config.docs_dir)
    written = [page for folder in (".", "tutorials", "adding") for page in sorted((docs / folder).glob("*.md"))]
    tutorials = {page.relative_to(docs).as_posix(): page.read_text(encoding="utf-8") for page in written}
    files.append(File.generated(config, "api/index.md", content=api_index()))
    for public in public_names():
        files.append(File.generated(config, public.page, content=api_page(public, tutorials)))
    results = ROOT / "benchmarks" / "results"
    for path in sorted(results.rglob("*")):
        if path.suffix in (".md", ".png"):
            place = f"results/{path.relative_to(results).as_posix()}"
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links of result pages at the site's pages, and those at other files of the repository nowhere."""
    if not page.file.src_uri.startswith("results/"):
        return markdown
    markdown = re.sub(r"\]\((?:\.\./)+docs/", "](../", markdown)
    return re.sub(
        r"\[([^\]]*)\]\((?!https?:|\.\./(?:methods|architectures|reference|concepts))(\.\./[^)]*)\)", r"`\1`", markdown
    )
