"""Three text tasks on one BERT: a dict of inputs, one vector per sequence."""

from __future__ import annotations

import pytest
import torch
import walk

import sparsemtl as sm

transformers = pytest.importorskip("transformers")
N, TOKENS, VOCABULARY = 24, 8, 40

# ---- the user's code: 12 lines ----

ids = torch.randint(2, VOCABULARY, (N, TOKENS), generator=torch.Generator().manual_seed(0))
lengths = torch.randint(3, TOKENS + 1, (N,), generator=torch.Generator().manual_seed(1))
mask = (torch.arange(TOKENS) < lengths[:, None]).long()
x = {"input_ids": ids * mask, "attention_mask": mask}
targets = {"topic": ids[:, 1] % 3, "urgent": ids[:, 2] % 2, "length": lengths / TOKENS}
tasks = [sm.Classification("topic", 3), sm.Classification("urgent", 2), sm.Regression("length")]
config = transformers.BertConfig(
    vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
)


def make() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    return sm.SharedBottom(sm.TransformerEncoder(transformers.BertModel(config)), tasks)


# ---- what must work ----

batches = walk.batches_of(x, targets)


@pytest.mark.parametrize("method", walk.METHODS)
def test_training(method: str) -> None:
    walk.train(make, method, batches)
    walk.plain_loop(make(), method, batches)


def test_fisher_information_equals_a_loop_over_samples() -> None:
    walk.check_fisher(make(), batches[0], walk.rows)


@pytest.mark.parametrize(("method", "kind"), [("fisher", "head"), ("random", "neuron"), ("group-lasso", "head")])
def test_the_network_of_a_task_becomes_smaller(method: str, kind: walk.Kind) -> None:
    walk.check_whole(make, method, kind, batches, "topic", batches[0][0])


@pytest.mark.slow
def test_units_whose_soft_mask_is_zero_leave_the_network() -> None:
    walk.check_soft(make, batches, "topic", batches[0][0])
