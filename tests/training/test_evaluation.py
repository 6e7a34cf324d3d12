"""Metrics of a split against slow computations on all outputs at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import each
from policies import Started
from states import assert_same, state_of
from torch import Tensor, nn
from training_toys import apart, own_loaders, shared, table, tasks

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ForwardError, LabelWarning, ParameterError
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.tasks.batches import Loaders
from sparsemtl.tasks.own_losses import OwnLosses
from sparsemtl.training.evaluation import evaluate as evaluation
from sparsemtl.training.evaluation import tally
from sparsemtl.training.evaluation.evaluate import evaluate, outputs_of, results_of, sample_predictions
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.trained import Trained

CPU = torch.device("cpu")


def ready(model: sm.MultiTaskModel, sharing: Sharing | None = None) -> Started:
    """A sharing method in force, with norms that have seen something."""
    method = Started(sharing or sm.DenseSharing(), model)
    method.begin_epoch(0, ())
    for seed, task in enumerate(model.tasks):
        with method.view(task), torch.no_grad():
            model(table(16, seed=seed)[0] * (seed + 1), tasks=[task])
    return method


def evaluated(model: sm.MultiTaskModel, loaders: Loaders, sharing: Started | None = None) -> Results:
    return evaluate(trained(model, sharing or ready(model)), loaders, CPU)


def trained(model: sm.MultiTaskModel, sharing: Started, module: nn.Module | None = None) -> Trained:
    return Trained(model, sharing.networks, module or model)


def gaps(targets: dict[str, Tensor], chance: float = 0.5) -> dict[str, Tensor]:
    """The labels, some of them missing: whole samples, and single values of a sample."""
    generator = torch.Generator().manual_seed(5)

    def hole(label: Tensor) -> Tensor:
        return torch.rand(label.shape, generator=generator) < chance

    return {
        "a": targets["a"].masked_fill(hole(targets["a"]), -100),
        "b": targets["b"].masked_fill(hole(targets["b"]), math.nan),
        "c": targets["c"].masked_fill(hole(targets["c"]), math.nan),
    }


def slow_losses(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, float]:
    """Mean loss over all known labels, one label at a time."""
    per_label = {
        "a": [
            float(F.cross_entropy(out[None], label[None]))
            for out, label in zip(outputs["a"], targets["a"], strict=True)
            if label != -100
        ],
        "b": [
            float((out - label) ** 2)
            for out, label in zip(outputs["b"].flatten(), targets["b"], strict=True)
            if not label.isnan()
        ],
        "c": [
            float(F.binary_cross_entropy_with_logits(out, label))
            for out, label in zip(outputs["c"].flatten(), targets["c"].flatten(), strict=True)
            if not label.isnan()
        ],
    }
    return {task: sum(losses) / len(losses) for task, losses in per_label.items()}


def slow_metrics(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    right = [int(out.argmax()) == int(y) for out, y in zip(outputs["a"], targets["a"], strict=True) if y != -100]
    known = ~targets["b"].isnan()
    error = (outputs["b"].flatten() - targets["b"])[known]
    label = targets["b"][known]
    columns = []
    for out, y in zip(outputs["c"].T, targets["c"].T, strict=True):
        seen = ~y.isnan()
        columns.append(float(((out[seen] > 0) == (y[seen] > 0.5)).float().mean()))
    return {
        "a": {"accuracy": sum(right) / len(right)},
        "b": {
            "mse": float(error.square().mean()),
            "mae": float(error.abs().mean()),
            "r2": float(1 - error.square().sum() / (label - label.mean()).square().sum()),
        },
        "c": {"accuracy": sum(columns) / len(columns)},
    }


@each("task", ["a", "b", "c"])
@each("batch_size", [1, 7, 40])
@each("missing", [False, True])
def test_figures_are_those_of_the_whole_split_however_it_is_cut(task: str, batch_size: int, missing: bool) -> None:
    model = shared("abc", norm=True)
    sharing = ready(model)
    x, targets = table()
    targets = gaps(targets) if missing else targets
    model.eval()
    with torch.no_grad():
        outputs = model(x)
    found = evaluated(model, TensorLoader(x, targets, batch_size=batch_size), sharing)
    assert found[task]["loss"] == pytest.approx(slow_losses(outputs, targets)[task], rel=1e-5)
    for metric, value in slow_metrics(outputs, targets)[task].items():
        assert found[task][metric] == pytest.approx(value, rel=1e-4, abs=1e-6), metric


def maps_with_gaps() -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures, and maps of classes, depths and normals with other gaps in every one."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(9, 1, 4, 4, generator=generator)
    gaps = torch.rand(9, 4, 4, generator=generator) < torch.linspace(0.1, 0.9, 9)[:, None, None]
    classes = torch.randint(0, 3, (9, 4, 4), generator=generator).masked_fill(gaps, 255)
    depth = torch.rand(9, 4, 4, generator=generator).add(0.1).masked_fill(gaps, 0)
    normals = F.normalize(torch.randn(9, 3, 4, 4, generator=generator), dim=1).masked_fill(gaps[:, None], 0)
    values = torch.randn(9, 3, generator=generator)
    values[torch.rand(9, 3, generator=generator) < 0.4] = math.nan
    return x, {"classes": classes, "depth": depth, "normals": normals, "numbers": values}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_a_sample_knows_in_part_counts_label_by_label(batch_size: int) -> None:
    torch.manual_seed(0)
    kinds = [sm.Segmentation("classes", 3), sm.Depth("depth"), sm.Normals("normals"), sm.Regression("numbers", 3)]
    heads: dict[str, nn.Module] = {task.name: nn.Conv2d(4, task.outputs, 1) for task in kinds[:3]}
    heads["numbers"] = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model = sm.SharedBottom(nn.Conv2d(1, 4, 3, padding=1), kinds, heads)
    x, targets = maps_with_gaps()
    with torch.no_grad():
        outputs = model(x)
    found = evaluated(model, TensorLoader(x, targets, batch_size=batch_size), Started(sm.DenseSharing(), model))
    for name, task in model.tasks.items():
        whole = float(task.loss(outputs[name], targets[name]))
        assert found[name]["loss"] == pytest.approx(whole, rel=1e-5), name


def network_of(model: sm.MultiTaskModel, sharing: Started, task: str, x: Tensor) -> Tensor:
    """A task's output from weights multiplied by hand and statistics copied in by hand."""
    values = dict(model.state_dict())
    values |= {name: values[name] * mask for name, mask in sharing.networks[task].weight_factors.items()}
    values |= sharing.norms[task]
    model.eval()
    with torch.no_grad():
        return torch.func.functional_call(model, values, (x,))[task]


