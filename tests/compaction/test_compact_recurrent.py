"""Hidden units of recurrent layers that are zero, or that nothing reads, are gone; every other one stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compaction_toys import assert_same_outputs
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import sparsemtl as sm
from sparsemtl.errors import CompactionError, ParameterError

WIDTH, UNITS = 5, 6
X = torch.randn(4, 7, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """A recurrent layer, of which a linear layer reads all outputs, the last one, or the states of the last layer."""

    def __init__(self, kind: type[nn.RNNBase], reads: str = "outputs", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.reads = kind(WIDTH, UNITS, **options), reads
        self.head = nn.Linear(UNITS * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, states = self.rnn(x)
        if self.reads == "outputs":
            return self.head(outputs)
        if self.reads == "last output":
            return self.head(outputs[:, -1])
        hidden = states[0] if isinstance(states, tuple) else states
        return self.head(torch.cat([hidden[-2], hidden[-1]], -1) if self.rnn.bidirectional else hidden[-1])


@torch.no_grad()
def with_zeros(model: Recurrent, seed: int = 0) -> Recurrent:
    """Return a model in double precision of which some units are zero, and others are read by few or by none."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.rnn.named_parameters():
        units = parameter.view(-1, UNITS, *parameter.shape[1:])
        units[:, 0] = 0
        if "weight_hh" in name or ("weight_ih" in name and "l0" not in name):
            unread = torch.rand(parameter.shape[1], generator=generator) < 0.5
            columns = units[..., unread]
            units[..., unread] = columns * (torch.rand(columns.shape[1:], generator=generator) < 0.2)
    model.head.weight[:, torch.rand(model.head.in_features, generator=generator) < 0.4] = 0
    return model.double().eval()


def parts_of(small: nn.Module) -> list[nn.RNNBase]:
    return [module for module in small.modules() if isinstance(module, nn.RNNBase)]


FORMS: dict[str, dict[str, Any]] = {
    "outputs": {"reads": "outputs", "batch_first": True},
    "two layers": {"reads": "last output", "batch_first": True, "num_layers": 2},
    "both directions": {"reads": "outputs", "bidirectional": True},
    "states of two layers": {"reads": "states", "num_layers": 2, "bidirectional": True, "bias": False},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_outputs_stay_and_every_unit_that_is_left_changes_them(kind: type[nn.RNNBase], form: str) -> None:
    model = with_zeros(Recurrent(kind, **FORMS[form]))
    small = sm.compact(model, example_inputs=X)
    assert_same_outputs(small, model, X)
    assert small.report.parameters[1] < small.report.parameters[0]
    assert small.report.macs is not None
    assert small.report.macs[1] < small.report.macs[0]
    expected = small(X).detach()
    with torch.no_grad():
        for part in parts_of(small):
            assert part.hidden_size < UNITS
            for unit in range(part.hidden_size):
                rows = part.weight_hh_l0.view(-1, part.hidden_size, part.hidden_size)[:, unit]
                rows += 1.0
                assert not torch.equal(small(X), expected)
                rows -= 1.0


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_units_are_those_that_a_search_by_hand_finds(kind: type[nn.RNNBase]) -> None:
    """Unit 0 is zero; the head reads 1, which reads 2, which reads 0 and 3; nothing reads 4 and 5, which read all."""
    model = Recurrent(kind, batch_first=True)
    with torch.no_grad():
        recurs = model.rnn.weight_hh_l0.view(-1, UNITS, UNITS)
        for unit, others in {1: [0, 2, 3, 4, 5], 2: [1, 4, 5], 3: [0, 1, 2, 4, 5]}.items():
            recurs[:, unit, [other for other in others if (unit, other) not in {(1, 2), (2, 0), (2, 3)}]] = 0
        for parameter in model.rnn.parameters():
            parameter.view(-1, UNITS, *parameter.shape[1:])[:, 0] = 0
        model.head.weight[:, 2:] = 0
    model.double().eval()
    small = sm.compact(model, example_inputs=X)
    assert_same_outputs(small, model, X)
    assert small.rnn.hidden_size == 3
    assert small.report.layer("rnn").outputs == (UNITS, 3)


def test_constant_inputs_and_constant_units_are_folded() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.rnn = nn.Linear(3, WIDTH), nn.RNN(WIDTH, UNITS, batch_first=True)
            self.head = nn.Linear(UNITS, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.first(x))[0])

    model = Model().double().eval()
    with torch.no_grad():
        model.first.weight[3:] = 0
        model.rnn.weight_ih_l0[4, :3] = 0
        model.rnn.weight_hh_l0[4] = 0
        model.rnn.weight_hh_l0[:, 4] = 0
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    small = sm.compact(model, example_inputs=x)
    assert_same_outputs(small, model, x)
    assert (small.rnn.input_size, small.rnn.hidden_size) == (3, 5)


