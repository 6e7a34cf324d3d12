"""A check runs one batch through everything, says what would go wrong, and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from states import assert_same, state_of
from torch import Tensor, nn
from training_toys import WIDTH, loader, own_loaders, quiet, shared, table, tasks

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ForwardError, LabelError, ParameterError
from sparsemtl.networks.randomness import random_state
from sparsemtl.training.checks.label_counts import count_labels
from sparsemtl.training.checks.memory import bytes_of, saved_tensors
from sparsemtl.training.checks.probe import described


def fisher() -> sm.FisherSharing:
    return sm.FisherSharing(keep=0.5, warmup=0, estimator="true", samples=8)


def lazy(names: str = "ab") -> sm.SharedBottom:
    """A model whose heads have no width yet."""
    torch.manual_seed(0)
    return sm.SharedBottom(nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU()), tasks(names))


@pytest.mark.parametrize("balancing", ["mean", "uncertainty", "mgda"])
def test_training_after_a_check_is_training_without_one(balancing: str) -> None:
    def trained(*, checked: bool) -> sm.Trainer:
        train = TensorLoader(*table(24), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
        trainer = quiet(lazy(), sharing=fisher(), balancing=balancing, epochs=2)
        state = random_state()
        if checked:
            trainer.check(train, loader(16, seed=2))
            assert_same(random_state(), state)
        return trainer.fit(train, loader(16, seed=2, shuffle=False))

    plain, checked = trained(checked=False), trained(checked=True)
    assert_same(state_of(plain.model), state_of(checked.model))
    assert plain.masks == checked.masks


def test_shapes_losses_and_gradients_are_those_of_the_batch() -> None:
    torch.manual_seed(0)
    model = shared("ab")
    x, targets = table(8)
    found = quiet(model, seed=None).check([(x, targets)]).probes
    weights = list(model.shared_parameters().values())
    gradients: dict[str, Tensor] = {}
    for probe in found.tasks:
        loss = model.tasks[probe.task].loss(model(x, tasks=[probe.task])[probe.task], targets[probe.task])
        parts = torch.autograd.grad(loss, weights)
        gradients[probe.task] = torch.cat([part.flatten() for part in parts])
        assert probe.loss == pytest.approx(loss.item())
        assert probe.gradient_norm == pytest.approx(gradients[probe.task].norm().item())
        assert (probe.inputs, probe.features) == ("float32 (8, 6)", "float32 (8, 5)")
    assert [probe.outputs for probe in found.tasks] == ["float32 (8, 3)", "float32 (8, 1)"]
    expected = torch.cosine_similarity(gradients["a"], gradients["b"], dim=0).item()
    assert found.cosines == {("a", "b"): pytest.approx(expected, abs=1e-5)}


def test_masked_gradients_are_those_of_the_tasks_networks() -> None:
    model, (x, targets) = shared("ab"), table(8)
    trainer = quiet(model, sharing=sm.RandomSharing(keep=0.5, seed=0))
    found = trainer.check([(x, targets)])
    networks = sm.RandomSharing(keep=0.5, seed=0).start(model)
    networks = sm.RandomSharing(keep=0.5, seed=0).begin_epoch(0, model, networks, [(x, targets)]) or networks
    for probe in found.probes.tasks:
        with networks.swapped(model, probe.task):
            loss = model.tasks[probe.task].loss(model(x, tasks=[probe.task])[probe.task], targets[probe.task])
        parts = torch.autograd.grad(loss, list(model.shared_parameters().values()))
        assert probe.gradient_norm == pytest.approx(torch.cat([part.flatten() for part in parts]).norm().item())
    assert set(found.coverage.masked) == {"encoder.0.weight", "encoder.2.weight"}
    assert found.coverage.left_out["encoder.0.bias"].startswith("a bias")
    assert found.coverage.density == {"a": 0.5, "b": 0.5}


def test_memory_is_counted_from_tensors() -> None:
    model = shared("ab")
    memory = quiet(model, sharing=sm.RandomSharing(keep=0.5), optimizer="adam", balancing="mgda").check(loader()).memory
    size = 4 * sum(p.numel() for p in model.parameters())
    common = 4 * sum(p.numel() for p in model.shared_parameters().values())
    masked = sum(p.numel() for name, p in model.shared_parameters().items() if name.endswith("weight"))
    assert memory["weights"] == memory["gradients"] == size
    assert memory["masks"] == 2 * masked
    assert memory["gradients per task"] == 2 * common
    assert 2 * size <= (memory["optimizer"] or 0) <= 2 * size + 8 * len(list(model.parameters()))
    assert memory["best model, kept in memory"] == size + 2 * masked
    assert (memory["activations"] or 0) > 8 * WIDTH * 4


def test_the_bytes_that_autograd_keeps_are_counted_once_and_until_they_are_freed() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), torch.randn(2, 4)
    with saved_tensors(model) as saved:
        y = model(x).sum()
        assert saved.peak == 4 * (2 * 4 + 2 * 3)  # the input of the layer, and the output of the sigmoid
        y.backward()
        model(x).sum().backward()
        assert saved.peak == 4 * (2 * 4 + 2 * 3)
        both = model(x).sum() + model(x + 1).sum()
        assert saved.peak == 2 * 4 * (2 * 4 + 2 * 3)
        both.backward()
    assert bytes_of({"a": [x, x[:1], (x.t(),)], "b": None}) == 32


def test_times_come_from_the_numbers_of_batches() -> None:
    found = quiet(epochs=3).check(loader(40), loader(16, seed=2)).time
    assert found.steps == 5
    assert found.validation is not None
    assert found.epoch == pytest.approx(5 * (found.step + found.loading) + found.validation)
    assert found.total == pytest.approx(3 * (found.epoch or 0))
    endless = quiet().check(iter_of(loader(40)))
    assert endless.time.steps is None
    assert endless.time.total is None


def iter_of(loader: Any) -> Any:
    class WithoutLength:
        def __iter__(self) -> Any:
            return iter(loader)

    return WithoutLength()


def test_losses_of_unlike_scale_are_named() -> None:
    x, targets = table(16)
    far = {**targets, "b": targets["b"] * 1e4}
    (warning,) = quiet().check([(x, far)]).warnings
    assert "losses of unlike scale in the first batch" in warning
    assert "The shared weights learn mostly b" in warning
    assert not quiet(balancing="uncertainty").check([(x, far)]).warnings
    assert not quiet().check([(x, targets)]).warnings


class Scaled(nn.Module):
    """A head whose features have another gradient than their value."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(5, 1), factor

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.detach() + self.factor * (features - features.detach()))