METHODS = {
    "dense": lambda: sm.DenseSharing(),
    "norms apart": lambda: sm.DenseSharing(bn="per_task"),
    "masks": lambda: sm.RandomSharing(keep=0.3, seed=1),
    "gradient masks": lambda: sm.RandomSharing(keep=0.3, seed=1, mask_applies_to="gradients"),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_task_is_judged_by_its_own_network(method: str) -> None:
    model = shared("abc", norm=True)
    sharing = ready(model, METHODS[method]())
    x, targets = table()
    outputs = {task: network_of(model, sharing, task, x) for task in "abc"}
    found = evaluated(model, TensorLoader(x, targets, batch_size=9), sharing)
    for task, loss in slow_losses(outputs, targets).items():
        assert found[task]["loss"] == pytest.approx(loss, rel=1e-5)


def test_tasks_may_have_splits_of_their_own() -> None:
    model = shared(norm=True)
    sharing = ready(model)
    loaders = own_loaders({"a": 11, "b": 23})
    found = evaluated(model, loaders, sharing)
    for seed, (task, size) in enumerate({"a": 11, "b": 23}.items()):
        x, targets = table(size, seed=seed)
        alone = evaluated(model, TensorLoader(x, targets, batch_size=4), sharing)
        assert found[task] == pytest.approx(alone[task], rel=1e-4, abs=1e-5)


def test_evaluation_leaves_no_trace() -> None:
    model = shared(norm=True, dropout=0.5)
    sharing = ready(model, sm.RandomSharing(keep=0.5))
    model.train()
    model.heads["a"].eval()
    before, modes = state_of(model), [module.training for module in model.modules()]
    norms, draws = deepcopy(sharing.norms), torch.get_rng_state()
    first = evaluated(model, TensorLoader(*table(), batch_size=9), sharing)
    assert_same(state_of(model), before)
    assert [module.training for module in model.modules()] == modes
    assert_same(sharing.norms, norms)
    assert torch.equal(torch.get_rng_state(), draws)
    assert evaluated(model, TensorLoader(*table(), batch_size=9), sharing) == first
    assert all(p.grad is None for p in model.parameters())


def test_no_graph_is_built() -> None:
    model = shared()
    loader = TensorLoader(*table(), batch_size=9)
    with torch.no_grad():
        yielded = list(outputs_of(trained(model, ready(model)), loader, CPU))
    assert [name for name, _, _ in yielded[:2]] == ["a", "b"]
    assert not any(output.requires_grad for _, output, _ in yielded)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        assert not output.requires_grad
        return output.sum()

    for task in model.tasks.values():
        task._loss = loss
    evaluate(trained(model, ready(model)), loader, CPU)


class Counted(nn.Module):
    """How often a module is called, and for which tasks."""

    def __init__(self, model: sm.MultiTaskModel) -> None:
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, x: Any, tasks: Any) -> dict[str, Tensor]:
        self.calls.append(tuple(tasks))
        return self.model(x, tasks=tasks)


