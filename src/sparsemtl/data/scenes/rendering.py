"""Images of rooms, with exact labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sparsemtl.data.scenes.camera import corners, directions, expose, middles
from sparsemtl.data.scenes.furnishing import draw_rooms
from sparsemtl.data.scenes.lighting import radiance
from sparsemtl.data.scenes.numbers import gaussian
from sparsemtl.data.scenes.rooms import CLASS_OF_SURFACE, OBJECT, SURFACES, Rooms
from sparsemtl.data.scenes.tracing import Hits, dot, trace
from sparsemtl.errors import ParameterError

SCENES = ("at most 1 object", "2 objects", "3 objects", "4 objects", "5 objects", "6 objects or more")
"""Classes of the label of the whole image."""
_VISIBLE = 400
"""Number of pixels of which an object must cover one to count as visible."""
RAYS = 1 << 15
"""Number of rays followed at once, so that their tensors fit the processor's cache."""


class Rendering(NamedTuple):
    """N images with their labels; depth and normals are those at the middle of a pixel.

    Normals have unit length, point towards the camera, and have the components right, down and line of sight.
    """

    image: Tensor  # red, green and blue in [0, 1], in steps of 1 / 255, (N, 3, H, W)
    segmentation: Tensor  # index in `CLASSES`, int64, (N, H, W)
    depth: Tensor  # distance along the line of sight, metres, (N, H, W)
    normals: Tensor  # (N, 3, H, W)
    scene: Tensor  # index in `SCENES`, by the number of visible objects, int64, (N,)


def render(seed: int, indices: Sequence[int], height: int, width: int) -> Rendering:
    """Render images of drawn rooms.

    Args:
        seed: seed of the whole set, at least 0.
        indices: indices of the images, at least 0; each depends, bit for bit, on the seed, its index and the size only.
        height: rows of pixels.
        width: columns of pixels. The field of view is drawn for the longer side.
    """
    if min(height, width) < 1 or min(seed, *indices, 0) < 0 or not len(indices):
        raise ParameterError(
            f"`render` needs a seed and indices of at least 0, at least one index, and a size of at least 1x1. "
            f"Got seed {seed}, {len(indices)} indices from {min(indices, default=None)}, size {height}x{width}."
        )
    rooms = draw_rooms(seed, indices)
    order = _order(rooms)

    def some(rows: Tensor) -> Rendering:
        grain = torch.stack([gaussian(seed, indices[row], 3, height, width) for row in rows.tolist()])
        return photograph(rooms.select(rows), grain)

    with _one_thread():
        parts = [some(rows) for rows in order.split(max(1, RAYS // (height * width)))]
    back = order.argsort()
    return Rendering(*(torch.cat(tensors)[back] for tensors in zip(*parts, strict=True)))


def _order(rooms: Rooms) -> Tensor:
    """Return an order of the rooms in which neighbours have about as many boxes and the same lights, (N,)."""
    shining = (rooms.lights.power > 0).any(2).sum(1)
    return (len(SURFACES) * len(SURFACES) * shining + rooms.boxes.present()).argsort(stable=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread, and keep freed memory.

    Operations of some ten microseconds gain little from a second thread, and where other processes want its core they
    wait for it much longer than they take: 300 images a second became 50 beside one busy process. The tensor that is
    made and dropped makes the C library's allocator keep freed memory below that size; else the system provides
    memory for each tensor anew, page by page, which took a third of the time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.empty(1 << 22)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def photograph(rooms: Rooms, grain: Tensor) -> Rendering:
    """Render rooms; `grain` is the sensor's standard normal noise, (N, 3, H, W), in the images' size."""
    height, width = grain.shape[2:]
    light, hits = _follow(rooms, middles(height, width), max(height, width))
    corner, _ = _follow(rooms, corners(height, width), max(height, width))
    image = expose(rooms, light.unflatten(2, (height, width)), corner.unflatten(2, (height + 1, width + 1)), grain)
    normals = torch.stack([dot(axis.unsqueeze(2), hits.normal) for axis in rooms.camera.axes.unbind(1)], 1)
    return Rendering(
        image,
        CLASS_OF_SURFACE[hits.surface].unflatten(1, (height, width)),
        hits.depth.unflatten(1, (height, width)),
        normals.unflatten(2, (height, width)),
        _scene(hits.surface),
    )


def _follow(rooms: Rooms, rays: Tensor, side: int) -> tuple[Tensor, Hits]:
    """Return the light along rays, (N, 3, R), and their hits."""
    lights, hits = [], []
    for some in rays.tensor_split(max(1, round(len(rooms.size) * rays.shape[1] / RAYS)), 1):
        direction = directions(rooms.camera, some)
        hits.append(trace(rooms, direction))
        lights.append(radiance(rooms, direction, hits[-1], some[2:], 1 / side))
    return torch.cat(lights, -1), Hits(*(torch.cat(tensors, -1) for tensors in zip(*hits, strict=True)))


def _scene(surface: Tensor) -> Tensor:
    """Return the index in `SCENES` by the number of visible objects; surfaces (N, R)."""
    covered = torch.stack([(surface == slot).sum(1) for slot in range(OBJECT, len(SURFACES))], 1)
    seen = (covered * _VISIBLE >= surface.shape[1]).sum(1)
    return seen.clamp(1, len(SCENES)) - 1
