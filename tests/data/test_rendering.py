"""The renderer of `scenes` against closed forms, a slow ray caster, and itself in other company."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsemtl.data.scenes import (
    CLASSES,
    SCENES,
    Rendering,
    SceneSplit,
    dataset,
    lighting,
    render,
    rendered,
    rendering,
    split_indices,
)
from sparsemtl.data.scenes.camera import corners, expose, middles
from sparsemtl.data.scenes.furnishing import CLEAR, _objects, draw_rooms
from sparsemtl.data.scenes.lighting import smooth_noise
from sparsemtl.data.scenes.numbers import LEVELS, SUMMANDS, UniformNumbers, gaussian, sqrt
from sparsemtl.data.scenes.rendering import _follow, _scene, photograph
from sparsemtl.data.scenes.rooms import ABSENT, OBJECT, SLOTS, Camera, Rooms, Solids, Window
from sparsemtl.data.scenes.tracing import blocked, trace
from sparsemtl.errors import DataError, ParameterError

FLOOR, WALL, CEILING, WINDOW, TABLE, BOX, CYLINDER, SPHERE = range(len(CLASSES))
SIZE = (4.0, 5.0, 3.0)
EYE = (1.53, 0.5, 1.27)
FOCAL = 0.75
STRAIGHT = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
"""A camera that looks along y: its right is x, its down is -z."""


def solids(*placed: tuple[str, tuple[float, float, float], tuple[float, float, float]], turn: float = 0.0) -> Solids:
    """Solids of one form in one room: (kind, centre, half extents) each."""
    centre = torch.tensor([[c for _, c, _ in placed]]).reshape(1, -1, 3)
    half = torch.tensor([[h for *_, h in placed]]).reshape(1, -1, 3)
    slot = torch.tensor([[SLOTS.index(kind) for kind, *_ in placed]], dtype=torch.long)
    return Solids(centre, half, torch.tensor([math.cos(turn), math.sin(turn)]).expand(1, len(placed), 2), slot)


def room(*, boxes: Solids | None = None, rounds: Solids | None = None, window: Window | None = None) -> Rooms:
    """A room with a camera that looks straight at its far wall, 4.5 m away."""
    none = solids()
    return draw_rooms(0, [0])._replace(
        size=torch.tensor([SIZE]),
        camera=Camera(torch.tensor([EYE]), torch.tensor([STRAIGHT]), torch.tensor([FOCAL])),
        boxes=boxes or none,
        rounds=rounds or none,
        window=window or Window(torch.zeros(1, 3), torch.full((1, 3), ABSENT)),
    )


def view(rooms: Rooms, height: int = 48, width: int = 64) -> Rendering:
    """Rooms without noise."""
    return photograph(rooms, torch.zeros(len(rooms.size), 3, height, width))


def slopes(height: int, width: int, focal: Tensor) -> Tensor:
    """Directions through the pixels' middles in the camera's axes, (N, 3, H, W)."""
    right, down, *_ = middles(height, width).unflatten(1, (height, width))
    x, y = (line / focal[:, None, None] for line in (right, down))
    return torch.stack([x, y, torch.ones_like(x)], 1)


def assert_same(found: Rendering, expected: Rendering) -> None:
    for name, a, b in zip(Rendering._fields, found, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


def at(rendering_: Rendering, rows: list[int] | slice) -> Rendering:
    return Rendering(*(field[rows] for field in rendering_))


# Closed forms


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (33, 33), (7, 90)])
def test_an_empty_room_is_where_its_planes_are(height: int, width: int) -> None:
    found = view(room(), height, width)
    (right, down, _) = slopes(height, width, torch.tensor([FOCAL]))[0].double()
    planes = {
        "left": EYE[0] / -right.clamp(max=-1e-9),
        "right": (SIZE[0] - EYE[0]) / right.clamp(min=1e-9),
        "floor": EYE[2] / down.clamp(min=1e-9),
        "ceiling": (SIZE[2] - EYE[2]) / -down.clamp(max=-1e-9),
        "far": torch.full_like(down, SIZE[1] - EYE[1]),
    }
    normals = {"left": (1, 0, 0), "right": (-1, 0, 0), "floor": (0, -1, 0), "ceiling": (0, 1, 0), "far": (0, 0, -1)}
    nearest = torch.stack(list(planes.values())).argmin(0)
    expected = torch.stack(list(planes.values())).amin(0)
    torch.testing.assert_close(found.depth[0].double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(found.normals[0].permute(1, 2, 0), torch.tensor(list(normals.values())).float()[nearest])
    assert torch.equal(found.segmentation[0], torch.tensor([WALL, WALL, FLOOR, CEILING, WALL])[nearest])


def test_a_wall_seen_straight_on_has_one_depth_and_the_normal_0_0_minus_1() -> None:
    found = view(room())
    assert torch.equal(found.depth[0, 20:28, 24:40], torch.full((8, 16), 4.5))
    assert torch.equal(
        found.normals[0, :, 20:28, 24:40], torch.tensor([0.0, 0.0, -1.0])[:, None, None].expand(3, 8, 16)
    )


@pytest.mark.parametrize("radius", [0.2, 0.4])
def test_a_ball_is_where_the_quadratic_says(radius: float) -> None:
    centre = (1.7, 2.5, 1.0)
    found = view(room(rounds=solids(("sphere", centre, (radius,) * 3))), 63, 63)
    ways = slopes(63, 63, torch.tensor([FOCAL]))[0].double()
    apart = torch.tensor([centre[0] - EYE[0], EYE[2] - centre[2], centre[1] - EYE[1]], dtype=torch.float64)
    square, middle = (ways * ways).sum(0), (ways * apart[:, None, None]).sum(0)
    inside = middle.square() - square * (apart.dot(apart) - radius**2)
    seen = found.segmentation[0] == SPHERE
    assert torch.equal(seen, inside > 0)
    assert seen.sum() > 40
    depth = (middle - inside.clamp(min=0).sqrt()) / square
    torch.testing.assert_close(found.depth[0].double()[seen], depth[seen], rtol=0, atol=1e-3)
    steep = inside > 0.02 * inside.max()
    torch.testing.assert_close(found.depth[0].double()[steep], depth[steep], rtol=1e-5, atol=0)
    normal = (ways * depth - apart[:, None, None]) / radius
    torch.testing.assert_close(found.normals[0].double()[:, steep], normal[:, steep], rtol=0, atol=1e-3)


def test_the_point_of_a_ball_in_the_line_of_sight_is_a_radius_before_its_centre() -> None:
    found = view(room(rounds=solids(("sphere", (EYE[0], 3.0, EYE[2]), (0.5, 0.5, 0.5)))), 65, 65)
    assert found.depth[0, 32, 32] == pytest.approx(2.0, rel=1e-6)
    assert found.normals[0, :, 32, 32].tolist() == pytest.approx([0, 0, -1], abs=1e-6)


def test_a_cylinder_has_a_round_side_and_a_flat_top() -> None:
    found = view(room(rounds=solids(("cylinder", (EYE[0], 3.0, 0.3), (0.4, 0.4, 0.3)))), 65, 65)
    on_it = found.segmentation[0] == CYLINDER
    top = on_it & (found.normals[0, 1] == -1)
    side = on_it & (found.normals[0, 1] == 0)
    assert torch.equal(on_it, top | side)
    rows = slopes(65, 65, torch.tensor([FOCAL]))[0, 1]
    torch.testing.assert_close(found.depth[0][top], (EYE[2] - 0.6) / rows[top])
    torch.testing.assert_close(found.depth[0, :, 32][side[:, 32]], torch.full((int(side[:, 32].sum()),), 2.1))
    assert int(side[:, 32].sum()) > 5
    assert int(top[:, 32].sum()) > 2


@pytest.mark.parametrize("turn", [0.0, math.pi / 2])
def test_the_front_of_a_box_is_flat_at_the_depth_of_its_face(turn: float) -> None:
    found = view(room(boxes=solids(("box", (EYE[0], 3.0, 0.75), (0.3, 0.4, 0.75)), turn=turn)))
    front = (found.segmentation[0] == BOX) & (found.normals[0, 2] < -0.9)
    assert front.sum() > 50
    torch.testing.assert_close(found.depth[0][front], torch.full((int(front.sum()),), 2.5 - (0.3 if turn else 0.4)))


def test_a_box_turned_by_half_a_right_angle_shows_an_edge_and_two_sides() -> None:
    found = view(room(boxes=solids(("box", (EYE[0], 3.0, 0.75), (0.4, 0.4, 0.75)), turn=math.pi / 4)), 65, 65)
    half = math.sqrt(0.5)
    across = found.normals[0, :, 40, :][:, found.segmentation[0, 40] == BOX].T
    for side in (across[: len(across) // 2 - 1], across[len(across) // 2 + 1 :]):
        assert len(side) > 5
        torch.testing.assert_close(side[:, 0].abs(), torch.full((len(side),), half))
        torch.testing.assert_close(side[:, 2], torch.full((len(side),), -half))
    assert across[0, 0] < 0 < across[-1, 0]


def test_a_window_is_a_rectangle_of_its_wall() -> None:
    pane = Window(torch.tensor([[EYE[0], SIZE[1], 1.5]]), torch.tensor([[0.5, 1e-3, 0.4]]))
    found, plain = view(room(window=pane)), view(room())
    x, y, _ = slopes(48, 64, torch.tensor([FOCAL]))[0] * plain.depth[0]
    inside = (x.abs() <= 0.5) & ((EYE[2] - y - 1.5).abs() <= 0.4) & (plain.normals[0, 2] == -1)
    assert inside.sum() > 50
    assert torch.equal(found.segmentation[0], torch.where(inside, WINDOW, plain.segmentation[0]))
    assert torch.equal(found.depth, plain.depth)
    assert torch.equal(found.normals, plain.normals)


# A slow ray caster, one ray and one solid at a time


class Solid(NamedTuple):
    """One solid of one room, in plain numbers."""

    centre: list[float]
    half: list[float]
    cosine: float
    sine: float
    kind: int

    def local(self, vector: list[float]) -> list[float]:
        x, y, z = vector
        return [self.cosine * x + self.sine * y, self.cosine * y - self.sine * x, z]

    def world(self, vector: list[float]) -> list[float]:
        x, y, z = vector
        return [self.cosine * x - self.sine * y, self.cosine * y + self.sine * x, z]


Met = tuple[float, int, list[float]]
"""Distance, class and normal."""


def _along(origin: list[float], way: list[float], distance: float) -> list[float]:
    return [o + distance * w for o, w in zip(origin, way, strict=True)]


def meets(solid: Solid, origin: list[float], way: list[float]) -> list[Met]:
    """Every point in front at which a ray crosses a solid's surface."""
    start = solid.local([o - c for o, c in zip(origin, solid.centre, strict=True)])
    step = solid.local(way)
    found: list[Met] = []
    curved = solid.kind in (CYLINDER, SPHERE)
    for axis in (2,) if solid.kind == CYLINDER else () if curved else range(3):
        for sign in (-1, 1):
            distance = (sign * solid.half[axis] - start[axis]) / step[axis]
            point = _along(start, step, distance)
            within = (
                math.hypot(point[0], point[1]) <= solid.half[0]
                if curved
                else all(abs(point[i]) <= solid.half[i] for i in range(3) if i != axis)
            )
            if within:
                found.append((distance, solid.kind, solid.world([sign * float(i == axis) for i in range(3)])))
    if curved:
        axes = range(3 if solid.kind == SPHERE else 2)
        a, b, c = (sum(p[i] * q[i] for i in axes) for p, q in ((step, step), (start, step), (start, start)))
        inside = b * b - a * (c - solid.half[0] ** 2)
        for sign in (-1, 1) if inside >= 0 else ():
            distance = (sign * math.sqrt(inside) - b) / a
            point = _along(start, step, distance)
            if solid.kind == SPHERE or abs(point[2]) <= solid.half[2]:
                found.append((distance, solid.kind, [point[i] / solid.half[0] if i in axes else 0.0 for i in range(3)]))
    return [met for met in found if met[0] > 0]


