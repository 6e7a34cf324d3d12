"""Heads of an architecture: given ones, or default ones that fit the features of the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from sparsemtl.errors import ParameterError, unknown_name

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


def heads_for(
    tasks: Mapping[str, Task], heads: Mapping[str, nn.Module] | None, encoders: Mapping[str, nn.Module]
) -> nn.ModuleDict:
    """Return the given heads, and default heads of the other tasks.

    Args:
        heads: task -> module.
        encoders: task -> encoder whose features its head reads.
    """
    given = dict(heads or {})
    check_owned("heads", given, tasks)
    return nn.ModuleDict(
        {
            name: given[name] if name in given else task.head(width_of(encoders[name]), stride_of(encoders[name]))
            for name, task in tasks.items()
        }
    )


def check_owned(what: str, modules: Mapping[str, nn.Module], tasks: Mapping[str, Task]) -> None:
    """Raise unless the modules belong to known tasks, and no two of them have a parameter in common."""
    owners: dict[int, str] = {}
    for name, module in modules.items():
        if name not in tasks:
            raise ParameterError(f"{what}: {unknown_name('task', name, tasks)}")
        for parameter in module.parameters():
            first = owners.setdefault(id(parameter), name)
            if first != name:
                raise ParameterError(
                    f"{what}: tasks {first!r} and {name!r} were given the same parameters. Give each a module of its "
                    "own (`copy.deepcopy`); what tasks share belongs into the encoder of a `SharedBottom`."
                )


def width_of(encoder: nn.Module) -> int | None:
    """Return the width of an encoder's features: `out_features`, or `num_features` as in timm; None without."""
    for attribute in ("out_features", "num_features"):
        width = getattr(encoder, attribute, None)
        if isinstance(width, int):
            return width
    return None


def stride_of(encoder: nn.Module) -> int | None:
    """Return the input pixels per side of one position of an encoder's maps (`stride`); None without."""
    stride = getattr(encoder, "stride", None)
    return stride if isinstance(stride, int) else None
