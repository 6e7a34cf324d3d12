"""Bars are live in terminals, and in notebooks that can redraw them."""

from __future__ import annotations

import io
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from rich.console import Console

from sparsemtl.views.bars import is_live


def with_widgets(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    module = ModuleType("ipywidgets")
    module.__spec__ = ModuleSpec("ipywidgets", None)
    monkeypatch.setitem(sys.modules, "ipywidgets", module)
    if not there:
        monkeypatch.setattr("sparsemtl.views.bars.find_spec", lambda name: None)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_is_live_with_ipywidgets(monkeypatch: pytest.MonkeyPatch, widgets: bool) -> None:
    with_widgets(monkeypatch, there=widgets)
    assert is_live(Console(file=io.StringIO(), force_jupyter=True)) == widgets
    assert is_live(Console(file=io.StringIO(), force_jupyter=False, force_terminal=True))
    assert not is_live(Console(file=io.StringIO(), force_jupyter=False, force_terminal=False))