def shell(size: list[float], origin: list[float], way: list[float]) -> list[Met]:
    """Where a ray from within meets the planes of the room."""
    found = []
    for axis in range(3):
        end = size[axis] if way[axis] > 0 else 0.0
        kind = WALL if axis < 2 else CEILING if end else FLOOR
        normal = [(-1.0 if end else 1.0) * float(i == axis) for i in range(3)]
        found.append(((end - origin[axis]) / way[axis], kind, normal))
    return [min(found)]


def cast(rooms: Rooms, row: int, ray: list[float]) -> Met:
    """What one ray in one room meets first."""
    size, origin = rooms.size[row].tolist(), rooms.camera.position[row].tolist()
    axes = rooms.camera.axes[row].tolist()
    way = [sum(ray[i] * axes[i][j] for i in range(3)) for j in range(3)]
    met = shell(size, origin, way)
    for form in (rooms.boxes, rooms.rounds):
        for centre, half, (cosine, sine), slot in zip(*(field[row].tolist() for field in form), strict=True):
            if half[0] > 0:
                kind = CLASSES.index(SLOTS[slot])
                met += meets(Solid(centre, half, cosine, sine, kind), origin, way)
    distance, kind, normal = min(met)
    point = _along(origin, way, distance)
    pane = rooms.window
    in_window = all(abs(p - c) <= h for p, c, h in zip(point, pane.centre[row], pane.half[row], strict=True))
    return (
        distance,
        WINDOW if kind == WALL and in_window else kind,
        [sum(n * a for n, a in zip(normal, axis, strict=True)) for axis in axes],
    )


