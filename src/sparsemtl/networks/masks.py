"""TaskMasks: the weights of a shared network that each task keeps, task -> parameter name -> bool tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sparsemtl.errors import MaskError, check_list, unknown_name
from sparsemtl.networks.masked_product import MaskedProducts
from sparsemtl.networks.swap import refuse_compiled, swap_tensors, unwrapped
from sparsemtl.views.plots import axes_or_new, draw_shares
from sparsemtl.views.tables import Shaded, Table, Value, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparsemtl.networks.mask_description import LeftOut, MaskDescription

Mask = Mapping[str, Tensor]
"""Parameter name -> bool tensor of the parameter's shape; True is kept."""


_PART = 2**16
"""Weights per part of a sum over all pairs of tasks, which is computed in floats."""
_ROWS = 40
"""Parameters that the table of a notebook shows."""


class TaskMasks(Mapping[str, Mask]):
    """Boolean masks over the shared weights, one set per task; all tasks cover the same parameters.

    Args:
        masks: task -> parameter name -> bool tensor, True where the task keeps the weight.
        model: name of the model class that the masks were made for, kept in files.
        method: name of what chose the masks, kept in files.
        left_out: parameters of the model that the masks do not cover, with shape and reason, kept in files; None where
            they are not known.

    Examples:
        >>> masks = TaskMasks({"a": {"w": torch.tensor([True, False])}, "b": {"w": torch.tensor([True, True])}})
        >>> masks.density("a"), masks.density()
        (0.5, 0.75)
        >>> masks.overlap().jaccard.tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """

    def __init__(
        self,
        masks: Mapping[str, Mask],
        *,
        model: str = "",
        method: str = "",
        left_out: Mapping[str, LeftOut] | None = None,
    ) -> None:
        self._masks = {task: dict(mask) for task, mask in masks.items()}
        self.model = model
        self.method = method
        self.left_out = None if left_out is None else dict(left_out)
        self._token = object()  # identifies the masks as long as anything refers to it, which an id does not
        self._products = MaskedProducts()
        self._check()

    def _check(self) -> None:
        if not self._masks:
            raise MaskError("masks need at least one task.")
        first = next(iter(self._masks))
        shapes = {name: mask.shape for name, mask in self._masks[first].items()}
        if not shapes:
            raise MaskError("masks need at least one parameter to cover.")
        for task, mask in self._masks.items():
            if {name: m.shape for name, m in mask.items()} != shapes:
                raise MaskError(f"task {task!r} covers other parameters or shapes than task {first!r}.")
            for name, m in mask.items():
                if m.dtype != torch.bool:
                    raise MaskError(f"task {task!r}, parameter {name!r}: a mask is bool, got {m.dtype}.")

    @classmethod
    def ones(cls, parameters: Mapping[str, Tensor], tasks: Iterable[str], **header: Any) -> TaskMasks:
        """Return masks that keep everything."""
        return cls(
            {t: {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()} for t in tasks},
            **header,
        )

    def __getitem__(self, task: str) -> Mask:
        try:
            return self._masks[task]
        except KeyError:
            raise MaskError(unknown_name("task", task, self._masks)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskMasks) or list(self) != list(other) or self.shapes() != other.shapes():
            return False
        return all(torch.equal(m, other[t][n].to(m.device)) for t, mask in self.items() for n, m in mask.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        densities = ", ".join(f"{task}: {self.density(task):.3f}" for task in self)
        return f"TaskMasks({densities}; {len(self.shapes())} parameters, {self.size():,} weights)"

    def describe(self, model: nn.Module | None = None) -> MaskDescription:
        """Return what the masks cover, with shape and density per task, and why they leave out the rest.

        `print` shows a table, `describe(...).frame()` is a pandas data frame.

        Args:
            model: the model. Masks that were chosen for a model, or read from a file of such masks, know what they
                leave out; other masks know it by the model alone.

        Raises:
            MaskError: if the masks do not fit the model.
        """
        from sparsemtl.networks.mask_description import describe

        return describe(self, model)

    def _repr_html_(self) -> str:
        """Return the densities as a table, for notebooks."""
        layers = self.layer_density()
        rows: list[list[Value]] = [
            [name, shape.numel(), *(Shaded(layers[name][t], layers[name][t]) for t in self)]
            for name, shape in list(self.shapes().items())[:_ROWS]
        ]
        rows.append(["all parameters", self.size(), *(self.density(t) for t in self)])
        hidden = len(layers) - _ROWS
        notes = [f"{hidden} more parameters are in layer_density()."] if hidden > 0 else []
        title = "Fraction of the weights that each task keeps" + (f", by {self.method}" if self.method else "")
        return Table(["parameter", "weights", *self], rows, title, notes).html()

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the fraction of each parameter that each task keeps, and return the axes.

        Args:
            ax: axes of matplotlib; by default those of a new figure.

        Raises:
            MissingExtraError: if matplotlib is not installed.
        """
        densities = self.layer_density()
        names = short_names(list(densities))
        width = 1.5 + 0.07 * max(map(len, names)) + max(0.8, 0.1 * max(map(len, self))) * len(self)
        ax = axes_or_new(ax, width=width, height=1.2 + 0.26 * len(names))
        draw_shares(ax, [list(density.values()) for density in densities.values()], names, self.tasks)
        ax.set_title("fraction of the weights kept")
        return ax

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(self._masks)

    def shapes(self) -> dict[str, torch.Size]:
        """Return parameter name -> shape."""
        return {name: mask.shape for name, mask in next(iter(self._masks.values())).items()}

    def size(self) -> int:
        """Return the number of weights that the masks cover."""
        return sum(shape.numel() for shape in self.shapes().values())

    def flat(self, task: str) -> Tensor:
        """Return the mask of a task over all parameters, as one bool vector."""
        return torch.cat([mask.flatten() for mask in self[task].values()])

    def count(self, task: str) -> int:
        """Return the number of weights that the task keeps."""
        return sum(int(mask.count_nonzero()) for mask in self[task].values())

    def density(self, task: str | None = None) -> float:
        """Return the fraction of the covered weights that a task keeps; without a task, the mean over tasks."""
        if task is not None:
            return self.count(task) / self.size()
        return sum(self.density(t) for t in self) / len(self)

    def layer_density(self) -> dict[str, dict[str, float]]:
        """Return parameter name -> task -> fraction kept."""
        return {n: {t: _density(self[t][n]) for t in self} for n in self.shapes()}

    def overlap(self, parameters: Iterable[str] | None = None) -> Overlap:
        """Return the pairwise overlap of the masks, over all parameters or the named ones."""
        chosen = list(self.shapes()) if parameters is None else list(parameters)
        both = torch.stack([self._in_common(name) for name in chosen]).sum(0)
        counts = both.diagonal()
        either = counts[:, None] + counts[None, :] - both
        return Overlap(self.tasks, both / either.clamp(min=1), both / counts[:, None].clamp(min=1))

    def _in_common(self, parameter: str) -> Tensor:
        """Return the number of weights of one parameter that pairs of tasks keep in common, (T, T)."""
        if parameter not in self.shapes():
            raise MaskError(unknown_name("parameter", parameter, self.shapes()))
        masks = [mask[parameter].flatten().view(torch.uint8) for mask in self.values()]
        common = torch.zeros(len(self), len(self), dtype=torch.float64, device=masks[0].device)
        for parts in zip(*(mask.split(_PART) for mask in masks), strict=True):
            kept = torch.stack(parts).float()  # sums of so few ones are exact
            common += kept @ kept.T
        return common

    def changed(self, other: TaskMasks) -> dict[str, float]:
        """Return task -> fraction of the weights kept in `other` that are not kept here."""
        both = self.shapes().keys() & other.shapes()  # a weight that masks do not cover is kept
        gone = {t: sum(int((other[t][n] & ~self[t][n]).count_nonzero()) for n in both) for t in self}
        return {task: count / max(other.count(task), 1) for task, count in gone.items()}

    def union(self, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return the weights that at least one of the tasks (all by default) keeps."""
        return self._reduce(torch.logical_or, False, tasks)

    def intersection(self, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return the weights that all of the tasks (all by default) keep."""
        return self._reduce(torch.logical_and, True, tasks)

    def exclusive(self, task: str) -> dict[str, Tensor]:
        """Return the weights that this task keeps and no other task."""
        rest = self.union(other for other in self if other != task)
        return {name: mask & ~rest[name] for name, mask in self[task].items()}

    def _reduce(
        self, operator: Callable[[Tensor, Tensor], Tensor], start: bool, tasks: Iterable[str] | None
    ) -> dict[str, Tensor]:
        check_list(tasks, "tasks")
        first = next(iter(self.values()))
        result = {name: torch.full_like(mask, start) for name, mask in first.items()}
        for task in self if tasks is None else tasks:
            result = {name: operator(mask, self[task][name]) for name, mask in result.items()}
        return result

    def to(self, device: torch.device | str) -> TaskMasks:
        """Return the masks on another device."""
        return self.replaced({task: {name: m.to(device) for name, m in mask.items()} for task, mask in self.items()})

    def replaced(self, masks: Mapping[str, Mask]) -> TaskMasks:
        """Return other masks over the same parameters, with the model, the method and the reasons of these."""
        return TaskMasks(masks, model=self.model, method=self.method, left_out=self.left_out)

    def applied(self, model: nn.Module, task: str) -> AbstractContextManager[None]:
        """Inside the context, `model` is the task's sub-network: it reads mask * weight and gradients come masked.

        The model's `state_dict`, deep copies, hooks and parameters stay those of the dense model, inside and
        after. Works with any module whose parameters have the masks' names, `DataParallel` replicas excepted.
        The weights are those at the moment of the call: apply anew after every optimizer step.

        Raises:
            MaskError: if a masked parameter is missing in the model or has another shape, or the model is compiled.
        """
        model = unwrapped(model)
        refuse_compiled(model)
        return swap_tensors(model, self.weights(model, task), label=(self._token, task))

    def weights(self, model: nn.Module, task: str) -> dict[str, Tensor]:
        """Return parameter name -> mask * parameter, for `torch.func.functional_call` and compiled models."""
        mask = self[task]
        return {name: self._products(p, mask[name], task, name) for name, p in self.check(model).items()}

    def check(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's parameters that the masks cover, by name.

        Raises:
            MaskError: if the masks do not fit the model.
        """
        known = dict(unwrapped(model).named_parameters(remove_duplicate=False))
        found: dict[str, Tensor] = {}
        for name, shape in self.shapes().items():
            if name not in known:
                raise MaskError(
                    f"the masks cover {name!r}, which {type(unwrapped(model)).__name__} does not have. "
                    f"They were made for {self.model or 'another model'}: {unknown_name('parameter', name, known)}"
                )
            if known[name].shape != shape:
                raise MaskError(
                    f"parameter {name!r}: the mask has shape {tuple(shape)}, the parameter "
                    f"{tuple(known[name].shape)}. Was the mask saved for another model?"
                )
            found[name] = known[name]
        return found

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file: one bit per weight, and a header with model, method and tasks."""
        from sparsemtl.networks.files import save_masks

        save_masks(self, path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> TaskMasks:
        """Read masks from a file; with a model, check that they fit it.

        Raises:
            CheckpointError: if the file is missing or not a whole safetensors file.
            MaskError: if it is not a mask file, is damaged, or does not fit the model.
        """
        from sparsemtl.networks.files import load_masks

        return load_masks(path, model)


def _density(mask: Tensor) -> float:
    return int(mask.count_nonzero()) / max(mask.numel(), 1)


@dataclass(frozen=True)
class Overlap:
    """Pairwise overlap of the tasks' masks, matrices of shape (T, T).

    Attributes:
        tasks: names of rows and columns.
        jaccard: |A and B| / |A or B|.
        containment: |A and B| / |A|, the part of the row's weights that the column's task keeps as well.
    """

    tasks: tuple[str, ...]
    jaccard: Tensor
    containment: Tensor

    def __str__(self) -> str:
        width = max(7, *(len(task) for task in self.tasks))
        head = " " * width + "".join(f"  {task:>{width}}" for task in self.tasks)
        rows = [
            f"{task:<{width}}" + "".join(f"  {value:>{width}.3f}" for value in row)
            for task, row in zip(self.tasks, self.jaccard.tolist(), strict=True)
        ]
        return "\n".join([head, *rows])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the Jaccard indices as a table, for notebooks."""
        rows: list[list[Value]] = [
            [task, *(Shaded(value, value) for value in row)]
            for task, row in zip(self.tasks, self.jaccard.tolist(), strict=True)
        ]
        return Table(["", *self.tasks], rows, "Jaccard index |A and B| / |A or B| of the tasks' masks").html()

    def plot(self, measure: Literal["jaccard", "containment"] = "jaccard", *, ax: Axes | None = None) -> Axes:
        """Draw the overlap of all pairs of tasks, and return the axes.

        Args:
            measure: `jaccard` or `containment`.
            ax: axes of matplotlib; by default those of a new figure.

        Raises:
            MaskError: if there is no such measure.
            MissingExtraError: if matplotlib is not installed.
        """
        measures = {
            "jaccard": (self.jaccard, "Jaccard index of the masks"),
            "containment": (self.containment, "part of the row's weights that the column keeps"),
        }
        if measure not in measures:
            raise MaskError(unknown_name("measure", measure, measures))
        values, title = measures[measure]
        longest = max(map(len, self.tasks))
        side = 1.2 + max(0.7, 0.1 * longest) * len(self.tasks)
        ax = axes_or_new(ax, width=side + 0.1 * longest, height=side)
        draw_shares(ax, values.tolist(), self.tasks, self.tasks)
        ax.set_title(title)
        return ax
