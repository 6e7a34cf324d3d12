"""Cost of masks: in a training step, in memory and on disk.

    python benchmarks/masks_speed.py [--quick] [--threads 2] [--json FILE]

- *masked product*: weight * mask for 10 M weights, into memory kept from step to step.
- *masks while training*: bytes of all live tensors and kept memory, per weight and further task, after a step per task.
- *masked step*: T tasks, each forward and backward through `TaskMasks.applied`, over T plain forward and backward
  passes, one per task, of the same network.
- *routed step*: a training step of T tasks with output factors that keep half of the units, over T plain forward and
  backward passes, one per task, and a step of fused Adam.
- *strict update*: a training step of one task (forward, backward, fused Adam) by `MaskedOptimizer`, whose masks keep
  0.3, over the same step by the optimizer that it wraps. The masks are in the update only, not in the forward pass.
- *checkpoint*: model, Adam's state and the masks of 8 tasks of a ResNet-50, over `torch.save` of the same state. Ours
  waits for the disk and has a checksum; `torch.save` does not wait.
- *mask file*: the same masks in a file, over `np.packbits` of each and a file of the bytes, synchronised with the disk.
  By hand takes 47 ms of processor time: 31 to pack, 13 to write. Ours takes 76: 31 to pack, 10 for the checksum, 20 in
  safetensors, which writes, and 15 for the rest. It also waits for the disk twice more: the new file takes
  the old one's name, and the folder is synchronised, so that a killed process leaves one of the two.
- *overlap*: all pairs of tasks.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import NETWORKS, Measure, Ratio, batch, main, network, paired, seconds, spread
from torch import Tensor, nn

from sparsemtl import (
    Classification,
    MaskedOptimizer,
    MaximumRoamingSharing,
    SharedBottom,
    TaskMasks,
    TaskRoutingSharing,
    TrainingStep,
)
from sparsemtl.backbones import resnet50
from sparsemtl.networks.masked_product import MaskedProducts, ProductMemory
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing import Sharing
from sparsemtl.storage.files import write_tree

KEEP = 0.3
ROUTED: dict[str, Callable[[], Sharing]] = {
    "task-routing": lambda: TaskRoutingSharing(keep=0.5, seed=0),
    "maximum-roaming": lambda: MaximumRoamingSharing(keep=0.5, seed=0),
}
ROUTED_STEP = 1.1
MASKED_STEP = {"mlp": 1.3, "resnet18": 1.1}
STRICT_UPDATE = {"mlp": None, "resnet18": 1.05}


def random_masks(model: SharedBottom) -> TaskMasks:
    """Masks that keep about 30 % of the shared weights, drawn for every task."""
    shared = model.shared_parameters()
    return TaskMasks({task: {n: torch.rand_like(p) < KEEP for n, p in shared.items()} for task in model.tasks})


def milliseconds(run: Callable[[], object], repeats: int) -> Ratio:
    """Median and range of the time of a call."""
    run()
    return spread(lambda: 1000 * seconds(run), repeats)


def product(repeats: int) -> Ratio:
    """Milliseconds of a product of 10 M weights, forward pass only."""
    weights = [nn.Parameter(torch.randn(1000, 1000)) for _ in range(10)]
    masks = [torch.rand(1000, 1000) < KEEP for _ in weights]
    products = MaskedProducts()
    return milliseconds(
        lambda: [products(w, m, "t", str(i)) for i, (w, m) in enumerate(zip(weights, masks, strict=True))], repeats
    )


def live_bytes() -> int:
    """Bytes of the distinct storages of all live tensors, and of the memory that products keep."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), (Tensor, ProductMemory))]
    tensors = [thing for thing in found if isinstance(thing, Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_sparse}
    memories = [thing for thing in found if isinstance(thing, ProductMemory)]
    blocks = [block for memory in memories for blocks in memory._blocks.values() for block in blocks]
    leased = {t.data_ptr() for block in blocks for t in [torch.from_numpy(block._memory)]}
    return sum(size for place, size in storages.items() if place not in leased) + sum(block.size for block in blocks)


def bytes_after_training(count: int, size: int) -> int:
    """Live bytes after a masked, strict step per task of one square layer."""
    layer = nn.Linear(size, size, bias=False)
    masks = TaskMasks({f"t{i}": {"weight": torch.rand(size, size) < KEEP} for i in range(count)})
    networks = TaskNetworks.of_masks(masks)
    optimizer = MaskedOptimizer(torch.optim.Adam(layer.parameters()), masks, layer)
    for task in masks:
        optimizer.zero_grad()
        with networks.swapped(layer, task):
            layer(torch.randn(4, size)).square().mean().backward()
        optimizer.step(task=task)
    return live_bytes()


def bytes_per_weight_and_task(size: int = 1024) -> float:
    """Bytes that one more task adds, per weight."""
    few, many = bytes_after_training(2, size), bytes_after_training(10, size)
    return (many - few) / (8 * size**2)


def masked_step(name: str, count: int, repeats: int) -> Ratio:
    """Time of T masked passes over that of T plain passes."""
    model, (x, targets) = network(name, count), batch(name, count)
    model(x)
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


def routed_step(name: str, count: int, sharing: Sharing, repeats: int) -> Ratio:
    """Time of a training step with units of each task's own over that of T plain passes and a step of Adam."""
    model, plain, (x, targets) = network(name, count), network(name, count), batch(name, count)
    model(x), plain(x)
    networks = sharing.start(model)
    networks = sharing.begin_epoch(0, model, networks, [(x, targets)]) or networks
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    step = TrainingStep(model, optimizer, networks, sharing=sharing)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-4, fused=True)

    def passes() -> None:
        adam.zero_grad()
        for task in plain.tasks.values():
            task.loss(plain(x, tasks=[task.name])[task.name], targets[task.name]).backward()
        adam.step()

    return paired(passes, lambda: step(x, targets), repeats)


