"""One rule for unknown labels: they add exactly nothing, to any estimate, loss, gradient or metric."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from fisher_oracles import add, assert_close, gradient
from loops import each
from small_networks import Runs
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import Fisher, Gradient
from sparsemtl.errors import LikelihoodWarning
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.task_networks import dense_networks
from sparsemtl.tasks import Task
from sparsemtl.tasks.vectors import unit
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.trained import Trained

COUNT, SIDE = 4, 3
NAN = float("nan")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


class Kind(NamedTuple):
    """A task, its labels, and how they are unknown.

    Attributes:
        task: makes the task.
        labels: all known.
        unknown: values that all say that a label is not known.
    """

    task: Callable[[], Task]
    labels: Tensor
    unknown: tuple[float, ...]


KINDS = {
    "classes": Kind(lambda: sm.Classification("t", 3), torch.tensor([0, 2, 1, 1]), (-100,)),
    "classes as floats": Kind(lambda: sm.Classification("t", 3), torch.tensor([0.0, 2.0, 1.0, 1.0]), (NAN, -100.0)),
    "answers": Kind(lambda: sm.MultiLabel("t", 3), (normal(COUNT, 3) > 0).double(), (NAN,)),
    "values": Kind(lambda: sm.Regression("t", 2), normal(COUNT, 2), (NAN,)),
    "segmentation": Kind(lambda: sm.Segmentation("t", 3), normal(COUNT, SIDE, SIDE).mul(9).long().abs() % 3, (255,)),
    "depth": Kind(lambda: sm.Depth("t"), normal(COUNT, 1, SIDE, SIDE).abs() + 0.1, (0.0, -1.0, -7.5)),
    "normals": Kind(lambda: sm.Normals("t"), unit(normal(COUNT, 3, SIDE, SIDE)), (0.0,)),
}
MAPS = ["segmentation", "depth", "normals"]
ESTIMATORS = ["fs", "efs", "true", "sample", "batch"]


def partly(kind: str, value: float) -> tuple[Tensor, Tensor]:
    """Labels of which the second sample knows nothing and the third a part, and which are known (as `task.known`)."""
    labels = KINDS[kind].labels.clone()
    labels[1] = value
    if labels.ndim > 1:
        part = {"normals": (slice(None),), "depth": (0,)}.get(kind, ())
        labels[(2, *part, 0)] = value
    task = KINDS[kind].task()
    return labels, task.known(task.labels(labels))


def model_for(kind: str) -> tuple[sm.SharedBottom, Tensor]:
    torch.manual_seed(0)
    task = KINDS[kind].task()
    if kind in MAPS:
        layers = {"a": nn.Conv2d(2, 3, 3, padding=1), "b": nn.Conv2d(3, 3, 1)}
        x, head = normal(COUNT, 2, SIDE, SIDE), nn.Conv2d(3, task.outputs, 1)
    else:
        layers = {"a": nn.Linear(4, 3), "b": nn.Linear(3, 3)}  # type: ignore[dict-item]
        x, head = normal(COUNT, 4), nn.Linear(3, task.outputs)  # type: ignore[assignment]
    encoder = Runs(lambda m, x: m.b(m.a(x).tanh()).tanh(), **layers)
    return sm.SharedBottom(encoder, [task], {"t": head}).double(), x


def scores(model: sm.SharedBottom, x: Tensor, labels: Tensor, **options: Any) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LikelihoodWarning)
        criterion = Fisher(**options)
        return criterion.scores(model, [(x, {"t": labels})], list(model.tasks.values()))["t"]


def entries(task: Task, output: Tensor, known: Tensor) -> list[Tensor]:
    """The outputs of each known label of one sample: vectors for classes and directions, else numbers."""
    if isinstance(task, sm.Segmentation | sm.Normals):
        return [output[:, row, column] for row, column in known.nonzero().tolist()]
    if isinstance(task, sm.Depth):
        return [output[0, row, column] for row, column in known.nonzero().tolist()]
    return [output] if isinstance(task, sm.Classification) else [output[i] for i in known.nonzero().flatten().tolist()]


def at_prediction(task: Task, z: Tensor) -> Tensor:
    """log p of one label's prediction."""
    if isinstance(task, sm.MultiLabel):
        return torch.nn.functional.logsigmoid(z.abs())
    return z.log_softmax(0).amax()


