"""A shrink gives small networks that keep to their budgets, equal their pruned models, and leave the model alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.compaction.timing.measure import Timing
from sparsemtl.errors import ParameterError
from sparsemtl.training.shrinking import shrink as shrinking

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
LABELS = {"kind": (X[:, 0] * X[:, 1] > 0).long(), "size": X[:, 2].abs() + X[:, 3]}


def batches(first: int, last: int) -> list[Any]:
    return [(X[i : i + 16], {n: y[i : i + 16] for n, y in LABELS.items()}) for i in range(first, last, 16)]


TRAIN, VALIDATION, TEST = batches(0, 64), batches(64, 80), batches(80, 96)
FAST = partial(sm.Trainer, optimizer=partial(torch.optim.Adam, lr=0.02), progress=False, measure_cost=False)


class Own(nn.Module):
    """A network of a user's own, with its heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.kind, self.size = nn.Linear(16, 2), nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"kind": self.kind(features), "size": self.size(features)}


@pytest.fixture(scope="module")
def model() -> sm.MultiTaskModel:
    tasks = [sm.Classification("kind", 2), sm.Regression("size")]
    wrapped = sm.from_model(Own(), tasks, shared="body", heads={"kind": "kind", "size": "size"})
    FAST(wrapped, epochs=20).fit(TRAIN, VALIDATION)
    return wrapped


@pytest.fixture(scope="module")
def small(model: sm.MultiTaskModel) -> sm.ShrinkResult:
    options: Any = {"trainer": FAST, "test": TEST, "teacher_weight": 1.0}
    return sm.shrink(model, TRAIN, VALIDATION, budget=[0.3, 0.6], epochs=4, **options)


