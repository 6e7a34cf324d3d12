"""Steps of an optimizer that leave the entries of some tasks unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen_entries(
    parameters: Iterable[nn.Parameter], entries: Tensor, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Restore entries of parameters at the end of the context, and the optimizer's state of these entries.

    Args:
        parameters: tensors of one shape.
        entries: bool tensor of that shape; True where nothing may change.
        optimizer: steps the parameters inside the context.
    """
    before = [(t, t.detach().clone()) for p in parameters for t in (p, *_moments(p, optimizer))]
    yield
    with torch.no_grad():
        for tensor, value in before:
            tensor[entries] = value[entries]


def _moments(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors of an optimizer's state that have the shape of a parameter."""
    state = optimizer.state.get(parameter, {}).values()
    return [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]
