"""Cost of the registry's optimizers: over torch's fused ones, and as a share of a training step.

    python benchmarks/optimizer_speed.py [--quick] [--threads 2] [--json FILE]

An MLP of three layers of 1024 units in batches of 64, and ResNet-50 on 16 images of 64x64, single precision. The share
is the time of an optimizer step over that of the forward and backward pass before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from common import Measure, main, paired
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsemtl.backbones import resnet50
from sparsemtl.optim import OPTIMIZERS

GOAL = 1.05
RATES = {"lr": 1e-5}
PEERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, **RATES, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, **RATES, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, **RATES, momentum=0.9, fused=True),
}
SHARES = {"MLP": 0.30, "ResNet-50": 0.06}


def networks(quick: bool) -> Iterator[tuple[str, nn.Module, Tensor, int]]:
    """Yield name, network, batch and number of repeats."""
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    yield "MLP", nn.Sequential(*layers), torch.randn(64, 1024), 11 if quick else 51
    if not quick:
        yield "ResNet-50", resnet50((3, 64, 64)), torch.randn(16, 3, 64, 64), 11


def measures(quick: bool) -> Iterator[Measure]:
    """Yield the rows."""
    for network, model, x, repeats in networks(quick):

        def passes(model: nn.Module = model, x: Tensor = x) -> None:
            model.zero_grad()
            model(x).square().mean().backward()

        passes()
        parameters = list(model.parameters())
        for name, make in PEERS.items():
            own = OPTIMIZERS.build(name, parameters, **RATES)
            yield Measure(f"{name} / fused, {network}", paired(make(parameters).step, own.step, repeats), GOAL)
            if name != "adamw":
                yield Measure(f"{name} / passes, {network}", paired(passes, own.step, repeats), SHARES[network])


if __name__ == "__main__":
    main(measures, __doc__)
