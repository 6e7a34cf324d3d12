"""Execution of a training step: where, in which precision, and by whose backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.tasks.processes import ALONE, Processes


@dataclass(frozen=True)
class Backend:
    """Execution of a model on a device and in a precision: by Lightning Fabric's parts, or plain torch.

    Attributes:
        module: callable in place of the model.
        backward: called with losses, a scalar or (n,), their factors as `gradient`, and `retain_graph` and `inputs`.
        clip: called before an optimizer step; may return the gradient's norm, to be checked.
        device: device of the batches.
        scaled: a gradient scaler leaves out steps whose gradient is not finite, and lowers its scale.
        loss_scale: function that returns the scaler's present scale.
        processes: processes that compute a step together, each on a part of its samples.
    """

    module: nn.Module
    backward: Callable[..., None]
    clip: Callable[[], Any] | None
    device: torch.device
    scaled: bool = False
    loss_scale: Callable[[], float] | None = None
    processes: Processes = ALONE

    @classmethod
    def of(cls, model: MultiTaskModel) -> Backend:
        """Return plain torch's backend, on the device of the model."""
        return cls(model, lambda loss, **options: loss.backward(**options), None, placement(model)[0])
