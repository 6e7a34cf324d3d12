"""Objects of the tests before, which a study's collection of garbage after every run need not look at."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def frozen_objects() -> None:
    """Freeze them once."""
    gc.collect()
    gc.freeze()
