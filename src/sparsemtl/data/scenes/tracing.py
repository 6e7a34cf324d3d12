"""Intersections of rays with rooms: depth, surface and normal; all solids against all rays at once.

A ray's direction has unit length along the line of sight, so that its parameter is the depth. Branches are
arithmetic on 0 and 1, which is faster than choosing with `where`, and sums are written out, so that a number is
rounded alike wherever it stands in a tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparsemtl.data.scenes.numbers import sqrt
from sparsemtl.data.scenes.rooms import OBJECT, SLOTS, WALL, WINDOW, Rooms, Solids

_FAR = 1e12
"""Distance that a miss adds per unit by which the ray misses."""
_NUDGE = 1e-12
"""Added to directions: a ray along a plane meets it very far away, never at 0 / 0."""
_GRAZING = 1e-4
"""Bound of the rounding of a ray that touches a round side and seems to leave it."""
_FIRST_SPHERE = SLOTS.index("sphere")


class Hits(NamedTuple):
    """First intersections of N x R rays."""

    depth: Tensor  # distance along the line of sight, metres, (N, R)
    surface: Tensor  # index in `SURFACES`, (N, R)
    point: Tensor  # in the world, metres, (N, 3, R)
    normal: Tensor  # in the world, unit length, towards the camera, (N, 3, R)
    own: Tensor  # the point from the solid's centre, along the solid's own directions, (N, 3, R)
    own_normal: Tensor  # the normal along the solid's own directions, (N, 3, R)


def trace(rooms: Rooms, direction: Tensor) -> Hits:
    """Follow rays from the cameras to the first surface; `direction` as from `directions`."""
    origin = rooms.camera.position.unsqueeze(2)
    distances = [_leaving(rooms.size.unsqueeze(2), origin, direction).unsqueeze(1)]
    for start, end in (_box_spans(rooms.boxes, origin, direction), _round_spans(rooms.rounds, origin, direction)):
        distances.append((start - end).clamp_(min=0).mul_(_FAR).add_(start))
    depth, solid = torch.cat(distances, 1).min(1)
    return _describe(rooms, origin, direction, depth, solid)


def blocked(rooms: Rooms, origin: Tensor, way: Tensor) -> Tensor:
    """Return 1 if a solid stands between `origin` and `origin + way`, both (N, 3, R), else 0, (N, R)."""
    covered = torch.zeros_like(way[:, 0])
    for start, end in (_box_spans(rooms.boxes, origin, way), _round_spans(rooms.rounds, origin, way)):
        if start.shape[1]:
            covered = covered.maximum(end.clamp_(max=1).sub_(start).amax(1))
    return (covered > 0).float()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return inner products of vectors (N, 3, R), always summed in the same order, (N, R)."""
    x, y, z = (a * b).unbind(1)
    return x + y + z


