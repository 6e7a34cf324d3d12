"""Shared by the speed scripts: two networks, random batches, and ratios of paired times."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsemtl import Classification, SharedBottom
from sparsemtl.backbones import resnet18

BATCH = 64
CLASSES = 10
NETWORKS = ("mlp", "resnet18")

Batch = tuple[Tensor, dict[str, Tensor]]


class Ratio(NamedTuple):
    """Median of paired ratios, and their range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} - {self.high:.3f})"


def network(name: str, count: int) -> SharedBottom:
    """A network with `count` classification tasks: three layers of 1024, or ResNet-18 at 64x64."""
    torch.manual_seed(0)
    tasks = [Classification(f"task{index}", CLASSES) for index in range(count)]
    if name == "resnet18":
        return SharedBottom(resnet18((3, 64, 64)), tasks)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(1024, 1024), nn.ReLU()]
    return SharedBottom(nn.Sequential(*layers), tasks, {t.name: nn.Linear(1024, CLASSES) for t in tasks})


def batch(name: str, count: int, size: int = BATCH) -> Batch:
    """A random batch for `network(name, count)`."""
    shape = (3, 64, 64) if name == "resnet18" else (1024,)
    return torch.randn(size, *shape), {f"task{t}": torch.randint(CLASSES, (size,)) for t in range(count)}


def joint_pass(model: SharedBottom, x: Tensor, targets: dict[str, Tensor]) -> None:
    """Run one forward and one backward pass for all tasks, without an optimizer."""
    model.zero_grad()
    outputs = model(x)
    torch.stack([task.loss(outputs[name], targets) for name, task in model.tasks.items()]).sum().backward()


def seconds(run: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired(plain: Callable[[], object], other: Callable[[], object], repeats: int) -> Ratio:
    """Time of `other` over that of `plain`, measured alternately, so that other load on the machine affects both."""
    plain(), other()
    ratios = []
    for _ in range(repeats):
        base = seconds(plain)
        ratios.append(seconds(other) / base)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def arguments(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options of every script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="pairs of timings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=NETWORKS)
    return parser
