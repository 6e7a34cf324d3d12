"""Cost of a proximal step on the convolutions of ResNet-50.

    python benchmarks/prox_speed.py [--quick] [--threads 2] [--json FILE]

All 53 convolutions, 22,531 input channels, 23.5 M weights, single precision: the time of a proximal step over that of
fused AdamW's, or over that of a training step (forward, backward, fused AdamW) on 16 images of 64x64. Adam's moments
are those of a few training steps. Between two timings the optimizer takes a step, so that caches hold what they hold in
training. Rows "in torch" are without the compiled kernel: about 20 passes over the weights and their second moments,
for the shifts, the norms and two Newton steps. In processor time on one thread, beside other work, the adaptive step
took 31 % of a training step in torch (28 to 39 in seven pairs) and 10 % by the kernel, and the plain step 0.8 of fused
AdamW's (0.5 to 1.5 in fifteen).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from common import Measure, Ratio, main, paired
from torch import nn

from sparsemtl.backbones import resnet50
from sparsemtl.kernels.compiled import library
from sparsemtl.optim import L1, GroupLasso, GroupMCP, Penalty, ProximalStep

BATCH, SIDE = 16, 64
STRENGTH = 1e-5
LASSO = GroupLasso(strength=STRENGTH)
OTHERS: dict[str, tuple[Penalty, bool]] = {
    "group lasso by outputs, adaptive": (GroupLasso(strength=STRENGTH, granularity="output-channel"), True),
    "group lasso by blocks, adaptive": (GroupLasso(strength=STRENGTH, granularity="block"), True),
    "l1, adaptive": (L1(strength=STRENGTH), True),
    "group MCP, plain": (GroupMCP(strength=STRENGTH), False),
    "group MCP, adaptive": (GroupMCP(strength=STRENGTH), True),
}


class Training:
    """ResNet-50 in training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = resnet50((3, SIDE, SIDE))
        self.convolutions = [m.weight for m in self.encoder.modules() if isinstance(m, nn.Conv2d)]
        self.images = torch.randn(BATCH, 3, SIDE, SIDE)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-4, eps=1e-6, fused=True)
        for _ in range(3):
            self.step()

    def step(self) -> None:
        """Forward, backward, AdamW."""
        self.optimizer.zero_grad()
        self.encoder(self.images).square().mean().backward()
        self.optimizer.step()

    def over_adam(self, penalty: Penalty, repeats: int, *, adaptive: bool) -> Ratio:
        """Return the time of a proximal step over that of AdamW's."""
        shrink = ProximalStep(penalty, adaptive=adaptive)
        return paired(self.optimizer.step, lambda: shrink(self.optimizer, self.convolutions), repeats)

    def share(self, penalty: Penalty, repeats: int) -> Ratio:
        """Return the time of an adaptive proximal step over that of a training step."""
        shrink = ProximalStep(penalty)
        return paired(self.step, lambda: shrink(self.optimizer, self.convolutions), repeats)


def measures(quick: bool) -> Iterator[Measure]:
    """Yield the rows."""
    training = Training()
    repeats = 3 if quick else 11
    yield Measure("group lasso, plain / fused AdamW", training.over_adam(LASSO, 3 * repeats, adaptive=False), 1.1)
    if library("group_lasso") is not None:
        yield Measure("group lasso, adaptive / training step, compiled", training.share(LASSO, repeats), 0.12)
    os.environ["SPARSEMTL_KERNELS"] = "0"
    yield Measure("group lasso, adaptive / training step, in torch", training.share(LASSO, repeats), 0.20)
    del os.environ["SPARSEMTL_KERNELS"]
    for name, (penalty, adaptive) in () if quick else OTHERS.items():
        yield Measure(f"{name} / fused AdamW", training.over_adam(penalty, repeats, adaptive=adaptive))


if __name__ == "__main__":
    main(measures, __doc__)
