"""Speed of balancing by gradients: the solvers, and a step with them.

    python benchmarks/balancing_speed.py [--quick]

- *solver*: milliseconds for the weights of random gradients, from their Gramian.
- *step*: time of a training step that combines the gradients of three tasks, over that of a loop by hand that goes
  backward once per task, stacks the gradients and combines them by the mean; both with the fused Adam of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from common import Batch, Measure, batch, main, network, paired, seconds, spread
from torch import Tensor

from sparsemtl import DenseSharing, SharedBottom, TrainingStep
from sparsemtl.balancing import BALANCERS

SOLVERS: dict[tuple[str, int], float | None] = {
    ("cagrad", 3): 2.6,
    ("cagrad", 8): None,
    ("nash-mtl", 3): None,
    ("mgda", 3): None,
    ("mgda", 8): 3.0,
    ("mgda", 64): None,
}
"""Balancer and number of tasks -> goal in milliseconds."""
WIDTH = 1000
STEP_GOAL = 1.1


def solver(name: str, tasks: int) -> Callable[[], Tensor]:
    """A call of a balancer's solver for one Gramian after the other."""
    balancer = BALANCERS.build(name)
    balancer.attach(tasks, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(tasks, WIDTH, generator=generator) + 0.03 for _ in range(16)]
    gramians = iter([rows @ rows.T for rows in drawn] * 1000)
    return lambda: balancer.module.gramian_weighting(next(gramians))


def step(name: str, balancing: str) -> Callable[[], object]:
    model, (x, targets) = network(name, 3), batch(name, 3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    networks = DenseSharing().start(model)
    return partial(TrainingStep(model, optimizer, networks, balancing=balancing), x, targets)


def loop(name: str) -> Callable[[], None]:
    """The same step by hand."""
    model = network(name, 3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    return partial(by_hand, model, optimizer, batch(name, 3))


def by_hand(model: SharedBottom, optimizer: torch.optim.Optimizer, group: Batch) -> None:
    x, targets = group
    optimizer.zero_grad()
    outputs = model(x)
    shared = list(model.shared_parameters().values())
    rows = []
    for name, task in model.tasks.items():
        for p in shared:
            p.grad = None
        task.loss(outputs[name], targets[name]).backward(retain_graph=True)
        rows.append(torch.cat([p.grad.flatten() for p in shared if p.grad is not None]))
    combined = torch.stack(rows).mean(0)
    for p, part in zip(shared, combined.split([p.numel() for p in shared]), strict=True):
        p.grad = part.view_as(p)
    optimizer.step()


def measures(quick: bool) -> Iterator[Measure]:
    for (name, tasks), goal in SOLVERS.items():
        if quick and goal is None:
            continue
        solve = solver(name, tasks)
        solve()
        median = spread(lambda solve=solve: 1e3 * seconds(solve), 50 if quick else 500)
        yield Measure(f"solver of {name}, {tasks} tasks", median, goal, "ms")
    rows = {"mlp": ("mgda",) if quick else ("mgda", "cagrad", "nash-mtl", "pcgrad"), "resnet18": ("mgda",)}
    for name, balancers in rows.items():
        for balancing in () if quick and name == "resnet18" else balancers:
            ratio = paired(loop(name), step(name, balancing), 11 if name == "mlp" else 5)
            goal = None if balancing == "pcgrad" else STEP_GOAL
            yield Measure(f"step with {balancing} ÷ loop by hand with the mean, {name}, 3 tasks", ratio, goal)


if __name__ == "__main__":
    main(measures, __doc__)
