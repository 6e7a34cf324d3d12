"""Costs are what a count by hand gives."""

from __future__ import annotations

import pytest
import torch
from loops import each
from torch import nn

from sparsemtl.compaction import ActivationMemory, activation_memory, latency, macs, parameter_count
from sparsemtl.errors import ParameterError


@each(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), (1, 3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, (3, 5), stride=2), (2, 3, 11, 13), 2 * 5 * 5 * 8 * 3 * 15),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 5, 5), 3 * 3 * 8 * 2 * 9),
        (nn.Conv1d(2, 3, 4), (1, 2, 10), 7 * 3 * 2 * 4),
        (nn.ConvTranspose2d(3, 2, 3, stride=2), (1, 3, 4, 4), 4 * 4 * 3 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), (1, 4, 4, 4), 4 * 4 * 4 * 3 * 4),
        (nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
        (nn.Linear(5, 7), (3, 4, 5), 3 * 4 * 5 * 7),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), (4, 2, 4), 4 * (24 + 6)),
    ],
)
def test_multiplications_are_those_counted_by_hand(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert macs(layer, torch.randn(shape)) == expected


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = model[1].running_mean.clone()
    macs(model, torch.randn(2, 1, 4, 4))
    assert torch.equal(model[1].running_mean, before)
    assert model.training
    assert not model[0]._forward_hooks


def test_an_error_in_the_model_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        macs(model, torch.randn(2, 5))
    assert not model[0]._forward_hooks


def test_a_parameter_under_two_names_counts_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert parameter_count(model) == 24
    model[1].weight = model[0].weight
    assert parameter_count(model) == 15


def test_the_time_is_the_median_of_the_passes_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.010, 1.0, 1.002, 2.0, 2.005])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    runs: list[bool] = []
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, inputs, output: runs.append(module.training or output.requires_grad))
    assert latency(model, torch.randn(1, 2), warmup=2, repeats=3) == pytest.approx(5)
    assert runs == [False] * 5
    assert model.training


@pytest.mark.parametrize("options", [{"warmup": -1}, {"repeats": 0}])
def test_a_count_of_passes_out_of_range_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ParameterError):
        latency(nn.Linear(2, 2), torch.randn(1, 2), **options)


def test_activations_are_the_storages_of_a_pass() -> None:
    x = torch.rand(2, 4)
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert activation_memory(layers, x) == ActivationMemory(peak=4 * 2 * 16, total=4 * 2 * 18)
    inplace = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2))
    assert activation_memory(inplace, x) == ActivationMemory(peak=4 * 2 * 10, total=4 * 2 * 10)


def test_a_tensor_that_is_read_later_is_alive_until_then() -> None:
    class Late(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = x + 1
            second = (x + 2) * 3
            return first + second

    assert activation_memory(Late(), torch.rand(8)).peak == 32 * 3


def test_a_layer_in_one_operator_has_the_memory_of_its_parts() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert activation_memory(layer, torch.rand(1, 5, 8)).peak > 4 * 5 * 16
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("batch_first", [False, True])
def test_projections_of_torchs_attention_count(batch_first: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=batch_first)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, rest = (x[:, :3], x) if batch_first else (x[:3], x)
            result: torch.Tensor = self.attention(query, key=rest[..., :6], value=rest[..., :5])[0]
            return result

    x = torch.rand(2, 7, 8) if batch_first else torch.rand(7, 2, 8)
    assert macs(Attending(), x) == 2 * (3 * 8 * 8 + 7 * 6 * 8 + 7 * 5 * 8 + 3 * 8 * 8)


def test_a_transformer_layer_costs_its_projections_and_its_feed_forward_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert macs(layer, torch.rand(1, 5, 8)) == 5 * (4 * 8 * 8 + 2 * 8 * 16)
