"""Label maps, depth and normals as colours, labels and predictions in the same colours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor

UNKNOWN = 0.55
"""Grey level of pixels without a label, in [0, 1]."""

COLOURS = 256
"""Number of class colours; the colours repeat after that."""

_Pair = tuple[Tensor, Tensor]
"""Labels and predictions as colours, each (3, H, W) in [0, 1]."""


def class_colour(index: int) -> str:
    """Return the colour of a class in label maps, for a style sheet."""
    red, green, blue = _palette()[index % len(_palette())].tolist()
    return to_hex((red, green, blue))


def segmentation(target: Tensor, prediction: Tensor, classes: int) -> _Pair:
    """Colour class indices (H, W); an index that is no class, such as an ignore index, is unknown."""
    palette = _palette()
    known = (target >= 0) & (target < classes)
    truth, said = (palette[indices.clamp(min=0) % len(palette)] for indices in (target, prediction))
    return _masked(truth, known), said.movedim(-1, 0)


def depth(target: Tensor, prediction: Tensor, classes: int = 0) -> _Pair:
    """Colour depth (1, H, W), near to far from dark to bright over the range of the labels; 0 is unknown."""
    target, prediction = target[0].float(), prediction[0].float()
    known = target > 0
    span = target[known] if bool(known.any()) else prediction
    low, high = span.min(), span.max()

    def coloured(values: Tensor) -> Tensor:
        scaled = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return torch.from_numpy(colormaps["viridis"](scaled.numpy())[..., :3]).float()

    return _masked(coloured(target), known), coloured(prediction).movedim(-1, 0)


def normals(target: Tensor, prediction: Tensor, classes: int = 0) -> _Pair:
    """Colour unit vectors (3, H, W): x, y and z as red, green and blue; three zeros are unknown."""
    known = target.abs().sum(0) > 0
    return _masked((target.float().movedim(0, -1) + 1) / 2, known), (prediction.float() + 1) / 2


MAPS: dict[str, Callable[[Tensor, Tensor, int], _Pair]] = {
    "Segmentation": segmentation,
    "Depth": depth,
    "Normals": normals,
}
"""Kind of a task -> function of labels, predictions and number of classes that colours its maps."""


def _masked(colours: Tensor, known: Tensor) -> Tensor:
    """Return colours (H, W, 3) as (3, H, W), grey where the label is unknown."""
    return torch.where(known[..., None], colours, UNKNOWN).movedim(-1, 0)


@functools.cache
def _palette() -> Tensor:
    """Return `COLOURS` different colours, (COLOURS, 3) in [0, 1], none like the grey of unknown pixels.

    The first colours are matplotlib's `tab20` without its greys. Each further colour is the one of a grid that is
    farthest from all before it, so that a few classes have very different colours.
    """
    named: Any = colormaps["tab20"].colors  # type: ignore[attr-defined]
    chosen = [torch.tensor(colour) for colour in [*named[::2], *named[1::2]] if max(colour) - min(colour) > 0.02]
    levels = torch.linspace(0, 1, 10)
    grid = torch.cartesian_prod(levels, levels, levels)
    apart = torch.cdist(grid, torch.stack([*chosen, torch.full((3,), UNKNOWN)])).amin(1)
    while len(chosen) < COLOURS:
        chosen.append(grid[apart.argmax()])
        apart = apart.minimum((grid - chosen[-1]).norm(dim=1))
    return torch.stack(chosen)
