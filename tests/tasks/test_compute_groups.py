"""Metrics of a compute group against the same metrics, each updated itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

import sparsemtl as sm
from sparsemtl.tasks.metrics.compute_groups import hand_on_states, updated_metrics


def classes(count: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(count, (12, *shape)).masked_fill(torch.rand(12, *shape) < 0.2, -100)


def values(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(12, *shape).masked_fill(torch.rand(12, *shape) < 0.2, torch.nan)


KINDS: dict[str, tuple[sm.Task, Callable[[], Tensor], tuple[int, ...], list[str]]] = {
    "classes": (
        sm.Classification("a", 4),
        classes(4),
        (4,),
        ["accuracy", "calibration_error"],
    ),
    "two classes": (
        sm.Classification("a", 2),
        classes(2),
        (2,),
        ["accuracy", "calibration_error", "f1", "auroc", "average_precision"],
    ),
    "labels": (
        sm.MultiLabel("a", 3),
        lambda: torch.randint(2, (12, 3)).float().masked_fill(torch.rand(12, 3) < 0.2, torch.nan),
        (3,),
        ["accuracy"],
    ),
    "values": (sm.Regression("a", 2), values(2), (2,), ["r2", "mse", "mae"]),
    "pixels": (
        sm.Segmentation("a", 3, ignore_index=-100),
        classes(3, 4, 4),
        (3, 4, 4),
        ["miou", "iou_less_is_more"],
    ),
    "tokens": (sm.TokenClassification("a", 3), classes(3, 5), (5, 3), ["accuracy"]),
    "asked for": (
        sm.Classification("a", 4, metrics=["recall_macro", "f1_macro"]),
        classes(4),
        (4,),
        ["recall_macro"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_has_the_values_of_metrics_that_are_updated_one_by_one(kind: str) -> None:
    torch.manual_seed(0)
    task, labels, shape, updated = KINDS[kind]
    apart, grouped = task.metrics(), task.metrics()
    assert list(updated_metrics(grouped)) == updated
    for repeat in range(2):
        for _ in range(3):
            output, label = torch.randn(12, *shape), labels()
            task.update(apart, output, label)
            task.update(updated_metrics(grouped), output, label)
        hand_on_states(grouped)
        assert {n: m.compute() for n, m in grouped.items()} == {n: m.compute() for n, m in apart.items()}
        if not repeat:  # the second time, values of the first are cached in all metrics
            for metric in (*updated_metrics(grouped).values(), *apart.values()):
                metric.reset()


def test_calibration_error_is_torchmetrics_own() -> None:
    torch.manual_seed(0)
    own, reference = sm.Classification("a", 5).metrics()["calibration_error"], MulticlassCalibrationError(5)
    for _ in range(3):
        output, label = 4 * torch.randn(40, 5), torch.randint(5, (40,))
        own.update(output, label)
        reference.update(output.softmax(1), label)
    assert own.compute() == reference.compute()
