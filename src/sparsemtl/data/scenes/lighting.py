"""Light from a point of a room: its material, the lamp and the window, shadows, corners, highlights."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemtl.data.scenes.numbers import sqrt
from sparsemtl.data.scenes.rooms import WINDOW, Materials, Rooms, Window
from sparsemtl.data.scenes.tracing import Hits, blocked, dot, pick

_ABOVE = 2e-3
"""Distance from a surface at which shadows are computed, metres."""
_BELOW = 1e-3
"""Depth under a surface at which solid patterns are read, metres: a face on a cell's border reads one cell."""
_CORNER = 0.25
"""Distance from a wall at which half of the light from that side is lost, metres."""
_FRAME = 0.06
"""Width of window frames, metres."""
STRIDES = (57, 113, 1201)
"""Steps in `_LATTICE` along the three directions."""
_PERIOD = 4096
"""Period of `_LATTICE`."""
_LATTICE = torch.rand(_PERIOD, generator=torch.Generator().manual_seed(0)).repeat(2)
"""Values of noise at the corners of cubes; twice, as a cube's corners may lie on both sides of the end."""


def radiance(rooms: Rooms, direction: Tensor, hits: Hits, aside: Tensor, pixel: float) -> Tensor:
    """Return the light that comes back along rays in red, green and blue, (N, 3, R).

    Args:
        rooms: rooms.
        direction: directions of the rays, in the world.
        hits: hits of the rays.
        aside: points of the lights that the rays sample, in units of their spread, in [-1, 1], (3, R).
        pixel: distance between pixels in units of the image's longer side: patterns finer than that fade.
    """
    length = sqrt(dot(direction, direction))
    gaze = direction / length.unsqueeze(1)
    looks = pick(_looks(rooms.materials), hits.surface)
    blur = hits.depth * length * (pixel / rooms.camera.focal.unsqueeze(1)) / (0.05 + dot(gaze, hits.normal).abs())
    albedo = _albedo(looks, hits, blur)
    diffuse, highlight = _light(rooms, gaze, hits, aside)
    glass = _glass(rooms.window, hits).unsqueeze(1)
    lit = albedo * diffuse + looks[:, 12:] * highlight
    return lit * (1 - glass) + rooms.lights.sky.unsqueeze(2) * glass


def _looks(materials: Materials) -> Tensor:
    """Return all numbers of materials, (N, S, 13)."""
    return torch.cat([*materials[:4], materials.gloss.unsqueeze(2)], 2)


def _albedo(looks: Tensor, hits: Hits, blur: Tensor) -> Tensor:
    """Return the reflectance in red, green and blue, (N, 3, R); patterns fade below `blur` metres, a pixel's width."""
    first, second, pattern, scale = looks[:, 0:3], looks[:, 3:6], looks[:, 6:9], looks[:, 9:12]
    place = scale * (hits.own - _BELOW * hits.own_normal)
    x, y, z = place.unbind(1)
    cell_x, cell_y, cell_z = place.floor().unbind(1)
    values = torch.stack([_odd(cell_x + cell_y + cell_z), _odd((x + y + z).floor()), smooth_noise(place)], 1)
    fine = torch.maximum(torch.maximum(scale[:, 0], scale[:, 1]), scale[:, 2])
    clear = (1.5 - 2 * blur * fine).clamp_(0, 1)
    share = (dot(values - 0.5, pattern) * clear + 0.5) * dot(pattern, pattern)
    return first + (second - first) * share.unsqueeze(1)


def _odd(whole: Tensor) -> Tensor:
    """Return 1 for odd numbers, 0 for even ones."""
    return whole - 2 * (whole / 2).floor()


def smooth_noise(place: Tensor) -> Tensor:
    """Interpolate the random numbers of a lattice: in [0, 1), smooth over a unit of length, (N, R)."""
    corner = place.floor()
    fraction = place - corner
    x, y, z = (fraction * fraction * (3 - 2 * fraction)).unbind(1)
    along_x, along_y, along_z = (corner * torch.tensor(STRIDES)[:, None]).unbind(1)
    start = (along_x + along_y + along_z).long() % _PERIOD
    lattice = _LATTICE.expand(len(place), -1)
    steps = [i * STRIDES[0] + j * STRIDES[1] + k * STRIDES[2] for k in (0, 1) for j in (0, 1) for i in (0, 1)]
    values = [lattice.gather(1, start + step) for step in steps]
    for weight in (x, y, z):
        values = [low + weight * (high - low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _light(rooms: Rooms, gaze: Tensor, hits: Hits, aside: Tensor) -> tuple[Tensor, Tensor]:
    """Return irradiance, and the light of highlights, in red, green and blue, (N, 3, R)."""
    lights = rooms.lights
    above = hits.point + _ABOVE * hits.normal
    diffuse = lights.ambient.unsqueeze(2) * _openness(rooms, hits).unsqueeze(1)
    highlight = torch.zeros_like(diffuse)
    for position, spread, power, axis in zip(*(field.unsqueeze(3).unbind(1) for field in lights[:4]), strict=True):
        if not power.any():
            continue
        way = position + spread * aside - above
        distance = sqrt(dot(way, way))
        towards = way / distance.unsqueeze(1)
        sent = (1 - dot(axis, axis) - dot(towards, axis)).clamp_(min=0)
        arriving = sent * (1 - blocked(rooms, above, way)) / (distance * distance + 0.3)
        irradiance = arriving * dot(towards, hits.normal).clamp_(min=0)
        half = towards - gaze
        sharp = dot(half, hits.normal).clamp_(min=0) / sqrt(dot(half, half))
        for _ in range(5):
            sharp = sharp * sharp
        diffuse += power * irradiance.unsqueeze(1)
        highlight += power * (arriving * sharp).unsqueeze(1)
    return diffuse, highlight


def _openness(rooms: Rooms, hits: Hits) -> Tensor:
    """Return the share of the light from all sides that reaches a point, in (0, 1): corners are darker."""
    low = hits.point.clamp(min=0)
    high = (rooms.size.unsqueeze(2) - hits.point).clamp_(min=0)
    lost = (1 - hits.normal) / (_CORNER + low) + (1 + hits.normal) / (_CORNER + high)
    x, y, z = lost.unbind(1)
    return 1 / (1 + 0.5 * _CORNER * (x + y + z))


def _glass(window: Window, hits: Hits) -> Tensor:
    """Return 1 on the glass of a window, 0 on its frame and elsewhere, (N, R)."""
    apart = (hits.point - window.centre.unsqueeze(2)).abs()
    along, up = apart[:, 0] + apart[:, 1], apart[:, 2]
    half_along, half_up = window.half[:, :2].amax(1, keepdim=True), window.half[:, 2:]
    open_ = (along > _FRAME / 2) & (along < half_along - _FRAME) & (up > _FRAME / 2) & (up < half_up - _FRAME)
    return open_ * (hits.surface == WINDOW).float()
