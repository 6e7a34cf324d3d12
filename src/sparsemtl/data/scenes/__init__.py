"""Rendered rooms: images that the project makes itself, with exact labels for dense tasks and one global task.

A room has a floor, walls, a ceiling, perhaps a window, and up to eight tables, boxes, cylinders and balls that stand
apart from each other, plain or tiled, striped or mottled. A lamp and the window light it, with soft shadows; a pinhole
camera at eye level looks into it, and its sensor is noisy. Every pixel has its class, its depth and its surface normal,
computed from the room and not from the image.

The global label is the number of visible objects. It takes the whole image; it is exact, whatever hides what; its six
classes are about equally frequent; and the dense labels teach what helps to count, the borders between objects. It is
learnable and not trivial: of 500 images of 64x64, five convolutions trained on 3,000 name the right class for 54 % and
one at most beside it for 89 %; a perceptron that gets each class's true share of the image, 53 %; the most frequent
class is 19 %.

Modules: `numbers` draws random numbers, `furnishing` makes rooms (`rooms`) of them, `camera` makes rays through pixels,
`tracing` their depth, surface and normal, `lighting` the light from there, `rendering` the images with labels, and
`dataset` keeps them on disk.

Depths are distances along the line of sight, not along the ray. Normals point towards the camera and have the
components right, down and forward of the image, so that a wall seen straight on has (0, 0, -1); a pixel at
(u, v) from the image's middle lies at depth * (u / f, v / f, 1) in the same directions.
"""

from sparsemtl.data.scenes.dataset import SceneSplit, rendered, split_indices
from sparsemtl.data.scenes.rendering import SCENES, Rendering, render
from sparsemtl.data.scenes.rooms import CLASSES

__all__ = ["CLASSES", "SCENES", "Rendering", "SceneSplit", "render", "rendered", "split_indices"]
