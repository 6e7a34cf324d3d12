"""Size of a bundle of eight tasks over that of the dense model, and time of loading a task over `torch.load`.

    python benchmarks/bundle_speed.py [--quick] [--threads 2] [--json FILE]

ResNet-18 with eight heads, batch norms per task, and masks that keep 30 % of the weights at random: single weights, or
whole output channels. `torch.load` reads the task's compacted network, which `torch.save` wrote.
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from common import Measure, Ratio, main, network, seconds
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.networks.task_networks import TaskNetworks

KEEP = 0.3


def measures(quick: bool) -> Iterator[Measure]:
    """Yield size and loading time per kind of mask."""
    model = network("resnet18", 2 if quick else 8).eval()
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    for kind in ("single weights", "whole channels"):
        networks = _networks(model, channels=kind == "whole channels")
        x = torch.rand(2, 3, 64, 64)
        small = {task: sm.compact(model, networks, task=task, example_inputs=x) for task in model.tasks}
        with tempfile.TemporaryDirectory() as name:
            bundle = sm.save_bundle(small, Path(name) / "bundle.safetensors", model=model)
            share = bundle.bytes / dense
            yield Measure(f"bundle of {len(small)} tasks, {kind}, bytes over dense", Ratio(share, share, share), 1.5)
            task, alone = next(iter(small)), Path(name) / "alone.pt"
            torch.save(small[task], alone)
            ratios = [_ratio(bundle.path, task, alone) for _ in range(3 if quick else 11)][1:]
            value = Ratio(statistics.median(ratios), min(ratios), max(ratios))
            yield Measure(f"loading one of {len(small)} tasks, {kind}, over torch.load", value, 2)


def _ratio(bundle: Path, task: str, alone: Path) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = seconds(lambda: sm.load_network(bundle, task=task))
        return ours / seconds(lambda: torch.load(alone, weights_only=False))


def _networks(model: sm.SharedBottom, *, channels: bool) -> TaskNetworks:
    """Return networks with random masks and batch norms per task."""
    generator = torch.Generator().manual_seed(0)

    def mask(weight: Tensor) -> Tensor:
        size = (len(weight), *[1] * (weight.ndim - 1)) if channels else weight.shape
        return (torch.rand(size, generator=generator) < KEEP).expand(weight.shape).clone()

    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    own = {
        task: {f"{n}.running_var": 0.5 + torch.rand(_width(model, n), generator=generator) for n in norms}
        for task in model.tasks
    }
    masks = {task: {n: mask(p) for n, p in sm.maskable_parameters(model).items()} for task in model.tasks}
    return TaskNetworks.of_masks(sm.TaskMasks(masks), own)


def _width(model: nn.Module, norm: str) -> int:
    return len(model.get_submodule(norm).weight)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(measures, __doc__)
