"""Metrics that read probabilities, held to scikit-learn's and to a count by hand."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from loops import each
from sklearn import metrics as reference
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from sparsemtl.tasks import Classification

SMALL = 0.05
"""Logits between 0 and 1 may be taken for probabilities by who does not look."""


def measured(classes: int, output: Tensor, target: Tensor) -> dict[str, float]:
    """By the task, in three batches."""
    task = Classification("t", classes)
    metrics = task.metrics()
    for part, labels in zip(output.chunk(3), target.chunk(3), strict=True):
        task.update(metrics, part, labels)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def sample(classes: int, scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    target = torch.randint(classes, (200,), generator=generator)
    noise = torch.randn(200, classes, generator=generator)
    return (noise + torch.nn.functional.one_hot(target, classes)).sigmoid() * scale, target


@pytest.mark.parametrize("scale", [SMALL, 1.0, 8.0])
def test_metrics_of_two_classes_are_scikit_learn_s_of_the_second(scale: float) -> None:
    output, target = sample(2, scale)
    found = measured(2, output, target)
    chance, truth, said = output.softmax(1)[:, 1].numpy(), target.numpy(), output.argmax(1).numpy()
    assert found["f1"] == pytest.approx(reference.f1_score(truth, said), abs=1e-6)
    assert found["precision"] == pytest.approx(reference.precision_score(truth, said), abs=1e-6)
    assert found["recall"] == pytest.approx(reference.recall_score(truth, said), abs=1e-6)
    assert found["f1_macro"] == pytest.approx(reference.f1_score(truth, said, average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(truth, chance), abs=1e-6)
    assert found["average_precision"] == pytest.approx(reference.average_precision_score(truth, chance), abs=1e-6)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, said), abs=1e-6)


@each(("only", "defined"), [(0, False), (1, True)])
def test_ranking_metrics_are_undefined_without_the_classes_that_they_rank(only: int, defined: bool) -> None:
    task = Classification("t", 2)
    metrics = task.metrics()
    task.update(metrics, sample(2, 1.0)[0], torch.full((200,), only))
    with pytest.raises(ValueError, match=f"no sample has class {1 - only}"):
        metrics["auroc"].compute()
    with nullcontext() if defined else pytest.raises(ValueError, match="no sample has class 1"):
        assert float(metrics["average_precision"].compute()) == 1


@pytest.mark.parametrize("present", [6, 4])
@pytest.mark.parametrize("classes", [2, 6])
def test_macro_metrics_are_scikit_learn_s_means_over_the_classes_that_occur(classes: int, present: int) -> None:
    output, target = sample(classes, 8.0)
    target = target % present
    output[:, present:] = -9.0
    found = measured(classes, output, target)
    truth, said = target.numpy(), output.argmax(1).numpy()
    for name in ("precision", "recall", "f1"):
        expected = getattr(reference, f"{name}_score")(truth, said, average="macro", zero_division=0)
        assert found[f"{name}_macro"] == pytest.approx(expected, abs=1e-6)


@each("classes", [2, 5, 15, 16])
@each("scale", [SMALL, 8.0])
def test_the_calibration_error_is_that_counted_by_hand(classes: int, scale: float) -> None:
    output, target = sample(classes, scale)
    confidence, said = (part.numpy() for part in output.softmax(1).max(1))
    right = said == target.numpy()
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert measured(classes, output, target)["calibration_error"] == pytest.approx(error, abs=1e-5)


def test_metrics_of_one_s_own_read_classes_or_outputs_as_they_need() -> None:
    output, target = sample(6, 1.0)
    rows = torch.arange(len(target))
    own = {"first": MulticlassAccuracy(6, average="micro"), "two": MulticlassAccuracy(6, average="micro", top_k=2)}
    task = Classification("t", 6, metrics=own)
    metrics = task.metrics()
    task.update(metrics, output, target)
    ranks = output.argsort(1, descending=True).argsort(1)[rows, target]
    assert float(metrics["first"].compute()) == pytest.approx(float((ranks < 1).float().mean()))
    assert float(metrics["two"].compute()) == pytest.approx(float((ranks < 2).float().mean()))


@each("classes", [2, 3, 10])
def test_accuracy_of_counts_per_class_is_torchmetrics_micro_accuracy_to_the_last_bit(classes: int) -> None:
    output, target = sample(classes, 8.0)
    plain = MulticlassAccuracy(classes, average="micro")
    for part, labels in zip(output.chunk(3), target.chunk(3), strict=True):
        plain.update(part, labels)
    assert measured(classes, output, target)["accuracy"] == float(plain.compute())
