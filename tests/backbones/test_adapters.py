"""Encoders of the transformers library: features per token and per sequence, equal to the library's own."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemtl import (
    Classification,
    EncoderAdapter,
    SharedBottom,
    TokenClassification,
    TransformerEncoder,
    left_out_parameters,
    maskable_parameters,
)
from sparsemtl.errors import ParameterError

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def bert(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=8, **TINY)
    return transformers.BertModel(config, **options).eval()


def decoder() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=30, num_key_value_heads=1, **TINY)
    return transformers.LlamaModel(config).eval()


def text() -> dict[str, Tensor]:
    ids = torch.randint(1, 30, (2, 5), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids * MASK, "attention_mask": MASK}


def test_one_encoder_serves_tasks_per_sequence_and_per_token() -> None:
    encoder = TransformerEncoder(bert())
    model = SharedBottom(encoder, [Classification("topic", 3), TokenClassification("tags", 4)])
    outputs = model(text())
    assert outputs["topic"].shape == (2, 3)
    assert outputs["tags"].shape == (2, 5, 4)
    own = encoder.model(**text())
    features = encoder(transformers.BatchEncoding(text()))
    assert torch.equal(features.tokens, own.last_hidden_state)
    assert torch.equal(features.pooled, own.pooler_output)


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_pooling_equals_a_loop_over_samples(pool: str) -> None:
    tokens, pooled = TransformerEncoder(decoder(), pool=pool)(text())
    for i, length in enumerate((5, 3)):
        kept = tokens[i, :length]
        expected = {"first": kept[0], "last": kept[-1], "mean": kept.mean(0)}[pool]
        torch.testing.assert_close(pooled[i], expected)


def test_inputs_without_a_mask_are_whole() -> None:
    ids = text()["input_ids"]
    tokens, pooled = TransformerEncoder(decoder(), pool="last")(ids)
    assert torch.equal(pooled, tokens[:, -1])
    tokens, pooled = TransformerEncoder(decoder(), pool="mean")({"input_ids": ids})
    torch.testing.assert_close(pooled, tokens.mean(1))


def test_a_mask_that_pads_on_the_left_is_read_from_its_last_token() -> None:
    x = {"input_ids": text()["input_ids"], "attention_mask": MASK.flip(1)}
    tokens, pooled = TransformerEncoder(decoder(), pool="last")(x)
    assert torch.equal(pooled, tokens[:, -1])


def test_images_go_through_a_vit() -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **TINY)
    model = SharedBottom(TransformerEncoder(transformers.ViTModel(config)), [Classification("digit", 10)])
    assert model(torch.rand(3, 1, 8, 8))["digit"].shape == (3, 10)


def test_a_model_without_pooler_says_what_stands_for_a_sequence() -> None:
    for pool in (None, "pooler"):
        with pytest.raises(ParameterError, match="BertModel has no pooler"):
            TransformerEncoder(bert(add_pooling_layer=False), pool=pool)
    with pytest.raises(ParameterError, match="'median'"):
        TransformerEncoder(bert(), pool="median")


class Sum(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"sum": left + right, "left": left}


@pytest.mark.parametrize(
    "x",
    [(torch.ones(2), torch.ones(2)), [torch.ones(2), torch.ones(2)], {"right": torch.ones(2), "left": torch.ones(2)}],
)
def test_parts_of_an_input_become_arguments(x: tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]) -> None:
    assert EncoderAdapter(Sum(), output="sum")(x).tolist() == [2, 2]


def test_an_output_is_picked_by_key_attribute_or_index() -> None:
    class Out(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.value

    def run(value: Any, which: Any) -> Any:
        return EncoderAdapter(Out(), output=which)(SimpleNamespace(value=value))

    assert run({"a": 1}, "a") == 1
    assert run((1, 2), 1) == 2
    assert run(SimpleNamespace(a=3), "a") == 3
    assert run(4, None) == 4
    for value, which in (({"a": 1}, "b"), ((1, 2), 2), (SimpleNamespace(a=3), "b")):
        with pytest.raises(ParameterError, match="no part"):
            run(value, which)


def vit() -> nn.Module:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **TINY)
    return transformers.ViTModel(config, add_pooling_layer=False)


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    )


@pytest.mark.parametrize(
    ("make", "covered", "left_out"),
    [
        (
            bert,
            {"query", "key", "value", "dense"},
            {
                "embeddings.word_embeddings.weight": "an embedding",
                "embeddings.position_embeddings.weight": "a table of positions",
                "embeddings.token_type_embeddings.weight": "an embedding",
            },
        ),
        (
            vit,
            {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "projection"},
            {
                "embeddings.cls_token": "a position or class token",
                "embeddings.position_embeddings": "a position or class token",
            },
        ),
        (
            gpt2,
            {"c_attn", "c_proj", "c_fc"},
            {"transformer.wte.weight": "an embedding", "transformer.wpe.weight": "a table of positions"},
        ),
    ],
)
def test_masks_leave_embeddings_and_positions_of_transformers_alone(
    make: Any, covered: set[str], left_out: dict[str, str]
) -> None:
    model = make()
    assert {name.split(".")[-2] for name in maskable_parameters(model)} == covered
    reasons = left_out_parameters(model)
    for name, kind in left_out.items():
        assert reasons[name].startswith(kind), name
    assert set(maskable_parameters(model, only=list(left_out))) == set(left_out)
