"""Images that the renderer of `scenes` makes in a second.

    python benchmarks/scenes_speed.py [--count 256] [--size 64] [--repeats 5] [--threads 2]

The target is 200 images of 64x64 a second on 2 cores. Beside the wall clock's rate stands that of one core, by the
processor time that this process used: the two differ where other processes run.
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
    """Images a second by the wall clock, and by the time of all cores together."""

    wall: float
    core: float


def rate(count: int, size: int) -> Rate:
    """Render `count` images once."""
    wall, core = time.perf_counter(), time.process_time()
    render(0, range(count), size, size)
    return Rate(count / (time.perf_counter() - wall), count / (time.process_time() - core))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256, help="images a repeat")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rate(min(options.count, 32), options.size)
    rates = [rate(options.count, options.size) for _ in range(options.repeats)]
    wall, core = (statistics.median(values) for values in zip(*rates, strict=True))
    low, high = min(r.wall for r in rates), max(r.wall for r in rates)
    print(f"{options.size}x{options.size}, {options.threads} threads, torch {torch.__version__}\n")
    print("| images/s (range) | images/s of one core | target |")
    print("| ---: | ---: | ---: |")
    print(f"| {wall:.0f} ({low:.0f} - {high:.0f}) | {core:.0f} | {TARGET} |")


if __name__ == "__main__":
    main()
