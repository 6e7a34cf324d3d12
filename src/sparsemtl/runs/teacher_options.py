"""Options of `teacher`: the run whose outputs are soft targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from typing_extensions import Doc

from sparsemtl.registry.parameters import Default, Positive

TEACHER = "teacher"
"""Key of a configuration."""


class TeacherOptions(TypedDict, total=False):
    """Options of `teacher`, a folder or a mapping."""

    run: Annotated[str, Doc("Folder of a finished run that has some of the tasks, of any encoder and architecture.")]
    weight: Annotated[Positive, Default(1.0), Doc("Factor of the distance from the teacher's outputs.")]
    temperature: Annotated[Positive, Default(2.0), Doc("Divisor of the logits of classes.")]


def with_teacher_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in which a folder as `teacher` is a mapping."""
    folder = config.get(TEACHER)
    return {**config, TEACHER: {"run": folder}} if isinstance(folder, str) else dict(config)
