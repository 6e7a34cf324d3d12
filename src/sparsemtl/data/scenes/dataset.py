"""Rendered rooms as a data set, without a download: images, their splits, and the files that keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.data.base import Split, TaskData
from sparsemtl.data.options import Download, Root, checked, resolve_root
from sparsemtl.data.requirements import requires_files
from sparsemtl.data.scenes.numbers import sqrt
from sparsemtl.data.scenes.rendering import SCENES, Rendering, render
from sparsemtl.data.scenes.rooms import CLASSES
from sparsemtl.errors import CheckpointError, DataError, ParameterError
from sparsemtl.registry.parameters import Count, Natural
from sparsemtl.storage.files import read_tensors, write_tensors
from sparsemtl.tasks import Classification, Depth, Normals, Segmentation

FORMAT = 2
"""Version of the images that a seed and an index give, and of their files; files of other versions are ignored."""
PIECE = 512
"""Number of images that are held in full at once while rendering."""

SceneSplit = Literal["train", "validation", "test"]


def split_indices(split: SceneSplit, count: int) -> range:
    """Return the indices of the first `count` images of a split; no index belongs to two splits, whatever `count`."""
    splits = get_args(SceneSplit)
    return range(splits.index(split), len(splits) * count, len(splits))


def rendered(
    split: SceneSplit, count: int, *, height: int, width: int, seed: int, root: str | Path | None = None
) -> Rendering:
    """Return images of one split, from `<root>/scenes/` if they lie there whole, else rendered and written there.

    Both give the same numbers, bit for bit: normals of 16 bits, made unit again, and all else as from `render`, which
    describes the arguments. Fewer images are the beginning of more.
    """
    name = f"v{FORMAT}-{height}x{width}-seed{seed}-{split}-{count}"
    path = resolve_root(root) / "scenes" / f"{name}.safetensors"
    try:
        tensors, header = read_tensors(path)
        if header.get("scenes") != name:
            raise CheckpointError(f"{path} does not hold the images {name}.")
        return unpacked(tensors)
    except CheckpointError:
        indices = split_indices(split, count)
        starts = range(0, max(count, 1), PIECE)
        pieces = [packed(render(seed, indices[start : start + PIECE], height, width)) for start in starts]
        package = {key: torch.cat([piece[key] for piece in pieces]) for key in Rendering._fields}
    try:
        write_tensors(path, package, {"scenes": name})
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"the rendered images cannot be kept in {path.parent}: {error}. "
            f"Name a folder that can be written by `root` or SPARSEMTL_DATA."
        ) from None
    return unpacked(package)


def packed(rendering: Rendering) -> dict[str, Tensor]:
    """Return a rendering in 14 bytes per pixel instead of 36: whole numbers as bytes, normals as 16-bit floats."""
    return {
        "image": (rendering.image * 255).round().to(torch.uint8),
        "segmentation": rendering.segmentation.to(torch.uint8),
        "depth": rendering.depth,
        "normals": rendering.normals.half(),
        "scene": rendering.scene.to(torch.uint8),
    }


def unpacked(package: dict[str, Tensor]) -> Rendering:
    """Return the rendering of what `packed` returned."""
    normals = package["normals"].float()
    x, y, z = normals.unbind(1)
    return Rendering(
        package["image"].float() / 255,
        package["segmentation"].long(),
        package["depth"],
        normals / sqrt(x * x + y * y + z * z).unsqueeze(1),
        package["scene"].long(),
    )


@requires_files(remark="the project renders the images itself and keeps them in scenes/ under the root.")
@checked
def rendered_scenes(
    *,
    root: Root = None,
    download: Download = False,
    train_size: Annotated[Count, Doc("Number of training images; fewer are the beginning of more.")] = 3000,
    validation_size: Annotated[Count, Doc("Number of validation images.")] = 500,
    test_size: Annotated[Count, Doc("Number of test images.")] = 1000,
    height: Annotated[Count, Doc("Rows of pixels.")] = 64,
    width: Annotated[Count, Doc("Columns of pixels.")] = 64,
    seed: Annotated[
        Natural | None,
        Doc(
            "Seed of the whole set. In a configuration null is the run's seed: each seed of a study has its own images."
        ),
    ] = 0,
) -> TaskData:
    """Scenes: rendered rooms with exact labels, made on the spot (this project).

    The tasks are `segmentation` (floor, wall, ceiling, window and four kinds of objects), `depth` (metres along the
    line of sight), `normals` (in the camera's directions) and `scene` (number of visible objects). Rendered images are
    kept in `scenes/` under the root.

    Raises:
        ParameterError: if `seed` is None outside of a run.
    """
    if seed is None:
        raise ParameterError("seed: None stands for a run's seed, and this is no run. Give a number.")

    def split(name: SceneSplit, count: int) -> Split:
        images = rendered(name, count, height=height, width=width, seed=seed, root=root)
        labels = images._asdict()
        return Split(labels.pop("image"), labels)

    return TaskData(
        "scenes",
        (Segmentation("segmentation", CLASSES), Depth("depth"), Normals("normals"), Classification("scene", SCENES)),
        train=split("train", train_size),
        validation=split("validation", validation_size),
        test=split("test", test_size),
        notes=(f"rendered rooms of {height}x{width} pixels (seed {seed}): not photographs",),
    )
