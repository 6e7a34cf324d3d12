"""What the methods have in common that give every task a sub-network of its own: masks over the shared weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from sparsemtl.errors import MaskError
from sparsemtl.networks.masks import Mask, TaskMasks
from sparsemtl.networks.model import MultiTaskModel, check_maskable, maskable_parameters
from sparsemtl.sharing.sharing import Sharing, Statistics, Update

Semantics = Literal["forward", "gradient"]
"""`forward`: a task computes with mask * weight, in training and inference. `gradient`: all tasks compute with the
dense weights, only the task's gradient is masked."""


class SubnetworkSharing(Sharing):
    """Every task reads and trains the shared weights that its mask keeps; a method says which, and when.

    Args:
        mask_applies_to: `forward` masks the weights that a task computes with (FSMTL, Eq. 3), `gradient` only its
            gradient (Eq. 4).
        update: how a batch becomes updates; see `Update`.
        strict: a weight outside of the active masks does not move, whatever the optimizer.
        bn: batch norm statistics; by default one set a task for `forward`, shared for `gradient`.
        mask_all: mask biases and norms as well.
    """

    masks: TaskMasks

    def __init__(
        self,
        *,
        mask_applies_to: Semantics,
        update: Update | None,
        strict: bool,
        bn: Statistics | None,
        mask_all: bool,
    ) -> None:
        super().__init__(update=update, bn=bn or ("per_task" if mask_applies_to == "forward" else "shared"))
        self.mask_applies_to = mask_applies_to
        self.strict = strict
        self.mask_all = mask_all
        self._unions: tuple[TaskMasks | None, dict[tuple[str, ...], Mask | None]] = (None, {})

    def attach(self, model: MultiTaskModel) -> None:
        """Start with masks that keep everything.

        Raises:
            MaskError: if the model shares no weights.
            ParameterError: if a shared layer computes its weight from other parameters.
        """
        super().attach(model)
        check_maskable(model)
        parameters = maskable_parameters(model, mask_all=self.mask_all)
        if not parameters:
            raise MaskError(
                f"{type(self).__name__} masks the weights that tasks share, and {type(model).__name__} shares none. "
                "Use DenseSharing with it; a module of your own names its weights in `maskable_weights`."
            )
        header = {"model": type(model).__name__, "method": type(self).__name__}
        self.masks = TaskMasks.ones(parameters, model.tasks, **header)

    @property
    def one_network(self) -> bool:
        """True for gradient masks on shared statistics."""
        return self.mask_applies_to == "gradient" and super().one_network

    @contextmanager
    def view(self, task: str) -> Iterator[None]:
        """The task's masked weights, if masks act on the forward, and its norms' statistics."""
        masked = self.masks.applied(self.model, task) if self.mask_applies_to == "forward" else nullcontext()
        with masked, super().view(task):
            yield

    def gradient_mask(self, task: str) -> Mask | None:
        """The task's mask, if masks act on the gradient only."""
        return self.masks[task] if self.mask_applies_to == "gradient" else None

    def active(self, tasks: Sequence[str]) -> Mask | None:
        """The union of the tasks' masks, if strict; None where it is everything."""
        if not self.strict:
            return None
        if self._unions[0] is not self.masks:
            self._unions = (self.masks, {})
        unions = self._unions[1]
        key = tuple(tasks)
        if key not in unions:
            union = self.masks.union(key)
            unions[key] = None if all(bool(mask.all()) for mask in union.values()) else union
        return unions[key]

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """Every task's density, and the tasks' mean overlap."""
        for task in self.masks:
            yield task, "density", self.masks.density(task)
        if len(self.masks) > 1:
            jaccard = self.masks.overlap().jaccard
            others = len(jaccard) * (len(jaccard) - 1)
            yield "", "overlap", float(jaccard.sum() - jaccard.trace()) / others

    def summary(self) -> dict[str, Any]:
        """Every task's density."""
        return {"density": {task: self.masks.density(task) for task in self.masks}}
