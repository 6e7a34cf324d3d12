"""Tasks: a missing label adds exactly nothing, a wrong one is named, and every kind can be given its own parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from sklearn.metrics import precision_score, recall_score
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy
from torchmetrics.regression import MeanSquaredError

from sparsemtl import Classification, MultiLabel, Regression, Task
from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.heads.linear import LinearHead, pooled

NAN = float("nan")
SAMPLES = 7


def classes() -> Tensor:
    return torch.tensor([0, 2, 1, 2, 0, 1, 2])


def yes_or_no() -> Tensor:
    return torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]])


def values(dims: int) -> Tensor:
    return torch.linspace(-2, 2, SAMPLES * dims, dtype=torch.float64).view(SAMPLES, dims)


KINDS: dict[str, tuple[Task, Tensor, float]] = {
    "classification": (Classification("t", 3), classes(), -100),
    "classification of floats": (Classification("t", 3), classes().double(), NAN),
    "classification ignoring 255": (Classification("t", 3, ignore_index=255), classes().to(torch.uint8), 255),
    "smoothed classification": (Classification("t", 3, label_smoothing=0.2), classes(), -100),
    "weighted classification": (Classification("t", 3, class_weights=[1, 0.5, 3]), classes(), -100),
    "multi-label": (MultiLabel("t", 3), yes_or_no(), NAN),
    "regression": (Regression("t"), values(1)[:, 0], NAN),
    "squared error": (Regression("t", 2), values(2), NAN),
    "absolute error": (Regression("t", 2, criterion="l1"), values(2), NAN),
    "Huber's error": (Regression("t", 2, criterion="huber"), values(2), NAN),
    "a loss of one's own": (Classification("t", 3, loss=F.cross_entropy), classes(), -100),
    "a regression loss of one's own": (Regression("t", 2, loss=F.mse_loss), values(2), NAN),
}
OF_CLASSES = {
    "accuracy": True,
    "f1_macro": True,
    "precision_macro": True,
    "recall_macro": True,
    "calibration_error": False,
}
each_kind = each("kind", KINDS)
quickly = settings(deadline=None, max_examples=25)
subsets = st.lists(st.booleans(), min_size=SAMPLES, max_size=SAMPLES).map(torch.tensor)


def outputs(task: Task) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, task.outputs, generator=generator, dtype=torch.float64, requires_grad=True)


def without(target: Tensor, missing: float, unlabelled: Tensor) -> Tensor:
    target = target.clone()
    target[unlabelled] = missing
    return target


def loss_and_gradient(task: Task, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    loss = task.loss(output, target)
    (gradient,) = torch.autograd.grad(loss, output)
    return loss.detach(), gradient


# The mean divides both by the same count of labelled samples, so that bits can be compared.
@each_kind
@quickly
@given(unlabelled=subsets)
def test_the_gradient_is_that_of_the_batch_without_the_unlabelled_samples(kind: str, unlabelled: Tensor) -> None:
    task, target, missing = KINDS[kind]
    output = outputs(task)
    loss, gradient = loss_and_gradient(task, output, without(target, missing, unlabelled))
    assert torch.equal(gradient[unlabelled], torch.zeros_like(gradient[unlabelled]))
    kept = output.detach()[~unlabelled].requires_grad_()
    expected_loss, expected = loss_and_gradient(task, kept, target[~unlabelled])
    # The last bit of a sigmoid depends on an element's place in a vector register; all else is exact.
    torch.testing.assert_close(gradient[~unlabelled], expected, rtol=1e-15 if kind == "multi-label" else 0, atol=0)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-14, atol=0)


@each_kind
@quickly
@given(unlabelled=subsets)
def test_what_an_unlabelled_sample_looks_like_does_not_reach_the_weights(kind: str, unlabelled: Tensor) -> None:
    task, target, missing = KINDS[kind]
    head = task.head(4).double()

    def gradients(x: Tensor) -> list[Tensor]:
        loss = task.loss(head(x), without(target, missing, unlabelled))
        return [loss.detach(), *torch.autograd.grad(loss, list(head.parameters()))]

    x = torch.linspace(-1, 1, SAMPLES * 4, dtype=torch.float64).view(SAMPLES, 4)
    other = torch.where(unlabelled[:, None], 50 - 3 * x, x)
    for seen, unseen in zip(gradients(x), gradients(other), strict=True):
        assert torch.equal(seen, unseen)


@each_kind
def test_without_any_label_loss_and_gradient_are_exactly_zero(kind: str) -> None:
    task, target, missing = KINDS[kind]
    loss, gradient = loss_and_gradient(task, outputs(task), torch.full_like(target, missing))
    assert loss.item() == 0
    assert gradient.count_nonzero() == 0


@each_kind
def test_a_batch_without_samples_has_no_loss(kind: str) -> None:
    task, target, _ = KINDS[kind]
    assert task.loss(outputs(task)[:0], target[:0]).item() == 0


def measured(task: Task, output: Tensor, target: Tensor) -> dict[str, Tensor]:
    metrics = task.metrics()
    for rows in torch.arange(len(output)).split(3):
        task.update(metrics, output[rows], target[rows])
    return {name: metric.compute() for name, metric in metrics.items()}


@each_kind
@quickly
@given(unlabelled=subsets.filter(lambda missing: int(missing.sum()) <= SAMPLES - 2))
def test_metrics_are_those_of_the_labelled_samples(kind: str, unlabelled: Tensor) -> None:
    task, target, missing = KINDS[kind]
    output = outputs(task).detach()
    found = measured(task, output, without(target, missing, unlabelled))
    expected = measured(task, output[~unlabelled], target[~unlabelled])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


@each_kind
def test_a_batch_without_any_label_does_not_update_a_metric(kind: str) -> None:
    task, target, missing = KINDS[kind]
    metrics = task.metrics()
    task.update(metrics, outputs(task).detach(), torch.full_like(target, missing))
    assert not any(metric.update_called for metric in metrics.values())


@each_kind
@quickly
@given(unlabelled=subsets)
def test_labelled_tells_which_samples_have_a_label(kind: str, unlabelled: Tensor) -> None:
    task, target, missing = KINDS[kind]
    label = task.labels(without(target, missing, unlabelled))
    assert torch.equal(task.labelled(label), ~unlabelled)
    assert torch.equal(task.labels(label).nan_to_num(7), label.nan_to_num(7)), "labels may be read twice"
    assert task.complete_labels(without(target, missing, unlabelled))[1] == (not bool(unlabelled.any()))


@each_kind
def test_the_loss_of_complete_labels_is_the_loss_bit_for_bit(kind: str) -> None:
    task, target, _ = KINDS[kind]
    label, complete = task.complete_labels(target)
    assert complete
    assert torch.equal(label, task.labels(target))
    leaves = [outputs(task), outputs(task)]
    losses = [
        task.checked_losses(leaf, label, complete=flag)["loss"]
        for leaf, flag in zip(leaves, (False, True), strict=True)
    ]
    gradients = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("missing", [2, -100, 255])
def test_no_label_is_not_complete_labels(missing: int) -> None:
    task = Classification("t", 3, ignore_index=missing)
    assert not task.complete_labels(torch.empty(0, dtype=torch.long))[1]
    assert not task.complete_labels(torch.tensor([0, missing, 1]))[1]
    assert task.complete_labels(torch.tensor([0, 1, 1]))[1]


# ---- partially known rows ------------------------------------------------------------------------------------

entries = st.lists(st.booleans(), min_size=3 * SAMPLES, max_size=3 * SAMPLES).map(
    lambda flat: torch.tensor(flat).view(SAMPLES, 3)
)


def multi_label_terms(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target.double(), reduction="none")


def squared_terms(output: Tensor, target: Tensor) -> Tensor:
    return (output - target) ** 2


@pytest.mark.parametrize(
    ("task", "target", "terms"),
    [(MultiLabel("t", 3), yes_or_no(), multi_label_terms), (Regression("t", 3), values(3), squared_terms)],
    ids=["multi-label", "regression"],
)
@quickly
@given(unknown=entries)
def test_the_loss_is_the_mean_over_known_entries_alone(
    task: Task, target: Tensor, terms: Callable[[Tensor, Tensor], Tensor], unknown: Tensor
) -> None:
    output = outputs(task)
    loss, gradient = loss_and_gradient(task, output, target.masked_fill(unknown, NAN))
    known = ~unknown
    expected = terms(output, target)[known].sum() / known.sum().clamp(min=1)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-14, atol=0)
    assert gradient[unknown].count_nonzero() == 0
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, output)[0], rtol=1e-13, atol=0)


def counted_by_hand(output: Tensor, target: Tensor) -> tuple[float, float]:
    """Accuracy and F1 of each label over its known entries, averaged over the labels that have one."""
    accuracies, f1s = [], []
    for logits, labels in zip(output.T, target.T, strict=True):
        known = ~labels.isnan()
        if not known.any():
            continue
        said, true = logits[known] > 0, labels[known] == 1
        hits, wrong = int((said & true).sum()), int((said != true).sum())
        accuracies.append(float((said == true).double().mean()))
        f1s.append(2 * hits / (2 * hits + wrong) if hits + wrong else 0.0)
    return sum(accuracies) / len(accuracies), sum(f1s) / len(f1s)


@quickly
@given(unknown=entries.filter(lambda unknown: not bool(unknown.all())))
def test_multi_label_metrics_count_known_entries_alone(unknown: Tensor) -> None:
    task = MultiLabel("t", 3)
    output, target = outputs(task).detach(), yes_or_no().masked_fill(unknown, NAN)
    found = measured(task, output, target)
    accuracy, f1 = counted_by_hand(output, target)
    assert float(found["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    assert float(found["f1_macro"]) == pytest.approx(f1, abs=1e-6)
    for name, reference in (("precision_macro", precision_score), ("recall_macro", recall_score)):
        columns = [(y[~y.isnan()], o[~y.isnan()] > 0) for y, o in zip(target.T, output.T, strict=True)]
        scores = [reference(truth, said, zero_division=0) for truth, said in columns if len(truth)]
        assert float(found[name]) == pytest.approx(sum(scores) / len(scores), abs=1e-6)


def test_a_label_that_is_never_known_does_not_count_as_wrong() -> None:
    target = yes_or_no()
    target[:, 1] = NAN
    found = measured(MultiLabel("t", 3), 2 * yes_or_no() - 1, target)
    assert float(found["accuracy"]) == 1


def test_a_users_own_regression_metric_gets_whole_samples_alone() -> None:
    """It does not know NaN; the task's own metrics count every known value."""
    from torchmetrics.regression import MeanSquaredError

    task = Regression("t", 2, metrics={"mse": MeanSquaredError()})
    output, target = outputs(task).detach(), values(2)
    partly = target.clone()
    partly[1, 0] = partly[4, 1] = NAN
    rows = [0, 2, 3, 5, 6]
    assert measured(task, output, partly) == measured(task, output[rows], target[rows])
    own = measured(Regression("t", 2), output, partly)["mse"]
    assert float(own) == pytest.approx(float((output - partly)[~partly.isnan()].square().mean()))


