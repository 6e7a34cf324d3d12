from __future__ import annotations

import pytest
import torch
from expert_oracles import assert_same_model, batch, stack, tasks
from loops import each
from torch import Tensor, nn

from sparsemtl import SharedBottom
from sparsemtl.architectures import ARCHITECTURES, MMoE
from sparsemtl.architectures.gates import mixed
from sparsemtl.backbones import CNN
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.errors import ParameterError


def heads() -> dict[str, nn.Module]:
    return {task.name: task.head(4) for task in tasks()}


def test_one_expert_is_shared_bottom_bit_for_bit() -> None:
    encoder = stack(6, 4)
    model = MMoE(encoder, tasks(), heads(), experts=1).double()
    bottom = SharedBottom(encoder, tasks()).double()
    bottom.heads = model.heads
    x = batch()
    assert all(torch.equal(model(x)[task], output) for task, output in bottom(x).items())
    for network in (model, bottom):
        network.zero_grad()
        torch.stack([output.square().sum() for output in network(x).values()]).sum().backward()
    (expert,) = model.levels[0].pools["pool1"]
    for ours, theirs in zip(expert.parameters(), bottom.encoder.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert not any(gate.weight.grad.any() for gate in model.levels[0].gates.values())


def test_equal_experts_make_the_gates_irrelevant() -> None:
    model = MMoE(stack(4), tasks(), heads(), experts=5, fresh=False).double()
    before = model(batch())
    with torch.no_grad():
        for gate in model.levels[0].gates.values():
            gate.weight.normal_()
    torch.testing.assert_close(model(batch()), before)


def test_outputs_are_those_of_the_paper_written_out() -> None:
    torch.manual_seed(0)
    model = MMoE(stack(4), tasks(), heads(), experts=3).double()
    (level,) = model.levels
    x = batch()
    for task, output in model(x).items():
        weights = (x @ level.gates[task].weight.T).softmax(1)
        assert torch.allclose(weights.sum(1), torch.ones(len(x), dtype=x.dtype))
        features = sum(weights[:, e, None] * level.pools["pool1"][e](x) for e in range(3))
        torch.testing.assert_close(output, model.heads[task](features))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
def test_mixtures_of_equal_features_are_those_features(shape: tuple[int, ...]) -> None:
    feature = torch.randn(6, *shape, dtype=torch.float64)
    torch.testing.assert_close(mixed([torch.stack([feature] * 3)], torch.randn(6, 3, dtype=torch.float64)), feature)


def test_one_sample_chooses_by_its_own_logits() -> None:
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    ones, twos = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert torch.equal(mixed([torch.stack([ones, twos])], logits), torch.tensor([[1.0] * 3, [2.0] * 3]))


def test_convolutional_experts_are_mixed_and_gates_read_the_folded_image() -> None:
    model = MMoE(CNN((1, 8, 8), widths=[4, 6]), tasks(), experts=3)
    outputs = model(torch.rand(5, 1, 8, 8))
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {"a": (5, 3), "b": (5, 1), "c": (5, 2)}
    assert model.levels[0].gates["a"].weight.shape == (3, 64)


def test_experts_that_give_maps_are_mixed_position_by_position() -> None:
    model = MMoE(nn.Conv2d(1, 4, 3), tasks(), {t: nn.Identity() for t in "abc"}, experts=2)
    x = torch.rand(5, 1, 6, 6)
    features = [expert(x) for expert in model.levels[0].pools["pool1"]]
    torch.testing.assert_close(model(x)["b"], mixed([torch.stack(features)], model.levels[0].gates["b"](x.flatten(1))))


class Stem(nn.Module):
    """Counts its calls."""

    out_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3)
        self.calls = 0

    def forward(self, codes: Tensor) -> Tensor:
        self.calls += 1
        return self.table(codes)


@each("as_function", [False, True])
@each("name", ["mmoe", "cgc", "ple", "pbfs"])
def test_a_stem_is_one_for_all_and_runs_once(name: str, as_function: bool) -> None:
    def make() -> Stemmed:
        return Stemmed(Stem(), stack(4, 2, reads=3))

    encoder = make() if name == "ple" or not as_function else make
    options = {"pools": [["a", "b", "c"]]} if name == "pbfs" else {}
    model = ARCHITECTURES.build(name, encoder, tasks(), **options)
    assert sum(isinstance(module, Stem) for module in model.modules()) == 1
    model(torch.arange(5))
    assert model.stem.calls == 1
    assert model.levels[0].gates["a"].in_features == 3
    assert set(model.unmasked_modules()) == {"stem", *(["levels.0.shared_gate"] if name == "ple" else [])}
    assert model.parameter_tasks()["stem.table.weight"] == {"a", "b", "c"}


def test_there_is_one_expert_at_least() -> None:
    with pytest.raises(ParameterError, match=r"'experts' parameter of MMoE must be an int in \[1, inf\)"):
        MMoE(stack(4), tasks(), experts=0)


def test_experts_of_different_widths_cannot_be_mixed() -> None:
    widths = iter([4, 3])
    model = MMoE(lambda: stack(next(widths)), tasks(), experts=2)
    with pytest.raises(ParameterError, match=r"features of one shape to be mixed, found \[\(7, 3\), \(7, 4\)\]"):
        model(batch().float())


def test_the_same_seed_makes_the_same_model() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(MMoE(stack(4), tasks(), heads(), experts=3).double())
    assert_same_model(*models, batch())


@pytest.mark.parametrize("counts", [[5], [1, 4], [2, 2, 1], [1] * 5])
def test_features_may_be_stacked_in_parts(counts: list[int]) -> None:
    whole, logits = torch.randn(5, 7, 3), torch.randn(7, 5)
    expected = (logits.t().softmax(0).unsqueeze(2) * whole).sum(0)
    assert torch.equal(mixed(list(whole.split(counts)), logits), expected)
