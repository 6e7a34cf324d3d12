"""Cost of DAMTL: the alignment in a task's step, T tasks against T single-task steps, and cached features.

    python benchmarks/damtl_speed.py [--rounds 30]

Ratios of times taken in turns in one process; medians of the ratios, with their quartiles' range.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import sparsemtl as sm
from sparsemtl.backbones import vgg5
from sparsemtl.tasks.batches import Group
from sparsemtl.training.step import TrainingStep

SHAPE = (3, 64, 64)
CLASSES = 10
Step = Callable[[], object]


def auxiliary_model(align: str, count: int, *, remember: float = 512.0) -> sm.Auxiliary:
    """The paper's network, at half its width, for `count` tasks of ten of fifty classes."""
    torch.manual_seed(0)
    encoder = vgg5(SHAPE, width=32, fc=[512, 512], norm=False)
    everything = sm.Classification("auxiliary", 50)
    tasks = [sm.Classification(f"task{index}", [str(number) for number in range(CLASSES)]) for index in range(count)]
    source = sm.Source(everything, everything.head(encoder.out_features))
    return sm.Auxiliary(encoder, tasks, source=source, align=align, remember=remember)


def step_of(model: sm.MultiTaskModel, sharing: sm.Sharing, batch: int) -> Step:
    """A training step on one batch of every task, each with inputs of its own."""
    networks = sharing.start(model)
    optimizer = torch.optim.SGD([*model.parameters(), *networks.parameters()], lr=1e-4)
    engine = TrainingStep(model, optimizer, networks, sharing=sharing, update="average")
    groups = [Group(torch.rand(batch, *SHAPE), {name: torch.arange(batch) % CLASSES}, (name,)) for name in model.tasks]
    model.train()
    return lambda: engine.step([groups])


def seconds(step: Step) -> float:
    """Time of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def ratio(one: Step, other: Step, rounds: int) -> str:
    """Median of the paired ratios one / other, and the middle half of them."""
    for _ in range(3):
        one(), other()
    ratios = sorted(seconds(one) / seconds(other) for _ in range(rounds))
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.3f} ({low:.3f} - {high:.3f})"


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    batch, rounds = options.batch, options.rounds

    def damtl(align: str, count: int, remember: float = 512.0) -> Step:
        return step_of(auxiliary_model(align, count, remember=remember), sm.SoftMaskSharing(), batch)

    plain = damtl("none", 1)
    print(f"alignment `layer`, step / step without: {ratio(damtl('layer', 1), plain, rounds)}")
    print(f"alignment `feature`, remembered, step / step without: {ratio(damtl('feature', 1), plain, rounds)}")
    print(f"alignment `feature`, computed anew, step / step without: {ratio(damtl('feature', 1, 0.0), plain, rounds)}")
    for count in (2, 4):
        singles = [damtl("layer", 1) for _ in range(count)]
        together = damtl("layer", count)
        print(
            f"{count} tasks, step / {count} steps of one: {ratio(together, lambda s=singles: [f() for f in s], rounds)}"
        )


if __name__ == "__main__":
    main()