def test_drawn_rooms_look_as_a_slow_ray_caster_sees_them() -> None:
    count, height, width = 24, 9, 12
    rooms = draw_rooms(3, range(count))
    found = view(rooms, height, width)
    rays = slopes(height, width, rooms.camera.focal)
    wrong = 0
    for row in range(count):
        for v in range(height):
            for u in range(width):
                depth, kind, normal = cast(rooms, row, rays[row, :, v, u].tolist())
                here = (
                    found.depth[row, v, u].item() == pytest.approx(depth, rel=1e-4)
                    and found.segmentation[row, v, u] == kind
                    and found.normals[row, :, v, u].tolist() == pytest.approx(normal, abs=2e-3)
                )
                wrong += not here
    assert wrong <= 2, "only a ray through an edge may be rounded to the other side"
    assert len(found.segmentation.unique()) == len(CLASSES)


# Labels agree with each other


@pytest.fixture(scope="module")
def some() -> tuple[Rooms, Rendering]:
    rooms = draw_rooms(1, range(12))
    return rooms, view(rooms, 96, 128)


def test_normals_have_unit_length_and_face_the_camera(some: tuple[Rooms, Rendering]) -> None:
    rooms, found = some
    torch.testing.assert_close(found.normals.norm(dim=1), torch.ones_like(found.depth), rtol=0, atol=1e-6)
    ways = slopes(96, 128, rooms.camera.focal)
    assert (found.normals * ways).sum(1).max() < 1e-3


