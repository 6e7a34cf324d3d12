"""Rendered images kept on disk, and which images belong to training, validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor

from sparsemtl.data.options import resolve_root
from sparsemtl.data.scenes.arithmetic import sqrt
from sparsemtl.data.scenes.rendering import Rendering, render
from sparsemtl.errors import CheckpointError, DataError
from sparsemtl.storage.files import read_tensors, write_tensors

FORMAT = 2
"""Raised whenever the same seed and index give another image, or files hold something else: old files then rest."""
PIECE = 512
"""Images that are held in full at once while rendering."""

Part = Literal["train", "validation", "test"]


def part_indices(part: Part, count: int) -> range:
    """Indices of the first `count` images of a part; no index belongs to two parts, however many there are."""
    parts = get_args(Part)
    return range(parts.index(part), len(parts) * count, len(parts))


def rendered(
    part: Part, count: int, *, height: int, width: int, seed: int, root: str | Path | None = None
) -> Rendering:
    """Images of one part, from `<root>/scenes/` if they lie there whole, else rendered and put there.

    Both give the same numbers, bit for bit: normals of 16 bits, made unit again, and all else as `render` gives it.
    Fewer images are the beginning of more.

    Args:
        part: which part.
        count: number of images, at least one.
        height: rows of pixels.
        width: columns of pixels.
        seed: of the whole set.
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.

    Raises:
        DataError: if the images cannot be written there.
        ParameterError: as `render`.
    """
    name = f"v{FORMAT}-{height}x{width}-seed{seed}-{part}-{count}"
    path = resolve_root(root) / "scenes" / f"{name}.safetensors"
    try:
        return unpacked(_read(path, name))
    except CheckpointError:
        packages = [packed(piece) for piece in _pieces(part, count, height, width, seed)]
        package = {key: torch.cat([some[key] for some in packages]) for key in Rendering._fields}
    try:
        write_tensors(path, package, {"scenes": name})
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"the rendered images cannot be kept in {path.parent}: {error}. "
            f"Name a folder that can be written by `root` or SPARSEMTL_DATA."
        ) from None
    return unpacked(package)


def _read(path: Path, name: str) -> dict[str, Tensor]:
    tensors, header = read_tensors(path)
    if header.get("scenes") != name:
        raise CheckpointError(f"{path} holds something else than the images {name}.")
    return tensors


def _pieces(part: Part, count: int, height: int, width: int, seed: int) -> Iterator[Rendering]:
    indices = part_indices(part, count)
    for start in range(0, max(count, 1), PIECE):
        yield render(seed, indices[start : start + PIECE], height, width)


def packed(rendering: Rendering) -> dict[str, Tensor]:
    """The same in 14 bytes a pixel instead of 36: whole numbers as bytes, normals as 16-bit floats."""
    return {
        "image": (rendering.image * 255).round().to(torch.uint8),
        "segmentation": rendering.segmentation.to(torch.uint8),
        "depth": rendering.depth,
        "normals": rendering.normals.half(),
        "scene": rendering.scene.to(torch.uint8),
    }


def unpacked(package: dict[str, Tensor]) -> Rendering:
    """A rendering from what `packed` gave."""
    normals = package["normals"].float()
    x, y, z = normals.unbind(1)
    return Rendering(
        package["image"].float() / 255,
        package["segmentation"].long(),
        package["depth"],
        normals / sqrt(x * x + y * y + z * z).unsqueeze(1),
        package["scene"].long(),
    )
