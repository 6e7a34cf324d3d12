"""Description of masks: what they cover, how dense each task's mask is there, and why they leave out the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from typing_extensions import Unpack

from sparsemtl.networks.coverage import CoverageOptions
from sparsemtl.networks.model import MultiTaskModel, check_shapes
from sparsemtl.networks.shared_coverage import shared_coverage
from sparsemtl.networks.swap import unwrapped
from sparsemtl.views.tables import Shaded, Table, Value

if TYPE_CHECKING:
    import pandas as pd

    from sparsemtl.networks.masks import TaskMasks


class LeftOut(NamedTuple):
    """Parameter that masks do not cover: its shape, and the reason."""

    shape: torch.Size
    reason: str


@dataclass(frozen=True)
class MaskDescription:
    """Table of what masks cover, and why not the rest.

    Attributes:
        densities: name of a covered parameter -> task -> fraction kept, in [0, 1].
        shapes: name of a covered parameter -> shape.
        left_out: name of another parameter -> its shape, and the reason; None where this is not known without a model.

    Examples:
        >>> masks = TaskMasks({"a": {"w": torch.tensor([True, False])}, "b": {"w": torch.tensor([True, True])}})
        >>> print(masks.describe())
        parameter  shape      a      b  left out because it is
        w          2      0.500  1.000  –
        The masks cover 2 weights. Other parameters are not known without the model: describe(model) lists them.
    """

    densities: Mapping[str, Mapping[str, float]]
    shapes: Mapping[str, torch.Size]
    left_out: Mapping[str, LeftOut] | None

    def frame(self) -> pd.DataFrame:
        """Return a data frame with a row per parameter.

        Its columns are `shape`, `weights` (their number), `covered`, a column per task with the fraction kept (NaN for
        parameters that are left out), and `left_out`, the reason ("" for covered ones).
        """
        import pandas as pd

        rows: dict[str, dict[str, Any]] = {
            name: {**_sizes(self.shapes[name]), "covered": True, **densities, "left_out": ""}
            for name, densities in self.densities.items()
        }
        nothing = dict.fromkeys(self._tasks(), float("nan"))
        for name, (shape, reason) in (self.left_out or {}).items():
            rows[name] = {**_sizes(shape), "covered": False, **nothing, "left_out": reason}
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index.name = "parameter"
        return frame

    def table(self) -> Table:
        """Return the description as a table: covered parameters first."""
        tasks = self._tasks()
        rows: list[list[Value]] = [
            [name, _shown(self.shapes[name]), *(Shaded(densities[task], densities[task]) for task in tasks), None]
            for name, densities in self.densities.items()
        ]
        for name, (shape, reason) in (self.left_out or {}).items():
            rows.append([name, _shown(shape), *([None] * len(tasks)), reason])
        return Table(["parameter", "shape", *tasks, "left out because it is"], rows, notes=[self._note()])

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        """Return the description as a table, for notebooks."""
        return self.table().html()

    def _tasks(self) -> list[str]:
        return list(next(iter(self.densities.values())))

    def _note(self) -> str:
        covered = sum(shape.numel() for shape in self.shapes.values())
        if self.left_out is None:
            return (
                f"The masks cover {covered:,} weights. Other parameters are not known without the model: "
                "describe(model) lists them."
            )
        total = covered + sum(shape.numel() for shape, _ in self.left_out.values())
        return f"The masks cover {covered:,} of {total:,} weights."


def describe(masks: TaskMasks, model: nn.Module | None = None) -> MaskDescription:
    """Describe masks; see `TaskMasks.describe`."""
    left_out = masks.left_out
    if model is not None:
        masks.check(model)
        if left_out is None:
            left_out = left_out_of(model, masks.shapes())
    return MaskDescription(masks.layer_density(), masks.shapes(), left_out)


def left_out_of(
    model: nn.Module, covered: Iterable[str], *, mask_all: bool = False, **options: Unpack[CoverageOptions]
) -> dict[str, LeftOut]:
    """Return the parameters of a model that masks do not cover, with the reason.

    Args:
        model: the model.
        covered: names of the parameters that masks cover.
        mask_all: option by which the masks were chosen, as `options` are.
        options: see `CoverageOptions`.

    Raises:
        ParameterError: if a parameter has no shape yet.
    """
    model, names = unwrapped(model), frozenset(covered)
    check_shapes(model)
    shared = shared_coverage(model, mask_all=mask_all, **options)
    owners = _owners(model)
    found = {}
    for name, parameter in model.named_parameters():
        if name not in names:
            inside = shared.reasons.get(name)
            if inside is None:
                unnamed = "a weight that these masks were not chosen for"
                inside = unnamed if name in shared.covered else owners.get(name, "in no shared module")
            found[name] = LeftOut(parameter.shape, inside)
    return found


def _owners(model: nn.Module) -> dict[str, str]:
    """Return the name of every parameter that belongs to one task -> a reason."""
    if not isinstance(model, MultiTaskModel):
        return {}
    return {
        name: f"of task {task!r} alone, like its head" for task in model.tasks for name in model.task_parameters(task)
    }


def _sizes(shape: torch.Size) -> dict[str, Any]:
    return {"shape": tuple(shape), "weights": shape.numel()}


def _shown(shape: torch.Size) -> str:
    return " × ".join(map(str, shape)) or "scalar"
