"""Base of tasks with outputs per pixel."""

from __future__ import annotations

from torch import Tensor, nn

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.heads.fcn import FCNHead
from sparsemtl.tasks.task import Task


class DenseTask(Task):
    """Task with a map of outputs, as high and wide as the input.

    Outputs have shape (B, outputs, H, W). Labels have the same height and width; some of their pixels may be
    unknown, and an unknown pixel adds exactly nothing.
    """

    def head(self, features: int | None = None, stride: int | None = None) -> nn.Module:
        """Return a fully convolutional head, which enlarges its outputs to the size of the input; see `Task.head`.

        Raises:
            ParameterError: if the encoder has no `out_features` or no `stride`.
        """
        if features is None or stride is None:
            raise ParameterError(
                f"task {self.name!r} predicts maps, and its default head needs the encoder's `out_features` "
                "(channels) and `stride` (input pixels per position). Set them on the encoder, or pass "
                f"heads={{{self.name!r}: module}} that gives maps of the input's size."
            )
        return FCNHead(features, self.outputs, stride)

    def check_output(self, output: Tensor, target: Tensor) -> None:
        """Raise if the outputs have other channels, or another size than the labels."""
        if output.ndim != 4 or output.shape[1] != self.outputs:
            raise ParameterError(
                f"task {self.name!r}: its head must give maps of shape (batch, {self.outputs}, height, width), got "
                f"{tuple(output.shape)}."
            )
        if output.shape[-2:] != target.shape[-2:]:
            raise LabelError(
                f"task {self.name!r}: outputs of {_size(output)} pixels, labels of {_size(target)}. Labels have the "
                "input's size; heads bring maps up to it, which takes inputs whose sides are multiples of the "
                "encoder's stride."
            )


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[-2:]))
