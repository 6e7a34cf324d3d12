"""Checks of input shapes and widths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparsemtl.errors import ParameterError


def image_shape(owner: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width of an image.

    Raises:
        ParameterError: unless the shape has three numbers of at least one.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ParameterError(
            f"{owner} reads images of shape (channels, height, width), got input_shape={tuple(input_shape)}."
        )
    channels, height, width = input_shape
    return channels, height, width


def check_sides(owner: str, images: Tensor, stride: int) -> None:
    """Raise a ParameterError unless the sides of images (B, C, H, W) are multiples of the stride."""
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        raise ParameterError(
            f"{owner} with output_stride={stride} reads images whose sides are multiples of {stride}, got "
            f"{height}x{width} pixels. Resize, crop or pad them, to {-(-height // stride) * stride}x"
            f"{-(-width // stride) * stride} for instance."
        )
