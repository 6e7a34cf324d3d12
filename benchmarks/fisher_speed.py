"""Cost of the exact diagonal Fisher information, in plain training steps.

    python benchmarks/fisher_speed.py [--samples 1024] [--repeats 5] [--threads 2] [--only mlp]

For T tasks on one network: the time of `Fisher().scores`, check of the first batch and all, divided by
the time of forward and backward of the same batches. Peak memory is each process's own, over what it had before it
built the network. The error is the largest difference to one autograd backward a sample, over the largest score of
the tensor.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch
from common import BATCH, Batch, arguments, batch, joint_pass, network, paired

from sparsemtl import SharedBottom
from sparsemtl.criteria import Fisher

TARGETS = {("mlp", 3): 2.6, ("mlp", 8): 5.5, ("resnet18", 3): 4.0, ("resnet18", 8): 10.0}


def batches(name: str, count: int, samples: int) -> list[Batch]:
    """Random batches of so many samples in all."""
    sizes = [BATCH] * (samples // BATCH) + ([samples % BATCH] if samples % BATCH else [])
    return [batch(name, count, size) for size in sizes]


def train(model: SharedBottom, data: list[Batch]) -> None:
    """Forward and backward of every batch."""
    for x, targets in data:
        joint_pass(model, x, targets)


def fisher(model: SharedBottom, data: list[Batch]) -> None:
    """Scores of all tasks."""
    Fisher(samples=None).scores(model, data, list(model.tasks.values()))


def error(name: str) -> float:
    """Largest relative difference to the loop over samples, on a few of them."""
    model, data = network(name, 1), batches(name, 1, 4)
    tasks = list(model.tasks.values())
    fast, loop = (Fisher(path=path).scores(model, data, tasks)["task0"] for path in ("auto", "loop"))
    return max(float((fast[n] - loop[n]).abs().max() / loop[n].max()) for n in loop)


def peak(run: str, name: str, count: int) -> float:
    """Peak memory in MB of a fresh process that runs three batches."""
    command = [sys.executable, __file__, "--peak", run, name, str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(run: str, name: str, count: int) -> float:
    """Peak memory in MB of this process, over what it has now."""
    before = _status("VmRSS")
    model, data = network(name, count), batches(name, count, 3 * BATCH)
    {"train": train, "fisher": fisher}[run](model, data)
    return _status("VmHWM") - before


def _status(field: str) -> float:
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        run, name, count = options.peak
        print(measure_peak(run, name, int(count)))
        return
    print(f"batch {BATCH}, {options.samples} samples, {options.threads} threads, torch {torch.__version__}\n")
    print("| network | tasks | time ratio (range) | target | memory ratio | largest error |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: |")
    for (name, count), target in TARGETS.items():
        if options.only in (None, name):
            model, data = network(name, count), batches(name, count, options.samples)
            train(model, data[:2]), fisher(model, data[:2])
            time = paired(lambda m=model, d=data: train(m, d), lambda m=model, d=data: fisher(m, d), options.repeats)
            memory = peak("fisher", name, count) / peak("train", name, count)
            print(f"| {name} | {count} | {time} | {target} | {memory:.2f} | {error(name):.1e} |", flush=True)


if __name__ == "__main__":
    main()
