"""Depth of blocks: numbers as timm and BEiT give them, and an error where the modules have no order."""

from __future__ import annotations

import pytest
from torch import nn

from sparsemtl.backbones import CNN, MLP, resnet18
from sparsemtl.errors import ParameterError
from sparsemtl.networks.depth import heights


def by_block(network: nn.Module, *names: str) -> list[set[int]]:
    """Return the heights of the parameters in each named module."""
    found = heights(network)
    assert set(found) == {name for name, _ in network.named_parameters()}
    return [{height for own, height in found.items() if own.startswith(f"{name}.") or own == name} for name in names]


def test_blocks_of_a_resnet_are_counted_through_its_stages() -> None:
    network = resnet18((3, 32, 32), width=4)
    names = ["conv1", "bn1", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))]
    assert by_block(network, *names) == [{9}, {9}, {8}, {7}, {6}, {5}, {4}, {3}, {2}, {1}]


def test_layers_of_a_plain_stack_are_blocks_with_the_norms_behind_them() -> None:
    network = CNN((1, 8, 8), widths=[4, 8])  # convolution, norm, activation, twice
    names = [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    assert by_block(network, *names) == [{2}, {2}, {1}, {1}]
    layers = [name for name, module in MLP((4,), hidden=[5, 6, 7]).named_modules() if isinstance(module, nn.Linear)]
    assert by_block(MLP((4,), hidden=[5, 6, 7]), *layers) == [{3}, {2}, {1}]


def test_layers_of_transformers_are_blocks() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 3}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=9, max_position_embeddings=9, **sizes))
    names = ["embeddings", *(f"encoder.layer.{layer}" for layer in range(3)), "pooler"]
    assert by_block(bert, *names) == [{4}, {3}, {2}, {1}, {0}]
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes))
    assert by_block(vit, "embeddings.cls_token", "embeddings.position_embeddings", "layernorm") == [{4}, {4}, {0}]
    layers = next(name for name, module in vit.named_modules() if isinstance(module, nn.ModuleList))
    assert by_block(vit, *(f"{layers}.{layer}" for layer in range(3))) == [{3}, {2}, {1}]
    one = transformers.BertModel(transformers.BertConfig(vocab_size=9, **{**sizes, "num_hidden_layers": 1}))
    assert by_block(one, "embeddings", "encoder", "pooler") == [{2}, {1}, {0}]


def test_blocks_inside_stages_are_counted_and_experts_inside_layers_are_not() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 16, "patch_size": 2, "num_channels": 1, "window_size": 2}
    swin = transformers.SwinModel(transformers.SwinConfig(embed_dim=4, depths=[2, 1], num_heads=[1, 2], **sizes))
    blocks = ["encoder.layers.0.blocks.0", "encoder.layers.0.blocks.1", "encoder.layers.1.blocks.0"]
    names = ["embeddings", *blocks, "encoder.layers.0.downsample", "layernorm"]
    assert by_block(swin, *names) == [{4}, {3}, {2}, {1}, {2}, {0}]
    config = transformers.ConvNextConfig(num_channels=1, hidden_sizes=[4, 8], depths=[2, 1], num_stages=2)
    network = transformers.ConvNextModel(config)
    names = [f"encoder.stages.{block}" for block in ("0.layers.0", "0.layers.1", "1.layers.0")]
    assert by_block(network, "embeddings", *names) == [{4}, {3}, {2}, {1}]

    class Layer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.attention = nn.Linear(4, 4)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, width), nn.Linear(width, 4)) for _ in range(2))

    assert by_block(nn.Sequential(Layer(8), Layer(8)), "0", "1") == [{2}, {1}]


def test_torch_s_own_transformer_and_parameters_before_it() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))  # a chain of plain layers beside it
            self.body = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, norm=nn.LayerNorm(4)
            )

    assert by_block(Encoder(), "stem", "body.layers.0", "body.layers.1", "body.norm") == [{3}, {2}, {1}, {0}]


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.text = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def test_a_network_without_an_order_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"Towers has 2 chains of blocks \(image.0 to image.1, text.0 to text.1\)"):
        heights(Towers())
    for network in (nn.Linear(2, 2), nn.LSTM(2, 2), nn.Sequential(nn.Sequential(nn.Linear(2, 2)))):
        with pytest.raises(ParameterError, match=r"no depth was found in 'encoder' \((Linear|LSTM|Sequential)\)"):
            heights(network, "encoder")
