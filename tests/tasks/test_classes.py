"""Options of tasks with classes: focal loss and weights against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import each
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

import sparsemtl as sm
from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.runs.config import check
from sparsemtl.runs.spec import RunSpec

WEIGHTS = [1.0, 0.5, 3.0]


def logits(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


LABELS = torch.tensor([[0, 2, 1, -100], [2, -100, 0, 1]])
KINDS = {  # -> outputs (8, 3) and labels (8,), in one order
    "classification": lambda **options: (sm.Classification("t", 3, **options), lambda z: z, LABELS.flatten()),
    "tokens": lambda **options: (sm.TokenClassification("t", 3, **options), lambda z: z.view(2, 4, 3), LABELS),
    "segmentation": lambda **options: (
        sm.Segmentation("t", 3, ignore_index=-100, **options),
        lambda z: z.view(2, 2, 2, 3).permute(0, 3, 1, 2),
        LABELS.view(2, 2, 2),
    ),
}


@each("kind", KINDS)
@each("gamma", [0.5, 1.0, 2.0])
@each("weights", [None, WEIGHTS])
def test_the_focal_loss_is_that_of_the_paper(kind: str, gamma: float, weights: list[float] | None) -> None:
    task, arranged, labels = KINDS[kind](focal_gamma=gamma, class_weights=weights)
    z = logits(8, 3)
    total, count = torch.tensor(0.0, dtype=torch.float64), 0.0
    for row, label in zip(z, LABELS.flatten().tolist(), strict=True):
        if label >= 0:
            factor = 1.0 if weights is None else weights[label]
            p = row.softmax(0)[label]
            total, count = total - factor * (1 - p) ** gamma * p.log(), count + factor
    found = torch.autograd.grad(task.loss(arranged(z), labels), z)[0]
    expected = torch.autograd.grad(total / count, z)[0]
    torch.testing.assert_close(task.loss(arranged(z), labels), total / count)
    torch.testing.assert_close(found, expected)


def test_a_focal_loss_has_a_gradient_at_a_certain_output() -> None:
    z = torch.tensor([[200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = sm.Classification("t", 2, focal_gamma=0.5).loss(z, torch.tensor([0, 1]))
    assert bool(torch.autograd.grad(loss, z)[0].isfinite().all())


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_weights_and_focal_factor_of_yes_and_no(gamma: float) -> None:
    task = sm.MultiLabel("t", 2, pos_weight=[1.0, 4.0], focal_gamma=gamma)
    z, labels = logits(3, 2), torch.tensor([[0.0, 1.0], [1.0, float("nan")], [1.0, 1.0]])
    terms = []
    for n, a in [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]:
        yes = z[n, a].sigmoid()
        p, factor = (yes, [1.0, 4.0][a]) if labels[n, a] else (1 - yes, 1.0)
        terms.append(-factor * (1 - p) ** gamma * p.log())
    torch.testing.assert_close(task.loss(z, labels), torch.stack(terms).mean())
    if not gamma:
        whole = sm.MultiLabel("t", 2, pos_weight=[1.0, 4.0]).loss(z[:1], labels[:1])
        pos_weight = torch.tensor([1.0, 4.0], dtype=torch.float64)
        expected = F.binary_cross_entropy_with_logits(z[:1], labels[:1].double(), pos_weight=pos_weight)
        torch.testing.assert_close(whole, expected)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert sm.balanced_class_weights(labels, 3) == pytest.approx(expected.tolist())
    floats = torch.cat([labels.double(), torch.tensor([float("nan"), -100.0])])
    assert sm.balanced_class_weights(floats, 3) == sm.balanced_class_weights(labels, 3)
    maps = torch.cat([labels, torch.tensor([255])]).view(2, 2, 2)
    assert sm.balanced_class_weights(maps, 3, ignore_index=255) == sm.balanced_class_weights(labels, 3)


def test_a_configuration_balances_by_the_training_labels(tiny: Any, tmp_path: Path) -> None:
    complete = check({**tiny, "task_options": {"digit": {"class_weights": "balanced", "focal_gamma": 2}}})
    data = RunSpec(complete).data
    task = next(task for task in data.tasks if task.name == "digit")
    labels = data.labels()
    assert labels is not None
    assert isinstance(task, sm.Classification)
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels["digit"].numpy())
    assert task.class_weights == pytest.approx(expected.tolist())


WRONG = {
    "balanced in Python": (
        lambda: sm.Classification("t", 3, class_weights="balanced"),
        r"class_weights=sm\.balanced_class_weights\(labels, classes\)",
    ),
    "a wrong number of factors": (lambda: sm.MultiLabel("t", 2, pos_weight=[1.0]), "`pos_weight` must be 2 finite"),
    "a factor of 0": (lambda: sm.MultiLabel("t", 1, pos_weight=[0.0]), "`pos_weight` must be 1 finite"),
    "a negative exponent": (lambda: sm.Segmentation("t", 2, focal_gamma=-1.0), "'focal_gamma' parameter"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_named(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(ParameterError, match=message):
        make()


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 0, 2], "class 1 has no label among 3"), ([0, 3, 1], r"expected labels in 0 \.\. 2, got 0 \.\. 3")],
)
def test_labels_that_nothing_balances_are_named(labels: list[int], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        sm.balanced_class_weights(torch.tensor(labels), 3)
