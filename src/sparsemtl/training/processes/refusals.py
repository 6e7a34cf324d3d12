"""Refusal of what several processes cannot train together, at the start and with the reason."""

from __future__ import annotations

from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel


def check_together(model: MultiTaskModel) -> None:
    """Raise unless several processes can train a model together.

    Raises:
        ParameterError: with what they cannot do, and why.
    """
    if type(model).penalty is not MultiTaskModel.penalty:
        raise ParameterError(
            f"{type(model).__name__} has a term in the loss that compares the samples of a batch, and each of several "
            "processes has a batch of its own. Train it with devices=1."
        )
