"""Rendered rooms: images that the project makes itself, with exact labels for dense tasks and one global task.

A room has a floor, walls, a ceiling, perhaps a window, and up to eight tables, boxes, cylinders and balls that stand
apart from each other, plain or tiled, striped or mottled. A lamp and the window light it, with soft shadows; a pinhole
camera at eye level looks into it, and its sensor is noisy. Every pixel has its class, its depth and its surface normal,
computed from the room and not from the image.

The global label is how many objects are seen, because it takes the whole image and nothing less: it does not follow
from any pixel, nor from which classes occur or how much of the image each covers (an object may hide another, and two
of a class may touch); it is exact for every image, occlusions included; its six classes are about equally frequent;
and what helps to count, telling where one object ends and another begins, is what the dense labels teach.

How the parts fit together:

    draws       uniform numbers that depend on (seed, index) only
    furnishing  draws numbers into rooms
    rooms       what a room is: tensors of sizes, solids, materials, lights
    camera      rays through pixels and corners of pixels, and pixels from the light along them
    tracing     what rays meet: depth, surface, normal
    lighting    what light comes back from there
    rendering   rooms into images with labels
    cache       images on disk, and which indices belong to which part

Depths are distances along the line of sight, not along the ray. Normals point towards the camera and have the
components right, down and forward of the image, so that a wall seen straight on has (0, 0, -1); a pixel at
(u, v) from the image's middle lies at depth * (u / f, v / f, 1) in the same directions.
"""

from sparsemtl.data.scenes.cache import Part, part_indices, rendered
from sparsemtl.data.scenes.rendering import SCENES, Rendering, render
from sparsemtl.data.scenes.rooms import CLASSES

__all__ = ["CLASSES", "SCENES", "Part", "Rendering", "part_indices", "render", "rendered"]
