"""Gradient checkpointing as transformers switches it on: masks train the same weights as without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import MaskError

transformers = pytest.importorskip("transformers")


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
        self.bert = transformers.BertModel(config)
        self.out_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return self.bert(input_ids=x).pooler_output


def trained(sharing: sm.Sharing, **checkpointing: Any) -> list[Tensor]:
    torch.manual_seed(0)
    tasks: list[sm.Task] = [sm.Classification("a", 2), sm.Classification("b", 3)]
    model = sm.SharedBottom(Encoder(), tasks)
    if checkpointing:
        model.encoder.bert.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 20, (6, 5), generator=generator)
    data = [(x, {"a": x[:, 0] % 2, "b": x[:, 1] % 3})]
    trainer = sm.Trainer(model, sharing=sharing, epochs=2, progress=False, accelerator="cpu").fit(data, list(data))
    return [p.detach().clone() for p in [*model.parameters(), *trainer.networks.parameters()]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [lambda: sm.RandomSharing(keep=0.5), lambda: sm.SoftMaskSharing(linear=True)])
def test_the_trained_weights_are_the_same(make: Any, reentrant: bool) -> None:
    plain, recomputed = trained(make()), trained(make(), use_reentrant=reentrant)
    assert all(torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_after_the_context_is_refused(reentrant: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder().train()
    encoder.bert.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    weights = {name: p for name, p in encoder.named_parameters() if p.ndim == 2}
    masks = sm.TaskMasks({"a": {name: torch.rand(p.shape) < 0.5 for name, p in weights.items()}})
    with masks.applied(encoder, "a"):
        loss = encoder(torch.randint(0, 20, (6, 5))).square().sum()
    with pytest.raises(MaskError, match="activation checkpointing recomputes the forward pass"):
        loss.backward()