def strict_update(name: str, repeats: int) -> Ratio:
    """Time of a strict step over that of a plain step."""
    model, (x, targets) = network(name, 1), batch(name, 1)
    model(x)
    (task,) = model.tasks.values()
    plain = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    strict = MaskedOptimizer(plain, random_masks(model), model)

    def step(update: Callable[[], object]) -> None:
        model.zero_grad()
        task.loss(model(x)[task.name], targets).backward()
        update()

    return paired(lambda: step(plain.step), lambda: step(strict.step), repeats)


def trained_resnet50(tasks: int) -> tuple[SharedBottom, torch.optim.Optimizer, TaskMasks]:
    """A ResNet-50, Adam after one step, and masks."""
    torch.manual_seed(0)
    model = SharedBottom(resnet50((3, 64, 64)), [Classification(f"task{i}", 10) for i in range(tasks)])
    model(torch.randn(2, 3, 64, 64))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return model, optimizer, random_masks(model)


def files(repeats: int) -> Iterator[Measure]:
    """A checkpoint and a file of masks."""
    model, optimizer, masks = trained_resnet50(8)
    networks = TaskNetworks.of_masks(masks)

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "networks": networks.state_dict()}

    def pack_by_hand(path: Path) -> None:
        with path.open("wb") as file:
            for mask in masks.values():
                for m in mask.values():
                    file.write(np.packbits(m.numpy().reshape(-1)).data)
            file.flush()
            os.fsync(file.fileno())

    with TemporaryDirectory() as name:
        folder = Path(name)
        ratio = paired(lambda: torch.save(state(), folder / "a"), lambda: write_tree(folder / "b", state()), repeats)
        yield Measure("checkpoint of ResNet-50, T=8, over `torch.save`", ratio, 1.3)
        ratio = paired(lambda: pack_by_hand(folder / "c"), lambda: masks.save(folder / "d"), repeats)
        yield Measure("mask file of ResNet-50, T=8, over `np.packbits`", ratio, 1.2)


def overlap(weights: int, tasks: int, repeats: int) -> Ratio:
    """Seconds of the overlap of all pairs of tasks, for masks of one parameter."""
    masks = TaskMasks({f"t{i}": {"w": torch.rand(weights) < KEEP} for i in range(tasks)})
    return spread(lambda: seconds(masks.overlap), repeats)


def measures(quick: bool) -> Iterator[Measure]:
    """Rows of the table; fewer of them, and fewer repeats, if `quick`."""
    yield Measure("masked product, 10 M weights", product(11 if quick else 51), 6, "ms")
    used = spread(bytes_per_weight_and_task, 1)
    yield Measure("masks while training, per weight and task", used, 2, "bytes")
    for name in ("mlp",) if quick else NETWORKS:
        for count in (3,) if quick else (3, 8):
            ratio = masked_step(name, count, 3 if quick else 5)
            yield Measure(f"masked step, {name}, T={count}, over plain passes", ratio, MASKED_STEP[name])
        for method, make in () if quick else ROUTED.items():
            ratio = routed_step(name, 3, make(), 5)
            yield Measure(f"routed step, {method}, {name}, T=3, over plain passes", ratio, ROUTED_STEP)
        ratio = strict_update(name, 5 if quick else 9)
        yield Measure(f"strict update, {name}, over fused Adam", ratio, STRICT_UPDATE[name])
    if not quick:
        yield from files(3)
    sizes = [(10**6, 8)] if quick else [(10**6, 8), (10**7, 8), (25 * 10**6, 8), (10**6, 64)]
    for weights, tasks in sizes:
        yield Measure(f"overlap, {weights:,} weights, T={tasks}", overlap(weights, tasks, 2), None, "s")


if __name__ == "__main__":
    main(measures, __doc__)
