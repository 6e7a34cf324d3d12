"""Drawn rooms: each depends on the seed and on its own index only, bit for bit, whatever is drawn beside it.

All numbers come from +, -, *, / and square roots, which IEEE 754 rounds in one way only; angles are drawn as the
tangents of their halves. Sines or powers may be rounded differently in the middle and at the end of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from sparsemtl.data.scenes.numbers import UniformNumbers, sqrt
from sparsemtl.data.scenes.rooms import (
    ABSENT,
    FLOOR,
    OBJECT,
    SLOTS,
    SURFACES,
    Camera,
    Lights,
    Materials,
    Rooms,
    Sensor,
    Solids,
    Window,
)

TABLES, BOXES, CYLINDERS, SPHERES = (
    [i for i, slot in enumerate(SLOTS) if slot == kind] for kind in ("table", "box", "cylinder", "sphere")
)
_CELLS = 3
"""Columns and rows of cells of the floor, with at most one object in each."""
CLEAR = 1.0
"""Metres along the wall at which the camera stands that stay empty."""
_EXTENTS = {
    "table": (0.50, 1.00, 0.4, 0.8),
    "box": (0.25, 0.60, 0.25, 1.7),
    "cylinder": (0.16, 0.42, 0.3, 1.6),
    "sphere": (0.22, 0.50, 0.0, 0.0),
}
"""Kind -> least and greatest distance of its outline from its axis, least and greatest height, metres."""
_LOOKS = {
    "floor": (0.20, 0.60, 0.25, 0.5, 1.5, 4.0),
    "wall": (0.40, 0.85, 0.30, 0.3, 1.0, 3.0),
    "ceiling": (0.75, 0.92, 0.05, 0.0, 1.0, 2.0),
    "window": (0.60, 0.90, 0.05, 0.0, 1.0, 2.0),
    **dict.fromkeys(SLOTS, (0.10, 0.80, 1.10, 0.8, 3.0, 9.0)),
}
"""Surface -> least and greatest reflectance, tint, contrast of patterns, least and greatest repetitions per metre."""
STRIPES, NOISE = 2, 3
"""Indices among the patterns: plain, checker, stripes, noise."""


def draw_rooms(seed: int, indices: Sequence[int]) -> Rooms:
    """Draw a room for each index, float32."""
    draws = UniformNumbers(seed, indices)
    size = torch.cat([draws.uniform(3.2, 5.6, 1), draws.uniform(3.8, 6.0, 1), draws.uniform(2.3, 3.0, 1)], 1)
    camera = _camera(draws, size)
    objects = _objects(draws, size)
    window = _window(draws, size)
    materials = _materials(draws)
    lights, sensor = _lights(draws, size, window)
    rooms = Rooms(size, camera, _boxes(objects), _rounds(objects), window, materials, lights, sensor)
    single: Rooms = tree_map(lambda t: t.float() if t.is_floating_point() else t, rooms)
    return single


def _cosine_and_sine(half_tangent: Tensor) -> Tensor:
    square = half_tangent * half_tangent
    return torch.stack([1 - square, 2 * half_tangent], -1) / (1 + square).unsqueeze(-1)


def _unit(vector: Tensor) -> Tensor:
    x, y, z = vector.unbind(-1)
    return vector / sqrt(x * x + y * y + z * z).unsqueeze(-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    (ax, ay, az), (bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def _camera(draws: UniformNumbers, size: Tensor) -> Camera:
    """Draw a camera at eye level near the wall y = 0, aimed at the far half of the room, held not quite straight."""
    width, depth, _ = size.unbind(1)
    stand = [draws.uniform(0.15, 0.85) * width, draws.uniform(0.2, 0.6), draws.uniform(1.1, 1.9)]
    aim = [draws.uniform(0.2, 0.8) * width, draws.uniform(0.55, 0.9) * depth, draws.uniform(0.2, 1.1)]
    position = torch.stack(stand, 1)
    forward = _unit(torch.stack(aim, 1) - position)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(forward)
    level = _unit(_cross(forward, up))
    below = _cross(forward, level)
    cosine, sine = _cosine_and_sine(draws.uniform(-0.03, 0.03)).unsqueeze(1).unbind(2)
    axes = torch.stack([level * cosine + below * sine, below * cosine - level * sine, forward], 1)
    return Camera(position, axes, draws.uniform(0.6, 1.0))


class Objects(NamedTuple):
    """Objects that may stand on the floor, one per slot in `SLOTS`."""

    middle: Tensor  # position of the axis, metres, (N, S, 2)
    reach: Tensor  # largest distance of the outline from there, metres, (N, S)
    sides: Tensor  # half extents of an outline with corners, metres, (N, S, 2)
    height: Tensor  # metres, (N, S)
    turn: Tensor  # cosine and sine of the angle, (N, S, 2)
    there: Tensor  # whether the room has the object, (N, S)


def _objects(draws: UniformNumbers, size: Tensor) -> Objects:
    """Draw one to eight objects, each in a cell of its own and small enough to turn round in it."""
    slots = len(SLOTS)
    narrow, wide, low, high = torch.tensor([_EXTENTS[kind] for kind in SLOTS], dtype=torch.float64).unbind(1)
    start = torch.tensor([0.0, CLEAR], dtype=torch.float64)
    cell = (size[:, :2] - start).unsqueeze(1) / _CELLS
    reach = draws.uniform(narrow, wide, slots).minimum(0.48 * cell.amin(2))
    rise = draws.uniform(0.0, 1.0, slots)
    place = draws.order(_CELLS * _CELLS)[:, :slots]
    corner = start + cell * torch.stack([place % _CELLS, place // _CELLS], 2)
    margin = reach.unsqueeze(2)
    middle = corner + margin + (cell - 2 * margin) * draws.uniform(0.0, 1.0, slots, 2)
    turn = _cosine_and_sine(draws.uniform(-0.41, 0.41, slots) * draws.chance(0.7, slots))
    sides = margin * _cosine_and_sine(draws.uniform(0.2, 0.6, slots))
    there = draws.order(slots) <= draws.whole(8, 1)
    return Objects(middle, reach, sides, low + (high - low) * rise * rise, turn, there)


def _boxes(objects: Objects) -> Solids:
    """Return the solids of tables and boxes."""
    middle, _, sides, height, turn, there = objects
    tables = [_table(middle[:, t], sides[:, t], height[:, t], turn[:, t]) for t in TABLES]
    boxes = _standing(middle[:, BOXES], sides[:, BOXES], height[:, BOXES])
    centre, half = (torch.cat(tensors, 1) for tensors in zip(*tables, boxes, strict=True))
    slot = torch.tensor([table for table in TABLES for _ in range(5)] + BOXES)
    return _present_first(Solids(centre, half, turn[:, slot], slot.expand(len(turn), -1)), there)


def _rounds(objects: Objects) -> Solids:
    """Return the solids of cylinders and balls."""
    reach = objects.reach.unsqueeze(2).expand(-1, -1, 2)
    height = torch.where(torch.isin(torch.arange(len(SLOTS)), torch.tensor(SPHERES)), 2 * objects.reach, objects.height)
    centre, half = _standing(objects.middle, reach, height)
    straight = torch.tensor([1.0, 0.0], dtype=torch.float64).expand_as(objects.turn)
    slot = torch.tensor(CYLINDERS + SPHERES)
    solids = Solids(centre[:, slot], half[:, slot], straight[:, slot], slot.expand(len(reach), -1))
    return _present_first(solids, objects.there)


def _present_first(solids: Solids, there: Tensor) -> Solids:
    """Return the solids with those first whose objects are there, (N, S), and the others absent."""
    present = there.gather(1, solids.slot)
    order = (~present).long().argsort(dim=1, stable=True)
    half = torch.where(present.unsqueeze(2), solids.half, ABSENT)
    fields = (solids.centre, half, solids.turn)
    centre, half, turn = (torch.take_along_dim(field, order.unsqueeze(2), 1) for field in fields)
    return Solids(centre, half, turn, solids.slot.gather(1, order))


def _standing(middle: Tensor, sides: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """Return centres and half extents of solids on the floor; middle and sides (N, k, 2), height (N, k)."""
    half_height = height.unsqueeze(2) / 2
    return torch.cat([middle, half_height], 2), torch.cat([sides, half_height], 2)


def _table(middle: Tensor, sides: Tensor, height: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Return centres and half extents of a top and its legs, (N, 5, 3); middle, sides, turn (N, 2), height (N,)."""
    thick, leg = 0.025, 0.035
    corners = torch.tensor([[0, 0], [-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    along, across = (corners * (sides - leg).unsqueeze(1)).unbind(2)
    cosine, sine = turn[:, :1], turn[:, 1:]
    x = middle[:, :1] + cosine * along - sine * across
    y = middle[:, 1:] + sine * along + cosine * across
    half_leg = height.unsqueeze(1) / 2 - thick
    z = torch.cat([height.unsqueeze(1) - thick, half_leg.expand(-1, 4)], 1)
    top = torch.cat([sides, torch.full_like(half_leg, thick)], 1)
    legs = torch.cat([torch.full_like(sides, leg), half_leg], 1)
    return torch.stack([x, y, z], 2), torch.stack([top, legs, legs, legs, legs], 1)


def _window(draws: UniformNumbers, size: Tensor) -> Window:
    """Draw a window in three of four rooms: in the far wall, the left or the right one."""
    width, depth, height = size.unbind(1)
    wall = draws.whole(3)
    far, right = wall == 0, wall == 2
    along = torch.where(far, width, depth) * draws.uniform(0.3, 0.7)
    up = 0.58 * height + draws.uniform(-0.15, 0.15)
    half_width, half_height = draws.uniform(0.45, 1.0), draws.uniform(0.4, 0.75)
    thin = torch.full_like(up, 1e-3)
    side = torch.where(right, width, 0.0)
    centre = torch.where(far[:, None], torch.stack([along, depth, up], 1), torch.stack([side, along, up], 1))
    half = torch.where(
        far[:, None], torch.stack([half_width, thin, half_height], 1), torch.stack([thin, half_width, half_height], 1)
    )
    return Window(centre, torch.where(draws.chance(0.75, 1), half, ABSENT))


def _materials(draws: UniformNumbers) -> Materials:
    """Draw colours and patterns; those of objects do not depend on their kind."""
    count = len(SURFACES)
    looks = torch.tensor([_LOOKS[name] for name in SURFACES], dtype=torch.float64)
    dark, light, tint, contrast, coarse, fine = looks.unsqueeze(2).unbind(1)
    first = draws.uniform(dark, light, count, 1) + tint * draws.uniform(-0.5, 0.5, count, 3)
    darker = 1 - contrast * draws.uniform(0.5, 1.0, count, 1)
    second = first * darker + 0.3 * contrast * tint * draws.uniform(-0.5, 0.5, count, 3)
    kind = draws.whole(4, count)
    scale = draws.uniform(coarse, fine, count, 1) * _directions(draws, kind)
    gloss = draws.uniform(0.0, 0.6, count) * (torch.arange(count) >= OBJECT)
    pattern = F.one_hot(kind, 4)[..., 1:].double()
    return Materials(first.clamp(0.03, 0.95), second.clamp(0.03, 0.95), pattern, scale, gloss)


def _directions(draws: UniformNumbers, kind: Tensor) -> Tensor:
    """Draw the fineness of patterns per direction: tiles alike, stripes level or upright, noise drawn out."""
    count = len(SURFACES)
    upright = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64).repeat(count, 1)
    level = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).repeat(count, 1)
    upright[FLOOR], level[FLOOR] = torch.eye(3, dtype=torch.float64)[:2]
    stripes = torch.where(draws.chance(0.5, count, 1), upright, level)
    noise = draws.uniform(0.2, 1.5, count, 3)
    kind = kind.unsqueeze(2)
    return torch.where(kind == STRIPES, stripes, torch.where(kind == NOISE, noise, 1.0))


def _lights(draws: UniformNumbers, size: Tensor, window: Window) -> tuple[Lights, Sensor]:
    """Draw the lights: by day the window lights the room and the lamp helps; in the evening the lamp does."""
    warm, cold = torch.tensor([[1.2, 1.0, 0.7], [0.92, 1.0, 1.12]], dtype=torch.float64)
    day = draws.chance(0.65, 1)
    tone = cold + (warm - cold) * draws.uniform(0.2, 1.0, 1)
    lamp = torch.where(day, draws.uniform(0.4, 2.0, 1), draws.uniform(2.0, 3.5, 1)) * tone
    sky = torch.where(day, draws.uniform(1.2, 2.8, 1), 0.0) * cold
    half = window.half.clamp(min=0)
    area = 4 * torch.maximum(half[:, 0], half[:, 1]) * half[:, 2]
    daylight = 1.5 * area.unsqueeze(1) * sky
    ambient = draws.uniform(0.05, 0.15, 1) + 0.06 * lamp + 0.05 * daylight

    hang = torch.stack(
        [draws.uniform(0.3, 0.7) * size[:, 0], draws.uniform(0.35, 0.75) * size[:, 1], size[:, 2] - 0.4], 1
    )
    inward = (window.half == 1e-3) * (1 - 2.0 * (window.centre > 0.01))
    lights = Lights(
        position=torch.stack([hang, window.centre + 0.05 * inward], 1),
        spread=torch.stack([torch.tensor([0.15, 0.15, 0.0], dtype=torch.float64).expand_as(hang), 0.7 * half], 1),
        power=torch.stack([lamp, daylight], 1),
        axis=torch.stack([torch.zeros_like(inward), inward], 1),
        ambient=ambient,
        sky=sky + 0.03,
    )
    brightness = (ambient + 0.2 * lamp + 0.07 * daylight)[:, 1]
    return lights, Sensor(draws.uniform(0.85, 1.35) / brightness, draws.uniform(0.004, 0.03))
