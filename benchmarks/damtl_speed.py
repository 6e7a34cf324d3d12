"""Cost of DAMTL: the alignment in a task's step, T tasks against T single-task steps, and cached features.

    python benchmarks/damtl_speed.py [--quick]

VGG-5 of width 32 with two fully connected layers of 512, 64x64 images, batches of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from common import Measure, main, paired

import sparsemtl as sm
from sparsemtl.backbones import vgg5
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.step import TrainingStep

SHAPE = (3, 64, 64)
CLASSES = 10
BATCH = 32
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


def measures(quick: bool) -> Iterator[Measure]:
    repeats, counts = (5, [2]) if quick else (11, [2, 4])

    def damtl(align: str, count: int, remember: float = 512.0) -> Step:
        return step_of(auxiliary_model(align, count, remember=remember), sm.SoftMaskSharing(), BATCH)

    plain = damtl("none", 1)
    yield Measure("alignment `layer`, step over one without", paired(plain, damtl("layer", 1), repeats), 1.05)
    cached = paired(plain, damtl("feature", 1), repeats)
    yield Measure("alignment `feature`, auxiliary features cached, step over one without", cached)
    computed = paired(plain, damtl("feature", 1, 0.0), repeats)
    yield Measure("alignment `feature`, computed in every step, over one without", computed)
    for count in counts:
        singles, together = [damtl("layer", 1) for _ in range(count)], damtl("layer", count)
        ratio = paired(lambda s=singles: [step() for step in s], together, repeats)
        yield Measure(f"{count} tasks, step over {count} steps of one task", ratio, 1.1)


if __name__ == "__main__":
    main(measures, __doc__)
