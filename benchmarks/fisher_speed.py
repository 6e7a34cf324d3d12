"""Cost of the exact diagonal Fisher information, in plain training steps.

    python benchmarks/fisher_speed.py [--samples 1024] [--repeats 5] [--threads 2] [--only mlp]

For T tasks on one network: the time of `FisherInformation().scores`, check of the first batch and all, divided by
the time of forward and backward of the same batches. Both are timed in turns, and the ratio is the median over the
turns, for what else the machine does then hits both. Peak memory is each process's own, over what it had before it
built the network. The error is the largest difference to one autograd backward a sample, over the largest score of
the tensor.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsemtl import Classification, SharedBottom
from sparsemtl.backbones import resnet18
from sparsemtl.criteria import FisherInformation

BATCH = 64
CLASSES = 10
TARGETS = {("mlp", 3): 2.6, ("mlp", 8): 5.5, ("resnet18", 3): 4.0, ("resnet18", 8): 10.0}

Batches = list[tuple[Tensor, dict[str, Tensor]]]


def network(name: str, count: int) -> SharedBottom:
    """A network with `count` classification tasks."""
    torch.manual_seed(0)
    tasks = [Classification(f"task{index}", CLASSES) for index in range(count)]
    if name == "resnet18":
        return SharedBottom(resnet18((3, 64, 64)), tasks)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(1024, 1024), nn.ReLU()]
    return SharedBottom(nn.Sequential(*layers), tasks, {t.name: nn.Linear(1024, CLASSES) for t in tasks})


def data(name: str, count: int, samples: int) -> Batches:
    """Random batches."""
    shape = (3, 64, 64) if name == "resnet18" else (1024,)
    sizes = [BATCH] * (samples // BATCH) + ([samples % BATCH] if samples % BATCH else [])
    return [(torch.randn(n, *shape), {f"task{t}": torch.randint(CLASSES, (n,)) for t in range(count)}) for n in sizes]


def train(model: SharedBottom, batches: Batches) -> None:
    """Forward and backward of every batch; no optimizer."""
    for x, targets in batches:
        model.zero_grad()
        outputs = model(x)
        torch.stack([task.loss(outputs[name], targets) for name, task in model.tasks.items()]).sum().backward()


def fisher(model: SharedBottom, batches: Batches) -> None:
    """Scores of all tasks."""
    FisherInformation(samples=None).scores(model, batches, list(model.tasks.values()))


def seconds(run: Callable[[SharedBottom, Batches], None], model: SharedBottom, batches: Batches) -> float:
    start = time.perf_counter()
    run(model, batches)
    return time.perf_counter() - start


def ratio(name: str, count: int, samples: int, repeats: int) -> tuple[float, float, float]:
    """Median ratio of paired times, and its range."""
    model, batches = network(name, count), data(name, count, samples)
    for run in (train, fisher):
        run(model, batches[:2])
    pairs = [(seconds(train, model, batches), seconds(fisher, model, batches)) for _ in range(repeats)]
    ratios = [slow / plain for plain, slow in pairs]
    return statistics.median(ratios), min(ratios), max(ratios)


def error(name: str) -> float:
    """Largest relative difference to the loop over samples, on a few of them."""
    model, batches = network(name, 1), data(name, 1, 4)
    tasks = list(model.tasks.values())
    fast, loop = (FisherInformation(path=path).scores(model, batches, tasks)["task0"] for path in ("auto", "loop"))
    return max(float((fast[n] - loop[n]).abs().max() / loop[n].max()) for n in loop)


def peak(run: str, name: str, count: int) -> float:
    """Peak memory in MB of a fresh process that runs three batches."""
    command = [sys.executable, __file__, "--peak", run, name, str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(run: str, name: str, count: int) -> float:
    """Peak memory in MB of this process, over what it has now."""
    before = _status("VmRSS")
    model, batches = network(name, count), data(name, count, 3 * BATCH)
    {"train": train, "fisher": fisher}[run](model, batches)
    return _status("VmHWM") - before


def _status(field: str) -> float:
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["mlp", "resnet18"])
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        run, name, count = arguments.peak
        print(measure_peak(run, name, int(count)))
        return
    print(f"batch {BATCH}, {arguments.samples} samples, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{'network':<10}{'tasks':>6}{'time ratio':>12}{'(range)':>16}{'target':>8}{'memory':>8}{'error':>10}")
    for (name, count), target in TARGETS.items():
        if arguments.only in (None, name):
            median, low, high = ratio(name, count, arguments.samples, arguments.repeats)
            memory = peak("fisher", name, count) / peak("train", name, count)
            print(
                f"{name:<10}{count:>6}{median:>12.2f}{f'{low:.2f} - {high:.2f}':>16}{target:>8.1f}"
                f"{memory:>8.2f}{error(name):>10.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
