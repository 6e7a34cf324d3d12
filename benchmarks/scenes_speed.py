"""Images per second of the renderer of `scenes`.

    python benchmarks/scenes_speed.py [--count 256] [--size 64] [--repeats 5]

The target is 200 images of 64x64 a second on 2 cores; the renderer uses one. Beside the rate by the wall clock stands
that by the processor time of this process, which is higher where other processes run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import torch

from sparsemtl.data.scenes import render

TARGET = 200


class Rate(NamedTuple):
    """Images per second."""

    wall: float
    processor: float


def rate(count: int, size: int) -> Rate:
    """Render `count` images once."""
    wall, processor = time.perf_counter(), time.process_time()
    render(0, range(count), size, size)
    return Rate(count / (time.perf_counter() - wall), count / (time.process_time() - processor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256, help="images a repeat")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rate(min(options.count, 32), options.size)
    rates = [rate(options.count, options.size) for _ in range(options.repeats)]
    wall, processor = (statistics.median(values) for values in zip(*rates, strict=True))
    low, high = min(r.wall for r in rates), max(r.wall for r in rates)
    print(f"{options.size}x{options.size}, torch {torch.__version__}\n")
    print("| images/s (range) | images/s of processor time | target at 64x64 |")
    print("| ---: | ---: | ---: |")
    print(f"| {wall:.0f} ({low:.0f} - {high:.0f}) | {processor:.0f} | {TARGET} |")


if __name__ == "__main__":
    main()
