"""Thirty yes/no questions about one input, most of them unanswered."""

from __future__ import annotations

import pytest
import torch
import walk
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

import sparsemtl as sm

N, QUESTIONS = 24, 30

# ---- the user's code: 11 lines ----

generator = torch.Generator().manual_seed(0)
x = torch.randn(N, 5, generator=generator)
answers = (x @ torch.randn(5, QUESTIONS, generator=generator) > 0).float()
answers[torch.rand(answers.shape, generator=generator) < 0.7] = torch.nan  # unanswered
answers[0] = 1.0
targets = {f"q{i}": answers[:, i] for i in range(QUESTIONS)}
tasks = [sm.Classification(f"q{i}", 2, metrics={"accuracy": MulticlassAccuracy(2)}) for i in range(QUESTIONS)]


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    return sm.SharedBottom(encoder, tasks, {t.name: t.head(16) for t in tasks})


# ---- what must work ----

batches = walk.batches_of(x, targets, size=N)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training_on_missing_labels(method: str) -> None:
    walk.train(make, method, batches)
    walk.plain_loop(make(), method, batches)


def test_fisher_information_equals_a_loop_over_labelled_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)


def test_the_network_of_a_task_becomes_smaller() -> None:
    """In a plain loop: the metrics of thirty tasks take longer than training."""
    whole = sm.parameter_count(sm.compact(make(), task="q3", example_inputs=x[:4]))
    for sharing in walk.WHOLE.values():
        model = make()
        networks = walk.plain_loop(model, sharing("channel"), batches)
        small = sm.compact(model, networks, task="q3", example_inputs=x[:4])
        with torch.no_grad():
            torch.testing.assert_close(small(x), networks.network(model, "q3").eval()(x, tasks=["q3"])["q3"])
        assert sm.parameter_count(small) < whole
