"""What compaction says of every layer, and how it verifies its result."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from compaction_toys import alive, compacted
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.compaction.rules.dense import Dense
from sparsemtl.errors import CompactionError, CompactionWarning, ParameterError

IMAGES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def convolutions(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model = alive(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *between, nn.Conv2d(8, 4, 1)))
    with torch.no_grad():
        model[-1].weight[:, 5:] = 0
    return model


def test_channels_parameters_and_multiply_adds_are_those_of_the_layers() -> None:
    model = convolutions(nn.BatchNorm2d(8), nn.ReLU())
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    report = small.report
    assert [(each.name, each.inputs, each.outputs, each.change) for each in report.layers] == [
        ("0", (3, 3), (8, 5), "smaller"),
        ("1", (8, 0), (8, 0), "removed"),
        ("3", (8, 5), (4, 4), "smaller"),
    ]
    assert report.layer("1").why == "part of the layer before it"
    assert report.parameters == (sm.parameter_count(model), sm.parameter_count(small))
    assert report.macs == (sm.macs(model, IMAGES[:1]), sm.macs(small, IMAGES[:1]))
    assert 0 <= report.verification.float64 < 1e-12
    assert 0 <= report.verification.float32 < 1e-5


def test_costs_of_layers_add_up_to_those_of_the_network() -> None:
    model = convolutions(nn.BatchNorm2d(8), nn.ReLU())
    report = compacted(model, IMAGES, example_inputs=IMAGES).report
    for place in (0, 1):
        assert sum(each.parameters[place] for each in report.layers) == report.parameters[place]
        assert sum(each.macs[place] for each in report.layers) == report.macs[place]
    assert [each.activations for each in report.layers] == [(512, 320), (512, 0), (256, 256)]


def test_memory_is_that_of_one_sample_in_the_models_precision() -> None:
    report = compacted(convolutions(nn.ReLU()), IMAGES, example_inputs=IMAGES).report
    before, after = report.memory
    assert (before.peak, before.total) == (8 * 2 * 512, 8 * (2 * 512 + 256))
    assert (after.peak, after.total) == (8 * 2 * 320, 8 * (2 * 320 + 256))


def test_the_report_is_plain_json() -> None:
    report = compacted(convolutions(nn.BatchNorm2d(8), nn.ReLU()), IMAGES, example_inputs=IMAGES).report
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (record["format"], record["version"]) == ("sparsemtl.compaction", 1)
    assert record["macs"] == list(report.macs)
    assert record["activation_bytes"] == {
        name: [getattr(each, name) for each in report.memory] for name in ("peak", "total")
    }
    assert record["verification"]["float64"] == report.verification.float64
    assert record["example"] == [{"shape": [3, 3, 8, 8], "dtype": "torch.float64"}]
    assert record["layers"][0] == {
        "name": "0",
        "kind": "Conv2d",
        "inputs": [3, 3],
        "outputs": [8, 5],
        "why": "",
        "removed": False,
        "heads": [0, 0],
        "parameters": [224, 140],
        "macs": [13824, 8640],
        "activations": [512, 320],
        "change": "smaller",
    }


def test_without_an_example_costs_are_left_out() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> Tensor:
            return self.layer(x) + y + z + w

    with pytest.warns(CompactionWarning, match="nothing was verified"):
        report = sm.compact(Unknown()).report
    assert report.to_dict()["macs"] is report.to_dict()["activation_bytes"] is None
    assert not report.verification.equal
    assert "not measured without an example" in str(report)


def test_channels_that_are_not_worth_leaving_out_are_named() -> None:
    torch.manual_seed(0)
    model = alive(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Split(8)))
    with torch.no_grad():
        model[2].one.weight[:, 0] = 0
    why = compacted(model, IMAGES).report.layer("2.one").why
    assert why == "inputs with weights of zero, cheaper to read than to leave out: 1"


class Split(nn.Module):
    """Two convolutions that read the same channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(width, 2, 1), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


def test_the_report_can_be_printed() -> None:
    text = str(sm.compact(convolutions(nn.GroupNorm(2, 8))).report)
    assert "'1' (GroupNorm)" in text
    assert "parameters: 276 -> " in text
    assert "outputs differ by at most" in text


REASONS = {
    "group norm": (nn.GroupNorm(2, 8), r"'1' \(GroupNorm\)"),
    "softmax": (nn.Softmax(1), r"'1' \(Softmax\)"),
    "groups": (nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2), r"'1' \(ConvTranspose2d\)"),
}


@pytest.mark.parametrize("kind", REASONS)
def test_the_reader_in_the_way_is_named(kind: str) -> None:
    between, named = REASONS[kind]
    report = compacted(convolutions(between, nn.ReLU()), IMAGES).report
    assert report.layer("0").change == "unchanged"
    with pytest.raises(AssertionError, match=named):
        raise AssertionError(report.layer("0").why)


