"""Check of scores before they are ranked."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsemtl.errors import NonFiniteScoreError


def check_scores(scores: Mapping[str, Tensor], task: str | None = None) -> None:
    """Raise if a score is NaN, which has no rank; infinite scores have one.

    Args:
        scores: parameter name -> score per weight.
        task: name of the task, for the message.

    Raises:
        NonFiniteScoreError: naming the parameter; a study omits such a run and continues.
    """
    for name, score in scores.items():
        if score.numel() and bool(score.amax().isnan()):  # `amax` passes NaN on, and makes no tensor of bools
            whose = "" if task is None else f"task {task!r}, "
            wrong = int(score.isnan().sum())
            raise NonFiniteScoreError(f"{whose}parameter {name!r}: {wrong} scores are NaN. Did training diverge?")