@pytest.mark.parametrize("power", ["square", "abs"])
@pytest.mark.parametrize("kind", ["classes", "answers", "segmentation"])
def test_prediction_counts_at_known_labels_alone(kind: str, power: str) -> None:
    """Eq. 10 written out: the power of the gradient of the known labels' sum, mean over labelled samples."""
    model, x = model_for(kind)
    labels, known = partly(kind, KINDS[kind].unknown[0])
    task, names, truth = model.tasks["t"], list(maskable_parameters(model)), dict[str, Tensor]()
    model.eval()
    for n in (0, 2, 3):
        value = sum(at_prediction(task, z) for z in entries(task, model(x[n : n + 1])["t"][0], known[n]))
        add(truth, 1 / 3, gradient(model, value, names), power)  # type: ignore[arg-type]
    assert_close(scores(model, x, labels, estimator="fs", power=power), truth)


@pytest.mark.parametrize("power", ["square", "abs"])
@pytest.mark.parametrize("kind", ["answers", "values"])
def test_exact_information_is_the_sum_over_known_columns(kind: str, power: str) -> None:
    model, x = model_for(kind)
    labels, known = partly(kind, NAN)
    task, names, truth = model.tasks["t"], list(maskable_parameters(model)), dict[str, Tensor]()
    model.eval()
    for n in (0, 2, 3):
        for z in entries(task, model(x[n : n + 1])["t"][0], known[n]):
            p = float(z.detach().sigmoid())
            add(truth, (p * (1 - p) if kind == "answers" else 1.0) / 3, gradient(model, z, names), power)
    assert_close(scores(model, x, labels, estimator="efs", power=power), truth)


def test_drawn_labels_estimate_the_information_of_known_pixels() -> None:
    """Of a normal distribution at every known pixel it is the sum of the squared slopes there."""
    model, x = model_for("depth")
    labels, known = partly("depth", 0.0)
    task, names, truth = model.tasks["t"], list(maskable_parameters(model)), dict[str, Tensor]()
    model.eval()
    for n in (0, 2, 3):
        for z in entries(task, model(x[n : n + 1])["t"][0], known[n]):
            add(truth, 1 / 3, gradient(model, z, names), "square")
    drawn = scores(model, x, labels, estimator="sample", draws=800)
    for name, score in drawn.items():
        torch.testing.assert_close(score.sum(), truth[name].sum(), rtol=0.1, atol=0.0)


class Cropped(nn.Module):
    """A head that gives the pixels of some rows only."""

    def __init__(self, head: nn.Module, rows: slice) -> None:
        super().__init__()
        self.head, self.rows = head, rows

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)[:, :, self.rows]


@each("power", ["square", "abs"])
@each("estimator", ["fs", "true", "batch"])
@each("kind", ["segmentation", "depth", "normals"])
def test_a_half_known_map_counts_as_the_map_of_its_known_half(kind: str, estimator: str, power: str) -> None:
    if estimator == "fs" and kind != "segmentation":
        estimator = "true"  # their prediction has no slope
    model, x = model_for(kind)
    labels = KINDS[kind].labels.clone()
    labels[..., :1, :] = KINDS[kind].unknown[-1]
    half = scores(model, x, labels, estimator=estimator, power=power)
    model.heads["t"] = Cropped(model.heads["t"], slice(1, None))
    assert_close(half, scores(model, x, KINDS[kind].labels[..., 1:, :], estimator=estimator, power=power))


