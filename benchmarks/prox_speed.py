"""Cost of a proximal step on the convolutions of ResNet-50.

    python benchmarks/prox_speed.py [--repeats 31] [--threads 2]

All 53 convolutions, 22,531 input channels, 23.5 M weights, single precision. A step's time over that of fused AdamW's,
and over that of a training step (forward, backward, fused AdamW) on 16 images of 64x64. Adam's moments are those of a
few training steps. Between two timings the optimizer takes a step, so that caches hold what they hold in training.
"""

from __future__ import annotations

import torch
from common import Ratio, arguments, paired
from torch import nn

from sparsemtl.backbones import resnet50
from sparsemtl.optim import L1, GroupLasso, GroupMCP, Penalty, ProximalStep

BATCH, SIDE = 16, 64
STRENGTH = 1e-5
STEPS: dict[str, tuple[Penalty, bool]] = {
    "group lasso, plain": (GroupLasso(strength=STRENGTH), False),
    "group lasso, adaptive": (GroupLasso(strength=STRENGTH), True),
    "group lasso by outputs, adaptive": (GroupLasso(strength=STRENGTH, granularity="output-channel"), True),
    "group lasso by blocks, adaptive": (GroupLasso(strength=STRENGTH, granularity="block"), True),
    "l1, adaptive": (L1(strength=STRENGTH), True),
    "group MCP, plain": (GroupMCP(strength=STRENGTH), False),
    "group MCP, adaptive": (GroupMCP(strength=STRENGTH), True),
}
TARGETS = {"group lasso, plain": ("1.3", "4 %"), "group lasso, adaptive": ("none set", "15 %")}


class Training:
    """ResNet-50 in training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = resnet50((3, SIDE, SIDE))
        self.convolutions = [m.weight for m in self.encoder.modules() if isinstance(m, nn.Conv2d)]
        self.images = torch.randn(BATCH, 3, SIDE, SIDE)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-4, eps=1e-6, fused=True)

    def step(self) -> None:
        """Forward, backward, AdamW."""
        self.optimizer.zero_grad()
        self.encoder(self.images).square().mean().backward()
        self.optimizer.step()

    def measure(self, penalty: Penalty, *, adaptive: bool, repeats: int) -> tuple[Ratio, Ratio]:
        """A proximal step over AdamW's, and over a training step."""
        shrink = ProximalStep(penalty, adaptive=adaptive)

        def proximal() -> None:
            shrink(self.optimizer, self.convolutions)

        self.step()
        over_adam = paired(self.optimizer.step, proximal, repeats)
        return over_adam, paired(self.step, proximal, max(3, repeats // 3))


def main() -> None:
    options = arguments(__doc__, repeats=31).parse_args()
    torch.set_num_threads(options.threads)
    training = Training()
    groups, weights = (sum(f(w) for w in training.convolutions) for f in (lambda w: w.shape[1], torch.Tensor.numel))
    print(f"{len(training.convolutions)} convolutions, {groups:,} input channels, {weights / 1e6:.1f} M weights")
    print(f"batch {BATCH} of {SIDE}x{SIDE}, {options.threads} threads, torch {torch.__version__}\n")
    print("| step | over fused AdamW (range) | target | of a training step | target |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    for name, (penalty, adaptive) in STEPS.items():
        over_adam, over_step = training.measure(penalty, adaptive=adaptive, repeats=options.repeats)
        limit, share = TARGETS.get(name, ("none set", "none set"))
        print(f"| {name} | {over_adam} | {limit} | {over_step.median:.1%} | {share} |", flush=True)


if __name__ == "__main__":
    main()
