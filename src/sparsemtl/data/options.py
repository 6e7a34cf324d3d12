"""Parameters that data sets have in common, their check, and the root folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypedDict

from annotated_types import Interval
from typing_extensions import Doc

from sparsemtl.registry.parameters import Default, Natural, Parameter, validated

ROOT_VARIABLE = "SPARSEMTL_DATA"
"""Environment variable that names the root folder."""
Root = Annotated[str | Path | None, Doc("Folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.")]
Download = Annotated[bool, Doc("Download absent files.")]
ProperFraction = Annotated[float, Interval(gt=0, lt=1)]
"""Fraction in (0, 1): neither part of a split is empty."""


class GeneratedOptions(TypedDict, total=False):
    """Options of data sets whose samples are drawn from functions that are drawn as well."""

    root: Annotated[str | Path | None, Default(None), Doc("Unused: nothing is read or written.")]
    seed: Annotated[Natural, Default(0), Doc("Seed of the functions and of all samples.")]


checked = validated
"""Check of a data set's arguments."""


def resolve_root(root: str | Path | None) -> Path:
    """Return the folder under which data sets lie: `root`, else the environment's SPARSEMTL_DATA, else ./data."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser()


def following_run(parameter: Parameter) -> Parameter:
    """Return a data set's parameter as configurations have it: by default `seed` is null, which is the run's seed.

    Every seed of a study then has its own split, and figures vary as they would on other data.
    """
    if parameter.name != "seed":
        return parameter
    said = "null" in parameter.meaning
    meaning = parameter.meaning if said else f"{parameter.meaning} null is the run's seed.".strip()
    return replace(parameter, hint=parameter.hint | None, default=None, meaning=meaning)
