from __future__ import annotations

from pathlib import Path

import pytest

from sparsemtl.data.options import resolve_root


def test_the_root_is_the_argument_else_the_environments_else_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMTL_DATA", "/from/environment")
    assert resolve_root("given") == Path("given")
    assert resolve_root(None) == Path("/from/environment")
    monkeypatch.delenv("SPARSEMTL_DATA")
    assert resolve_root(None) == Path("data")


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_root("~/data") == Path("/home/someone/data")