def turned(vector: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return horizontal vectors (..., 2, R) along directions turned by an angle, (..., R)."""
    x, y = vector.unbind(-2)
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x], -2)


def _box_spans(boxes: Solids, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays enter boxes and leave them, in units of the direction, not before the origin, (N, K, R).

    A ray that misses a solid enters it after it has left.
    """
    cosine, sine = boxes.turn.unsqueeze(3).unbind(2)
    apart, way = boxes.centre.unsqueeze(3) - origin.unsqueeze(1), direction.unsqueeze(1)
    aside, level = turned(apart[:, :, :2], cosine, sine), turned(way[:, :, :2], cosine, sine)
    start, end = _slab(aside, level, boxes.half[:, :, :2, None])
    low, high = _slab(apart[:, :, 2], way[:, :, 2], boxes.half[:, :, 2, None])
    first = torch.maximum(start[:, :, 0], start[:, :, 1]).maximum(low)
    return first.clamp_(min=0), torch.minimum(end[:, :, 0], end[:, :, 1]).minimum(high)


def _round_spans(rounds: Solids, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spans of `_box_spans` for round solids.

    The sides are roots of a quadratic: x^2 + y^2 = radius^2 for cylinders, x^2 + y^2 + z^2 = radius^2 for balls.
    """
    ball = (rounds.slot >= _FIRST_SPHERE).float().unsqueeze(2)
    x, y, z = (rounds.centre.unsqueeze(3) - origin.unsqueeze(1)).unbind(2)
    way_x, way_y, way_z = direction.unsqueeze(1).unbind(2)
    radius, half_height = rounds.half[:, :, 0, None], rounds.half[:, :, 2, None]
    square = (way_x * way_x + way_y * way_y + _NUDGE) + ball * (way_z * way_z)
    middle = x * way_x + y * way_y + ball * (z * way_z)
    outside = x * x + y * y + ball * (z * z) - radius * radius
    inside = middle * middle - square * outside
    root, missed = sqrt(inside.clamp(min=0)), inside.neg_().clamp_(min=0).mul_(_FAR)
    start, end = (middle - root + missed) / square, (middle + root) / square
    low, high = _slab(z, way_z, half_height)
    return torch.maximum(start, low).clamp_(min=0), torch.minimum(end, high)


def _slab(apart: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays are within `half` of a plane that is `apart` from their origin."""
    inverse = (direction + _NUDGE).reciprocal_()
    middle = apart * inverse
    reach = half * inverse.abs_()
    return middle - reach, middle.add_(reach)


def _leaving(size: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """Return where rays from within reach the shell of the room, (N, R)."""
    _, end = _slab(size / 2 - origin, direction, size / 2)
    x, y, z = end.unbind(1)
    return x.minimum(y).minimum(z)


def pick(table: Tensor, column: Tensor) -> Tensor:
    """Look numbers up for every ray: `table` (N, C, F) at `column` (N, R) gives (N, F, R)."""
    lines = table.transpose(1, 2).contiguous()
    return lines.gather(2, column.unsqueeze(1).expand(-1, lines.shape[1], -1))


def _forms(rooms: Rooms) -> Tensor:
    """Return the numbers of the shell, of boxes and of round solids, (N, 1 + K, 12).

    Centre, 1 / half extents, cosine and sine, -1 for the shell and 1 for others, 1 if round, 1 if a ball, surface.
    """
    middle = rooms.size.unsqueeze(1) / 2
    kind = torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, WALL]).expand(len(middle), 1, 6)
    shell = torch.cat([middle, 1 / middle, kind], 2)
    return torch.cat([shell, _form(rooms.boxes, 0.0), _form(rooms.rounds, 1.0)], 1)


def _form(solids: Solids, rounded: float) -> Tensor:
    one = torch.ones_like(solids.turn[..., 0])
    kind = torch.stack([one, rounded * one, solids.slot >= _FIRST_SPHERE, OBJECT + solids.slot], 2)
    return torch.cat([solids.centre, 1 / solids.half, solids.turn, kind], 2)


def _describe(rooms: Rooms, origin: Tensor, direction: Tensor, depth: Tensor, solid: Tensor) -> Hits:
    """Describe where rays end, on the shell (0) or on a solid (1 ... K)."""
    form = pick(_forms(rooms), solid)
    centre, fit, (cosine, sine) = form[:, 0:3], form[:, 3:6], form[:, 6:8].unbind(1)
    out, rounded, ball, surface = form[:, 8:].unbind(1)
    point = origin + depth.unsqueeze(1) * direction
    own, way = (
        torch.cat([turned(vector[:, :2], cosine, sine), vector[:, 2:]], 1) for vector in (point - centre, direction)
    )
    own_normal, flat = _side(own, way, fit, out, rounded, ball)
    normal = torch.cat([turned(own_normal[:, :2], cosine, -sine), own_normal[:, 2:]], 1)
    surface = surface + (out < 0) * flat * own[:, 2].sign()
    inside = ((point - rooms.window.centre.unsqueeze(2)).abs() <= rooms.window.half.unsqueeze(2)).all(1)
    surface = surface + (WINDOW - WALL) * (inside * (surface == WALL))
    return Hits(depth, surface.long(), point, normal, own, own_normal)


def _side(own: Tensor, way: Tensor, fit: Tensor, out: Tensor, rounded: Tensor, ball: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normal of the side that rays meet, (N, 3, R), and 1 if it is top or bottom, (N, R).

    Of the sides that face the ray it is the one whose bound the point meets best: 1 / half extents are in `fit`.
    """
    fits = own.abs() * fit * (out.unsqueeze(1) * own * way < 0)
    across = own * torch.stack([rounded, rounded, ball], 1)
    length = sqrt(dot(across, across)) + _NUDGE
    on_round = length * fit[:, 0] * (dot(across, way) < _GRAZING)
    on_side = torch.maximum(fits[:, 0], fits[:, 1]) * (1 - rounded) + on_round * rounded
    flat = (fits[:, 2] > on_side).float()
    along_x = (fits[:, 0] >= fits[:, 1]).float()
    upright = out * (1 - rounded) * (1 - flat)
    face = torch.stack([upright * along_x, upright * (1 - along_x), out * flat], 1)
    return own.sign() * face + across * ((1 - flat) / length).unsqueeze(1), flat
