"""A tag per token and a class per sentence on one bidirectional LSTM; padding carries no label."""

from __future__ import annotations

import pytest
import torch
import walk
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.heads import TokenFeatures

N, TOKENS, VOCABULARY = 24, 6, 20

# ---- the user's code: 19 lines ----


class Tagger(nn.Module):
    """Features of tokens behind a feed-forward layer, and their mean over the tokens that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 12
        self.embed = nn.Embedding(VOCABULARY, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.feed_forward = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, ids: Tensor) -> TokenFeatures:
        tokens = self.feed_forward(self.lstm(self.embed(ids))[0])
        known = (ids > 0).unsqueeze(2)
        return TokenFeatures(tokens, (tokens * known).sum(1) / known.sum(1).clamp(min=1))


ids = torch.randint(1, VOCABULARY, (N, TOKENS), generator=torch.Generator().manual_seed(0))
ids[::3, 4:] = 0
targets = {"tags": torch.where(ids > 0, ids % 3, -100), "mood": ids[:, 0] % 2}
tasks = [sm.TokenClassification("tags", ["O", "B-X", "I-X"]), sm.Classification("mood", 2)]


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    return sm.SharedBottom(Tagger(), tasks)


# ---- what must work ----

batches = walk.batches_of(ids, targets)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training(method: str) -> None:
    trainer = walk.train(make, method, batches)
    assert "entity_f1" in trainer.validation["tags"]
    walk.plain_loop(make(), method, batches)


def test_fisher_information_equals_a_loop_over_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)


@pytest.mark.parametrize("method", walk.WHOLE)
def test_the_network_of_a_task_becomes_smaller(method: str) -> None:
    walk.check_whole(make, method, "neuron", batches, "mood", ids[:4])


def test_units_whose_soft_mask_is_zero_leave_the_network() -> None:
    walk.check_soft(make, batches, "mood", ids[:4])
