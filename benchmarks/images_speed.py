"""Throughput of a folder of JPEG files of 64x64, decoded anew in every pass.

    python benchmarks/images_speed.py [--quick]

Images per second over those of a Pillow loop: open, convert to RGB, resize where the size differs, stack batches of
64, convert them to floats. `0` and `2` are the numbers of threads that decode (`workers`). The caches of decoded images
on disk and in memory are off. Of Pillow's time per image, more than half is Python (parsing the header, copying the
pixels out), which one thread runs at a time. simplejpeg (the extra `fast-images`) decodes the same pixels without it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from common import Measure, Ratio, main, paired, seconds, spread
from PIL import Image
from torch import Tensor

from sparsemtl.data import DATASETS
from sparsemtl.data.images import jpeg
from sparsemtl.data.scenes import render

SIDE, BATCH, CLASSES, DRAWN = 64, 64, 4, 128
GOALS = {
    ("simplejpeg", 0): 0.95,
    ("simplejpeg", 2): 1.6,
    ("Pillow", 0): 0.95,
    ("Pillow", 2): None,
}
"""Library that decodes, and number of threads -> goal."""


def write_images(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of rendered rooms, divided among some classes; return their paths."""
    rooms = (render(0, range(DRAWN), SIDE, SIDE).image * 255).round().byte().permute(0, 2, 3, 1).numpy()
    paths = []
    for index in range(count):
        path = folder / f"class{index % CLASSES}" / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(rooms[index % DRAWN], index // DRAWN, axis=1)).save(path, quality=90)
        paths.append(path)
    return paths


def by_hand(paths: Sequence[Path]) -> Tensor:
    """Decode a batch as a plain loop does."""
    images = []
    for path in paths:
        with Image.open(path) as file:
            image = file.convert("RGB")
        if image.size != (SIDE, SIDE):
            image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        images.append(np.asarray(image))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float().div_(255)


def pillow_pass(paths: Sequence[Path]) -> None:
    """Decode all files in batches."""
    for start in range(0, len(paths), BATCH):
        by_hand(paths[start : start + BATCH])


def library_pass(folder: Path, workers: int) -> Callable[[], int]:
    """A pass over the training images of a folder."""
    data = DATASETS.build(
        "image-folders",
        tasks={"room": str(folder)},
        split=(0.98, 0.01, 0.01),
        size=SIDE,
        deduplicate="none",
        cache=False,
        memory=0.0,
        workers=workers,
    )
    loader = data.train["room"].loader(BATCH) if isinstance(data.train, dict) else data.train.loader(BATCH)
    return lambda: sum(len(x) for x, _ in loader)


def measures(quick: bool) -> Iterator[Measure]:
    count, repeats = (512, 3) if quick else (2048, 9)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), count)
        yield Measure("Pillow loop", spread(lambda: count / seconds(lambda: pillow_pass(paths)), 3), unit="images/s")
        installed = jpeg._simplejpeg()
        for (by, workers), goal in GOALS.items():
            if by == "simplejpeg" and not installed:
                continue
            jpeg._simplejpeg = lambda by=by: installed if by == "simplejpeg" else None  # type: ignore[assignment]
            run = library_pass(Path(folder), workers)
            share = run() / count
            of_time = paired(run, lambda: pillow_pass(paths), repeats)
            rate = Ratio(*(value * share for value in of_time))
            name = f"JPEG folder by {by}, {workers} threads, images per second over a Pillow loop"
            yield Measure(name, rate, goal, at_least=True)


if __name__ == "__main__":
    main(measures, __doc__)
