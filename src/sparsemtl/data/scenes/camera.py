"""The camera: rays through the pixels of an image, and pixels from the light that comes along them."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemtl.data.scenes.numbers import sqrt
from sparsemtl.data.scenes.rooms import Camera, Rooms


def middles(height: int, width: int) -> Tensor:
    """Return rays through the middles of pixels, row by row, (5, H * W).

    Each is a column of five numbers: its crossing with the image to the right and down of the middle, in units of the
    longer side, and the point of a light that it samples, in units of the light's half extents (here its middle).
    """
    right, down = _crossings(torch.arange(height) + 0.5, torch.arange(width) + 0.5, height, width)
    return torch.stack([right, down, *3 * [torch.zeros_like(right)]])


def corners(height: int, width: int) -> Tensor:
    """Return rays through the corners of pixels, (5, (H + 1) * (W + 1)), as `middles`.

    They sample the corners of lights, in turns, so that the four rays round a pixel sample four corners.
    """
    right, down = _crossings(torch.arange(height + 1), torch.arange(width + 1), height, width)
    odd_column = (2.0 * (torch.arange(width + 1) % 2) - 1).repeat(height + 1)
    odd_row = (2.0 * (torch.arange(height + 1) % 2) - 1).repeat_interleave(width + 1)
    return torch.stack([right, down, odd_column, odd_row, odd_column * odd_row])


def _crossings(rows: Tensor, columns: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return all crossings of rows and columns, in pixels, from the middle in units of the longer side."""
    side = max(height, width)
    right, down = (columns - width / 2) / side, (rows - height / 2) / side
    return right.repeat(len(down)), down.repeat_interleave(len(right))


def directions(camera: Camera, rays: Tensor) -> Tensor:
    """Return the directions in the world of rays of `middles`, of unit length along the line of sight, (N, 3, R)."""
    focal = camera.focal[:, None, None]
    rightward, downward, forward = camera.axes.unsqueeze(3).unbind(1)
    return rightward * (rays[0] / focal) + downward * (rays[1] / focal) + forward


def expose(rooms: Rooms, middle: Tensor, corner: Tensor, grain: Tensor) -> Tensor:
    """Return images of light, in [0, 1], (N, 3, H, W).

    A pixel's light is half of that through its middle and half of that through its corners, which smooths edges and
    shadows for two rays a pixel. It falls off to the image's corners, is noisy as photons and amplifiers are, and
    saturates softly; the image holds its square root, in steps of 1 / 255.

    Args:
        rooms: rooms.
        middle: light through the pixels' middles, (N, 3, H, W).
        corner: light through their corners, (N, 3, H + 1, W + 1).
        grain: standard normal noise, (N, 3, H, W).
    """
    upper = corner[..., :-1, :-1] + corner[..., :-1, 1:]
    lower = corner[..., 1:, :-1] + corner[..., 1:, 1:]
    exposure, noise, focal = (f[:, None, None, None] for f in (*rooms.sensor, rooms.camera.focal))
    light = (0.5 * middle + 0.125 * (upper + lower)) * exposure * _falloff(focal, *middle.shape[2:])
    light = (light + noise * grain * sqrt(light + 0.02)).clamp_(min=0)
    light = light * (1 + light / 4) / (1 + light)
    return (sqrt(light).clamp_(max=1) * 255).round_() / 255


def _falloff(focal: Tensor, height: int, width: int) -> Tensor:
    """Return the squared cosine between rays and the line of sight, (N, 1, H, W)."""
    right, down, *_ = middles(height, width).unflatten(1, (height, width))
    square: Tensor = (right * right + down * down) / (focal * focal)
    return 1 / (1 + square)
