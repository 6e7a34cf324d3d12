"""Distance from soft targets: what each kind of output stands for, against torch's own divergences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, LogNormal, kl_divergence

import sparsemtl as sm
from sparsemtl.errors import ParameterError
from sparsemtl.tasks.likelihoods import Gaussian
from sparsemtl.tasks.soft_targets import soft_loss, soft_terms

SHAPES: dict[str, tuple[sm.Task, tuple[int, ...], Tensor]] = {
    "classes": (sm.Classification("t", 3), (4, 3), torch.tensor([0, 2, -100, 1])),
    "yes and no": (sm.MultiLabel("t", 2), (4, 2), torch.tensor([[0, 1], [math.nan, 1], [math.nan, math.nan], [1, 0]])),
    "values": (sm.Regression("t", 2), (4, 2), torch.tensor([[0.5, 1], [math.nan, 1], [math.nan, math.nan], [1, 0]])),
    "pixels": (sm.Segmentation("t", 3), (2, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]], [[1, 1], [0, 0]]])),
    "tokens": (sm.TokenClassification("t", 3), (2, 2, 3), torch.tensor([[0, 1], [2, -100]])),
    "depth": (sm.Depth("t"), (2, 1, 2, 2), torch.tensor([[[1.0, 2], [0, 3]], [[1, 1], [2, 2]]])),
    "normals": (
        sm.Normals("t"),
        (2, 3, 2, 1),
        torch.eye(3)[torch.tensor([[0, 1], [2, 0]])].permute(0, 2, 1)[..., None],
    ),
    "own loss": (
        sm.CustomTask("t", 2, loss=lambda z, y: (z.sum(1) - y).square().mean()),
        (3, 2),
        torch.tensor([1.0, math.nan, 2.0]),
    ),
}


def outputs(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_of_every_kind_it_is_zero_at_the_targets_positive_elsewhere_and_blind_to_unknown_labels() -> None:
    for kind, (task, shape, label) in SHAPES.items():
        label = task.labels({"t": label})
        soft = outputs(shape, 1)
        output = outputs(shape, 0).requires_grad_()
        assert float(soft_loss(task, soft, soft, label, 2.0)) == pytest.approx(0, abs=1e-6), kind
        loss = soft_loss(task, output, soft, label, 2.0)
        (slope,) = torch.autograd.grad(loss, output)
        known = task.known_outputs(label, output).expand_as(output)
        assert loss > 0, kind
        assert bool(slope[~known].eq(0).all()), kind
        assert bool(slope[known].ne(0).any()), kind
        without = soft_loss(task, torch.where(known, output, math.nan), torch.where(known, soft, math.nan), label, 2.0)
        assert torch.equal(without, loss), kind


def test_of_classes_it_is_the_divergence_at_the_temperature_times_its_square() -> None:
    task, output, soft = sm.Classification("t", 3), outputs((5, 3), 0), outputs((5, 3), 1)
    expected = kl_divergence(Categorical(logits=soft / 3), Categorical(logits=output / 3)).mean() * 9
    torch.testing.assert_close(soft_loss(task, output, soft, torch.zeros(5).long(), 3.0), expected)
    excluded = torch.cat([soft, torch.full((5, 1), -math.inf)], 1)
    wider = torch.cat([output, torch.full((5, 1), -math.inf)], 1)
    torch.testing.assert_close(soft_loss(task, wider, excluded, torch.zeros(5).long(), 3.0), expected)


def test_of_yes_and_no_and_of_own_distributions_it_is_their_divergence() -> None:
    output, soft = outputs((5, 2), 0), outputs((5, 2), 1)
    label = torch.ones(5, 2)
    expected = kl_divergence(Bernoulli(logits=soft), Bernoulli(logits=output)).mean()
    torch.testing.assert_close(soft_loss(sm.MultiLabel("t", 2), output, soft, label, 1.0), expected)
    own = sm.Regression("t", likelihood=lambda z: LogNormal(z[:, :1], z[:, 1:].exp()))
    expected = kl_divergence(LogNormal(soft[:, 0], soft[:, 1].exp()), LogNormal(output[:, 0], output[:, 1].exp()))
    torch.testing.assert_close(soft_loss(own, output, soft, label[:, :1], 1.0), expected.mean())


def test_of_values_it_is_the_squared_error_over_the_variance_of_the_targets() -> None:
    task, output, soft = sm.Regression("t", 2), outputs((6, 2), 0), outputs((6, 2), 1) * torch.tensor([1.0, 50.0])
    expected = ((output - soft).square() / soft.var(0, correction=0)).mean()
    torch.testing.assert_close(soft_loss(task, output, soft, torch.ones(6, 2), 2.0), expected)
    constant = torch.ones(6, 2)  # without a variance, the error itself
    torch.testing.assert_close(soft_loss(task, output, constant, constant, 2.0), (output - 1).square().mean())


def test_a_likelihood_of_the_users_own_may_have_a_distance_of_its_own() -> None:
    class Mine(Gaussian):
        pass

    soft_terms.register(Mine, lambda likelihood, output, soft, temperature: (output - soft).abs())
    task, output, soft = sm.Regression("t", likelihood=Mine()), outputs((4, 1), 0), outputs((4, 1), 1)
    torch.testing.assert_close(soft_loss(task, output, soft, soft, 1.0), (output - soft).abs().mean())


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"task 't': the teacher's outputs have shape \(4, 2\), .* \(4, 3\)"):
        soft_loss(sm.Classification("t", 3), torch.rand(4, 3), torch.rand(4, 2), torch.zeros(4).long(), 1.0)
