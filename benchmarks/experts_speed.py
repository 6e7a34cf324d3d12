"""Speed of gated experts on a table like census-income: 40 columns, one-hot in 480, batches of 1024, two tasks.

    python benchmarks/experts_speed.py [--quick]

- *step ÷ loop*: time of a training step of mmoe, cgc and ple, over that of a plain loop over experts, gates and tasks
  with the same weights; both with the fused Adam of torch.
- *pbfs*: time of a training step of pbfs, whose tasks run one by one as each has a mask of its own on the pool, over
  that of a cgc with the same experts, whose tasks run together. Masks keep 0.3 of every weight tensor. The row below
  it is of the same cgc without masks, whose tasks run one by one: the part of the ratio that a pass per task causes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from common import Measure, main, paired
from torch import Tensor, nn

from sparsemtl import Classification, DenseSharing, RandomSharing
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import MLP
from sparsemtl.heads import MLPHead
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.sharing import Sharing
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.step import TrainingStep

BATCH, COLUMNS, CODES = 1024, 40, 12
KEEP = 0.3
NETWORKS: dict[str, tuple[str, Sequence[int], dict[str, int], float | None]] = {
    "mmoe, 8 of [4]": ("mmoe", [4], {"experts": 8}, 0.9),
    "mmoe, 8 of [32, 32]": ("mmoe", [32, 32], {"experts": 8}, 0.9),
    "mmoe, 8 of [256, 128]": ("mmoe", [256, 128], {"experts": 8}, None),
    "cgc, 3 of [32, 32]": ("cgc", [32, 32], {}, None),
    "cgc, 12 of [32, 32]": ("cgc", [32, 32], {"shared_experts": 4, "task_experts": 4}, None),
    "ple, 2 levels, 12 of [16]": ("ple", [16, 16], {"shared_experts": 4, "task_experts": 4}, None),
}
"""Experts -> architecture, widths, options, and goal."""
PBFS_GOAL = 1.5


def tasks() -> list[Classification]:
    return [Classification("income", 2), Classification("marital", 2)]


def network(architecture: str, hidden: Sequence[int], **options: int) -> MultiTaskModel:
    torch.manual_seed(0)
    encoder = MLP((COLUMNS * CODES,), hidden=list(hidden))
    heads = {task.name: MLPHead(hidden[-1], 2) for task in tasks()}
    return ARCHITECTURES.build(architecture, encoder, tasks(), heads, **options)


def batch() -> Group:
    x = F.one_hot(torch.randint(CODES, (BATCH, COLUMNS)), CODES).flatten(1).float()
    names = tuple(task.name for task in tasks())
    return Group(x, {name: torch.randint(2, (BATCH,)) for name in names}, names)


class Loop(nn.Module):
    """The same network as a plain loop: experts, gates and tasks one after the other."""

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        names = list(self.model.tasks)
        own, shared = dict.fromkeys(names, x), x
        for level in self.model.levels:
            common = [expert(shared) for pool in level.pools.values() for expert in pool]
            private = {t: [e(own[t]) for e in level.experts[t]] if t in level.experts else [] for t in names}
            gates = {t: torch.softmax(level.gates[t](own[t]), dim=1) for t in names}
            if level.shared_gate is not None:
                gate = torch.softmax(level.shared_gate(shared), dim=1)
                shared = self.mix(gate, [*common, *(feature for t in names for feature in private[t])])
            own = {t: self.mix(gates[t], [*private[t], *common]) for t in names}
        return {t: self.model.heads[t](own[t]) for t in names}

    @staticmethod
    def mix(weights: Tensor, features: list[Tensor]) -> Tensor:
        return (weights.unsqueeze(2) * torch.stack(features, dim=1)).sum(1)


def loop_step(model: MultiTaskModel, group: Group) -> Callable[[], None]:
    """A training step by hand."""
    run, optimizer = Loop(model), torch.optim.Adam(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        outputs = run(group.x)
        losses = [F.cross_entropy(outputs[name], group.targets[name]) for name in model.tasks]
        torch.stack(losses).mean().backward()
        optimizer.step()

    return step


def our_step(model: MultiTaskModel, group: Group, sharing: Sharing | None = None) -> Callable[[], object]:
    sharing = DenseSharing() if sharing is None else sharing
    networks = sharing.start(model)
    networks = sharing.begin_epoch(0, model, networks, []) or networks
    update = sharing.update or ("joint" if networks.one_network else "average")
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    step = TrainingStep(model, optimizer, networks, sharing=sharing, update=update)
    return lambda: step.step([[group]])


def check(model: MultiTaskModel, group: Group) -> None:
    """Check that the loop computes the same."""
    found = Loop(model)(group.x)
    for task, output in model(group.x).items():
        torch.testing.assert_close(output, found[task], rtol=1e-4, atol=1e-6)


def measures(quick: bool) -> Iterator[Measure]:
    group, repeats = batch(), 15 if quick else 61
    for name, (architecture, hidden, options, goal) in NETWORKS.items():
        if quick and goal is None:
            continue
        ours, plain = (network(architecture, hidden, **options) for _ in range(2))
        check(ours, group)
        ratio = paired(loop_step(plain, group), our_step(ours, group), repeats)
        yield Measure(f"step ÷ loop of experts, {name}", ratio, goal)
    dense = our_step(network("cgc", [32, 32]), group)
    masks = RandomSharing(keep=KEEP, scope="layer", seed=0)
    masked = our_step(network("pbfs", [32, 32]), group, masks)
    yield Measure("step of pbfs ÷ cgc, 3 of [32, 32]", paired(dense, masked, repeats), PBFS_GOAL)
    apart = our_step(network("cgc", [32, 32]), group, DenseSharing(update="average"))
    yield Measure("step of cgc, tasks one by one ÷ together, 3 of [32, 32]", paired(dense, apart, repeats), None)


if __name__ == "__main__":
    main(measures, __doc__)
