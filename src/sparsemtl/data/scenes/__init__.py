"""Rendered rooms: images that the project makes itself, with exact labels for dense tasks and one global task.

A room has a floor, walls, a ceiling, perhaps a window, and up to eight tables, boxes, cylinders and balls that stand
apart from each other, plain or tiled, striped or mottled. A lamp and the window light it, with soft shadows; a pinhole
camera at eye level looks into it, and its sensor is noisy. Every pixel has its class, its depth and its surface normal,
computed from the room and not from the image.

The global label is how many objects are seen. It takes the whole image; it is exact, whatever hides what; its six
classes are about equally frequent; and what helps to count, telling where one object ends and the next begins, is what
the dense labels teach. It is learnable and not trivial: of 500 images of 64x64, five convolutions trained on 3,000
name the right class for 54 % and one at most beside it for 89 %; a perceptron that is told each class's true share of
the image, 53 %; the most frequent class is 19 %.

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