def test_normals_are_cross_products_of_differences_of_neighbouring_points(some: tuple[Rooms, Rendering]) -> None:
    rooms, found = some
    points = slopes(96, 128, rooms.camera.focal) * found.depth.unsqueeze(1)
    rightward = (points[..., 1:-1, 2:] - points[..., 1:-1, :-2]).double()
    downward = (points[..., 2:, 1:-1] - points[..., :-2, 1:-1]).double()
    across = torch.cross(downward, rightward, dim=1)
    expected = across / across.norm(dim=1, keepdim=True)
    normals = found.normals[..., 1:-1, 1:-1].double()
    smooth, flat = _away_from_edges(found)
    angle = (expected * normals).sum(1).clamp(-1, 1).arccos().rad2deg()
    assert flat.float().mean() > 0.7
    assert angle[flat].quantile(0.999) < 0.5
    curved = smooth & ~flat & (found.segmentation[:, 1:-1, 1:-1] >= CYLINDER)
    assert curved.sum() > 300
    assert angle[curved].median() < 1
    assert angle[curved].quantile(0.95) < 6


def _away_from_edges(found: Rendering) -> tuple[Tensor, Tensor]:
    """Pixels whose neighbours have the same class, about the same depth and about the same normal, or just the same."""
    smooth = torch.ones_like(found.segmentation[:, 1:-1, 1:-1], dtype=torch.bool)
    flat = smooth.clone()
    for v, u in ((0, 1), (2, 1), (1, 0), (1, 2)):
        there = [field[..., v : v + 94, u : u + 126] for field in (found.segmentation, found.depth, found.normals)]
        here = [field[..., 1:-1, 1:-1] for field in (found.segmentation, found.depth, found.normals)]
        smooth &= (there[0] == here[0]) & ((there[1] / here[1]).log().abs() < 0.1)
        smooth &= (there[2] * here[2]).sum(1) > 0.95
        flat &= (there[2] == here[2]).all(1)
    return smooth, flat & smooth


def test_objects_are_nearer_than_the_room_behind_them(some: tuple[Rooms, Rendering]) -> None:
    rooms, found = some
    behind = view(_emptied(rooms), 96, 128)
    objects = found.segmentation >= TABLE
    assert 0.05 < objects.float().mean() < 0.5
    assert (found.depth < behind.depth)[objects].all()
    for name in ("depth", "segmentation"):
        assert torch.equal(getattr(found, name)[~objects], getattr(behind, name)[~objects])
    assert torch.equal(found.normals.permute(0, 2, 3, 1)[~objects], behind.normals.permute(0, 2, 3, 1)[~objects])


def _emptied(rooms: Rooms) -> Rooms:
    """The same rooms with nothing in them."""
    boxes, rounds = (s._replace(half=torch.full_like(s.half, ABSENT)) for s in (rooms.boxes, rooms.rounds))
    return rooms._replace(boxes=boxes, rounds=rounds)


def test_objects_take_light_from_the_room_and_add_none(some: tuple[Rooms, Rendering]) -> None:
    rooms, found = some
    lit, bare = (_follow(r, middles(96, 128), 128)[0].movedim(1, 2) for r in (rooms, _emptied(rooms)))
    free = (found.segmentation < TABLE).flatten(1)
    share = lit[free] / bare[free]
    assert share.max() <= 1
    assert share.min() > 0.05
    assert (share < 0.9).float().mean() > 0.02, "some of the room is in shadow"
    assert (share == 1).float().mean() > 0.5, "most of it is not"


ALONE = {
    "box": {"boxes": solids(("box", (1.5, 3.0, 0.5), (0.5, 0.4, 0.5)), turn=0.3)},
    "cylinder": {"rounds": solids(("cylinder", (1.5, 3.0, 0.5), (0.4, 0.4, 0.5)))},
    "sphere": {"rounds": solids(("sphere", (1.5, 3.0, 0.5), (0.5, 0.5, 0.5)))},
}


