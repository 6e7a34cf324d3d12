"""Two image tasks on one ViT."""

from __future__ import annotations

import pytest
import torch
import walk

import sparsemtl as sm

transformers = pytest.importorskip("transformers")
N = 24

# ---- the user's code: 11 lines ----

images = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))
targets = {"bright": (images[:, 0, :4].mean((1, 2)) > 0.5).long(), "light": images.mean((1, 2, 3))}
tasks = [sm.Classification("bright", 2), sm.Regression("light")]
config = transformers.ViTConfig(
    image_size=8, patch_size=4, num_channels=1, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2,
)  # fmt: skip


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    vit = transformers.ViTModel(config, add_pooling_layer=False)
    return sm.SharedBottom(sm.TransformerEncoder(vit, pool="first"), tasks)


# ---- what must work ----

batches = walk.batches_of(images, targets)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training(method: str) -> None:
    walk.train(make, method, batches)
    walk.plain_loop(make(), method, batches)


def test_fisher_information_equals_a_loop_over_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)


@pytest.mark.parametrize(("method", "kind"), [("fisher", "neuron"), ("random", "head"), ("group-lasso", "neuron")])
def test_the_network_of_a_task_becomes_smaller(method: str, kind: walk.Kind) -> None:
    walk.check_whole(make, method, kind, batches, "bright", images[:4])


def test_units_whose_soft_mask_is_zero_leave_the_network_of_a_task() -> None:
    walk.check_soft(make, batches, "bright", images[:4])