# ---- a task's own loss, head, metrics and target -----------------------------------------------------------------


def test_a_loss_of_ones_own_sees_the_labelled_samples_only() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(output: Tensor, label: Tensor) -> Tensor:
        seen.append((output, label))
        return output.sum()

    task = Regression("t", loss=loss)
    output = outputs(task)
    target = values(1)[:, 0].index_fill(0, torch.tensor([1, 5]), NAN)
    assert torch.equal(task.loss(output, target), output[[0, 2, 3, 4, 6]].sum())
    assert torch.equal(seen[0][1], values(1)[[0, 2, 3, 4, 6]])
    task.loss(output, torch.full_like(target, NAN))
    assert len(seen) == 1


def test_a_loss_that_is_no_mean_is_refused() -> None:
    task = Classification("digit", 3, loss=lambda output, label: F.cross_entropy(output, label, reduction="none")[:5])
    with pytest.raises(ParameterError, match=r"task 'digit': its loss must be one number, .* got shape \(5,\)"):
        task.loss(outputs(task), classes())


def test_metrics_of_ones_own_replace_the_kinds_and_are_fresh_every_time() -> None:
    given_metric = MulticlassAccuracy(3, average="macro")
    task = Classification("t", 3, metrics={"balanced": given_metric})
    first, second = task.metrics(), task.metrics()
    assert list(first) == ["balanced"]
    task.update(first, F.one_hot(classes()).double(), classes())
    assert float(first["balanced"].compute()) == 1
    assert not second["balanced"].update_called
    assert not given_metric.update_called


