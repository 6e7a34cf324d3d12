"""Tests of many cases that count as one: a loop whose failures name their cases."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def each(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test once per case, as `pytest.mark.parametrize` does, but within one test.

    Args:
        names: parameter of the test, or several.
        cases: values of the parameter, or tuples of values.

    Raises:
        AssertionError: naming every case that fails.
    """
    names = (names,) if isinstance(names, str) else names
    given = [dict(zip(names, case if len(names) > 1 else (case,), strict=True)) for case in cases]
    assert given, "no case"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def loop(**fixtures: Any) -> None:
            failures: list[tuple[dict[str, Any], BaseException]] = []
            for case in given:
                try:
                    test(**fixtures, **case)
                except (Exception, pytest.fail.Exception) as error:
                    failures.append((case, error))
            if failures:
                lines = (f"{case}: {type(error).__name__}: {error}" for case, error in failures)
                raise AssertionError("\n".join([f"{len(failures)} cases fail:", *lines])) from failures[0][1]

        signature = inspect.signature(test)
        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in names]
        loop.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return loop

    return decorate