@pytest.mark.parametrize("kind", ALONE)
def test_a_solid_casts_no_shadow_on_the_side_that_faces_the_light(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = room(**ALONE[kind])
    dull = alone._replace(materials=alone.materials._replace(gloss=torch.zeros_like(alone.materials.gloss)))
    lit, hits = _follow(dull, middles(48, 64), 64)
    monkeypatch.setattr(lighting, "blocked", lambda rooms, origin, way: torch.zeros_like(way[:, 0]))
    shadowless, _ = _follow(dull, middles(48, 64), 64)
    on_it = (hits.surface >= OBJECT)[0]
    assert on_it.sum() > 100
    assert torch.equal(lit[0, :, on_it], shadowless[0, :, on_it])
    assert (lit[0, :, ~on_it] < 0.95 * shadowless[0, :, ~on_it]).any(0).sum() > 20, "the floor is in its shadow"


@pytest.mark.parametrize("kind", ALONE)
def test_what_stands_between_two_points_blocks_the_light(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor(SIZE)[:, None]
    origin, end = size * torch.rand(2, 1, 3, 3000, generator=generator)
    origin[:, 2] *= 0.5
    alone = room(**ALONE[kind])
    depth = torch.full((3000,), -math.inf)
    for share in torch.linspace(0, 1, 400).tolist():
        depth = depth.maximum(_depth_within(kind, alone, (origin + share * (end - origin))[0]))
    found = blocked(alone, origin, end - origin)[0] == 1
    clear = depth.abs() > 0.02
    assert clear.float().mean() > 0.9
    assert torch.equal(found[clear], (depth > 0)[clear])
    assert 100 < found.sum() < 2000


def _depth_within(kind: str, rooms: Rooms, points: Tensor) -> Tensor:
    """How deep points (3, R) lie within the only solid, negative outside, (R,)."""
    solid = rooms.boxes if kind == "box" else rooms.rounds
    (cosine, sine), half = solid.turn[0, 0], solid.half[0, 0]
    x, y, z = points - solid.centre[0, 0, :, None]
    if kind == "sphere":
        return half[0] - (x * x + y * y + z * z).sqrt()
    if kind == "cylinder":
        return (half[0] - (x * x + y * y).sqrt()).minimum(half[2] - z.abs())
    own = torch.stack([cosine * x + sine * y, cosine * y - sine * x, z])
    return (half[:, None] - own.abs()).amin(0)


def test_rays_through_edges_and_rims_meet_a_side_that_faces_them() -> None:
    angle = torch.linspace(0, 2 * math.pi, 4001)[:-1].double()
    rise = torch.linspace(-1, 1, 4000).double()
    square = torch.stack([angle.cos(), angle.sin()]) / torch.maximum(angle.cos().abs(), angle.sin().abs())
    circle = torch.stack([angle.cos(), angle.sin()])
    upright = square.sign()[:, :4000]
    outlines = {
        "box": [torch.cat([square, torch.ones(1, 4000)]), torch.cat([upright, rise[None]])],
        "cylinder": [torch.cat([circle, torch.ones(1, 4000)]), torch.cat([circle, rise[None]])],
        "sphere": [_tangent_points()],
    }
    for kind, found in outlines.items():
        alone = room(**ALONE[kind])
        solid = alone.boxes if kind == "box" else alone.rounds
        (cosine, sine), centre = solid.turn[0, 0].double(), solid.centre[0, 0, :, None].double()
        for outline in found:
            x, y, z = outline * solid.half[0, 0, :, None].double()
            points = torch.stack([cosine * x - sine * y, cosine * y + sine * x, z]) + centre
            apart = points - torch.tensor(EYE)[:, None]
            direction = (apart / apart[1]).float().unsqueeze(0)
            hits = trace(alone, direction)
            on_it = hits.surface[0] >= OBJECT
            assert on_it.sum() > 500, kind
            assert (hits.normal * direction).sum(1)[0, on_it].max() < 1e-3, kind
            if kind == "cylinder":
                below_top = on_it & (hits.point[0, 2] < 0.999)
                assert (hits.normal[0, 2, below_top] == 0).all()
            if kind == "sphere":
                away = (hits.point[0].double() - centre) / solid.half[0, 0, 0]
                assert (hits.normal[0].double() - away)[:, on_it].abs().max() < 1e-3


def _tangent_points() -> Tensor:
    """Points of the unit ball whose image is the rim of the ball that stands alone, (3, R)."""
    centre = torch.tensor([1.5, 3.0, 0.5]).double()
    axis = (torch.tensor(EYE).double() - centre) / 0.5
    distance = axis.norm()
    axis = axis / distance
    first = torch.linalg.cross(axis, torch.tensor([0.0, 0.0, 1.0]).double())
    first = first / first.norm()
    second = torch.linalg.cross(axis, first)
    angle = torch.linspace(0, 2 * math.pi, 4001)[:-1].double()
    ring = first[:, None] * angle.cos() + second[:, None] * angle.sin()
    return (axis / distance)[:, None] + (1 - distance**-2).sqrt() * ring


def test_the_scene_counts_the_objects_that_cover_one_pixel_in_400() -> None:
    for pixels, needed in ((4096, 11), (400, 1), (64, 1)):
        for seen in range(len(SLOTS) + 1):
            surface = torch.zeros(1, pixels, dtype=torch.long)
            for slot in range(seen):
                surface[0, slot * needed : (slot + 1) * needed] = OBJECT + slot
            assert _scene(surface).tolist() == [min(max(seen, 1), 6) - 1]
    few = torch.zeros(1, 4096, dtype=torch.long)
    few[0, :20] = torch.tensor([OBJECT, OBJECT + 1]).repeat(10)
    assert _scene(few).tolist() == [0]


def test_all_classes_are_frequent_enough_to_learn() -> None:
    found = render(0, range(240), 32, 32)
    assert found.scene.bincount(minlength=len(SCENES)).min() > 0.1 * 240
    shares = torch.stack([(found.segmentation == kind).flatten(1).float().mean(1) for kind in range(len(CLASSES))])
    assert (shares > 0).float().mean(1).min() > 0.35
    assert shares.mean(1).min() > 0.01
    assert shares.mean(1).max() < 0.55
    assert ((shares[TABLE:].sum(0)) > 0).float().mean() > 0.95, "nearly every image shows an object"
    brightness = found.image.flatten(1).mean(1)
    assert brightness.min() > 0.15
    assert brightness.max() < 0.75


def test_objects_stand_apart_from_each_other_and_inside_the_room() -> None:
    draws = UniformNumbers(0, range(200))
    size = torch.cat([draws.uniform(3.2, 5.6, 1), draws.uniform(3.8, 6.0, 1), draws.uniform(2.3, 3.0, 1)], 1)
    middle, reach, sides, height, turn, there = _objects(draws, size)
    assert (middle > reach.unsqueeze(2)).all()
    assert (middle + reach.unsqueeze(2) < size[:, None, :2]).all()
    assert (middle[..., 1] - reach > CLEAR - 1e-9).all(), "the camera's strip is free"
    for a, b in combinations(range(len(SLOTS)), 2):
        assert ((middle[:, a] - middle[:, b]).norm(dim=1) > reach[:, a] + reach[:, b]).all()
    torch.testing.assert_close(sides.norm(dim=2), reach)
    torch.testing.assert_close(turn.norm(dim=2), torch.ones_like(reach))
    assert set(there.sum(1).tolist()) == set(range(1, 9))
    assert height.max() < size[:, 2].min()


def test_noise_is_smooth_and_passes_through_the_values_of_its_lattice() -> None:
    line = torch.zeros(1, 3, 4001)
    line[0, 0] = torch.linspace(-2, 2, 4001)
    values = smooth_noise(line)[0]
    assert values.min() >= 0
    assert values.max() < 1
    assert values.diff().abs().max() < 2e-3
    assert values.std() > 0.05
    assert torch.equal(smooth_noise(line), smooth_noise(line + torch.tensor([0.0, 4096.0, 0.0])[:, None]))


def test_the_corners_of_a_pixel_look_at_four_corners_of_a_light() -> None:
    aside = corners(4, 5)[2:].unflatten(1, (5, 6))
    for row in range(4):
        for column in range(5):
            looks = aside[:, row : row + 2, column : column + 2].flatten(1).T
            assert len(looks.unique(dim=0)) == 4
            assert (looks.abs() == 1).all()
            assert (looks.sum(0) == 0).all(), "together they look at its middle"
    assert (middles(4, 5)[2:] == 0).all()


@pytest.mark.parametrize(("middle", "corner", "mixed"), [(0.6, 0.6, 0.6), (0.6, 0.0, 0.3), (0.0, 0.6, 0.3)])
def test_a_pixel_is_half_its_middle_and_half_its_corners(middle: float, corner: float, mixed: float) -> None:
    rooms = room()
    zeros = torch.zeros(1, 3, 5, 7)
    image = expose(rooms, zeros + middle, torch.full((1, 3, 6, 8), corner), zeros)
    rays = slopes(5, 7, torch.tensor([FOCAL]))
    light = mixed * rooms.sensor.exposure.item() / rays.square().sum(1, keepdim=True)
    expected = (light * (1 + light / 4) / (1 + light)).sqrt().expand(1, 3, 5, 7)
    torch.testing.assert_close(image, expected, rtol=0, atol=0.51 / 255)


def test_noise_makes_an_image_grainy_about_what_it_would_be_without() -> None:
    rooms = room()
    light, edges = torch.full((1, 3, 40, 40), 0.4), torch.full((1, 3, 41, 41), 0.4)
    grain = gaussian(0, 0, 1, 3, 40, 40)
    clean, grainy = (expose(rooms, light, edges, noise) for noise in (torch.zeros_like(grain), grain))
    assert (grainy - clean).mean().abs() < 1e-3
    assert ((grainy - clean) * grain).mean() > 0.8 * (grainy - clean).std() > 0.002


# The same in any company


def test_an_image_depends_on_its_seed_and_index_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = render(5, range(12), 20, 28)
    for indices in ([7], [11, 3, 3, 0], list(range(11, -1, -1))):
        assert_same(render(5, indices, 20, 28), at(whole, indices))
    for rays in (1, 333, 1000, 100_000):
        monkeypatch.setattr(rendering, "RAYS", max(rays, 50))
        assert_same(render(5, range(0, 12, 5), 20, 28), at(whole, slice(0, 12, 5)))


@given(st.lists(st.integers(0, 11), min_size=1, max_size=8), st.integers(40, 3000))
@settings(max_examples=10, deadline=None)
def test_any_choice_of_images_in_any_pieces_is_the_same_bit_for_bit(indices: list[int], rays: int) -> None:
    whole = render(2, range(12), 11, 13)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "RAYS", rays)
        assert_same(render(2, indices, 11, 13), at(whole, indices))


def test_other_seeds_and_indices_give_other_images() -> None:
    images = torch.cat([render(seed, range(6), 16, 16).image for seed in (0, 1, 2**40)])
    assert len(images.flatten(1).unique(dim=0)) == 18


def test_every_image_has_normal_noise_of_its_own() -> None:
    noise = torch.stack([gaussian(seed, index, 3, 20, 30) for seed in (0, 1) for index in (0, 1, 2)]).flatten(1)
    assert len(noise.unique(dim=0)) == 6
    assert noise.mean().abs() < 0.05
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert (torch.corrcoef(noise) - torch.eye(6)).abs().max() < 0.12
    assert torch.equal(noise[4].view(3, 20, 30), gaussian(1, 1, 3, 20, 30))


def test_global_generators_and_the_number_of_threads_are_left_alone() -> None:
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = render(0, [4], 16, 16)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.set_num_threads(2)
    try:
        assert_same(render(0, [4], 16, 16), first)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (64, 3), (17, 40)])
