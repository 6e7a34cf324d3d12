"""GRU and LSTM, batch first and sequence first: scores are those of each sample alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import walk
from torch import Tensor, nn

import sparsemtl as sm

N, STEPS = 16, 7

# ---- the user's code: 16 lines ----


class Last(nn.Module):
    """State of a recurrent network after the last step, behind a feed-forward layer."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool) -> None:
        super().__init__()
        self.out_features = 6
        self.rnn = kind(3, 6, batch_first=batch_first)
        self.feed_forward = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return self.feed_forward(outputs[:, -1] if self.rnn.batch_first else outputs[-1])


signals = torch.randn(N, STEPS, 3, generator=torch.Generator().manual_seed(0))
targets = {"sign": (signals.sum((1, 2)) > 0).long(), "last": signals[:, -1, 0]}
tasks = [sm.Classification("sign", 2), sm.Regression("last")]


def make(kind: type[nn.RNNBase], batch_first: bool) -> sm.MultiTaskModel:
    torch.manual_seed(0)
    return sm.SharedBottom(Last(kind, batch_first), tasks)


# ---- what must work ----


def batches_for(batch_first: bool) -> list[walk.Batch]:
    return [(x if batch_first else x.transpose(0, 1), y) for x, y in walk.batches_of(signals, targets)]


def alone(batch_first: bool) -> Any:
    return lambda x, i: x[i : i + 1] if batch_first else x[:, i : i + 1]


forms = pytest.mark.parametrize(("kind", "batch_first"), [(k, b) for k in (nn.GRU, nn.LSTM) for b in (True, False)])


two_forms = pytest.mark.parametrize(("kind", "batch_first"), [(nn.GRU, True), (nn.LSTM, False)])


@two_forms
@pytest.mark.parametrize("method", walk.METHODS)
def test_training(kind: type[nn.RNNBase], batch_first: bool, method: str) -> None:
    batches = batches_for(batch_first)
    walk.train(lambda: make(kind, batch_first), method, batches)
    walk.plain_loop(make(kind, batch_first), method, batches)


@forms
def test_fisher_information_equals_a_loop_over_samples(kind: type[nn.RNNBase], batch_first: bool) -> None:
    walk.check_fisher(make(kind, batch_first), batches_for(batch_first)[0], alone(batch_first))


@two_forms
def test_the_network_of_a_task_becomes_smaller(kind: type[nn.RNNBase], batch_first: bool) -> None:
    batches = batches_for(batch_first)
    method = "group-lasso" if batch_first else "fisher"
    walk.check_whole(lambda: make(kind, batch_first), method, "neuron", batches, "sign", batches[0][0])


def test_units_whose_soft_mask_is_zero_leave_the_network() -> None:
    batches = batches_for(True)
    walk.check_soft(lambda: make(nn.GRU, True), batches, "sign", batches[0][0])
