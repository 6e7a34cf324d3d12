"""A loss, a metric and a head of the user's own: focal loss, balanced accuracy, a head of two layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import walk
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import sparsemtl as sm

N = 24

# ---- the user's code: 14 lines ----


def focal(output: Tensor, label: Tensor) -> Tensor:
    """Focal loss with gamma 2 (Lin et al. 2017)."""
    log_p = -F.cross_entropy(output, label, reduction="none")
    return -((1 - log_p.exp()) ** 2 * log_p).mean()


x = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
targets = {"kind": x[:, :3].argmax(1), "size": x.sum(1)}
balanced = MulticlassAccuracy(3, average="macro")
tasks = [sm.Classification("kind", 3, loss=focal, metrics={"balanced": balanced}), sm.Regression("size")]
own_head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.ReLU())
    return sm.SharedBottom(encoder, tasks, {"kind": own_head, "size": tasks[1].head(16)})


# ---- what must work ----

batches = walk.batches_of(x, targets)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training(method: str) -> None:
    trainer = walk.train(make, method, batches)
    assert set(trainer.validation["kind"]) == {"loss", "balanced"}
    walk.plain_loop(make(), method, batches)


def test_fisher_information_equals_a_loop_over_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)
