"""Shared by the speed scripts: networks, random batches, ratios of paired times, and the one form of their results.

A script defines `measures(quick)`, which yields a `Measure` per row, and ends with `main(measures, __doc__)`. It prints
its rows as a table, and with `--json FILE` writes them for `benchmarks/suite.py`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsemtl import Classification, SharedBottom
from sparsemtl.backbones import resnet18

BATCH = 64
CLASSES = 10
NETWORKS = ("mlp", "resnet18")
LEAST = 2
SECONDS = {False: 4.0, True: 1.0}
"""Seconds after which a row with `LEAST` values takes no more of them, by `quick`; so the suite ends in time."""

Batch = tuple[Tensor, dict[str, Tensor]]


class Ratio(NamedTuple):
    """Median of paired ratios, and their range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        exact = self.low == self.high
        return _short(self.median) if exact else f"{_short(self.median)} ({_short(self.low)} - {_short(self.high)})"


def _short(value: float) -> str:
    """Return a number with about four digits."""
    size = abs(value)
    form = ",.0f" if size >= 1000 else ".1f" if size >= 10 else ".3f" if size >= 0.01 or size == 0 else ".1e"
    return format(value, form)


@dataclass(frozen=True)
class Measure:
    """One row of the table of speeds.

    Attributes:
        name: what was measured, over what.
        value: median and range; a ratio unless there is a unit.
        goal: bound that the median should keep.
        unit: "", "s", "ms", "GB", "bytes", "images/s".
        at_least: the goal is a lower bound.
    """

    name: str
    value: Ratio
    goal: float | None = None
    unit: str = ""
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """True if the median keeps the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.value.median >= self.goal if self.at_least else self.value.median <= self.goal

    def __str__(self) -> str:
        bound = "none set" if self.goal is None else f"{'>=' if self.at_least else '<='} {self.goal:g}"
        met = {None: "", True: "yes", False: "**no**"}[self.is_met]
        return f"| {self.name} | {self.value}{' ' + self.unit if self.unit else ''} | {bound} | {met} |"


_limit = SECONDS[False]
HEAD = "| measure | median (range) | goal | met |\n| :--- | ---: | ---: | :--- |"


def main(measures: Callable[..., Iterator[Measure]], description: str | None) -> None:
    """Run a script: print its rows as they come, and write them as JSON if asked.

    Args:
        measures: function of `quick`, which is True for fewer rows and repeats; and of `full` for more, if it has that.
        description: the script's docstring.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows and repeats, to find what became slower")
    more = "full" in inspect.signature(measures).parameters
    if more:
        parser.add_argument("--full", action="store_true", help="all rows, more than the suite has time for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file that the rows are written to")
    options = parser.parse_args()
    global _limit
    _limit = SECONDS[options.quick]
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads\n\n{HEAD}")
    rows = []
    for row in measures(options.quick, **({"full": options.full} if more else {})):
        print(row, flush=True)
        rows.append(asdict(row) | {"value": row.value._asdict()})
        if options.json is not None:  # after each row, for the case that the script fails
            options.json.write_text(json.dumps(rows, indent=1))


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


def resident(field: str) -> float:
    """Memory of this process in MB: `VmRSS` now, `VmHWM` at its peak."""
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def seconds(run: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired(plain: Callable[[], object], other: Callable[[], object], repeats: int, *, warm: bool = True) -> Ratio:
    """Time of `other` over that of `plain`, measured alternately, so that other load on the machine affects both.

    Args:
        plain: what `other` is compared with.
        other: what is measured.
        repeats: pairs of timings.
        warm: run both once before.
    """
    if warm:
        plain(), other()

    def ratio() -> float:
        base = seconds(plain)
        return seconds(other) / base

    return spread(ratio, repeats)


def spread(value: Callable[[], float], repeats: int) -> Ratio:
    """Median and range of a value, such as seconds or bytes, measured so many times, or fewer if it takes long."""
    values: list[float] = []
    end = time.perf_counter() + _limit
    while len(values) < repeats and (len(values) < LEAST or time.perf_counter() < end):
        values.append(value())
    return Ratio(statistics.median(values), min(values), max(values))


def arguments(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options of every script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="pairs of timings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=NETWORKS)
    return parser
