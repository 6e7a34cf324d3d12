"""Speed of balancing by gradients: the solvers, and a step with them.

    python benchmarks/balancing_speed.py [--quick]

- *solver*: milliseconds for the weights of random gradients, from their Gramian.
- *step*: time of a training step that combines the gradients of three tasks, over that of a loop by hand that goes
  backward once per task, stacks the gradients and combines them by the mean; both with the fused Adam of torch.
- *TorchJD by hand*: the same over a loop that calls TorchJD's own class for the balancer: `mtl_backward` and
  `jac_to_grad` for an aggregator, one backward pass for a scalarizer.
- *gradients by hand*: a step with GradNorm or MGDA-UB over a loop that takes a gradient per task at the same place, the
  last shared layer or the representation, beside a plain step: forward, mean of the losses, backward, fused Adam.
- *gramian*: a step with `gradients: gramian` over the same step with all rows.
- *memory of a task's gradient*: peak memory that one more task adds to a few steps, over the size of a gradient of the
  shared weights; from 2 to 8 tasks, each in a fresh process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from common import Batch, Measure, Ratio, batch, main, network, paired, resident, seconds, spread
from torch import Tensor
from torchjd import aggregation, scalarization
from torchjd.autojac import jac_to_grad, mtl_backward

from sparsemtl import DenseSharing, SharedBottom, TrainingStep
from sparsemtl.balancing import BALANCERS, Balancer

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
CALL_GOAL = 1.15
TORCHJD_GOAL = 1.15
GRADIENTS_GOAL = 1.1
AGGREGATORS: dict[str, Callable[[], Any]] = {
    "mgda": aggregation.MGDA,
    "pcgrad": aggregation.PCGrad,
    "imtl-g": aggregation.IMTLG,
    "aligned-mtl": aggregation.AlignedMTL,
}
SCALARIZERS: dict[str, Callable[[], Any]] = {
    "geometric-mean": scalarization.GeometricMean,
    "random": scalarization.Random,
}
MEMORY: dict[str, float | None] = {"mgda": 1.1, "mgda by gramian": 0.1, "mgda-ub": 0.1, "gradnorm": None}
"""Balancer, see `made` -> goal of the memory that a task adds, over the size of its gradient."""


def made(balancing: str, tasks: int) -> Balancer:
    """A balancer by its name, or by name and `gradients`: "mgda by gramian"."""
    name, _, gradients = balancing.partition(" by ")
    balancer = BALANCERS.build(name, **({"gradients": gradients} if gradients else {}))
    balancer.attach(tasks, torch.device("cpu"))
    return balancer


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
    return partial(TrainingStep(model, optimizer, networks, balancing=made(balancing, 3)), x, targets)


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


def torchjd_loop(name: str, module: Any) -> Callable[[], None]:
    """A step that calls a scalarizer or an aggregator of TorchJD."""
    model, (x, targets) = network(name, 3), batch(name, 3)
    model(x)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def run() -> None:
        optimizer.zero_grad()
        features = model.encoder(x)
        losses = [task.loss(model.heads[t](features), targets[t]) for t, task in model.tasks.items()]
        if isinstance(module, scalarization.Scalarizer):
            module(torch.stack(losses)).backward()
        else:
            mtl_backward(losses, features)
            jac_to_grad(model.encoder.parameters(), module)
        optimizer.step()

    return run


def gradients_loop(name: str, *, at_representation: bool) -> Callable[[], None]:
    """A plain step, and a gradient per task at the representation or at the last shared weight of two or more axes."""
    model, (x, targets) = network(name, 3), batch(name, 3)
    model(x)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    last = [p for p in model.encoder.parameters() if p.ndim > 1][-1]

    def run() -> None:
        optimizer.zero_grad()
        features = model.encoder(x)
        losses = [task.loss(model.heads[t](features), targets[t]) for t, task in model.tasks.items()]
        for loss in losses:
            torch.autograd.grad(loss, features if at_representation else last, retain_graph=True)[0].norm()
        torch.stack(losses).mean().backward()
        optimizer.step()

    return run


def peak(balancing: str, tasks: int) -> float:
    """Peak memory of a few steps in a fresh process, in MB."""
    command = [sys.executable, __file__, "--peak", balancing, str(tasks)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(balancing: str, tasks: int) -> float:
    """Peak memory of a few steps in this process, in MB, over what it has with the libraries loaded."""
    step("mlp", balancing)()
    before = resident("VmRSS")
    model, (x, targets) = network("mlp", tasks), batch("mlp", tasks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = TrainingStep(model, optimizer, DenseSharing().start(model), balancing=made(balancing, tasks))
    for _ in range(3):
        run(x, targets)
    return resident("VmHWM") - before


def memory_of_a_task(balancing: str) -> Ratio:
    """Peak memory per further task, over the size of a gradient."""
    size = 4 * sum(p.numel() for p in network("mlp", 2).shared_parameters().values()) / 2**20
    with ThreadPoolExecutor() as pool:
        many, few = pool.map(partial(peak, balancing), (8, 2))
    return spread(lambda: (many - few) / (6 * size), 1)


def call(name: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A call of TorchJD's aggregator, and of the balancer, for three rows of a million."""
    balancer: Any = BALANCERS.build(name)
    balancer.attach(3, torch.device("cpu"))
    rows = torch.randn(3, 1_000_000, generator=torch.Generator().manual_seed(0))
    aggregator = balancer.make(3)
    return lambda: aggregator(rows), lambda: balancer.aggregate(rows)