def test_images_have_any_size(height: int, width: int) -> None:
    found = render(0, range(5), height, width)
    assert found.image.shape == found.normals.shape == (5, 3, height, width)
    assert found.depth.shape == found.segmentation.shape == (5, height, width)
    assert found.scene.shape == (5,)
    for field in found:
        assert field.isfinite().all()
    assert found.depth.min() > 0.2
    assert found.depth.max() < 9
    assert found.segmentation.max() < len(CLASSES)
    assert found.scene.max() < len(SCENES)
    levels = found.image * 255
    assert torch.equal(levels.round() / 255, found.image)
    assert levels.min() >= 0
    assert levels.max() <= 255


def test_a_larger_image_shows_the_same_room_more_finely() -> None:
    small, large = render(0, range(6), 16, 20), render(0, range(6), 48, 60)
    torch.testing.assert_close(large.depth[:, 1::3, 1::3], small.depth, rtol=1e-4, atol=0)
    assert torch.equal(large.segmentation[:, 1::3, 1::3], small.segmentation)
    torch.testing.assert_close(large.normals[..., 1::3, 1::3], small.normals, rtol=0, atol=1e-3)
    coarse = torch.nn.functional.avg_pool2d(large.image, 3)
    assert (coarse - small.image).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("seed", "indices", "height", "width"), [(-1, [0], 8, 8), (0, [3, -2], 8, 8), (0, [], 8, 8), (0, [0], 0, 8)]
)
def test_what_cannot_be_rendered_is_refused(seed: int, indices: list[int], height: int, width: int) -> None:
    with pytest.raises(ParameterError, match=f"Got seed {seed}, {len(indices)} indices .* size {height}x{width}"):
        render(seed, indices, height, width)


