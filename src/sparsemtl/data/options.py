"""What every data set's function does with its arguments: check them, find the root folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

from annotated_types import Interval

from sparsemtl.data.base import TaskData
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import configurable, describe, fits

ROOT_VARIABLE = "SPARSEMTL_DATA"
"""Environment variable that names the root folder."""

ProperFraction = Annotated[float, Interval(gt=0, lt=1)]
"""A fraction in (0, 1): neither part of a split is empty."""

P = ParamSpec("P")


def checked(build: Callable[P, TaskData]) -> Callable[P, TaskData]:
    """Check a data set's keyword arguments against their annotations, as `validated` does for constructors.

    Raises:
        ParameterError: naming the data set, the parameter, what was expected and what was found.
    """

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> TaskData:
        for name, _, hint in configurable(build):
            if name in kwargs and not fits(kwargs[name], hint):
                raise ParameterError(
                    f"The {name!r} parameter of {build.__name__} must be {describe(hint)}. "
                    f"Got {kwargs[name]!r} instead."
                )
        return build(*args, **kwargs)

    return wrapper


def resolve_root(root: str | Path | None) -> Path:
    """The folder under which data sets lie: `root`, else the environment's SPARSEMTL_DATA, else ./data."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser()
