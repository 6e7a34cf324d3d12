"""Losses, metrics, a head and a likelihood of the user's own: focal and ordinal loss, functions as metrics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import walk
from torch import Tensor, nn
from torch.distributions import Categorical
from torchmetrics.classification import MulticlassAccuracy

import sparsemtl as sm

N = 24

# ---- the user's code: 29 lines ----


def focal(output: Tensor, label: Tensor) -> Tensor:
    """Focal loss with gamma 2 (Lin et al. 2017)."""
    log_p = -F.cross_entropy(output, label, reduction="none")
    return -((1 - log_p.exp()) ** 2 * log_p).mean()


class Ordinal(nn.Module):
    """One score against learned thresholds (McCullagh 1980)."""

    def __init__(self) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def distribution(self, score: Tensor) -> Categorical:
        above, ends = (score - self.thresholds).sigmoid(), torch.ones_like(score)
        return Categorical(probs=(torch.cat([ends, above], 1) - torch.cat([above, 0 * ends], 1)).clamp(min=1e-6))

    def forward(self, score: Tensor, label: Tensor) -> Tensor:
        return -self.distribution(score).log_prob(label)


x = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
targets = {"kind": x[:, :3].argmax(1), "grade": (x[:, 0] * 1.5).round().clamp(-1, 1).long() + 1, "size": x.sum(1)}
balanced = MulticlassAccuracy(3, average="macro")
errors = {"squared": F.mse_loss, "absolute": F.l1_loss}


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    ordinal = Ordinal()
    kind = sm.Classification("kind", 3, loss=focal, metrics={"balanced": balanced})
    grade = sm.CustomTask("grade", 1, loss=ordinal, likelihood=ordinal.distribution)
    median = {"metrics": {"median": lambda z, y: (z - y).abs().median()}, "higher_is_better": {"median": False}}
    size = sm.Regression("size", loss=errors, loss_weights={"absolute": 0.5}, **median)
    head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    heads = {"kind": head, "grade": nn.Linear(16, 1), "size": size.head(16)}
    encoder = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    return sm.SharedBottom(encoder, [kind, grade, size], heads)


# ---- what must work ----

batches = walk.batches_of(x, targets)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training(method: str) -> None:
    trainer = walk.train(make, method, batches)
    assert set(trainer.validation["kind"]) == {"loss", "balanced"}
    assert set(trainer.validation["grade"]) == {"loss", "batch_loss"}
    assert set(trainer.validation["size"]) == {"loss", "loss_squared", "loss_absolute", "median"}
    assert bool((trainer.model.get_parameter("task_losses.grade.thresholds") != torch.tensor([-1.0, 1.0])).all())
    walk.plain_loop(make(), method, batches)


def test_fisher_information_equals_a_loop_over_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)


@pytest.mark.parametrize("method", walk.WHOLE)
def test_the_network_of_a_task_becomes_smaller(method: str) -> None:
    walk.check_whole(make, method, "channel", batches, "grade", x[:4])


def test_units_whose_soft_mask_is_zero_leave_the_network() -> None:
    walk.check_soft(make, batches, "grade", x[:4])
