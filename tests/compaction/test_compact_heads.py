"""Attention heads and feed-forward neurons that contribute nothing are gone from the compacted network."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import each
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel, ViTConfig, ViTModel

import sparsemtl as sm
from sparsemtl.compaction.pipeline import CompactedModule

WIDTH, HEADS, SIZE, NEURONS, LENGTH = 16, 4, 4, 6, 5
SHAPE = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": NEURONS, "num_hidden_layers": 2}
WORDS = torch.randint(2, 20, (2, LENGTH), generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@dataclass(frozen=True)
class Block:
    """Weights of one attention with its feed-forward layers, (outputs, inputs)."""

    values: Tensor
    value_bias: Tensor | None
    output: Tensor
    neurons: Tensor
    neuron_bias: Tensor | None
    behind: Tensor


def _bert(layer: Any) -> Block:
    own, dense = layer.attention.self.value, layer.attention.output.dense
    first, second = layer.intermediate.dense, layer.output.dense
    return Block(own.weight, own.bias, dense.weight, first.weight, first.bias, second.weight)


def _vit(layer: Any) -> Block:
    own, mlp = layer.attention, layer.mlp
    value = own.v_proj
    return Block(value.weight, value.bias, own.o_proj.weight, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight)


def _gpt2(layer: Any) -> Block:
    own, mlp = layer.attn, layer.mlp
    values = own.c_attn.weight.t()[2 * WIDTH :], own.c_attn.bias[2 * WIDTH :]
    return Block(*values, own.c_proj.weight.t(), mlp.c_fc.weight.t(), mlp.c_fc.bias, mlp.c_proj.weight.t())


def _llama(layer: Any) -> Block:
    own, mlp = layer.self_attn, layer.mlp
    return Block(own.v_proj.weight, None, own.o_proj.weight, mlp.up_proj.weight, None, mlp.down_proj.weight)


def _torchs(layer: Any) -> Block:
    own, first = layer.self_attn, layer.linear1
    values = own.in_proj_weight[2 * WIDTH :], own.in_proj_bias[2 * WIDTH :]
    return Block(*values, own.out_proj.weight, first.weight, first.bias, layer.linear2.weight)


class Encoder(nn.Module):
    """Two layers of torch's, with or without padded positions."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, NEURONS, batch_first=True, **options) for _ in range(2)
        )

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padded)
        return x