def test_a_multi_label_metric_of_ones_own_gets_known_rows_with_minus_one_for_unknown() -> None:
    task = MultiLabel("t", 3, metrics={"exact": MultilabelAccuracy(3, average="micro", ignore_index=-1)})
    target = yes_or_no()
    target[0] = NAN
    target[1, 2] = NAN
    found = measured(task, 2 * yes_or_no() - 1, target)
    assert float(found["exact"]) == 1


def test_a_metric_must_say_which_way_is_better() -> None:
    class Mute(MeanSquaredError):
        higher_is_better = None

    with pytest.raises(ParameterError, match=r"task 'slant': metric 'mute' has no `higher_is_better`"):
        Regression("slant", metrics={"mute": Mute()}).metrics()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Classification("t", 3), OF_CLASSES),
        (
            Classification("t", 2),
            {
                **OF_CLASSES,
                "f1": True,
                "precision": True,
                "recall": True,
                "auroc": True,
                "average_precision": True,
            },
        ),
        (MultiLabel("t", 3), dict.fromkeys(["accuracy", "f1_macro", "precision_macro", "recall_macro"], True)),
        (Regression("t"), {"r2": True, "mse": False, "rmse": False, "mae": False}),
        (Regression("t", metrics={"mse": MeanSquaredError(), "r": MulticlassAccuracy(2)}), {"mse": False, "r": True}),
        (Regression("t", metrics=["mae", "r2", "mae"]), {"mae": False, "r2": True}),
    ],
)
def test_metrics_say_which_way_is_better_and_the_primary_one_is_first(task: Task, expected: dict[str, bool]) -> None:
    assert [(name, metric.higher_is_better) for name, metric in task.metrics().items()] == list(expected.items())


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        (Classification("t", 3), 9 * F.one_hot(classes()).double(), -9 * F.one_hot(classes()).double()),
        (MultiLabel("t", 3), 2 * yes_or_no() - 1, 1 - 2 * yes_or_no()),
        (Regression("t", 2), values(2), -values(2)),
    ],
)
def test_metrics_are_better_where_predictions_are(task: Task, good: Tensor, bad: Tensor) -> None:
    target = {"Classification": classes(), "MultiLabel": yes_or_no(), "Regression": values(2)}[type(task).__name__]

    def better(metric: Metric, a: Tensor, b: Tensor) -> bool:
        return bool(a > b) if metric.higher_is_better else bool(a < b)

    high, low = measured(task, good, target), measured(task, bad, target)
    assert all(better(metric, high[name], low[name]) for name, metric in task.metrics().items())
    assert float(next(iter(high.values()))) == 1


