"""Rooms as numbers: how big they are, what stands in them, what it is made of, what lights it, who looks.

The world is right-handed and in metres: x and y run along the walls, z upwards, the origin is a corner of the
floor. Every tensor's first dimension is the room.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

CLASSES = ("floor", "wall", "ceiling", "window", "table", "box", "cylinder", "sphere")
"""What a pixel can show: the classes of the segmentation."""
SLOTS = ("table", "table", "box", "box", "box", "cylinder", "cylinder", "sphere", "sphere")
"""Objects that a room may hold; each is there or not."""
SURFACES = ("floor", "wall", "ceiling", "window", *SLOTS)
"""What has a material of its own."""
FLOOR, WALL, CEILING, WINDOW, OBJECT = range(5)
"""Indices in `SURFACES`; the objects begin at the last."""
CLASS_OF_SURFACE = torch.tensor([CLASSES.index(name) for name in SURFACES])
ABSENT = -1.0
"""Half extent of what is not there."""


class Camera(NamedTuple):
    """A pinhole.

    Attributes:
        position: metres, (N, 3).
        axes: directions in the world of the image's right, of its down and of the line of sight, one a row,
            orthonormal, (N, 3, 3).
        focal: focal length over the image's longer side, (N,).
    """

    position: Tensor
    axes: Tensor
    focal: Tensor


class Solids(NamedTuple):
    """K upright solids of one form, those that are there first.

    Attributes:
        centre: metres, (N, K, 3).
        half: half extents along the solid's own directions, metres, (N, K, 3); those of a round solid are its
            radius, again its radius and its half height. `ABSENT` if it is not there.
        turn: cosine and sine of the angle from the world's x to the solid's, (N, K, 2).
        slot: index in `SLOTS` of the object that it is a part of, int64, (N, K).
    """

    centre: Tensor
    half: Tensor
    turn: Tensor
    slot: Tensor

    def present(self) -> Tensor:
        """How many there are, (N,)."""
        return (self.half[..., 0] > 0).sum(1)

    def trimmed(self) -> Solids:
        """The same solids without columns in which no room has one."""
        count = int(self.present().max())
        return Solids(*(field[:, :count] for field in self))


class Window(NamedTuple):
    """A rectangle in a wall.

    Attributes:
        centre: metres, (N, 3).
        half: half extents, metres, (N, 3), a millimetre across the wall; `ABSENT` if there is no window.
    """

    centre: Tensor
    half: Tensor


class Materials(NamedTuple):
    """How the S surfaces in `SURFACES` look.

    Attributes:
        first: reflectance in red, green, blue, in [0, 1], (N, S, 3).
        second: likewise, of the pattern's other colour.
        pattern: share of checker, stripes and noise in the pattern, (N, S, 3); zeros are plain.
        scale: repetitions a metre along the surface's own three directions, (N, S, 3).
        gloss: strength of highlights, (N, S).
    """

    first: Tensor
    second: Tensor
    pattern: Tensor
    scale: Tensor
    gloss: Tensor


class Lights(NamedTuple):
    """L lights, and what comes from all sides.

    Attributes:
        position: metres, (N, L, 3).
        spread: half extents of what shines, metres, (N, L, 3): softens shadows.
        power: irradiance one metre away in red, green, blue, (N, L, 3).
        axis: direction in which a light shines with the cosine to it, (N, L, 3); zeros shine everywhere alike.
        ambient: irradiance from all sides in red, green, blue, (N, 3).
        sky: radiance of the window in red, green, blue, (N, 3).
    """

    position: Tensor
    spread: Tensor
    power: Tensor
    axis: Tensor
    ambient: Tensor
    sky: Tensor


class Sensor(NamedTuple):
    """What the camera makes of light.

    Attributes:
        exposure: factor on radiance, (N,).
        noise: standard deviation of a pixel of brightness one, (N,).
    """

    exposure: Tensor
    noise: Tensor


class Rooms(NamedTuple):
    """N rooms with all that is in them.

    Attributes:
        size: along x, y and z, metres, (N, 3).
        camera: who looks; it stands inside the room and outside of all solids.
        boxes: box-shaped solids: boxes, and tops and legs of tables.
        rounds: balls, and upright cylinders.
    """

    size: Tensor
    camera: Camera
    boxes: Solids
    rounds: Solids
    window: Window
    materials: Materials
    lights: Lights
    sensor: Sensor

    def select(self, rows: Tensor) -> Rooms:
        """Some of the rooms, without solids that none of them has."""
        chosen: Rooms = tree_map(lambda tensor: tensor[rows], self)
        return chosen._replace(boxes=chosen.boxes.trimmed(), rounds=chosen.rounds.trimmed())
