"""Heads and neurons: all are found, and what is masked with a unit is read by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemtl import Classification, SharedBottom, fisher_masks
from sparsemtl.architectures import TransformerEncoder
from sparsemtl.criteria.select_units import select_structures
from sparsemtl.errors import MaskError
from sparsemtl.networks.structures import Structure, find_structures

transformers = pytest.importorskip("transformers")
TASKS = [Classification("a", 2), Classification("b", 3)]
WIDTH, HEADS, INNER = 16, 4, 24
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": INNER}
IDS = {"input_ids": torch.randint(1, 20, (3, 5), generator=torch.Generator().manual_seed(0))}


def bert() -> nn.Module:
    return TransformerEncoder(transformers.BertModel(transformers.BertConfig(vocab_size=20, **COMMON)))


def llama(key_values: int) -> nn.Module:
    config = transformers.LlamaConfig(vocab_size=20, num_key_value_heads=key_values, **COMMON)
    return TransformerEncoder(transformers.LlamaModel(config), pool="last")


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=20, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=INNER)
    return TransformerEncoder(transformers.GPT2Model(config), pool="last")


class Plain(nn.Module):
    """torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = WIDTH
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, 0]


def perceptron() -> nn.Module:
    encoder = nn.Sequential(nn.Linear(6, INNER), nn.BatchNorm1d(INNER), nn.GELU(), nn.Linear(INNER, WIDTH), nn.ReLU())
    encoder.out_features = WIDTH
    return encoder


TOKENS = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, tuple[int, int]]]] = {
    "bert": (bert, IDS, {"head": (2, HEADS), "neuron": (2, INNER)}),
    "llama": (lambda: llama(HEADS), IDS, {"head": (2, HEADS), "neuron": (2, INNER)}),
    "grouped queries": (lambda: llama(2), IDS, {"head": (2, 2), "neuron": (2, INNER)}),
    "one key for all": (lambda: llama(1), IDS, {"head": (2, HEADS), "neuron": (2, INNER)}),
    "gpt2": (gpt2, IDS, {"head": (2, HEADS), "neuron": (2, INNER)}),
    "torch": (Plain, TOKENS, {"head": (1, HEADS), "neuron": (1, INNER)}),
    "perceptron": (perceptron, ROWS, {"neuron": (1, INNER)}),
}
each = pytest.mark.parametrize(
    ("case", "kind"), [(case, kind) for case, (_, _, kinds) in CASES.items() for kind in kinds]
)


def model_of(case: str) -> tuple[SharedBottom, Any]:
    torch.manual_seed(0)
    make, x, _ = CASES[case]
    return SharedBottom(make(), TASKS).eval(), x


@each
def test_all_units_of_a_network_are_found(case: str, kind: str) -> None:
    model, x = model_of(case)
    layers, count = CASES[case][2][kind]
    found = find_structures(model, x, kind)
    assert [structure.count for structure in found.values()] == [count] * layers


@each
def test_units_are_found_by_the_way_of_tensors_not_by_the_weights(case: str, kind: str) -> None:
    model, x = model_of(case)
    plain = find_structures(model, x, kind)
    for part in (part for structure in plain.values() for part in structure.parts):
        model.get_parameter(part.name).data.zero_()
    found = find_structures(model, x, kind)
    assert found.keys() == plain.keys()
    for layer, structure in found.items():
        assert [(part.name, part.axis) for part in structure.parts] == [
            (part.name, part.axis) for part in plain[layer].parts
        ]
        assert structure.parts[-1].name == layer
        assert structure.kind == kind


def test_activations_may_work_in_place() -> None:
    encoder = nn.Sequential(nn.Linear(6, INNER), nn.ReLU(inplace=True), nn.Linear(INNER, WIDTH))
    model = SharedBottom(encoder, TASKS, {task.name: task.head(WIDTH) for task in TASKS})
    assert list(find_structures(model, ROWS, "neuron")) == ["encoder.2.weight"]


@torch.no_grad()
def put_away(model: nn.Module, structure: Structure, unit: int, parts: str) -> None:
    """Set entries of a unit to zero: all, or only those of the layer that reads it."""
    reader = structure.parts[-1]
    for part in structure.parts if parts == "all" else [reader]:
        parameter = model.get_parameter(part.name)
        parameter.index_fill_(part.axis, (part.units == unit).nonzero().flatten(), 0.0)


