"""Cost of the exact diagonal Fisher information, in plain training steps.

    python benchmarks/fisher_speed.py [--quick] [--threads 2] [--json FILE]

Time of `Fisher().scores` for T tasks on one network, over the time of forward and backward pass of the same batches of
64: of 1,024 samples, the criterion's default, through an MLP, and of 256 through a ResNet-18. Memory for the scores and
the check of the first batch cost the same for any number of samples, and count. With the C++ kernel, which needs a
compiler, and without. Peak memory of a fresh process, over that of the same forward and backward passes: the scores of
3 tasks and the weights alone are 2 times the weights and their gradient. The error of a tensor is the largest
difference to one autograd backward pass per sample in double precision, over the tensor's largest score. The same
passes in single precision have an error too, which is the measure: the row is the mean error of all tensors over the
mean error of these passes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from common import BATCH, CLASSES, NETWORKS, Batch, Measure, batch, joint_pass, main, network, paired, resident, spread
from torch import Tensor, nn

from sparsemtl import Classification, SharedBottom
from sparsemtl.criteria import Fisher
from sparsemtl.kernels.compiled import library

GOALS = {  # (network, tasks): (with the kernel, without)
    ("mlp", 3): (2.6,),  # the kernel is for convolutions
    ("mlp", 8): (5.5,),
    ("resnet18", 3): (2.7, 3.3),
    ("resnet18", 8): (6.2, 7.8),
}
ERROR, MEMORY = 1.0, 2.05
SAMPLES = {"mlp": 1024, "resnet18": 4 * BATCH}
QUICK = BATCH


def batches(name: str, count: int, samples: int) -> list[Batch]:
    """Random batches of so many samples in all."""
    sizes = [BATCH] * (samples // BATCH) + ([samples % BATCH] if samples % BATCH else [])
    return [batch(name, count, size) for size in sizes]


def train(model: SharedBottom, data: list[Batch]) -> None:
    """Forward and backward of every batch."""
    model.train()
    for x, targets in data:
        joint_pass(model, x, targets)


def fisher(model: SharedBottom, data: list[Batch]) -> None:
    """Scores of all tasks."""
    Fisher(samples=None).scores(model, data, list(model.tasks.values()))


def errors(name: str) -> tuple[float, float]:
    """Mean error over tensors on a few samples: ours, and that of one autograd backward pass per sample."""
    model, data = network(name, 1), batches(name, 1, 4)
    tasks = list(model.tasks.values())
    ours, passes = (Fisher(path=path).scores(model, data, tasks)["task0"] for path in ("auto", "loop"))
    exact = Fisher(path="loop").scores(model.double(), data, tasks)["task0"]

    def mean_error(scores: dict[str, Tensor]) -> float:
        return statistics.mean(float((scores[n] - exact[n]).abs().max() / exact[n].max()) for n in exact)

    return mean_error(ours), mean_error(passes)


def peak(run: str, name: str, count: int) -> float:
    """Peak memory in MB of a fresh process that runs three batches."""
    command = [sys.executable, __file__, "--peak", run, name, str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(run: str, name: str, count: int) -> float:
    """Peak memory in MB of this process, over what it has with the libraries loaded."""
    task = Classification("task0", CLASSES)
    small = SharedBottom(nn.Linear(1024, 8), [task], {"task0": nn.Linear(8, CLASSES)})
    for warm_up in (train, fisher):  # torch loads some of its modules at their first use
        warm_up(small, batches("mlp", 1, 2))
    before = resident("VmRSS")
    model, data = network(name, count), batches(name, count, 3 * BATCH)
    {"train": train, "fisher": fisher}[run](model, data)
    return resident("VmHWM") - before


def switched(run: Callable[[], None], kernels: str) -> Callable[[], None]:
    """A run with the C++ kernels on (1) or off (0)."""

    def with_environment() -> None:
        os.environ["SPARSEMTL_KERNELS"] = kernels
        run()

    return with_environment


def measures(quick: bool) -> Iterator[Measure]:
    """Ratios of memory and errors, then ratios of time: the slowest last."""
    for name in () if quick else NETWORKS:
        with ThreadPoolExecutor() as pool:
            of_fisher, of_training = pool.map(lambda run, n=name: peak(run, n, 3), ("fisher", "train"))
        memory = spread(lambda ratio=of_fisher / of_training: ratio, 1)
        yield Measure(f"peak memory of Fisher ÷ forward and backward pass, {name}, 3 tasks", memory, MEMORY)
        ours, passes = errors(name)
        of_autograd = spread(lambda ratio=ours / passes: ratio, 1)
        yield Measure(f"error of Fisher ÷ that of one pass per sample, {name}", of_autograd, ERROR)
        yield Measure(f"error of Fisher, {name}", spread(lambda error=ours: error, 1))
    kinds = {"with the kernel": "1", "without": "0"} if library("per_sample") is not None else {"without": "0"}
    for (name, count), goals in GOALS.items():
        if quick and count > 3:
            continue
        repeats = 1 if quick else 3 if count == 3 else 2
        model, data = network(name, count), batches(name, count, QUICK if quick else SAMPLES[name])
        for kind, goal in list(zip(kinds, goals[-len(kinds) :], strict=False))[: 1 if quick else None]:
            row = f"Fisher ÷ forward and backward pass, {name}, {count} tasks, {kind}"
            run = switched(lambda m=model, d=data: fisher(m, d), kinds[kind])
            ratio = paired(lambda m=model, d=data: train(m, d), run, repeats, warm=count == 3)
            yield Measure(row, ratio, goal)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(measure_peak(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    else:
        main(measures, __doc__)
