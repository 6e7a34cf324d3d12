"""Models of the transformers library by their kind or from a folder, as encoders of configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsemtl as sm
from sparsemtl.backbones import ENCODERS
from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.heads.tokens import TokenFeatures

pytest.importorskip("transformers")

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])


def build(shape: tuple[int, ...] = (4,), **options: Any) -> Any:
    torch.manual_seed(0)
    return ENCODERS.build("transformers", shape, **options).eval()


def test_padding_is_seen_by_no_other_token() -> None:
    encoder = build(model="bert", config={"vocab_size": 10, **SMALL}, pool="mean", padding=0)
    features = encoder(WORDS)
    assert isinstance(features, TokenFeatures)
    assert (features.pooled.shape, features.tokens.shape, encoder.out_features) == ((2, 8), (2, 4, 8), 8)
    alone = encoder(WORDS[1:, :2])
    torch.testing.assert_close(features.pooled[1:], alone.pooled)
    torch.testing.assert_close(features.tokens[1:, :2], alone.tokens)
    mask = {"input_ids": WORDS, "attention_mask": (WORDS != 0).long()}
    assert torch.equal(encoder(mask).pooled, features.pooled)
    assert not torch.equal(sm.TransformerEncoder(encoder.model, "mean")(WORDS).pooled, features.pooled)


def test_a_model_has_the_pooler_only_if_it_is_used() -> None:
    assert any("pooler" in name for name, _ in build(config={"vocab_size": 10, **SMALL}).named_parameters())
    without = build(config={"vocab_size": 10, **SMALL}, pool="first")
    assert not any("pooler" in name for name, _ in without.named_parameters())
    decoder = {"vocab_size": 10, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    assert build(model="gpt2", config=decoder).pool == "mean"


def test_images_give_a_model_its_size_and_channels() -> None:
    encoder = build((1, 8, 8), model="vit", config={"patch_size": 4, **SMALL}, pool="first")
    assert encoder(torch.rand(2, 1, 8, 8)).tokens.shape == (2, 5, 8)
    with pytest.raises(ParameterError, match=r"square images \(channels, size, size\), got samples of \(1, 8, 6\)"):
        build((1, 8, 6), model="vit", config=SMALL)


def test_a_model_is_read_from_a_folder(tmp_path: Path) -> None:
    made = build(config={"vocab_size": 10, **SMALL}, padding=0)
    made.model.save_pretrained(tmp_path / "bert")
    read = build(model=str(tmp_path / "bert"), padding=0)
    assert torch.equal(read(WORDS).pooled, made(WORDS).pooled)


def test_unknown_kinds_and_options_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"no kind of model 'bertt'. Did you mean 'bert'\?"):
        build(model="bertt")
    with pytest.raises(ConfigError, match="unknown parameter 'hidden_size'"):
        build(hidden_size=8)