@each
def test_what_is_masked_with_a_unit_is_read_by_nothing_else(case: str, kind: str) -> None:
    model, x = model_of(case)
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = model(x)["a"].detach()
    for structure in find_structures(model, x, kind).values():
        outputs = []
        for parts in ("reader", "all"):
            put_away(model, structure, 1, parts)
            outputs.append(model(x)["a"].detach())
            model.load_state_dict(plain, strict=False)
        torch.testing.assert_close(outputs[0], outputs[1])  # rows and biases reach the network through the reader alone
        assert not torch.allclose(outputs[0], before, atol=1e-7)


def test_a_unit_has_its_rows_and_its_columns() -> None:
    model, x = model_of("bert")
    heads = next(iter(find_structures(model, x, "head").values()))
    kinds = {part.name.split("layer.0.")[-1]: (part.axis, part.units.tolist()) for part in heads.parts}
    by_head = [i // (WIDTH // HEADS) for i in range(WIDTH)]
    for own in ("query", "key", "value"):
        assert kinds[f"attention.self.{own}.weight"] == (0, by_head)
        assert kinds[f"attention.self.{own}.bias"] == (0, by_head)
    assert kinds["attention.output.dense.weight"] == (1, by_head)
    fused = next(iter(find_structures(model_of("gpt2")[0], x, "head").values()))
    assert fused.parts[0].units.tolist() == by_head * 3
    assert fused.parts[0].axis == 1


def test_residual_streams_are_no_neurons_and_models_without_attention_have_no_heads() -> None:
    model, x = model_of("perceptron")
    with pytest.raises(MaskError, match="no attention heads"):
        find_structures(model, x, "head")

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out_features = WIDTH
            self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return x + self.third(self.second(x).relu())

    found = find_structures(SharedBottom(Residual(), TASKS), torch.randn(2, WIDTH), "neuron")
    assert list(found) == ["encoder.third.weight"]


def test_whole_units_of_highest_mean_score_are_kept() -> None:
    model, x = model_of("bert")
    structures = find_structures(model, x, "head")
    scores = {name: torch.rand(p.shape, dtype=torch.float64) for name, p in model.shared_parameters().items()}
    masks = select_structures(scores, structures, 0.5)
    ranking = {}
    for layer, structure in structures.items():
        for unit in range(structure.count):
            entries = [scores[p.name].movedim(p.axis, 0)[p.units == unit].flatten() for p in structure.parts]
            ranking[layer, unit] = float(torch.cat(entries).mean())
    best = sorted(ranking, key=lambda key: ranking[key], reverse=True)[: len(ranking) // 2]
    covered = set()
    for layer, structure in structures.items():
        for part in structure.parts:
            covered.add(part.name)
            kept = torch.tensor([(layer, unit) in best for unit in part.units.tolist()])
            rows = masks[part.name].movedim(part.axis, 0)
            assert torch.equal(rows, kept.view(-1, *[1] * (rows.ndim - 1)).expand(rows.shape))
    assert all(bool(mask.all()) for name, mask in masks.items() if name not in covered)


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_fisher_masks_drop_whole_units_and_their_rows_and_columns_agree(kind: Any) -> None:
    model, x = model_of("bert")
    batch = (x, {"a": torch.tensor([0, 1, 0]), "b": torch.tensor([2, 1, 0])})
    masks = fisher_masks(model, [batch], keep=0.5, granularity=kind, estimator="true")
    structures = find_structures(model, x, kind)
    count = sum(structure.count for structure in structures.values())
    for task in masks:
        kept = 0
        for structure in structures.values():
            by_part = [
                [bool(masks[task][p.name].movedim(p.axis, 0)[p.units == unit].all()) for unit in range(structure.count)]
                for p in structure.parts
            ]
            assert all(units == by_part[0] for units in by_part)
            kept += sum(by_part[0])
        assert kept == count // 2


def test_scores_of_biases_are_needed() -> None:
    model, x = model_of("bert")
    scores = {name: p for name, p in model.shared_parameters().items() if p.ndim > 1}
    with pytest.raises(MaskError, match="mask_all=True"):
        select_structures(scores, find_structures(model, x, "head"), 0.5)


def test_the_model_is_as_before() -> None:
    model, x = model_of("torch")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_structures(model, x, "head")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
