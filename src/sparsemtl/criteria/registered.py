"""Registry of criteria, and criteria from names, mappings and objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemtl.criteria.criterion import Criterion
from sparsemtl.criteria.fisher import Fisher
from sparsemtl.criteria.gradient import Gradient
from sparsemtl.criteria.magnitude import Magnitude
from sparsemtl.criteria.random import Random
from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.registry.registry import Registry

CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    {"fisher": Fisher, "random": Random, "magnitude": Magnitude, "gradient": Gradient},
)
INNER = "of"
"""Parameter of a criterion that composes: the criterion inside it."""


def as_criterion(given: object, known: Mapping[str, Criterion] | None = None, **defaults: Any) -> Criterion:
    """Return a criterion by name, by a mapping of `name` and parameters, or as it is.

    Args:
        given: a name, a mapping, or a `Criterion`.
        known: criteria that stand for their name, unless parameters are given with it.
        defaults: parameters of criteria that do not compose, as far as they have them and the mapping does not.

    Raises:
        ConfigError: if the name or a parameter is unknown, or the name is missing.
        ParameterError: if it is none of the three.
    """
    if isinstance(given, Criterion):
        return given
    if not isinstance(given, (str, Mapping)):
        raise ParameterError(
            f"`criterion` must be a name ({', '.join(CRITERIA)}), a mapping of `name` and parameters, or a Criterion. "
            f"Got {given!r} instead."
        )
    section = {"name": given} if isinstance(given, str) else dict(given)
    if "name" not in section:
        raise ConfigError(f"criterion: expected the `name` of one of {', '.join(CRITERIA)} in {dict(section)!r}.")
    name = section.pop("name")
    if known and not section and name in known:
        return known[name]
    parameters = CRITERIA.parameters(name)
    if INNER in parameters:
        section[INNER] = as_criterion(section.get(INNER, parameters[INNER].default), known, **defaults)
        return CRITERIA.build(name, **section)
    return CRITERIA.build(name, **{**{key: defaults[key] for key in defaults if key in parameters}, **section})
