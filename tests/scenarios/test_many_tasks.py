"""Thirty yes/no questions about one input, most of them unanswered; and two data sets with a task each."""

from __future__ import annotations

import pytest
import torch
import walk
from torch import nn

import sparsemtl as sm

N, QUESTIONS = 24, 30

# ---- the user's code: 10 lines ----

generator = torch.Generator().manual_seed(0)
x = torch.randn(N, 5, generator=generator)
answers = (x @ torch.randn(5, QUESTIONS, generator=generator) > 0).float()
answers[torch.rand(answers.shape, generator=generator) < 0.7] = torch.nan  # unanswered
answers[0] = 1.0
targets = {f"q{i}": answers[:, i] for i in range(QUESTIONS)}
tasks = [sm.Classification(f"q{i}", 2) for i in range(QUESTIONS)]
two = {"left": [(x[:8], (x[:8, 0] > 0).long())] * 2, "right": [(x[8:], x[8:, 1])]}  # a loader per task


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    return sm.SharedBottom(nn.Sequential(nn.Linear(5, 16), nn.ReLU()), tasks, {t.name: t.head(16) for t in tasks})


def make_two() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    tasks = [sm.Classification("left", 2), sm.Regression("right")]
    return sm.SharedBottom(nn.Sequential(nn.Linear(5, 16), nn.ReLU()), tasks, {t.name: t.head(16) for t in tasks})


# ---- what must work ----

batches = walk.batches_of(x, targets, size=N)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training_on_missing_labels(method: str) -> None:
    walk.train(make, method, batches)
    walk.plain_loop(make(), method, batches)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training_on_two_data_sets(method: str) -> None:
    walk.train(make_two, method, two)


def test_fisher_information_equals_a_loop_over_labelled_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)
