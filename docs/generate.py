"""Write the reference pages of this folder from the docstrings and signatures of the classes.

    python docs/generate.py            # or `make docs`

`methods/` has a page per sharing method, `architectures/` a page per architecture, `reference/` a page per other axis.
A test compares the pages with the classes, so that neither changes without the other.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import ENCODERS
from sparsemtl.balancing import BALANCERS
from sparsemtl.criteria import CRITERIA
from sparsemtl.data import DATASETS
from sparsemtl.heads import HEADS
from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
from sparsemtl.registry.registry import Registry
from sparsemtl.runs.presets import PRESETS
from sparsemtl.sharing import SHARING
from sparsemtl.tasks import TASKS
from sparsemtl.training.callbacks import CALLBACKS

HERE = Path(__file__).parent
METHODS: dict[str, tuple[str, Registry[Any]]] = {
    "sharing": ("methods", SHARING),
    "architecture": ("architectures", ARCHITECTURES),
}
"""Section of a configuration -> folder, and registry whose members have a page each."""
AXES: dict[str, tuple[Registry[Any], str]] = {
    "tasks": (TASKS, "Predictions of heads. In Python: `sm.Classification(name, classes)` and so on."),
    "criteria": (
        CRITERIA,
        "Scores that rank the shared weights per task. `choose_masks(criterion, model, loaders, keep=...)`.",
    ),
    "balancers": (BALANCERS, "One update from the losses or gradients of all tasks. Section `balancing`."),
    "datasets": (DATASETS, "Tasks from official files. Section `data`."),
    "encoders": (ENCODERS, "Modules that tasks share. Section `encoder`; in Python any `nn.Module` works."),
    "heads": (
        HEADS,
        "Modules from features to the outputs of a task. Section `heads`, by task; in Python any `nn.Module`.",
    ),
    "optimizers": (OPTIMIZERS, "Section `optimizer`; in Python any of PyTorch's works."),
    "schedulers": (SCHEDULERS, "Section `scheduler`; in Python `sm.optim.Schedule(name, ...)`."),
    "callbacks": (CALLBACKS, "Names in `training.callbacks`; in Python `Trainer(callbacks=[...])`."),
}
PRESETS_ABOUT = """\
Settings of the published methods, as their papers print them. `preset: damtl` at the head of a configuration, or as
changes of a study's method, stands for the settings below; what stands beside it changes them:

```yaml
preset: damtl
data: {name: label-subsets, samples_per_class: 20}
tasks: [task1, task2]
sharing: {init: ones}
```

On the command line, `preset=pbfs` replaces what the file has in these sections. A run's folder holds the settings
themselves."""
_SECTION = re.compile(
    r"^(Args|Attributes|Raises|Returns|Yields|Examples|Differences from the papers?):\n", re.MULTILINE
)


def pages() -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of every page."""
    for section, (folder, registry) in METHODS.items():
        for name in registry:
            yield HERE / folder / f"{name}.md", method_page(section, registry, name)
    for axis, (registry, about) in AXES.items():
        yield HERE / "reference" / f"{axis}.md", axis_page(axis, registry, about)
    yield HERE / "reference" / "presets.md", presets_page()


def method_page(section: str, registry: Registry[Any], name: str) -> str:
    """Return the page of a sharing method or an architecture."""
    member = registry[name]
    parts = _sections(member)
    blocks = [f"# {name}", *parts.pop("", []), _use(section, name, member)]
    if table := _table(registry, name):
        blocks += ["## Parameters", table]
    for heading in ("Examples", "Differences from the paper", "Differences from the papers"):
        if heading in parts:
            blocks += [f"## {heading}", *parts[heading]]
    return "\n\n".join(blocks) + "\n"


def axis_page(axis: str, registry: Registry[Any], about: str) -> str:
    """Return the page of all members of an axis."""
    blocks = [f"# {axis.capitalize()}", about]
    for name in registry:
        parts = _sections(registry[name])
        blocks += [f"## {name}", *parts[""]]
        if aliases := registry.aliases(name):
            blocks.append(f"Also: {', '.join(f'`{alias}`' for alias in aliases)}.")
        if table := _table(registry, name):
            blocks.append(table)
        for heading in ("Differences from the paper", "Differences from the papers"):
            if heading in parts:
                blocks += [f"{heading}:", *parts[heading]]
    return "\n\n".join(blocks) + "\n"


def presets_page() -> str:
    """Return the page of all presets, each with its file."""
    blocks = ["# Presets", PRESETS_ABOUT]
    for name, file in PRESETS.items():
        blocks += [f"## {name}", f"```yaml\n{file.read_text(encoding='utf-8').rstrip()}\n```"]
    return "\n\n".join(blocks) + "\n"


def _use(section: str, name: str, member: Callable[..., Any]) -> str:
    """Return its use in a configuration and in Python."""
    if section == "sharing":
        python = f"sm.Trainer(model, sharing=sm.{member.__name__}())"
    else:
        python = f"sm.{member.__name__}(encoder, tasks)"
    return f"```yaml\n{section}: {name}\n```\n\n```python\n{python}\n```"


def _sections(member: Callable[..., Any]) -> dict[str, list[str]]:
    """Return the sections of a docstring as Markdown blocks by heading; text outside of sections is under ""."""
    first, *rest = _SECTION.split(inspect.getdoc(member) or "")
    found = {"": _blocks(first)}
    for heading, text in zip(rest[::2], rest[1::2], strict=True):
        body, loose = re.match(r"((?:(?:    .*)?\n?)*)([\s\S]*)", text).groups()  # type: ignore[union-attr]
        body = inspect.cleandoc(body)
        found[heading] = [f"```python\n{body}\n```"] if heading == "Examples" else _blocks(body)
        found[""] += _blocks(loose)
    return found


def _blocks(text: str) -> list[str]:
    return [block.strip("\n") for block in re.split(r"\n{2,}", text.strip()) if block.strip()]


def _table(registry: Registry[Any], name: str) -> str:
    """Return the table of the parameters that a configuration may set, "" without parameters."""
    rows = [
        (f"`{p.name}`", p.kind, "required" if p.required else f"`{p.default}`", p.meaning)
        for p in registry.parameters(name).values()
    ]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return (
        "\n".join(["| parameter | is | default | meaning |", "| :--- | :--- | :--- | :--- |", *lines]) if lines else ""
    )


def main() -> None:
    """Write all pages."""
    for path, text in pages():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
