"""Speed of gated experts on a table like census-income: 40 columns, one-hot in 480, batches of 1024, two tasks.

    python benchmarks/experts_speed.py [--repeats 31] [--threads 2] [--only mmoe]

- *throughput*: training steps (forward, losses, backward, Adam) a second of mmoe, cgc and ple, over those of the same
  network with a plain loop over experts, gates and tasks.
- *pbfs*: time of a training step of pbfs, whose tasks run one by one as each has a mask of its own on the pool, over
  that of a cgc with the same experts, whose tasks run together. Masks keep 0.3 of every weight tensor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from common import Ratio, paired
from torch import Tensor, nn

from sparsemtl import Classification, DenseSharing, RandomSharing
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import MLP
from sparsemtl.heads import MLPHead
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.sharing import Sharing
from sparsemtl.tasks.batches import Group
from sparsemtl.training.step import TrainingStep

BATCH, COLUMNS, CODES = 1024, 40, 12
KEEP = 0.3
NETWORKS: dict[str, tuple[str, Sequence[int], dict[str, int]]] = {
    "mmoe, 8 of [4]": ("mmoe", [4], {"experts": 8}),
    "cgc, 3 of [32, 32]": ("cgc", [32, 32], {}),
    "cgc, 12 of [32, 32]": ("cgc", [32, 32], {"shared_experts": 4, "task_experts": 4}),
    "ple, 2 levels, 3 of [16]": ("ple", [16, 16], {}),
    "ple, 2 levels, 12 of [16]": ("ple", [16, 16], {"shared_experts": 4, "task_experts": 4}),
}
TARGET, PBFS_TARGET = 1.5, 1.5


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


def plain_step(model: MultiTaskModel, run: nn.Module, group: Group) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        outputs = run(group.x)
        losses = [task.loss(outputs[name], group.targets) for name, task in model.tasks.items()]
        torch.stack(losses).mean().backward()
        optimizer.step()

    return step


def throughput(name: str, repeats: int) -> Ratio:
    """Samples per second, over those of the loop."""
    architecture, hidden, options = NETWORKS[name]
    group = batch()
    together, apart = (network(architecture, hidden, **options) for _ in range(2))
    check(together, apart, group)
    return paired(plain_step(together, together, group), plain_step(apart, Loop(apart), group), repeats)


def check(together: MultiTaskModel, apart: MultiTaskModel, group: Group) -> None:
    """Check that both compute the same."""
    found = Loop(apart)(group.x)
    for task, output in together(group.x).items():
        torch.testing.assert_close(output, found[task], rtol=1e-4, atol=1e-6)


def engine_step(model: MultiTaskModel, sharing: Sharing, group: Group) -> Callable[[], object]:
    networks = sharing.start(model)
    networks = sharing.begin_epoch(0, model, networks, []) or networks
    update = "joint" if networks.one_network else "average"
    optimizer = torch.optim.Adam(model.parameters())
    step = TrainingStep(model, optimizer, networks, sharing=sharing, balancing="sum", update=update)
    return lambda: step.step([[group]])


def pbfs_over_cgc(hidden: Sequence[int], repeats: int) -> Ratio:
    """Time of a step with masks, over that of a dense one of cgc."""
    group = batch()
    dense = engine_step(network("cgc", hidden), DenseSharing(), group)
    masked = engine_step(network("pbfs", hidden), RandomSharing(keep=KEEP, scope="layer", seed=0), group)
    return paired(dense, masked, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31, help="pairs of timings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["mmoe", "cgc", "ple", "pbfs"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"batch {BATCH}, {COLUMNS * CODES} inputs, {options.threads} threads, torch {torch.__version__}\n")
    print("| what | experts | ratio (range) | target |")
    print("| :--- | :--- | ---: | ---: |")
    for name, (architecture, _, _) in NETWORKS.items():
        if options.only in (None, architecture):
            print(f"| throughput | {name} | {throughput(name, options.repeats)} | at least {TARGET} |", flush=True)
    if options.only in (None, "pbfs"):
        ratio = pbfs_over_cgc([32, 32], options.repeats)
        print(f"| time, pbfs over cgc | 3 of [32, 32] | {ratio} | at most {PBFS_TARGET} |", flush=True)


if __name__ == "__main__":
    main()