@each(("power", "shift"), [("square", 2.0), ("abs", 2.0), ("square", NAN)])
@each("estimator", ESTIMATORS)
@each("kind", KINDS)
def test_nothing_depends_on_what_the_network_says_where_the_label_is_unknown(
    kind: str, estimator: str, power: str, shift: float
) -> None:
    """A head that answers something else there, with another slope or no number, gives the encoder the same scores."""
    model, x = model_for(kind)
    labels, _ = partly(kind, KINDS[kind].unknown[0])
    given = scores(model, x, labels, estimator=estimator, power=power, path="loop")
    where = model.tasks["t"].known_outputs(model.tasks["t"].labels(labels), model(x)["t"])
    head = model.heads["t"]
    masks = {tuple(row.flatten().tolist()): mask for row, mask in zip(x, where, strict=True)}

    class Elsewhere(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            outputs = head(hidden)
            inside = torch.stack([masks[tuple(row.flatten().tolist())] for row in current[0]])
            return torch.where(inside, outputs, 5 * outputs + shift)

    current = [x]
    model.heads["t"] = Elsewhere()
    model.register_forward_pre_hook(lambda m, args: current.__setitem__(0, args[0]))
    assert_close(scores(model, x, labels, estimator=estimator, power=power, path="loop"), given)


@each("estimator", ESTIMATORS)
@each("kind", KINDS)
def test_every_way_to_say_unknown_is_the_same(kind: str, estimator: str) -> None:
    model, x = model_for(kind)
    first, *others = (partly(kind, value)[0] for value in KINDS[kind].unknown)
    given = scores(model, x, first, estimator=estimator)
    for labels in others:
        for name, score in scores(model, x, labels, estimator=estimator).items():
            assert torch.equal(score, given[name])


@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradient_and_metrics_do_not_see_unknown_labels(kind: str) -> None:
    task = KINDS[kind].task()
    shape = (COUNT, task.outputs, SIDE, SIDE) if kind in MAPS else (COUNT, task.outputs)
    results = []
    for value in KINDS[kind].unknown:
        labels, _ = partly(kind, value)
        for elsewhere in (0.0, 3.0, 1e6):
            output = normal(*shape)
            known = task.known_outputs(task.labels(labels), output)
            output = torch.where(known, output, elsewhere).requires_grad_()
            loss = task.loss(output, labels)
            (slope,) = torch.autograd.grad(loss, output)
            assert not slope[~known.expand_as(slope)].any()
            metrics = task.metrics()
            task.update(metrics, output.detach(), labels)
            results.append([float(loss), *(float(metric.compute()) for metric in metrics.values())])
    for row in results[1:]:
        assert row == results[0]


@each("elsewhere", [NAN, float("inf"), -float("inf")])
@each("kind", KINDS)
def test_even_an_output_that_is_no_number_stays_without_effect_there(kind: str, elsewhere: float) -> None:
    task = KINDS[kind].task()
    labels, _ = partly(kind, KINDS[kind].unknown[0])
    shape = (COUNT, task.outputs, SIDE, SIDE) if kind in MAPS else (COUNT, task.outputs)
    output = normal(*shape)
    known = task.known_outputs(task.labels(labels), output)
    given, expected = (
        _measured(task, torch.where(known, output, value).requires_grad_(), labels) for value in (elsewhere, 0.0)
    )
    assert given == expected


def _measured(task: Task, output: Tensor, labels: Tensor) -> list[Any]:
    """Loss, slope and metrics of a batch, and its results as a split."""
    loss = task.loss(output, labels)
    (slope,) = torch.autograd.grad(loss, output)
    metrics = task.metrics()
    task.update(metrics, output.detach(), labels)
    model = Answers(output.detach(), {"t": task})
    split = evaluate(
        Trained(model, dense_networks(model, ["t"]), model), [(output, {"t": labels})], torch.device("cpu")
    )
    return [float(loss), slope.tolist(), *(float(metric.compute()) for metric in metrics.values()), split]


class Answers(nn.Module):
    """A model that gives one output, whatever it reads."""

    def __init__(self, output: Tensor, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.output = output
        self.tasks = tasks

    def forward(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        return dict.fromkeys(tasks, self.output)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_criterion_is_a_mean_over_known_labels_however_they_are_batched(kind: str) -> None:
    model, x = model_for(kind)
    labels, _ = partly(kind, KINDS[kind].unknown[0])
    tasks = list(model.tasks.values())
    whole = Gradient().scores(model, [(x, {"t": labels})], tasks)["t"]
    parts = [(x[:2], {"t": labels[:2]}), (x[2:3], {"t": labels[2:3]}), (x[3:], {"t": labels[3:]})]
    found = Gradient().scores(model, parts, tasks)["t"]
    for name, score in whole.items():
        torch.testing.assert_close(found[name], score, rtol=1e-10, atol=1e-12)


def test_regression_metrics_are_means_over_known_values() -> None:
    task = sm.Regression("t", 2)
    output, label = normal(6, 2), normal(6, 2) + 0.3
    label[0, 1] = label[3, 0] = label[4, 0] = NAN
    label[5] = NAN
    metrics = task.metrics()
    task.update(metrics, output[:3], label[:3])
    task.update(metrics, output[3:], label[3:])
    known = ~label.isnan()
    errors = (output - label)[known].float()
    assert float(metrics["mse"].compute()) == pytest.approx(float(errors.square().mean()))
    assert float(metrics["rmse"].compute()) == pytest.approx(float(errors.square().mean().sqrt()))
    assert float(metrics["mae"].compute()) == pytest.approx(float(errors.abs().mean()))
    r2 = []
    for column in range(2):
        y, z = label[known[:, column], column], output[known[:, column], column]
        r2.append(1 - float((y - z).square().sum() / (y - y.mean()).square().sum()))
    assert float(metrics["r2"].compute()) == pytest.approx(sum(r2) / 2, rel=1e-4)
