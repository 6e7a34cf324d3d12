"""Segmentation and depth on one U-Net, whose skip connections are concatenations."""

from __future__ import annotations

import pytest
import torch
import walk
from torch import Tensor, nn

import sparsemtl as sm

N, SIDE = 16, 16

# ---- the user's code: 21 lines ----


class UNet(nn.Module):
    """Two levels down and up; features have the size of the image."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.out_features, self.stride = width, 1
        self.first = self.block(3, width)
        self.down = self.block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = self.block(2 * width, width)

    def block(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        high = self.first(x)
        low = self.down(nn.functional.max_pool2d(high, 2))
        return self.last(torch.cat([high, self.up(low)], 1))


images = torch.rand(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
targets = {"parts": (images[:, 0] > 0.5).long(), "depth": images.mean(1, keepdim=True) + 0.1}
tasks = [sm.Segmentation("parts", 2), sm.Depth("depth")]


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    return sm.SharedBottom(UNet(), tasks)


# ---- what must work ----

batches = walk.batches_of(images, targets)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training(method: str) -> None:
    walk.train(make, method, batches)
    walk.plain_loop(make(), method, batches)


def test_fisher_information_equals_a_loop_over_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)


@pytest.mark.parametrize("method", walk.WHOLE)
def test_the_network_of_a_task_becomes_smaller(method: str) -> None:
    walk.check_whole(make, method, "channel", batches, "parts", images[:4])


def test_units_whose_soft_mask_is_zero_leave_the_network_of_a_task() -> None:
    walk.check_soft(make, batches, "parts", images[:4])
