"""The cross-entropy against its definition, to the last bit, however many labels are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from loops import each
from torch import Tensor

from sparsemtl.tasks.cross_entropy import cross_entropy


def by_definition(output: Tensor, target: Tensor, ignore_index: int, smoothing: float) -> Tensor:
    """The sum over the known labels by their count, with zeros for the outputs of unknown labels."""
    known = target != ignore_index
    output = torch.where(known.unsqueeze(1), output, 0.0)
    total = F.cross_entropy(output, target, ignore_index=ignore_index, label_smoothing=smoothing, reduction="sum")
    count = known.sum()
    return total / torch.where(count > 0, count, 1)


@each("dtype", [torch.float32, torch.float64, torch.bfloat16])
@each("smoothing", [0.0, 0.1])
@each("ignore_index", [-100, 255, 1])
@each("unknown", ["none", "some", "all"])
def test_loss_and_gradient_are_those_of_the_definition(
    unknown: str, ignore_index: int, smoothing: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    for size, classes, *positions in [(1, 2), (63, 3), (64, 10), (257, 40), (5, 4, 3, 7)]:
        shape = (size, *positions)
        values = (3 * torch.randn(size, classes, *positions, generator=generator)).to(dtype)
        target = torch.randint(classes, shape, generator=generator)
        if unknown == "none":
            target[target == ignore_index] = 0
        else:
            target[torch.rand(shape, generator=generator) < (0.5 if unknown == "some" else 2)] = ignore_index
        leaves = [values.clone().requires_grad_() for _ in range(2)]
        losses = [
            cross_entropy(leaves[0], target, ignore_index=ignore_index, label_smoothing=smoothing, class_weights=None),
            by_definition(leaves[1], target, ignore_index, smoothing),
        ]
        for loss in losses:
            (0.37 * loss).backward()
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_no_label_at_all_gives_zero() -> None:
    output = torch.zeros(0, 3, requires_grad=True)
    loss = cross_entropy(
        output, torch.zeros(0, dtype=torch.long), ignore_index=-100, label_smoothing=0.0, class_weights=None
    )
    assert loss.item() == 0