@pytest.mark.parametrize(
    ("method", "calls"), [("dense", [("a", "b")]), ("gradient masks", [("a", "b")]), ("masks", [("a",), ("b",)])]
)
def test_one_forward_serves_all_tasks_that_read_one_network(method: str, calls: list[tuple[str, ...]]) -> None:
    model = shared(norm=True)
    sharing = ready(model, METHODS[method]())
    counted = Counted(model)
    list(outputs_of(trained(model, sharing, counted), TensorLoader(*table(8), batch_size=8), CPU))
    assert counted.calls == calls


def test_a_task_without_a_label_is_undefined_and_said_so() -> None:
    model = shared()
    x, targets = table()
    loader = TensorLoader(x, {**targets, "a": torch.full((40,), -100)}, batch_size=8)
    with pytest.warns(LabelWarning, match="task 'a' has no labelled sample in this split"):
        found = evaluated(model, loader)
    assert set(found["a"]) == {
        "loss",
        "accuracy",
        "f1_macro",
        "precision_macro",
        "recall_macro",
        "calibration_error",
    }
    assert all(math.isnan(value) for value in found["a"].values())
    assert all(math.isfinite(value) for value in found["b"].values())


def test_a_metric_of_too_few_samples_is_undefined_and_said_so() -> None:
    model = shared()
    x, targets = table()
    lonely = torch.full((40,), math.nan)
    lonely[17] = 1.0
    with pytest.warns(LabelWarning, match="task 'b': 'r2' is undefined on this split: Needs at least two samples"):
        found = evaluated(model, TensorLoader(x, {**targets, "b": lonely}, batch_size=8))
    assert math.isnan(found["b"]["r2"])
    assert math.isfinite(found["b"]["mse"])
    assert math.isfinite(found["b"]["loss"])


def test_custom_losses_and_metrics_are_used() -> None:
    from torchmetrics.regression import MeanAbsoluteError

    task = sm.Regression("b", loss=lambda out, y: (out - y).abs().mean(), metrics={"error": MeanAbsoluteError()})
    model = sm.SharedBottom(shared().encoder, [task])
    found = evaluated(model, TensorLoader(*table(), batch_size=7))
    assert set(found["b"]) == {"loss", "error"}
    assert found["b"]["loss"] == pytest.approx(found["b"]["error"], rel=1e-5)