def test_networks_keep_to_their_budgets_and_compute_what_the_pruned_model_does(
    model: sm.MultiTaskModel, small: sm.ShrinkResult
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = sm.macs(model, X[:1])
    assert small.dense.macs == whole
    assert [point.name for point in small.points] == ["macs 0.6", "macs 0.3"]
    for point in small.points:
        assert point.budget is not None
        assert point.budget - 0.1 < sm.macs(point.network, X[:1]) / whole <= point.budget
        assert point.macs == sm.macs(point.network, X[:1])
        assert point.form == "one network"
        for task, output in point.model.eval()(X).items():
            torch.testing.assert_close(point.network(X)[task], output, atol=1e-5, rtol=1e-4)
    assert small.network is small.points[1].network
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@each("kind", ["macs", "weights"])
def test_a_network_that_was_pruned_before_shrinks_to_a_fraction_of_what_it_still_needs(
    small: sm.ShrinkResult, kind: str
) -> None:
    before = small.points[0]
    again = sm.shrink(before.model, TRAIN, VALIDATION, budget={kind: 0.5}, epochs=2, trainer=FAST, per_reader=False)
    assert again.dense.macs == before.macs
    left = {"macs": again.smallest.macs / before.macs, "weights": again.smallest.parameters / before.parameters}
    assert 0.3 < left[kind] <= 0.55  # biases are parameters, and no weights of the budget


def test_changes_are_of_the_primary_metric_and_positive_where_it_is_better(small: sm.ShrinkResult) -> None:
    (point, _), dense = small.points, small.dense
    assert point.test is not None
    assert dense.test is not None
    accuracy, r2 = ((point.test[t][m], dense.test[t][m]) for t, m in (("kind", "accuracy"), ("size", "r2")))
    expected = {"kind": accuracy[0] / accuracy[1] - 1, "size": (r2[0] - r2[1]) / abs(r2[1])}
    assert small.changes(point) == pytest.approx(expected)
    assert small.changes(dense) == {"kind": 0, "size": 0}


def test_the_result_is_a_table_a_picture_and_a_page(small: sm.ShrinkResult, tmp_path: Path) -> None:
    text = str(small)
    assert all(
        word in text
        for word in ("dense", "macs 0.3", "kind: accuracy", "size: r2", "Smallest network: macs 0.3", "test")
    )
    axes = small.plot()
    assert [line.get_label() for line in axes.get_lines()[:2]] == ["kind", "size"]
    assert all(len(line.get_xdata()) == 3 for line in axes.get_lines()[:2])
    page = sm.report.write_shrink_report(small, tmp_path / "small.html", title="<b>").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "macs 0.6" in page


def test_a_largest_loss_gives_the_smallest_network_that_keeps_to_it(model: sm.MultiTaskModel) -> None:
    drop = {"max_drop": {"kind": 0.99}}
    easy = sm.shrink(model, TRAIN, VALIDATION, budget=drop, epochs=5, trainer=FAST, per_reader=True)
    assert easy.smallest is easy.points[-1]
    assert len(easy.points) == 5
    still = partial(FAST, optimizer=partial(torch.optim.SGD, lr=1e-12))  # nothing heals what pruning cuts
    hard = sm.shrink(model, TRAIN, VALIDATION, budget={"max_drop": 0.05}, epochs=5, trainer=still, teacher_weight=0)
    assert [hard.holds(point) for point in hard.points] == [True] * (len(hard.points) - 1) + [False]
    assert hard.smallest is ((hard.dense, *hard.points)[len(hard.points) - 1])
    assert "allowed loss: " + hard.smallest.name in str(hard)


def test_milliseconds_become_the_multiply_adds_that_take_them(
    model: sm.MultiTaskModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(networks: dict[str, nn.Module], inputs: Any, runtime: str, repeats: int) -> dict[str, Timing]:
        return {name: Timing(sm.macs(network, X[:1]) / 1000, 0.0) for name, network in networks.items()}

    monkeypatch.setattr(shrinking, "times_of", timed)
    budget = 0.4 * sm.macs(model, X[:1]) / 1000
    found = sm.shrink(model, TRAIN, VALIDATION, budget={"milliseconds": budget}, epochs=2, trainer=FAST)
    assert 0.6 * budget < found.smallest.milliseconds <= budget
    with pytest.raises(ParameterError, match=r"milliseconds: expected a time that a network with 0\.0\d+ of the"):
        sm.shrink(model, TRAIN, VALIDATION, budget={"milliseconds": 1e-6}, epochs=2, trainer=FAST)


def test_what_cannot_be_shrunk_is_refused(model: sm.MultiTaskModel) -> None:
    masked = sm.Trainer(
        sm.SharedBottom(nn.Linear(4, 3), [sm.Regression("size")], {"size": nn.Linear(3, 1)}),
        sharing=sm.RandomSharing(keep=0.5),
        epochs=1,
        progress=False,
    ).fit([(X, {"size": LABELS["size"]})], [(X, {"size": LABELS["size"]})])
    wrong: dict[str, Any] = {
        "expected numbers in \\(0, 1\\) for `macs`, got \\[0.5, 2\\]": {"budget": [0.5, 2]},
        "unknown kind 'mac'": {"budget": {"mac": 0.3}},
        "expected one of macs, weights": {"budget": {"macs": 0.3, "weights": 0.3}},
        "max_drop: unknown task 'king'": {"budget": {"max_drop": {"king": 0.1}}},
    }
    for match, options in wrong.items():
        with pytest.raises(ParameterError, match=match):
            sm.shrink(model, TRAIN, VALIDATION, **options)
    with pytest.raises(ParameterError, match="the tasks have networks of their own"):
        sm.shrink(masked, TRAIN, VALIDATION)
    with pytest.raises(ParameterError, match=r"must be a MultiTaskModel, got Own\. .*from_model"):
        sm.shrink(Own(), TRAIN, VALIDATION)


class Transformer(nn.Module):
    """A block of a transformer with a class per sequence and a value per sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.kind, self.size = nn.Linear(16, 2), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x).mean(1)
        return {"kind": self.kind(features), "size": self.size(features)}


def test_a_transformer_loses_heads_and_neurons() -> None:
    x = torch.randn(32, 3, 16, generator=torch.Generator().manual_seed(0))
    data = [(x, {"kind": (x[:, 0, 0] > 0).long(), "size": x[:, 1, 1]})]
    tasks = [sm.Classification("kind", 2), sm.Regression("size")]
    network = sm.from_model(Transformer(), tasks, shared="body", heads={"kind": "kind", "size": "size"})
    small = sm.shrink(network, data, data, budget=0.4, epochs=2, trainer=FAST).smallest
    assert small.macs <= 0.4 * sm.macs(network, x[:1])
    layers = small.network.report.layers
    assert any(0 < each.heads[1] < each.heads[0] for each in layers)
    assert any(each.name.endswith("linear1") and 0 < each.outputs[1] < each.outputs[0] for each in layers)
