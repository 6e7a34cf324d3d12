"""Rooms as numbers: their size, the solids in them, the materials, the lights and the camera.

The world is right-handed and in metres: x and y run along the walls, z upwards, the origin is a corner of the
floor. Every tensor's first dimension is the room.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

CLASSES = ("floor", "wall", "ceiling", "window", "table", "box", "cylinder", "sphere")
"""Classes of the segmentation."""
SLOTS = ("table", "table", "box", "box", "box", "cylinder", "cylinder", "sphere", "sphere")
"""Objects that a room may hold; each is present or not."""
SURFACES = ("floor", "wall", "ceiling", "window", *SLOTS)
"""Surfaces with a material of their own."""
FLOOR, WALL, CEILING, WINDOW, OBJECT = range(5)
"""Indices in `SURFACES`; the objects begin at the last."""
CLASS_OF_SURFACE = torch.tensor([CLASSES.index(name) for name in SURFACES])
ABSENT = -1.0
"""Half extent of an absent solid or window."""


class Camera(NamedTuple):
    """A pinhole.

    The axes are the directions in the world of the image's right, of its down and of the line of sight, one per row,
    orthonormal.
    """

    position: Tensor  # metres, (N, 3)
    axes: Tensor  # (N, 3, 3)
    focal: Tensor  # focal length over the image's longer side, (N,)


class Solids(NamedTuple):
    """K upright solids of one form, those that are present first.

    Half extents are along the solid's own directions; those of a round solid are its radius, again its radius and its
    half height. `ABSENT` if it is absent.
    """

    centre: Tensor  # metres, (N, K, 3)
    half: Tensor  # metres, (N, K, 3)
    turn: Tensor  # cosine and sine of the angle from the world's x to the solid's, (N, K, 2)
    slot: Tensor  # index in `SLOTS` of the object that it is a part of, int64, (N, K)

    def present(self) -> Tensor:
        """Return the number of solids that are present, (N,)."""
        return (self.half[..., 0] > 0).sum(1)

    def trimmed(self) -> Solids:
        """Return the solids without columns in which no room has one."""
        count = int(self.present().max())
        return Solids(*(field[:, :count] for field in self))


class Window(NamedTuple):
    """A rectangle in a wall; its half extent across the wall is a millimetre, all are `ABSENT` without a window."""

    centre: Tensor  # metres, (N, 3)
    half: Tensor  # metres, (N, 3)


class Materials(NamedTuple):
    """Materials of the S surfaces in `SURFACES`."""

    first: Tensor  # reflectance in red, green, blue, in [0, 1], (N, S, 3)
    second: Tensor  # likewise, of the pattern's other colour
    pattern: Tensor  # share of checker, stripes and noise in the pattern, (N, S, 3); zeros are plain
    scale: Tensor  # repetitions per metre along the surface's own three directions, (N, S, 3)
    gloss: Tensor  # strength of highlights, (N, S)


class Lights(NamedTuple):
    """L lights, and the light from all sides."""

    position: Tensor  # metres, (N, L, 3)
    spread: Tensor  # half extents of the shining surface, metres, (N, L, 3): softens shadows
    power: Tensor  # irradiance one metre away in red, green, blue, (N, L, 3)
    axis: Tensor  # direction in which a light shines with the cosine to it, (N, L, 3); zeros shine everywhere alike
    ambient: Tensor  # irradiance from all sides in red, green, blue, (N, 3)
    sky: Tensor  # radiance of the window in red, green, blue, (N, 3)


class Sensor(NamedTuple):
    """Sensor of the camera."""

    exposure: Tensor  # factor on radiance, (N,)
    noise: Tensor  # standard deviation of a pixel of brightness one, (N,)


class Rooms(NamedTuple):
    """N rooms with all that is in them; the camera stands inside the room and outside of all solids."""

    size: Tensor  # along x, y and z, metres, (N, 3)
    camera: Camera
    boxes: Solids  # boxes, and tops and legs of tables
    rounds: Solids  # balls, and upright cylinders
    window: Window
    materials: Materials
    lights: Lights
    sensor: Sensor

    def select(self, rows: Tensor) -> Rooms:
        """Return some of the rooms, without solids that none of them has."""
        chosen: Rooms = tree_map(lambda tensor: tensor[rows], self)
        return chosen._replace(boxes=chosen.boxes.trimmed(), rounds=chosen.rounds.trimmed())