def test_samples_show_inputs_labels_and_answers() -> None:
    model = shared(norm=True)
    sharing = ready(model, sm.RandomSharing(keep=0.5))
    x, targets = table()
    samples = sample_predictions(trained(model, sharing), TensorLoader(x, targets, batch_size=20), CPU, count=5)
    assert list(samples) == ["all"]
    assert torch.equal(samples["all"]["x"], x[:5])
    shown = samples["all"]["tasks"]
    assert torch.equal(shown["a"]["target"], targets["a"][:5])
    assert torch.equal(shown["a"]["prediction"], network_of(model, sharing, "a", x[:20]).argmax(1)[:5])
    torch.testing.assert_close(shown["b"]["prediction"], network_of(model, sharing, "b", x[:20])[:5])


def test_samples_of_tasks_with_data_of_their_own_come_apart() -> None:
    model = apart()
    samples = sample_predictions(trained(model, ready(model)), own_loaders({"a": 9, "b": 3}), CPU, count=6)
    assert {key: len(group["x"]) for key, group in samples.items()} == {"a": 4, "b": 3}
    assert {key: list(group["tasks"]) for key, group in samples.items()} == {"a": ["a"], "b": ["b"]}


def test_only_the_first_batch_is_read_for_samples() -> None:
    class Once:
        def __iter__(self) -> Iterator[Any]:
            yield table(4)
            raise AssertionError("a second batch was read")

    model = shared()
    assert len(sample_predictions(trained(model, ready(model)), Once(), CPU)["all"]["x"]) == 4


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("missing", [False, True])
def test_joined_batches_have_the_figures_of_one_batch_after_another_to_the_last_bit(
    classes: int, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = sm.SharedBottom(nn.Linear(6, 7), [sm.Classification("a", classes)], {"a": nn.Linear(7, classes)})
    x, _ = table(500)
    label = torch.randint(classes, (500,))
    if missing:
        label[torch.rand(500) < 0.3] = -100
        label[90:120] = -100
    loader = TensorLoader(x, {"a": label}, batch_size=9)
    joined = evaluated(model, loader)
    (task,) = model.tasks.values()
    metrics, total, count = task.metrics(), 0.0, 0
    for part, labels in loader:
        with torch.no_grad():
            output = model(part)["a"]
        known = int(task.known(labels["a"]).sum())
        total += float(task.loss(output, labels)) * known
        count += known
        task.update(metrics, output, labels["a"])
    assert joined["a"] == {"loss": total / count, **{name: float(m.compute()) for name, m in metrics.items()}}
    monkeypatch.setattr(tally, "_JOINED", 100)
    assert evaluated(model, loader) == joined


class Reusing:
    """Loader that yields the same memory again and again."""

    def __init__(self, batches: TensorLoader) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        kept: Any = None
        for x, targets in self.batches:
            if kept is None or len(x) != len(kept[0]):
                kept = x.clone(), {name: target.clone() for name, target in targets.items()}
            kept[0].copy_(x)
            for name, target in targets.items():
                kept[1][name].copy_(target)
            yield kept


@pytest.mark.parametrize("method", METHODS)
def test_figures_depend_neither_on_how_many_batches_a_network_reads_at_once_nor_on_the_loaders_memory(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared("abc", norm=True)
    sharing = ready(model, METHODS[method]())
    loader = TensorLoader(*table(100), batch_size=7)
    found = evaluated(model, loader, sharing)
    assert evaluated(model, Reusing(loader), sharing) == found
    for name, value in (("_CHUNK_BATCHES", 1), ("_CHUNK_BATCHES", 4), ("_CHUNK_BYTES", 1), ("_CHUNK_BYTES", 400)):
        monkeypatch.setattr(evaluation, name, value)
        assert evaluated(model, loader, sharing) == found
        monkeypatch.undo()


def test_a_network_reads_several_batches_before_the_next_one_does() -> None:
    model = shared(norm=True)
    sharing = ready(model, sm.RandomSharing(keep=0.5))
    counted = Counted(model)
    list(outputs_of(trained(model, sharing, counted), TensorLoader(*table(24), batch_size=8), CPU))
    assert counted.calls == [("a",)] * 3 + [("b",)] * 3


class Opaque:
    """Input that cannot be copied."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")


class Opened(nn.Module):
    out_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Any) -> Tensor:
        return self.layer(x.x if isinstance(x, Opaque) else x)


def test_inputs_that_cannot_be_copied_are_read_batch_by_batch() -> None:
    torch.manual_seed(0)
    model = sm.SharedBottom(Opened(), tasks())
    sharing = ready(model, sm.RandomSharing(keep=0.5))
    counted = Counted(model)
    loader = [(Opaque(x), targets) for x, targets in TensorLoader(*table(16), batch_size=8)]
    list(outputs_of(trained(model, sharing, counted), loader, CPU))
    assert counted.calls == [("a",), ("b",)] * 2


def test_a_metric_that_returns_no_number_is_an_error_and_not_undefined() -> None:
    task = sm.Regression("b", metrics={"own": lambda output, label: output}, higher_is_better={"own": True})
    with pytest.raises(ParameterError, match="metric 'own': its function must return one number"):
        results_of({"b": task}, [("b", torch.zeros(4, 1), torch.zeros(4, 1))], torch.device("cpu"))


def test_an_error_in_a_metric_leaves_the_model_as_it_was() -> None:
    model = shared()
    model.tasks["b"]._losses = OwnLosses("b", lambda output, target: output.sum() / "nothing", None)
    sharing = ready(model, sm.RandomSharing(keep=0.5))
    model.train()
    weight = model.encoder[0].weight
    with pytest.raises(ForwardError, match="task 'b': its loss failed") as caught:
        evaluated(model, TensorLoader(*table(), batch_size=8), sharing)
    assert model.encoder[0].weight is weight  # while the error, and with it every frame, is still referred to
    assert all(module.training for module in model.modules())
    del caught


def test_a_second_evaluation_starts_from_nothing_and_sees_changes_of_the_task() -> None:
    model = shared("abc")
    loader = TensorLoader(*table(), batch_size=8)
    first = evaluated(model, loader)
    assert evaluated(model, loader) == first
    small = evaluated(model, TensorLoader(*table(9, seed=3), batch_size=8))
    assert small == evaluated(deepcopy(model), TensorLoader(*table(9, seed=3), batch_size=8))
    model.tasks["b"].primary = "mae"
    assert list(evaluated(model, loader)["b"]) == ["loss", "mae", "r2", "mse", "rmse"]


def test_metrics_are_made_once_per_task(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared("abc")
    loader = TensorLoader(*table(), batch_size=8)
    first = evaluate(trained(model, ready(model)), loader, torch.device("cpu"))
    monkeypatch.setattr(sm.Task, "metrics", lambda task: pytest.fail("metrics were made again"))
    assert evaluate(trained(model, ready(model)), loader, torch.device("cpu")) == first


def test_metrics_of_the_users_own_are_new_in_each_evaluation() -> None:
    from torchmetrics.regression import MeanAbsoluteError

    class Stubborn(MeanAbsoluteError):
        def reset(self) -> None:
            """Keep everything."""

    task = sm.Regression("b", metrics={"error": Stubborn()})
    model = sm.SharedBottom(shared().encoder, [task])
    loaders = [TensorLoader(*table(9, seed=seed), batch_size=8) for seed in (1, 2)]
    figures = [evaluated(model, loader)["b"]["error"] for loader in loaders]
    assert [evaluated(model, loader)["b"]["error"] for loader in loaders] == figures
