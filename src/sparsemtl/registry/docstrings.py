"""Meanings of parameters that still stand in docstrings; goes when every constructor has its `Doc`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any


def documented(target: Callable[..., Any]) -> dict[str, str]:
    """Return parameter -> meaning from the section `Args:` of a docstring, and of the classes that it refers to."""
    owners = target.__mro__[::-1] if inspect.isclass(target) else (*_referred(target), target)
    texts: dict[str, str] = {}
    for owner in owners:
        for names, lines in _ENTRY.findall(_arguments(inspect.cleandoc(owner.__doc__ or ""))):
            text = " ".join(lines.split())
            for name in (word.removesuffix("_") for word in names.split(", ")):
                if not (name in texts and text.startswith("see `")):
                    texts[name] = text
    return texts


def _referred(function: Callable[..., Any]) -> Iterator[type]:
    """Yield the class of the function's module whose arguments the function takes."""
    for name in re.findall(r"Arguments are those of `(\w+)`", function.__doc__ or ""):
        owner = getattr(inspect.getmodule(function), name, None)
        if inspect.isclass(owner):
            yield owner


_ENTRY = re.compile(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", re.MULTILINE)
"""`name: text` or `one, other: text`, and its lines that are indented further."""


def _arguments(doc: str) -> str:
    """Return the section `Args:` of a docstring."""
    return doc.partition("\nArgs:\n")[2].partition("\n\n")[0]
