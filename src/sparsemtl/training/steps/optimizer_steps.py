"""Steps of an optimizer, of which a gradient scaler leaves out some in half precision."""

from __future__ import annotations

from typing import Any

import torch

from sparsemtl.errors import NonFiniteError

MAX_SKIPPED = 100
"""Steps that a gradient scaler may leave out one after another. Each halves its scale, so that a gradient which does
not fit into half precision does after a few dozen of them; one that still does not is not finite at any scale."""


class OptimizerSteps:
    """Takes the steps of an optimizer, and counts those that were left out.

    Args:
        optimizer: the optimizer, or Lightning Fabric's wrapper of it.
        scaled: a gradient scaler may leave out steps.

    Attributes:
        inner: the optimizer itself.
    """

    def __init__(self, optimizer: Any, *, scaled: bool) -> None:
        self._optimizer = optimizer
        self._scaled = scaled
        self._skipped = 0
        self.inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    def take(self, where: str) -> bool:
        """Take a step; return False if the scaler has left it out.

        Args:
            where: place in the run, for error messages.

        Raises:
            NonFiniteError: if the scaler has left out `MAX_SKIPPED` steps one after another.
        """
        stepped = self._step()
        self._skipped = 0 if stepped else self._skipped + 1
        if self._skipped >= MAX_SKIPPED:
            raise NonFiniteError(
                f"the gradient was NaN or infinite in {self._skipped} steps one after another"
                f"{', until ' + where if where else ''}, at ever smaller loss scales. None of them was taken. Check "
                "the inputs and the losses for NaN, or train with another `precision`."
            )
        return stepped

    def _step(self) -> bool:
        if not self._scaled:
            self._optimizer.step()
            return True
        stepped: list[bool] = []
        watch = self.inner.register_step_post_hook(lambda *_: stepped.append(True))
        try:
            self._optimizer.step()
        finally:
            watch.remove()
        return bool(stepped)