class Decoder(nn.Module):
    """A decoder that starts from the states of an encoder, which starts from zeros that are written out."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = (kind(WIDTH, UNITS, batch_first=True) for _ in range(2))
        self.head = nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.zeros(1, x.size(0), UNITS, dtype=x.dtype)
        _, states = self.encoder(x, (first, first.clone()) if isinstance(self.encoder, nn.LSTM) else first)
        return self.head(self.decoder(x, states)[0])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_units_of_first_states_go_with_those_of_the_layer_that_reads_them(kind: type[nn.RNNBase]) -> None:
    model = Decoder(kind).double().eval()
    with torch.no_grad():
        for rnn in (model.encoder, model.decoder):
            recurs = rnn.weight_hh_l0.view(-1, UNITS, UNITS)
            recurs[:, 3:, :3] = 0
            recurs[:, :3, 3:] = 0
        model.head.weight[:, 3:] = 0
    small = sm.compact(model, example_inputs=X)
    assert_same_outputs(small, model, X)
    assert [part.hidden_size for part in parts_of(small)] == [3, 3]
    longer = torch.randn(3, 9, WIDTH, dtype=torch.float64)
    assert_same_outputs(small, model, longer)


def test_layers_that_stay_whole_say_why() -> None:
    class Projected(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    report = sm.compact(Projected(nn.LSTM, proj_size=4, batch_first=True).eval(), example_inputs=X.float()).report
    assert report.layer("rnn").why == "its outputs are projections of its hidden units (proj_size)"
    dense = Recurrent(nn.GRU, num_layers=2).eval()
    small = sm.compact(dense, example_inputs=X.float())
    assert [part.num_layers for part in parts_of(small)] == [2]
    assert small.report.layer("rnn").why.startswith("its layers and directions have no unit that could be removed")


def test_states_that_the_model_returns_keep_all_their_units() -> None:
    class States(Recurrent):
        def forward(self, x: Tensor) -> Any:
            outputs, states = self.rnn(x)
            return self.head(outputs), states

    model = States(nn.LSTM, num_layers=2)
    with_zeros(model)
    small = sm.compact(model, example_inputs=X)
    for found, expected in zip(small(X)[1], model(X)[1], strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def small_and_whole() -> tuple[Any, nn.Module]:
    model = with_zeros(Recurrent(nn.GRU, "states", num_layers=2, bidirectional=True, batch_first=True)).float()
    return sm.compact(model, example_inputs=X.float()), model


def test_small_networks_can_be_saved_and_compacted_again(tmp_path: Any) -> None:
    small, model = small_and_whole()
    x = torch.randn(3, 9, WIDTH)
    torch.save(small, tmp_path / "small.pt")
    again = torch.load(tmp_path / "small.pt", weights_only=False)
    assert torch.equal(again(x), small(x))
    assert torch.allclose(small(x), model(x), atol=1e-6)
    twice = sm.compact(small)
    assert sm.parameter_count(twice) == sm.parameter_count(small)


@pytest.mark.slow
def test_small_networks_can_be_exported(tmp_path: Any) -> None:
    small, _ = small_and_whole()
    x = torch.randn(3, 9, WIDTH)
    file = sm.export(small, tmp_path / "small.safetensors", example_inputs=x)
    assert file.batch is None
    assert torch.allclose(sm.load_network(file.path)(x), small(x), atol=1e-6)
    with pytest.raises(ParameterError, match=r"takes a tensor of shape \(any, 9, 5\), got \(2, 7, 5\)"):
        sm.load_network(file.path)(torch.randn(2, 7, WIDTH))  # torch.export takes the length of its sequences for fixed


def test_inputs_of_another_rank_are_refused() -> None:
    small = sm.compact(with_zeros(Recurrent(nn.GRU, "last output", batch_first=True)), example_inputs=X)
    with pytest.raises(ParameterError, match="compacted for batches with 3 axes"):
        small(X[0])
    with pytest.raises(ParameterError, match=r"batches with 3 axes, .* got dict. Compact the model with an example"):
        small({"x": X})


class Packed(nn.Module):
    """A recurrent layer on sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, UNITS, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][-1]


def test_packed_sequences_are_refused_unless_they_stay_inside_a_leaf() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed, self.head = Packed(), nn.Linear(UNITS, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.head(self.packed(x, lengths))

    example = X, torch.tensor([7, 3, 5, 7])
    model = Model().double().eval()
    with pytest.raises(CompactionError, match=r"packed sequence.*name that in `leaf_modules`"):
        sm.compact(model, example_inputs=example)
    small = sm.compact(model, example_inputs=example, leaf_modules=["packed"])
    assert torch.equal(small(*example), model(*example))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_multiply_adds_of_recurrent_layers_are_counted(kind: type[nn.RNNBase]) -> None:
    gates = {nn.GRU: 3, nn.LSTM: 4, nn.RNN: 1}[kind]
    layer = kind(3, 5, num_layers=2, bidirectional=True)
    each = gates * 5 * (3 + 5) + gates * 5 * (10 + 5)
    assert sm.macs(layer, torch.rand(7, 2, 3)) == 7 * 2 * 2 * each
    packed = nn.utils.rnn.pack_sequence([torch.rand(4, 3), torch.rand(2, 3)])
    assert sm.macs(layer, packed) == 6 * 2 * each