def test_layers_that_stay_whole_say_why() -> None:
    model = convolutions(nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2))
    assert compacted(model, IMAGES).report.layer("1").why == "a transposed convolution of 2 groups"
    hooked = convolutions(nn.ReLU())
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    assert compacted(hooked, IMAGES).report.layer("0").why == "has hooks"
    assert (
        compacted(convolutions(nn.ReLU()), IMAGES, leaf_modules=["0"]).report.layer("0").why
        == "named in `leaf_modules`"
    )
    tied = convolutions(nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    tied[4].weight = tied[2].weight
    assert compacted(tied, IMAGES).report.layer("2").why == "its weights are read more than once"


class Gated(nn.Module):
    """Squeeze and excitation, in the ways that it is written."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        flat = way in ("view", "indexed", "unsqueezed")
        self.squeeze, self.excite = (
            (nn.Linear(8, 4), nn.Linear(4, 8)) if flat else (nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1))
        )
        with torch.no_grad():
            self.first.weight[:3] = 0
            self.first.bias[:3] = 0

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.excite(self.squeeze(x).relu()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        b, c, _, _ = x.size()
        pooled = F.adaptive_avg_pool2d(x, 1)
        if self.way == "view":
            x = x * self.gate(pooled.view(b, c)).view(b, c, 1, 1).expand_as(x)
        elif self.way == "indexed":
            x = x * self.gate(pooled.flatten(1))[:, :, None, None]
        elif self.way == "unsqueezed":
            x = self.gate(x.mean((2, 3))).unsqueeze(-1).unsqueeze(-1) * x
        else:
            x = x.mul(self.gate(x.mean(dim=[2, 3], keepdim=True)))
        return self.last(x)


@pytest.mark.parametrize("way", ["view", "indexed", "unsqueezed", "convolutions"])
def test_a_zero_channel_times_its_gate_is_gone(way: str) -> None:
    small = compacted(alive(Gated(way)), IMAGES)
    outputs = {layer.name: layer.outputs for layer in small.report.layers}
    assert outputs == {"first": (8, 5), "squeeze": (4, 4), "excite": (8, 5), "last": (4, 4)}


def test_what_was_loaded_has_its_report_and_is_verified_again() -> None:
    small = sm.compact(convolutions(nn.ReLU()), example_inputs=IMAGES)
    again = sm.compact(small)
    assert again.report.verification.verified
    assert [like.shape for like in again.report.example.args] == [tuple(IMAGES.shape)]


def test_a_wrong_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = Dense._columns

    def wrong(self: Dense, out: object) -> Tensor:
        found = columns(self, out)  # type: ignore[arg-type]
        found[found.nonzero().flatten()[:1]] = False
        return found

    monkeypatch.setattr(Dense, "_columns", wrong)
    with pytest.raises(CompactionError, match="differ by"):
        sm.compact(convolutions(nn.ReLU()))


def test_the_first_layer_that_differs_is_named() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch._C._from_dlpack(torch.utils.dlpack.to_dlpack(x.detach()))

    model = alive(nn.Sequential(nn.Linear(4, 5), Hidden(), nn.Linear(5, 3), nn.Linear(3, 2)))
    with pytest.raises(CompactionError, match="first layer with other outputs is '2'"):
        sm.compact(model, example_inputs=torch.randn(3, 4))


def test_random_outputs_are_not_verified() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + torch.randn_like(x[:, :1])

    with pytest.warns(CompactionWarning, match="not the same from one run to the next"):
        small = sm.compact(Noisy())
    assert not small.report.verification.verified


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ParameterError, match="cannot be run on inputs of shape"):
        sm.compact(convolutions(nn.ReLU()), example_inputs=torch.randn(2, 4, 8, 8))
    with pytest.raises(ParameterError, match="does not fit"):
        sm.compact(convolutions(nn.ReLU()), example_inputs=(IMAGES, IMAGES))


def test_the_example_and_the_model_stay_as_they_are() -> None:
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), torch.randn(3, 4)
    before = x.clone()
    sm.compact(model, example_inputs=x)
    assert torch.equal(x, before)
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_layers_of_unknown_width_are_not_reported_as_removed() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.encoder(self.embedding(x)).mean(1))

    tokens = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    report = sm.compact(Text().eval(), example_inputs=tokens, leaf_modules=["encoder"]).report
    assert [each.change for each in report.layers] == ["unchanged"] * 3
    assert report.layer("embedding").outputs == (8, 8)


def random_network(draw: object) -> nn.Module:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(draw(self.first(x)))

    return Random().eval()


DRAWN = {
    "number": lambda x: x * float(torch.rand(())),
    "branch": lambda x: x * torch.rand(()) if torch.rand(()) < 2 else x,
    "order": lambda x: x[:, torch.randperm(8)],
}


@pytest.mark.parametrize("kind", DRAWN)
def test_random_numbers_that_a_graph_would_fix_are_refused(kind: str) -> None:
    with pytest.raises(CompactionError, match="random"):
        sm.compact(random_network(DRAWN[kind]), example_inputs=torch.ones(3, 4))


def test_random_outputs_are_not_verified_and_leave_the_random_state_as_it_was() -> None:
    model = random_network(lambda x: F.dropout(x, 0.5, training=True))
    x, state = torch.ones(3, 4), torch.get_rng_state()
    with pytest.warns(CompactionWarning, match="not the same from one run to the next.$") as warned:
        small = sm.compact(model, example_inputs=x)
    assert warned[0].filename == __file__
    assert torch.equal(torch.get_rng_state(), state)
    assert not small.report.verification.verified
