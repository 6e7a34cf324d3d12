"""Cost of masks in a training step.

    python benchmarks/step_speed.py [--repeats 31] [--threads 2] [--only mlp]

- *masked step*: T tasks, each forward and backward through `TaskMasks.applied`, over T plain forward and backward
  passes, one a task, of the same network.
- *strict update*: a training step of one task (forward, backward, Adam) by `MaskedOptimizer`, whose masks keep 0.3,
  over the same step by the optimizer that it wraps. The masks are in the update only, not in the forward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import BATCH, NETWORKS, Ratio, arguments, batch, network, paired

from sparsemtl import MaskedOptimizer, SharedBottom, TaskMasks, choose_masks
from sparsemtl.criteria import Random

KEEP = 0.3
TARGETS = {"mlp": 1.3, "resnet18": 1.1}


def random_masks(model: SharedBottom) -> TaskMasks:
    """Masks that keep 30 % of the shared weights, drawn for every task."""
    return choose_masks(Random(), model, [], keep=KEEP)


def masked_step(name: str, count: int, repeats: int) -> Ratio:
    """Time of T masked passes over that of T plain passes."""
    model, (x, targets) = network(name, count), batch(name, count)
    masks = random_masks(model)

    def passes(masked: bool) -> None:
        model.zero_grad()
        for task in model.tasks.values():
            if masked:
                with masks.applied(model, task.name):
                    loss = task.loss(model(x, tasks=[task.name])[task.name], targets)
            else:
                loss = task.loss(model(x, tasks=[task.name])[task.name], targets)
            loss.backward()

    return paired(lambda: passes(False), lambda: passes(True), repeats)


def strict_update(name: str, repeats: int) -> Ratio:
    """Time of a strict step over that of a plain step."""
    model, (x, targets) = network(name, 1), batch(name, 1)
    (task,) = model.tasks.values()
    plain = torch.optim.Adam(model.parameters(), lr=1e-4)
    strict = MaskedOptimizer(plain, random_masks(model), model)

    def step(update: Callable[[], object]) -> None:
        model.zero_grad()
        task.loss(model(x)[task.name], targets).backward()
        update()

    return paired(lambda: step(plain.step), lambda: step(strict.step), repeats)


def main() -> None:
    options = arguments(__doc__, repeats=31).parse_args()
    torch.set_num_threads(options.threads)
    print(f"batch {BATCH}, keep {KEEP}, {options.threads} threads, torch {torch.__version__}\n")
    print("| what | network | tasks | time ratio (range) | target |")
    print("| :--- | :--- | ---: | ---: | ---: |")
    for name in [options.only] if options.only else NETWORKS:
        for count in (3, 8):
            ratio = masked_step(name, count, options.repeats)
            print(f"| masked step | {name} | {count} | {ratio} | {TARGETS[name]} |", flush=True)
        target = "1.05" if name == "resnet18" else "none set"
        print(f"| strict update | {name} | 1 | {strict_update(name, options.repeats)} | {target} |", flush=True)


if __name__ == "__main__":
    main()
