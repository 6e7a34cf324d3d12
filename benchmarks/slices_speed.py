"""Time of training on slices: a step for all tasks on their slices, over one dense step.

    python benchmarks/slices_speed.py [--quick] [--threads 2] [--json FILE]

ResNet-18, 64 images of 3x64x64, tasks that keep a random part of the channels each. The dense step trains all tasks on
one network, with one forward and one backward pass. Both take one step of fused Adam (`update="average"`). Rows of
masked execution are there for comparison. What making a slice costs is not in the ratios: it is the time of the first
step, with a trace of the model and one slice per task, over a dense step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import Measure, Ratio, batch, main, network, paired, seconds

import sparsemtl as sm

GOALS = {3: 1.7, 8: 4.2}
"""Tasks -> goal of a sliced step at keep 0.3."""


def step_of(tasks: int, keep: float | None, *, sliced: bool) -> sm.TrainingStep:
    """The training step of ResNet-18; dense without `keep`."""
    model, data = network("resnet18", tasks), batch("resnet18", tasks)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    if keep is None:
        return sm.TrainingStep(model, optimizer, sm.DenseSharing().start(model))
    sharing = sm.RandomSharing(keep=keep, granularity="channel", seed=0, update="average")
    networks = sharing.begin_epoch(0, model, sharing.start(model), [data])
    assert networks is not None
    slices = sm.TaskSlices(model) if sliced else None
    return sm.TrainingStep(model, optimizer, networks, sharing=sharing, slices=slices)


def ratios(tasks: int, keep: float, *, sliced: bool, repeats: int) -> tuple[Ratio, float]:
    """Time of a step over a dense one, and that of the first step."""
    x, targets = batch("resnet18", tasks)
    dense, ours = step_of(tasks, None, sliced=False), step_of(tasks, keep, sliced=sliced)
    dense(x, targets)
    first = seconds(lambda: ours(x, targets)) / seconds(lambda: dense(x, targets))
    return paired(lambda: dense(x, targets), lambda: ours(x, targets), repeats), first


def measures(quick: bool) -> Iterator[Measure]:
    """Yield the rows."""
    repeats = 3 if quick else 7
    for tasks in (3,) if quick else GOALS:
        ratio, first = ratios(tasks, 0.3, sliced=True, repeats=repeats)
        yield Measure(f"sliced step of {tasks} tasks, keep 0.3 / dense step", ratio, GOALS[tasks])
        yield Measure(f"first sliced step of {tasks} tasks / dense step", Ratio(first, first, first))
    if quick:
        return
    for keep in (0.1, 0.5):
        yield Measure(f"sliced step of 3 tasks, keep {keep} / dense step", ratios(3, keep, sliced=True, repeats=5)[0])
    for tasks in GOALS:
        ratio, _ = ratios(tasks, 0.3, sliced=False, repeats=3)
        yield Measure(f"masked step of {tasks} tasks, keep 0.3 / dense step", ratio)


if __name__ == "__main__":
    main(measures, __doc__)
