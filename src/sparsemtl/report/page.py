"""Templates of pages; style sheet and script stand inside the page."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparsemtl._version import __version__
from sparsemtl.report import words
from sparsemtl.report.drawing import css
from sparsemtl.views.tables import cell_text

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """Fill a template; everything but our own markup is escaped."""
    style = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    script = Markup((_TEMPLATES / "sort.js").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(**context, style=style, script=script, version=__version__)


@functools.cache
def _environment() -> Environment:
    """Return the environment of the templates, which compiles each of them once."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "arrow": words.arrow,
        "number": words.number,
        "percent": words.percent,
        "duration": words.duration,
        "listing": words.listing,
        "colour": css,
        "plural": words.plural,
        "code": words.code,
        "signed": words.signed,
        "cell": cell_text,
    }
    return environment