def row_bytes(name: str, balancing: str) -> int:
    """Bytes of the rows that a step keeps, in float32."""
    model, (x, targets) = network(name, 3), batch(name, 3)
    if BALANCERS.build(balancing).combines_gradients:
        return 3 * 4 * sum(p.numel() for p in model.shared_parameters().values())
    sizes: list[int] = []
    balancer = BALANCERS.build(balancing)
    balancer.attach(3, torch.device("cpu"))
    observe = balancer.observe_gradients
    balancer.observe_gradients = lambda losses, rows, present: (  # type: ignore[method-assign]
        sizes.append(rows.numel() * rows.element_size()),
        observe(losses, rows, present),
    )[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    TrainingStep(model, optimizer, DenseSharing().start(model), balancing=balancer)(x, targets)
    return sizes[0]


def measures(quick: bool) -> Iterator[Measure]:
    for (name, tasks), goal in SOLVERS.items():
        if quick and goal is None:
            continue
        solve = solver(name, tasks)
        solve()
        median = spread(lambda solve=solve: 1e3 * seconds(solve), 50 if quick else 200)
        yield Measure(f"solver of {name}, {tasks} tasks", median, goal, "ms")
    rows = {"mlp": ("mgda",) if quick else ("mgda", "cagrad", "nash-mtl", "pcgrad"), "resnet18": ("mgda",)}
    for name, balancers in rows.items():
        for balancing in () if quick and name == "resnet18" else balancers:
            ratio = paired(loop(name), step(name, balancing), 11 if name == "mlp" else 5)
            goal = None if balancing == "pcgrad" else STEP_GOAL
            yield Measure(f"step with {balancing} ÷ loop by hand with the mean, {name}, 3 tasks", ratio, goal)
    for name in ("mlp",) if quick else ("mlp", "resnet18"):
        for balancing, make in {**AGGREGATORS, **SCALARIZERS}.items():
            if balancing != "mgda" and (quick or (name == "resnet18" and balancing in AGGREGATORS)):
                continue
            ratio = paired(torchjd_loop(name, make()), step(name, balancing), 11 if name == "mlp" else 5)
            yield Measure(f"step with {balancing} ÷ TorchJD by hand, {name}, 3 tasks", ratio, TORCHJD_GOAL)
        for balancing in ("gradnorm", "mgda-ub"):
            by_hand = gradients_loop(name, at_representation=balancing == "mgda-ub")
            ratio = paired(by_hand, step(name, balancing), 11 if name == "mlp" else 5)
            yield Measure(f"step with {balancing} ÷ gradients by hand, {name}, 3 tasks", ratio, GRADIENTS_GOAL)
        ratio = paired(step(name, "mgda"), step(name, "mgda by gramian"), 11 if name == "mlp" else 5)
        yield Measure(f"step with mgda by gramian ÷ by rows, {name}, 3 tasks", ratio)
    for balancing, goal in () if quick else MEMORY.items():
        yield Measure(f"memory of a task's gradient with {balancing}, mlp", memory_of_a_task(balancing), goal)
    for name in ("pcgrad",) if quick else ("pcgrad", "imtl-g", "aligned-mtl", "graddrop"):
        theirs, ours = call(name)
        yield Measure(f"{name} ÷ TorchJD's own call, 3 rows of a million", paired(theirs, ours, 11), CALL_GOAL)
    for name in ("mlp",) if quick else ("mlp", "resnet18"):
        for balancing in ("mgda", "mgda-ub"):
            size = row_bytes(name, balancing)
            yield Measure(f"rows of {balancing}, {name}, 3 tasks", spread(lambda size=size: size, 1), None, "bytes")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(measure_peak(sys.argv[2], int(sys.argv[3])))
    else:
        main(measures, __doc__)
