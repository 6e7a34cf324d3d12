"""Rendered rooms as a data set: three dense tasks and a global one, without a download."""

from __future__ import annotations

from pathlib import Path

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.options import checked
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.scenes.cache import Part, rendered
from sparsemtl.data.scenes.rendering import SCENES
from sparsemtl.data.scenes.rooms import CLASSES
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Natural
from sparsemtl.tasks import Classification, Depth, Normals, Segmentation


@requires_files(remark="the project renders the images itself and keeps them in scenes/ under the root.")
@checked
def rendered_scenes(
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_size: Count = 3000,
    validation_size: Count = 500,
    test_size: Count = 1000,
    height: Count = 64,
    width: Count = 64,
    seed: Natural | None = 0,
) -> TaskData:
    """Scenes: rendered rooms with exact labels, made on the spot (this project).

    The tasks are `segmentation` (floor, wall, ceiling, window and four kinds of objects), `depth` (metres along the
    line of sight), `normals` (in the camera's directions) and `scene` (how many objects are seen).

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default. Images once rendered are kept
            there, in `scenes/`.
        download: as in all data sets; there is nothing to get.
        train_size: number of training images; fewer are the beginning of more.
        validation_size: number of validation images.
        test_size: number of test images.
        height: rows of pixels.
        width: columns of pixels.
        seed: of the whole set. In a configuration null is the run's seed: each seed of a study has images of its own.

    Raises:
        ParameterError: if `seed` is None outside of a run.
    """
    if seed is None:
        raise ParameterError("seed: None stands for a run's seed, and this is no run. Give a number.")

    def part(name: Part, count: int) -> Split:
        images = rendered(name, count, height=height, width=width, seed=seed, root=root)
        targets = {
            "segmentation": images.segmentation,
            "depth": images.depth,
            "normals": images.normals,
            "scene": images.scene,
        }
        return Split(images.image, targets)

    return TaskData(
        "scenes",
        (
            Segmentation("segmentation", CLASSES),
            Depth("depth"),
            Normals("normals"),
            Classification("scene", SCENES),
        ),
        train=part("train", train_size),
        validation=part("validation", validation_size),
        test=part("test", test_size),
        notes=(f"rendered rooms of {height}x{width} pixels (seed {seed}): not photographs",),
    )
