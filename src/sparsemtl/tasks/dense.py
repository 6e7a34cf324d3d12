"""What tasks have in common that predict a value or a class at every pixel."""

from __future__ import annotations

import abc

from torch import Tensor, nn

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.tasks.task import Task


class DenseTask(Task):
    """A map of the input's height and width.

    Outputs have shape (B, outputs, H, W). Labels have the same height and width; some of their pixels may be
    unknown, and an unknown pixel adds exactly nothing.
    """

    @abc.abstractmethod
    def known(self, target: Tensor) -> Tensor:
        """Which pixels have a label: bool, shape (B, H, W)."""

    def labelled(self, target: Tensor) -> Tensor:
        """Samples with at least one known pixel."""
        return self.known(target).flatten(1).any(1)

    def known_outputs(self, target: Tensor, output: Tensor) -> Tensor:
        """All channels of the known pixels: bool, shape (B, 1, H, W)."""
        return self.known(target).unsqueeze(1)

    def head(self, features: int | None = None, stride: int | None = None) -> nn.Module:
        """A fully convolutional head that brings feature maps up to the input's size.

        Raises:
            ParameterError: if the encoder does not tell its channels and stride, or gives no maps.
        """
        if features is None or stride is None:
            raise ParameterError(
                f"task {self.name!r} predicts maps, and its default head must know the encoder's `out_features` "
                "(channels) and `stride` (input pixels a position). Set them on the encoder, or pass "
                f"heads={{{self.name!r}: module}} that gives maps of the input's size."
            )
        from sparsemtl.heads.fcn import FCNHead

        return FCNHead(features, self.outputs, stride)

    def check_output(self, output: Tensor, target: Tensor) -> None:
        """Refuse outputs of other channels or another size than the labels."""
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
