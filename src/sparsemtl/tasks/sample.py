"""Base of tasks with one vector of outputs per sample."""

from __future__ import annotations

from torch import Tensor, nn

from sparsemtl.errors import ParameterError
from sparsemtl.heads.linear import LazyLinearHead, LinearHead
from sparsemtl.tasks.task import Task


class SampleTask(Task):
    """Task with outputs of shape (B, outputs)."""

    def head(self, features: int | None = None, stride: int | None = None) -> nn.Module:
        """Return a linear head, which averages feature maps over their positions; see `Task.head`."""
        return LazyLinearHead(self.outputs) if features is None else LinearHead(features, self.outputs)

    def check_output(self, output: Tensor, target: Tensor) -> None:
        """Raise a ParameterError if the outputs would broadcast against the labels, as (B,) against (B, 1)."""
        if output.shape[1:2] != (self.outputs,):
            raise ParameterError(
                f"task {self.name!r}: its head must give outputs of shape (batch, {self.outputs}), "
                f"got {tuple(output.shape)}."
            )
