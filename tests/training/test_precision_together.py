"""Precision, accumulation and clipping agree with each other where arithmetic allows, or are refused at the start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_toys import quiet, shared, table

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError

BALANCERS = ["mean", "uncertainty", "upgrad", "mgda"]
"""Of losses with constant and with learned weights, and of gradients by rows; others weigh the losses of each batch."""


def trained(precision: Any = "64-true", *, size: int = 24, batches: int = 1, **options: Any) -> dict[str, Tensor]:
    """Weights after three steps on 72 samples with a label of every task."""
    x, labels = table(72, dtype=torch.float64)
    if precision == "32-true":  # other precisions convert their inputs
        x, labels = x.float(), {task: label if task == "a" else label.float() for task, label in labels.items()}
    data = TensorLoader(x, labels, batch_size=size)
    if isinstance(options.get("sharing"), str):
        options["sharing"] = sm.RandomSharing(keep=0.5, seed=0, update=options.pop("sharing"))
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)  # noqa: E731
    trainer = quiet(
        shared("abc"), precision=precision, epochs=1, accumulate=batches, optimizer=optimizer, monitor="loss", **options
    )
    trainer.fit(data, TensorLoader(x[:8], {task: label[:8] for task, label in labels.items()}, batch_size=8))
    assert trainer.position.step == 72 // (size * batches)
    return {name: weight.detach().double() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("sharing", [None, "average"])
@pytest.mark.parametrize("balancing", BALANCERS)
def test_accumulated_batches_are_one_batch(balancing: str, sharing: str | None, clip_norm: float | None) -> None:
    options: dict[str, Any] = {"balancing": balancing, "sharing": sharing, "clip_norm": clip_norm}
    whole, parts = trained(**options), trained(size=8, batches=3, **options)
    error = 1e-7 if balancing == "uncertainty" else 1e-12  # its own weights are in single precision
    torch.testing.assert_close(parts, whole, rtol=error, atol=error)
    if clip_norm is not None and sharing is None:  # the bound acts
        assert not torch.equal(whole["encoder.0.weight"], trained(balancing=balancing)["encoder.0.weight"])


def test_so_are_those_of_tasks_that_take_turns() -> None:
    options: dict[str, Any] = {"sharing": "alternate", "clip_norm": 0.05}
    torch.testing.assert_close(trained(size=8, batches=3, **options), trained(**options), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("balancing", ["mean", "upgrad"])
@pytest.mark.parametrize(("precision", "error"), [("32-true", 1e-5), ("bf16-mixed", 0.03), ("bf16-true", 0.06)])
def test_lower_precisions_agree_to_their_precision(precision: str, error: float, balancing: str) -> None:
    options: dict[str, Any] = {"size": 8, "batches": 3, "balancing": balancing, "clip_norm": 0.5}
    exact = torch.cat([w.flatten() for w in trained(**options).values()])
    lower = torch.cat([w.flatten() for w in trained(precision, **options).values()])
    assert float((lower - exact).norm() / exact.norm()) < error


def test_half_precision_on_a_cpu_is_refused_with_its_reason() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("nothing is computed")

    trainer = quiet(sm.SharedBottom(Never(), [sm.Regression("b")], heads={"b": nn.Linear(1, 1)}), precision="16-mixed")
    data = TensorLoader(*table(8), batch_size=8)
    with pytest.raises(ParameterError, match=r"precision='16-mixed' needs a GPU.* Use precision='bf16-mixed'"):
        trainer.fit(data, data)
