"""Terminals and notebooks in which rich can redraw a progress bar."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def is_live(console: Console) -> bool:
    """Return True in a terminal, and in a notebook with ipywidgets, by which rich redraws there."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