def test_a_task_reads_its_target_by_name_or_by_the_key_given() -> None:
    targets = {"digit": torch.tensor([1]), "class": torch.tensor([2])}
    assert Classification("digit", 3).labels(targets).item() == 1
    assert Classification("digit", 3, target="class").labels(targets).item() == 2


# ---- reading labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [classes(), classes()[:, None], classes().float(), classes().to(torch.uint8)])
def test_class_labels_come_as_int64_in_one_dimension(target: Tensor) -> None:
    label = Classification("t", 3).labels(target)
    assert label.dtype == torch.int64
    assert torch.equal(label, classes())


def test_no_byte_is_taken_for_the_ignore_index() -> None:
    task = Classification("t", 200)
    label = task.labels(torch.tensor([-100 % 256, 3], dtype=torch.uint8))
    assert task.labelled(torch.tensor([-100 % 256, 3], dtype=torch.uint8)).all()
    assert label.tolist() == [156, 3]


@pytest.mark.parametrize("target", [yes_or_no(), yes_or_no().long(), yes_or_no().bool()])
def test_multi_labels_are_floats(target: Tensor) -> None:
    assert torch.equal(MultiLabel("t", 3).labels(target), yes_or_no())


@pytest.mark.parametrize("shape", [(SAMPLES,), (SAMPLES, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_values_are_floats_with_a_column_a_value(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    label = Regression("t").labels(torch.arange(SAMPLES).view(shape).to(dtype))
    assert label.shape == (SAMPLES, 1)
    assert label.is_floating_point()


WRONG_LABELS = {
    "class too high": (Classification("digit", 3), torch.tensor([0, 3]), "label 3 is not one of the classes 0 .. 2"),
    "class too low": (Classification("digit", 3), torch.tensor([0, -1]), "label -1 is not one of the classes 0 .. 2"),
    "infinite class": (Classification("digit", 3), torch.tensor([torch.inf]), "label inf is not one of the classes"),
    "class between": (Classification("digit", 3), torch.tensor([0, 1.5]), "label 1.5 is not one of the classes 0 .. 2"),
    "one-hot classes": (Classification("digit", 3), torch.eye(3), r"class indices of shape \(batch,\), .* \(3, 3\)"),
    "no batch": (Classification("digit", 3), torch.tensor(1), r"class indices of shape \(batch,\), .* \(\)"),
    "no label": (MultiLabel("digit", 2), torch.tensor([[0, 2.0]]), r"labels must be 0, 1 or NaN \(unknown\), found 2"),
    "label of -1": (MultiLabel("digit", 2), torch.tensor([[0, -1]]), r"must be 0, 1 or NaN \(unknown\), found -1"),
    "label missing": (
        MultiLabel("digit", 3),
        torch.zeros(4, 2),
        r"expected labels of shape \(batch, 3\), got \(4, 2\)",
    ),
    "bare label": (MultiLabel("digit", 1), torch.zeros(4), r"expected labels of shape \(batch, 1\), got \(4,\)"),
    "infinite value": (
        Regression("digit"),
        torch.tensor([0, torch.inf]),
        "a label is infinite. An unknown value is NaN",
    ),
    "value missing": (
        Regression("digit", 3),
        torch.zeros(4, 2),
        r"expected labels of shape \(batch, 3\), got \(4, 2\)",
    ),
    "single values": (Regression("digit", 3), torch.zeros(3), r"expected labels of shape \(batch, 3\), got \(3,\)"),
    "one value": (Regression("digit"), torch.tensor(1.0), r"expected labels of shape \(batch, 1\), got \(\)"),
}


@each("case", WRONG_LABELS)
def test_a_label_error_names_the_task_the_value_and_what_is_expected(case: str) -> None:
    task, target, message = WRONG_LABELS[case]
    for read in (task.labels, lambda labels: task.loss(torch.zeros(len(labels), task.outputs), labels)):
        if target.ndim or read == task.labels:
            with pytest.raises(LabelError, match=f"task 'digit': .*{message}"):
                read(target)


def test_a_wrong_class_is_told_how_to_say_missing() -> None:
    with pytest.raises(LabelError, match=r"A sample without a label carries ignore_index=255 or NaN\."):
        Classification("digit", 3, ignore_index=255).labels(torch.tensor([-100]))


def test_a_batch_without_the_tasks_target_is_told_which_targets_there_are() -> None:
    with pytest.raises(LabelError, match=r"task 'digit': the batch has no target 'class', only \['a', 'b'\]"):
        Classification("digit", 3, target="class").labels({"b": classes(), "a": classes()})


def test_labels_are_tensors() -> None:
    with pytest.raises(LabelError, match="task 'digit': labels must be a tensor, got list"):
        Classification("digit", 3).labels({"digit": [1, 2]})  # type: ignore[dict-item]


def test_there_is_a_label_an_output() -> None:
    with pytest.raises(LabelError, match="task 't': 4 outputs but 7 labels"):
        Classification("t", 3).loss(torch.zeros(4, 3), classes())


@pytest.mark.parametrize(
    ("task", "output", "target"),
    [
        (Regression("t"), torch.zeros(SAMPLES), values(1)),
        (Classification("t", 3), torch.zeros(SAMPLES, 2), classes().clamp(max=1)),
        (Classification("t", 3), torch.zeros(SAMPLES, 4), classes()),
        (MultiLabel("t", 3), torch.zeros(SAMPLES, 1), yes_or_no()),
    ],
)
def test_outputs_that_would_broadcast_against_the_labels_are_refused(
    task: Task, output: Tensor, target: Tensor
) -> None:
    with pytest.raises(
        ParameterError, match=rf"task 't': its head must give outputs of shape \(batch, {task.outputs}\)"
    ):
        task.loss(output, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("criterion", ["mse", "l1", "huber"])
def test_labels_keep_their_precision_beside_half_precision_outputs(criterion: str, dtype: torch.dtype) -> None:
    task = Regression("t", criterion=criterion)  # type: ignore[arg-type]
    loss = task.loss(torch.zeros(2, 1, dtype=dtype), torch.tensor([100_000.0, 1.0009765625]))
    assert torch.equal(loss, task.loss(torch.zeros(2, 1), torch.tensor([100_000.0, 1.0009765625])))


@pytest.mark.parametrize(("task", "target"), [(MultiLabel("t", 3), yes_or_no()), (Regression("t", 3), values(3))])
def test_labels_of_numpys_precision_do_not_change_the_losss(task: Task, target: Tensor) -> None:
    assert task.loss(torch.zeros(SAMPLES, 3), target.double()).dtype == torch.float32


# ---- losses against their definitions ----------------------------------------------------------------------------


def test_the_classification_loss_is_minus_the_log_probability_of_the_class() -> None:
    task = Classification("t", 3)
    output = outputs(task)
    expected = -output.log_softmax(1)[torch.arange(SAMPLES), classes()].mean()
    torch.testing.assert_close(task.loss(output, classes()), expected)


@pytest.mark.parametrize(
    ("criterion", "error"),
    [
        ("mse", lambda d: d**2),
        ("l1", lambda d: d.abs()),
        ("huber", lambda d: torch.where(d.abs() < 1, d**2 / 2, d.abs() - 0.5)),
    ],
)
def test_the_regression_loss_is_the_criterion_named(criterion: str, error: Callable[[Tensor], Tensor]) -> None:
    task = Regression("t", 2, criterion=criterion)  # type: ignore[arg-type]
    output = outputs(task)
    torch.testing.assert_close(task.loss(output, values(2)), error(output - values(2)).mean())


@pytest.mark.parametrize(
    ("task", "output", "expected"),
    [
        (Classification("t", 3), [[0.0, 2, 1], [1, 0, 0]], [1, 0]),
        (MultiLabel("t", 2), [[0.5, -2.0], [-1, 0]], [[1, 0], [0, 0]]),
        (Regression("t", 2), [[0.5, -2.0]], [[0.5, -2.0]]),
    ],
)
def test_predictions_are_what_a_person_reads(task: Task, output: list[list[float]], expected: list[object]) -> None:
    assert task.predict(torch.tensor(output)).tolist() == expected


# ---- heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3, 2), (5, 6, 3, 2, 4)])
@pytest.mark.parametrize("lazy", [False, True])
def test_default_heads_read_features_and_average_maps_over_their_positions(shape: tuple[int, ...], lazy: bool) -> None:
    head = Classification("t", 3).head(None if lazy else 6)
    features = torch.rand(shape)
    output = head(features)
    assert output.shape == (5, 3)
    means = features if features.ndim == 2 else features.mean(dim=tuple(range(2, features.ndim)))
    assert isinstance(head, LinearHead)
    torch.testing.assert_close(output, F.linear(means, head.weight, head.bias))


@pytest.mark.parametrize(
    ("task", "width"), [(Classification("t", 4), 4), (MultiLabel("t", ["a", "b"]), 2), (Regression("t", 3), 3)]
)
def test_the_default_head_has_an_output_a_class_a_label_or_a_value(task: Task, width: int) -> None:
    head = task.head(8)
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (8, width)


@pytest.mark.parametrize(
    ("features", "found"), [(torch.zeros(2, 3, 4), r"gave \(2, 3, 4\)"), ((torch.zeros(2, 3),), "gave tuple")]
)
def test_features_that_default_heads_cannot_read_are_named(features: object, found: str) -> None:
    with pytest.raises(ParameterError, match=found + r"\. Pass heads=\{task: module\}"):
        pooled(features)  # type: ignore[arg-type]


# ---- making tasks ------------------------------------------------------------------------------------------------


def test_classes_and_labels_have_names() -> None:
    assert Classification("t", ["cat", "dog"]).class_names == ["cat", "dog"]
    assert Classification("t", 3).class_names == ["0", "1", "2"]
    assert MultiLabel("t", ("hat", "glasses")).label_names == ["hat", "glasses"]


def test_a_task_says_what_it_is() -> None:
    assert repr(Classification("digit", 10)) == "Classification('digit', 10)"


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "-a", "ä", "a\n"])
def test_a_name_that_cannot_name_modules_and_columns_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=r"A task's name has letters, digits, '_' and '-' only"):
        Regression(name)


@pytest.mark.parametrize("name", ["type", "items", "train", "training", "float", "_modules"])
def test_a_name_that_torchs_modules_keep_for_themselves_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(
        ParameterError, match=f"A task cannot be named '{name}': .*target='{name}' keeps the labels' key"
    ):
        Regression(name)


WRONG_ARGUMENTS: dict[str, tuple[Callable[[], Task], str]] = {
    "weight": (
        lambda: Regression("t", weight=-1),
        r"The 'weight' parameter of Regression must be a float in \[0, inf\)\. Got -1 instead\.",
    ),
    "smoothing": (
        lambda: Classification("t", 3, label_smoothing=1.0),
        r"The 'label_smoothing' parameter of Classification must be a float in \[0, 1\)\. Got 1\.0 instead\.",
    ),
    "dims": (lambda: Regression("t", 0), r"The 'dims' parameter of Regression must be an int in \[1, inf\)\."),
    "criterion": (
        lambda: Regression("t", criterion="mae"),  # type: ignore[arg-type]
        r"The 'criterion' parameter of Regression must be one of 'mse', 'l1', 'huber'\. Got 'mae' instead\.",
    ),
    "one class": (lambda: Classification("t", 1), r"task 't': a classification needs at least 2 classes, got 1\."),
    "no label": (lambda: MultiLabel("t", []), r"task 't': a multi-label task needs at least 1 label, got \[\]\."),
    "a word for classes": (
        lambda: Classification("t", "10"),
        r"The 'classes' parameter of Classification must be an int or a sequence of strings\. Got '10' instead\.",
    ),
    "a fraction of a label": (
        lambda: MultiLabel("t", 2.5),  # type: ignore[arg-type]
        r"The 'labels' parameter of MultiLabel must be an int or a sequence of strings\. Got 2\.5 instead\.",
    ),
}


@each("case", WRONG_ARGUMENTS)
def test_arguments_out_of_range_are_refused_in_one_style(case: str) -> None:
    make, message = WRONG_ARGUMENTS[case]
    with pytest.raises(ParameterError, match=message):
        make()