Case = tuple[Callable[[], nn.Module], Any, Callable[[Any], Block], int]
"""Model, example, weights of a layer, parameters of the norm in front of attention or neurons alone."""
GPT2 = {"vocab_size": 20, "n_positions": 8, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_inner": NEURONS}
TOKENS = {"input_ids": WORDS, "use_cache": False}
CASES: dict[str, Case] = {}
for _way in ("sdpa", "eager"):
    _way_of = {"attn_implementation": _way}
    CASES |= {
        f"bert, {_way}": (
            lambda o=_way_of: BertModel(BertConfig(vocab_size=20, max_position_embeddings=8, **SHAPE, **o)),
            {"input_ids": WORDS, "attention_mask": PADDED},
            _bert,
            0,
        ),
        f"vit, {_way}": (
            lambda o=_way_of: ViTModel(ViTConfig(image_size=8, patch_size=4, **SHAPE, **o)),
            {"pixel_values": torch.randn(2, 3, 8, 8, dtype=torch.float64)},
            _vit,
            2 * WIDTH,
        ),
        f"gpt2, {_way}": (
            lambda o=_way_of: GPT2Model(GPT2Config(**GPT2, bos_token_id=0, eos_token_id=1, **o)),
            TOKENS,
            _gpt2,
            2 * WIDTH,
        ),
        f"llama, {_way}": (
            lambda o=_way_of: LlamaModel(LlamaConfig(vocab_size=20, num_key_value_heads=HEADS, **SHAPE, **o)),
            TOKENS,
            _llama,
            WIDTH,
        ),
    }
CASES |= {
    "torch's layers": (Encoder, {"x": HIDDEN}, _torchs, 0),
    "torch's layers, padded": (Encoder, {"x": HIDDEN, "padded": PADDED == 0}, _torchs, 0),
    "torch's layers, norm first": (
        lambda: Encoder(norm_first=True, activation="gelu"),
        {"x": HIDDEN},
        _torchs,
        2 * WIDTH,
    ),
}
KEPT = ((0, HEADS), (1, 2), (HEADS, 0), (3, 1))
"""Heads of the first and of the second layer."""


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _layers(model: nn.Module) -> list[nn.Module]:
    found = getattr(model, "layers", None) or getattr(model, "h", None)
    return list(found if found is not None else model.encoder.layer)


@torch.no_grad()
def _cut(block: Block, heads: int, neurons: int, choice: random.Random) -> None:
    """Set values, or columns that read them, to zero: of all heads and neurons but some."""
    for head in choice.sample(range(HEADS), HEADS - heads):
        rows = slice(head * SIZE, (head + 1) * SIZE)
        if choice.random() < 0.5:
            block.output[:, rows] = 0
        else:
            block.values[rows] = 0
            if block.value_bias is not None:
                block.value_bias[rows] = 0
    for neuron in choice.sample(range(NEURONS), NEURONS - neurons):
        if choice.random() < 0.5:
            block.behind[:, neuron] = 0
        else:
            block.neurons[neuron] = 0
            if block.neuron_bias is not None:
                block.neuron_bias[neuron] = 0


def _same(small: nn.Module, model: nn.Module, example: Any, tolerance: float = 1e-12) -> None:
    with torch.no_grad():
        found, expected = small(**example), model(**example)
    pairs = [(found[name], expected[name]) for name in found] if isinstance(found, dict) else [(found, expected)]
    for one, other in pairs:
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def _compacted(model: nn.Module, example: Any) -> CompactedModule:
    small = sm.compact(model, example_inputs=example)
    assert small.report.verification.verified
    _same(small, model, example)
    return small


@each("name", CASES)
def test_heads_and_neurons_that_are_zero_are_gone(name: str) -> None:
    build, example, block_of, norm = CASES[name]
    choice = random.Random(name)
    kept = choice.choice(KEPT)
    model = _built(build)
    whole = sm.parameter_count(model)
    blocks = [block_of(layer) for layer in _layers(model)]
    neurons = [choice.choice([0, 1, 4, NEURONS]) for _ in blocks]
    for block, heads, units in zip(blocks, kept, neurons, strict=True):
        _cut(block, heads, units, choice)
    report = _compacted(model, example).report
    found = [each.heads for each in report.layers if any(each.heads)]
    assert sorted(set(found)) == sorted({(HEADS, heads) for heads in kept})
    gone = _removed_parameters(blocks, kept, neurons)
    norms = norm * [*kept, *neurons].count(0)
    assert report.parameters == (whole, whole - sum(gone) - norms)
    places = LENGTH if "vit" not in name else 5
    biases = sum(SIZE * (HEADS - heads) * 3 for heads in kept) + sum(NEURONS - units for units in neurons)
    columns = sum(gone) - (biases if blocks[0].neuron_bias is not None else 0)
    assert report.macs is not None
    assert report.macs[0] - report.macs[1] == columns * places
    assert report.verification.only == ""  # one sample is taken, too, though gpt2 and llama ask whether there is one


def _removed_parameters(blocks: list[Block], kept: tuple[int, ...], neurons: list[int]) -> list[int]:
    """Weights and biases of the heads and neurons that are gone, by hand."""
    gone = []
    for block, heads, units in zip(blocks, kept, neurons, strict=True):
        biased = block.neuron_bias is not None
        layers = 2 + (block.value_bias is None)  # a gate in front of the neurons, too
        head = SIZE * (4 * WIDTH + 3 * biased)
        neuron = layers * WIDTH + biased
        gone.append((HEADS - heads) * head + (NEURONS - units) * neuron)
    return gone


class Attention(nn.Module):
    """Attention in the forms that are common in users' code.

    Args:
        groups: heads of keys and values; each serves as many heads of queries.
        form: how it is written.
    """

    def __init__(self, form: str, groups: int = HEADS, *, bias: bool = True) -> None:
        super().__init__()
        self.form, self.groups = form, groups
        inner = SIZE * groups
        self.query, self.fused = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.key, self.value = nn.Linear(WIDTH, inner), nn.Linear(WIDTH, inner, bias=bias)
        self.norm, self.output = nn.LayerNorm(SIZE), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        if self.form == "fused":
            parts = self.fused(x).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
            made = F.scaled_dot_product_attention(*parts.unbind(0))
            return self.output(made.transpose(1, 2).reshape(batch, length, width))
        if self.form == "fused, one by one":
            whole = self.fused(x).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
            made = F.scaled_dot_product_attention(whole[0], whole[1], whole[2])
            return self.output(made.transpose(1, 2).reshape(batch, length, width))
        if self.form == "fused, sliced":
            whole = self.fused(x)
            cuts = whole[..., :width], whole[:, :, width : 2 * width], whole[..., -width:]
            q, k, v = (cut.reshape(batch, length, HEADS, SIZE).transpose(1, 2) for cut in cuts)
            made = F.scaled_dot_product_attention(q, k, v)
            return self.output(made.transpose(1, 2).reshape(batch, length, width))
        if self.form == "einsum":
            q, k, v = (part(x).view(batch, length, -1, SIZE) for part in (self.query, self.key, self.value))
            weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(SIZE)).softmax(-1)
            return self.output(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width))
        if self.form == "fused by heads":
            parts = self.fused(x).view(batch, length, HEADS, 3 * SIZE).transpose(1, 2).chunk(3, dim=-1)
            made = F.scaled_dot_product_attention(*parts)
            return self.output(made.transpose(1, 2).flatten(2))
        q, k, v = (part(x).view(batch, length, -1, SIZE).transpose(1, 2) for part in (self.query, self.key, self.value))
        if self.form == "norms":
            made = F.scaled_dot_product_attention(self.norm(q), self.norm(k), v, is_causal=True)
        elif self.form == "gqa":
            made = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif self.form == "repeated":
            k, v = (each.repeat_interleave(HEADS // self.groups, dim=1) for each in (k, v))
            made = torch.softmax((q @ k.mT) / math.sqrt(q.size(-1)), -1) @ v
        else:
            made = (q @ k.transpose(-1, -2)).div(2.0).softmax(dim=-1).matmul(v)
        return self.output(made.transpose(1, 2).contiguous().view(batch, length, width))


def _attention(form: str, groups: int = HEADS, **options: Any) -> Attention:
    return _built(lambda: Attention(form, groups, **options))  # type: ignore[return-value]


@each("heads", [0, 1, 3, HEADS])
@each("form", ["fused", "fused by heads", "fused, one by one", "fused, sliced", "norms", "plain", "einsum"])
def test_no_form_of_attention_keeps_a_head_that_nobody_reads(form: str, heads: int) -> None:
    model = _attention(form)
    with torch.no_grad():
        for head in random.Random(form).sample(range(HEADS), HEADS - heads):
            model.output.weight[:, head * SIZE : (head + 1) * SIZE] = 0
    small = _compacted(model, {"x": HIDDEN})
    assert small.report.layer("output").heads == (HEADS, heads)
    if heads:
        assert (small.output.weight.view(WIDTH, heads, SIZE) != 0).any(2).any(0).all()
    assert small.report.layer("output").inputs == (WIDTH, heads * SIZE)


@each("form", ["gqa", "repeated"])
@each("dead", [(0,), (0, 1), (1, 2, 3), (0, 1, 2, 3)])
def test_heads_that_share_keys_go_when_all_are_gone(form: str, dead: tuple[int, ...]) -> None:
    model = _attention(form, groups=2)
    with torch.no_grad():
        for head in dead:
            model.output.weight[:, head * SIZE : (head + 1) * SIZE] = 0
    report = _compacted(model, {"x": HIDDEN}).report
    left = sum(not {2 * group, 2 * group + 1} <= set(dead) for group in range(2))
    assert report.layer("key").heads == report.layer("value").heads == (2, left)
    assert report.layer("query").heads == (HEADS, 2 * left)


def test_a_head_with_constant_values_stays_and_is_named() -> None:
    model = _attention("plain")
    with torch.no_grad():
        model.value.weight[:SIZE] = 0
    report = _compacted(model, {"x": HIDDEN}).report
    assert report.layer("value").heads == (HEADS, HEADS)
    assert report.layer("value").why.startswith("1 heads are constant")


def test_heads_that_are_mixed_all_stay() -> None:
    class Mixed(Attention):
        def forward(self, x: Tensor) -> Tensor:
            batch, length, width = x.shape
            q, k, v = (each.view(batch, length, HEADS, SIZE).transpose(1, 2) for each in self.fused(x).chunk(3, -1))
            weights = (q @ k.mT).softmax(-1)
            weights = weights - weights.mean(1, keepdim=True)
            return self.output((weights @ v).transpose(1, 2).reshape(batch, length, width))

    model = _built(lambda: Mixed("plain"))
    with torch.no_grad():
        model.output.weight[:, :SIZE] = 0
    report = _compacted(model, {"x": HIDDEN}).report
    assert report.layer("fused").outputs == (3 * WIDTH, 3 * WIDTH - SIZE)  # of values alone: weights need all others


def test_einsums_over_other_letters_keep_their_tensors() -> None:
    """A letter twice in one tensor, two that are summed, and an ellipsis."""
    for equation in ("bqhd,bkhd->bqk", "bqhd,bqhd->bqh", "...d,...d->..."):

        class Other(Attention):
            def forward(self, x: Tensor, equation: str = equation) -> Tensor:
                q, k = (part(x).view(2, LENGTH, HEADS, SIZE) for part in (self.query, self.key))
                return torch.einsum(equation, q, k)

        other = _built(lambda: Other("plain"))
        assert _compacted(other, {"x": HIDDEN}).report.layer("query").outputs == (WIDTH, WIDTH)


LEFT = PADDED == 0
RIGHT = LEFT.flip(1)


class Padded(nn.Module):
    """Torch's encoder with its last norm, on padded positions."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, NEURONS, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH))

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padded)


@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
@pytest.mark.parametrize("example", [LEFT, RIGHT], ids=["left", "right"])
def test_heads_of_torchs_encoder_go_and_padded_positions_are_what_they_were(example: Tensor, kind: torch.dtype) -> None:
    model = _built(Padded)
    with torch.no_grad():
        for layer in model.encoder.layers:  # type: ignore[operator, union-attr]
            layer.self_attn.out_proj.weight[:, : 2 * SIZE] = 0
    given = [
        m if kind == torch.bool else torch.zeros(m.shape, dtype=kind).masked_fill(m, -math.inf) for m in (LEFT, RIGHT)
    ]
    first = given[0] if example is LEFT else given[1]
    small = _compacted(model, {"x": HIDDEN, "padded": first})
    assert small.report.layer("encoder.layers.1.self_attn.out_proj").heads == (HEADS, 2)
    longer = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    mask = torch.arange(7) >= torch.tensor([[7], [4], [1]])
    masks = [*given, mask if kind == torch.bool else torch.zeros(3, 7, dtype=kind).masked_fill(mask, -math.inf)]
    for x, padded in zip((HIDDEN, HIDDEN, longer), masks, strict=True):
        _same(small, model, {"x": x, "padded": padded})


TOKENS_OF_ITS_OWN = {
    "bias": {"add_bias_kv": True},
    "zeros": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("tokens", TOKENS_OF_ITS_OWN)
def test_heads_of_attention_with_tokens_of_its_own_go(tokens: str, weights: bool, masked: bool) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **TOKENS_OF_ITS_OWN[tokens])

        def forward(self, x: Tensor, mask: Tensor | None = None, padded: Tensor | None = None) -> Tensor:
            return self.own(x, x, x, attn_mask=mask, key_padding_mask=padded, need_weights=weights)[0]

    model: Any = _built(Attending)
    with torch.no_grad():
        model.own.out_proj.weight[:, :SIZE] = 0
        model.own.in_proj_weight[2 * WIDTH + SIZE : 2 * WIDTH + 2 * SIZE] = 0
        model.own.in_proj_bias[2 * WIDTH + SIZE : 2 * WIDTH + 2 * SIZE] = 0
        if model.own.bias_v is not None:
            model.own.bias_v[..., SIZE : 2 * SIZE] = 0
    masks = {"mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), "padded": LEFT} if masked else {}
    small = _compacted(model, {"x": HIDDEN, **masks})
    assert small.report.layer("own.out_proj").heads == (HEADS, 2)
    gone = 2 * SIZE * (4 * WIDTH + 3 + (2 if model.own.bias_v is not None else 0))
    assert small.report.parameters[0] - small.report.parameters[1] == gone


class Parameters(nn.Module):
    """Attention whose projections are einsums with parameters of several axes, in either order."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(WIDTH, HEADS, SIZE)) for _ in range(3))
        self.output = nn.Parameter(torch.randn(HEADS, SIZE, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (torch.einsum("bte,ehd->bthd", x, weight) for weight in (self.query, self.key))
        v = torch.einsum("ehd,bte->bhtd", self.value, x)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return torch.einsum("bqhd,hde->bqe", torch.einsum("bhqk,bhkd->bqhd", weights, v), self.output)


def test_heads_of_einsums_with_parameters_go() -> None:
    model: Any = _built(Parameters)
    with torch.no_grad():
        model.output[0] = 0
        model.value[:, 2] = 0
    small = _compacted(model, {"x": HIDDEN})
    assert [each.heads for each in small.report.layers] == [(HEADS, 2)] * 4
    assert small.report.parameters == (16 * WIDTH * SIZE, 8 * WIDTH * SIZE)
    _same(small, model, {"x": torch.randn(3, 7, WIDTH, dtype=torch.float64)})


def test_an_einsum_with_a_parameter_that_is_read_twice_is_not_followed() -> None:
    class Twice(Parameters):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.output.sum()

    model: Any = _built(Twice)
    with torch.no_grad():
        model.output[0] = 0
    assert _compacted(model, {"x": HIDDEN}).report.layer("query").outputs == (WIDTH, WIDTH)