@pytest.mark.parametrize(("factor", "words"), [(0.0, "no gradient on the shared"), (1e-5, "gradients of unlike size")])
def test_gradients_that_teach_nothing_are_named(factor: float, words: str) -> None:
    encoder = nn.Sequential(nn.Linear(WIDTH, 5))
    encoder.out_features = 5  # type: ignore[assignment]
    model = sm.SharedBottom(encoder, tasks("ab"), heads={"b": Scaled(factor)})
    warnings = quiet(model).check(loader(16)).warnings
    assert any(words in warning and "b" in warning for warning in warnings), warnings


def test_missing_labels_and_absent_classes_are_named() -> None:
    x, targets = table(200)
    targets = {"a": targets["a"].clamp(max=1), "b": targets["b"].clone()}
    targets["b"][:8] = float("nan")
    train = TensorLoader(x, targets, batch_size=8)
    found = quiet(sharing=fisher()).check(train)
    count = found.counts["b"]
    assert (count.known, count.labels, count.whole) == (192, 200, True)
    assert [probe.known for probe in found.probes.tasks] == [8, 0]
    assert found.probes.tasks[1].loss is None
    text = "\n".join(found.warnings)
    assert "task 'a': no label of class '2' in the training data" in text
    assert "task 'b' has no label in the first batch; 192 of 200" in text