EXACT = {
    # rounded by IEEE 754 in one way
    *("add", "sub", "rsub", "mul", "div", "reciprocal", "neg", "abs", "sign", "round", "floor", "remainder"),
    # comparisons, and what is done with truth values and whole numbers
    *("lt", "le", "gt", "ge", "eq", "ne", "bitwise_and", "bitwise_or", "bitwise_not", "floor_divide"),
    *(
        "any",
        "all",
        "isin",
        "where",
        "clamp",
        "minimum",
        "maximum",
        "amin",
        "amax",
        "aminmax",
        "min",
        "max",
        "eye",
        "scatter",
    ),
    # conversions and moves
    *("_to_copy", "cat", "stack", "select", "slice", "split", "unbind", "index", "gather", "expand", "repeat", "copy"),
    *("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "transpose", "permute", "clone", "detach", "alias"),
    *("arange", "eye", "zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "empty", "empty_like", "fill"),
    *("new_zeros", "lift_fresh", "argsort", "sort", "_local_scalar_dense", "item", "unfold", "tensor_split"),
    *("scalar_tensor", "new_empty", "split_with_sizes"),
}
"""Operations whose result IEEE 754, or the whole numbers, define: none has a last bit of the processor's own."""


class RecordOperations(TorchDispatchMode):
    """Names of the operations that torch runs, and the kinds of numbers that it sums."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.summed: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        if name == "sum":
            self.summed.add(args[0].dtype)
        else:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def test_rendering_uses_no_operation_that_processors_round_differently() -> None:
    with RecordOperations() as recorded:
        found = render(0, range(12), 16, 24)
        dataset.unpacked(dataset.packed(found))
    assert recorded.names <= EXACT, f"not defined to the last bit: {sorted(recorded.names - EXACT)}"
    assert not any(dtype.is_floating_point for dtype in recorded.summed), "sums of real numbers depend on their order"


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 24), (torch.float64, 53)])
def test_square_roots_are_the_nearest_numbers(dtype: torch.dtype, digits: int) -> None:
    """In whole numbers: the root of m is nearest to r if m lies between (r - 1/2)^2 and (r + 1/2)^2."""
    x = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=dtype) + 1
    scale = digits - 1
    for number, root in zip(x.tolist(), sqrt(x).tolist(), strict=True):
        square, whole = int(math.ldexp(number, scale)) << scale, int(math.ldexp(root, scale))
        assert (2 * whole - 1) ** 2 < 4 * square < (2 * whole + 1) ** 2
    assert torch.equal(
        sqrt(torch.tensor([0.0, 1.0, 4.0, 0.25], dtype=dtype)), torch.tensor([0, 1, 2, 0.5], dtype=dtype)
    )


def test_noise_is_a_sum_of_whole_numbers() -> None:
    noise = gaussian(3, 5, 3, 20, 30)
    assert torch.equal(noise * LEVELS, (noise * LEVELS).round())
    assert noise.abs().max() <= SUMMANDS / 2


STORED = Path(__file__).parent / f"scenes_format_{dataset.FORMAT}.safetensors"
"""First images of the present format; `python tests/data/test_rendering.py` writes them."""


def first_images() -> dict[str, Tensor]:
    return dataset.packed(render(0, range(4), 8, 12))


def test_whoever_changes_the_images_raises_the_version_of_the_format() -> None:
    stored, found = load_file(STORED), first_images()
    assert stored.keys() == found.keys()
    for name in ("segmentation", "scene"):
        assert (stored[name] != found[name]).sum() <= 1, name
    for name, tolerance in (("image", 1), ("depth", 1e-3), ("normals", 1e-2)):
        apart = (stored[name].double() - found[name].double()).abs() > tolerance
        assert apart.sum() <= 3, f"{name}: raise dataset.FORMAT and store the new images"


SAVE = """
import sys
sys.path.insert(0, sys.argv[1])
import test_rendering
test_rendering.save_file(test_rendering.first_images(), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_images_do_not_depend_on_how_many_numbers_a_processor_handles_at_once(
    capability: str, threads: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", SAVE, str(Path(__file__).parent), str(tmp_path / "images")]
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "images").read_bytes() == save(first_images())


# Parts, and images on disk


def test_parts_share_no_index_however_many_images_they_have() -> None:
    counts = {"train": 90, "validation": 1000, "test": 7}
    indices = [i for part in get_args(SceneSplit) for i in split_indices(part, counts[part])]
    assert len(set(indices)) == len(indices) == sum(counts.values())


@pytest.mark.parametrize("part", get_args(SceneSplit))
def test_fewer_images_of_a_part_are_the_beginning_of_more(part: SceneSplit, tmp_path: Path) -> None:
    assert list(split_indices(part, 5)) == list(split_indices(part, 9))[:5]
    few, many = (rendered(part, n, height=8, width=8, seed=1, root=tmp_path) for n in (3, 5))
    assert_same(few, at(many, slice(0, 3)))
    assert len(many.image) == 5


def test_what_is_kept_is_what_was_rendered(tmp_path: Path) -> None:
    kept = rendered("test", 6, height=12, width=16, seed=3, root=tmp_path)
    fresh = render(3, split_indices("test", 6), 12, 16)
    for name in ("image", "segmentation", "depth", "scene"):
        assert torch.equal(getattr(kept, name), getattr(fresh, name)), name
    torch.testing.assert_close(kept.normals, fresh.normals, rtol=0, atol=1e-3)
    torch.testing.assert_close(kept.normals.norm(dim=1), torch.ones_like(kept.depth), rtol=0, atol=1e-6)
    assert [field.dtype for field in kept] == [field.dtype for field in fresh]


def test_images_are_rendered_once_and_read_again_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rendered("train", 4, height=8, width=10, seed=0, root=tmp_path)
    (file,) = (tmp_path / "scenes").iterdir()
    assert file.name == f"v{dataset.FORMAT}-8x10-seed0-train-4.safetensors"
    monkeypatch.setattr(dataset, "render", lambda *_: pytest.fail("rendered again"))
    assert_same(rendered("train", 4, height=8, width=10, seed=0, root=tmp_path), first)


def test_rendering_in_pieces_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rendered("train", 7, height=8, width=8, seed=0, root=tmp_path / "a")
    monkeypatch.setattr(dataset, "PIECE", 3)
    assert_same(rendered("train", 7, height=8, width=8, seed=0, root=tmp_path / "b"), whole)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another's"])
def test_a_damaged_file_is_rendered_anew(damage: str, tmp_path: Path) -> None:
    first = rendered("validation", 3, height=8, width=8, seed=0, root=tmp_path)
    (path,) = (tmp_path / "scenes").iterdir()
    whole = path.read_bytes()
    other = rendered("validation", 3, height=8, width=8, seed=9, root=tmp_path / "other")
    assert not torch.equal(other.image, first.image)
    (foreign,) = (tmp_path / "other" / "scenes").iterdir()
    damaged = {
        "cut": whole[:-100],
        "flipped": whole[:-100] + bytes([whole[-100] ^ 4]) + whole[-99:],
        "empty": b"",
        "another's": foreign.read_bytes(),
    }
    path.write_bytes(damaged[damage])
    assert_same(rendered("validation", 3, height=8, width=8, seed=0, root=tmp_path), first)
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "scenes").write_text("in the way")
    with pytest.raises(DataError, match=f"cannot be kept in {tmp_path / 'scenes'}.*`root` or SPARSEMTL_DATA"):
        rendered("train", 2, height=8, width=8, seed=0, root=tmp_path)


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(dataset, "write_tensors", full)
    with pytest.raises(DataError, match=f"cannot be kept in {tmp_path / 'scenes'}: No space left"):
        rendered("train", 2, height=8, width=8, seed=0, root=tmp_path)


def test_no_images_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="at least one index"):
        rendered("train", 0, height=8, width=8, seed=0, root=tmp_path)


if __name__ == "__main__":
    save_file(first_images(), STORED)
