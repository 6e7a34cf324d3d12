"""Time that `import sparsemtl` adds to `import torch`, in seconds.

    python benchmarks/import_time.py [--repeats 9]

Each is timed in fresh processes, in turns; the figure is the median of the differences.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

TARGET = 0.3


def seconds(module: str) -> float:
    """Time that a fresh interpreter takes to import a module."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    seconds("torch"), seconds("sparsemtl")
    added = [seconds("sparsemtl") - seconds("torch") for _ in range(repeats)]
    print(
        f"import sparsemtl adds {statistics.median(added):.3f} s ({min(added):.3f} - {max(added):.3f}) to import torch;"
    )
    print(f"the target is {TARGET} s.")


if __name__ == "__main__":
    main()