def test_a_task_without_labels_is_named_in_both_parts() -> None:
    x, targets = table(16)
    targets["b"] = torch.full((16,), float("nan"))
    text = "\n".join(quiet().check([(x, targets)], [(x, targets)]).warnings)
    assert "task 'b' has no label in the training data" in text
    assert "task 'b' has no label in the validation data" in text


def test_classes_are_counted_by_every_kind_of_task() -> None:
    label = torch.tensor([0, 2, -100, 2])
    assert sm.Classification("t", 3).class_counts(label) == {"0": 1, "1": 0, "2": 2}
    assert sm.TokenClassification("t", 3).class_counts(label[None]) == {"0": 1, "1": 0, "2": 2}
    assert sm.Segmentation("t", 3).class_counts(torch.tensor([[[0, 255], [1, 1]]])) == {"0": 1, "1": 2, "2": 0}
    yes = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    assert sm.MultiLabel("t", ["x", "y"]).class_counts(yes) == {"x": 1, "y": 0}
    assert sm.Regression("t").class_counts(torch.ones(3)) == {}


def test_few_labels_name_no_absent_class() -> None:
    read = count_labels(loader(80, batch_size=8), {t.name: t for t in tasks("a")}, limit=0.0)
    count = read.counts["a"]
    assert (count.samples, count.whole) == (8, False)
    count.classes = {"0": 1, "1": 1, "2": 0}
    assert not count.absent
    count.known = 60
    assert count.absent == ["2"]


@pytest.mark.parametrize("mix", ["longest", "proportional"])
def test_tasks_with_data_of_their_own_are_checked(mix: str) -> None:
    own = own_loaders({"a": 12, "b": 26})
    found = quiet(mix=mix).check(own, own_loaders({"a": 8, "b": 8}))
    assert [probe.inputs for probe in found.probes.tasks] == ["float32 (4, 6)"] * 2
    assert found.time.steps == {"longest": 7, "proportional": 10}[mix]
    assert {task: count.samples for task, count in found.counts.items()} == {"a": 12, "b": 26}


def test_errors_of_the_first_step_are_raised() -> None:
    x, targets = table(8)
    with pytest.raises(ForwardError, match=r"module 'encoder\.0'"):
        quiet().check([(x[:, :3], targets)])
    with pytest.raises(LabelError, match=r"batch 2: task 'a': label 7 is not one of the classes"):
        quiet().check([(x, targets), (x, {**targets, "a": torch.full((8,), 7)})])
    with pytest.raises(LabelError, match="gave no batch"):
        quiet().check([])


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = shared()
    model.register_buffer("made", (torch.ones(1, requires_grad=True) * 2), persistent=False)
    with pytest.raises(ParameterError, match=r"`copy\.deepcopy` cannot copy them"):
        quiet(model).check(loader())


def test_the_check_is_shown_and_recorded() -> None:
    found = quiet(sharing=sm.RandomSharing(keep=0.5)).check(loader(), loader(16))
    for text in (str(found), found._repr_html_()):
        assert "gradient norm" in text
        assert "activations" in text
        assert "encoder.0.weight" in text
    record = json.loads(json.dumps(found.record()))
    assert record["probes"][0]["inputs"] == "float32 (8, 6)"
    assert record["cosines"][0][:2] == ["a", "b"]


def test_inputs_of_any_structure_are_described() -> None:
    x = torch.zeros(2, 3)
    assert (
        described({"ids": x.long(), "mask": (x, x[:1])})
        == "ids int64 (2, 3), mask.0 float32 (2, 3), mask.1 float32 (1, 3)"
    )
    assert described([object()] * 8) == ", ".join([*(f"{i} object" for i in range(6)), "and 2 more"])
    assert described(x) == "float32 (2, 3)"
