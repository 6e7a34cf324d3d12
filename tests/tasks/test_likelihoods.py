"""Likelihoods against torch.distributions, and their Fisher factors against the expectation over all labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from loops import each
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal

from sparsemtl.tasks.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood

NAN = float("nan")
BATCH, WIDTH = 5, 3


def outputs(scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64)


def class_labels() -> list[tuple[Tensor, Tensor]]:
    """Every class with its probability."""
    p = outputs().softmax(1)
    return [(torch.full((BATCH,), c), p[:, c]) for c in range(WIDTH)]


def attribute_labels() -> list[tuple[Tensor, Tensor]]:
    """Every one of the 2^A yes/no answers with its probability."""
    p = outputs().sigmoid()
    answers = [torch.tensor(bits).double().expand(BATCH, WIDTH) for bits in product([0, 1], repeat=WIDTH)]
    return [(y, torch.where(y == 1, p, 1 - p).prod(1)) for y in answers]


def quadrature_labels() -> list[tuple[Tensor, Tensor]]:
    """Nodes and weights of a Gauss-Hermite rule, exact for second moments of a unit normal around the output."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(3))
    weights = weights / math.sqrt(2 * math.pi)
    return [
        (outputs() + nodes[list(point)], weights[list(point)].prod().expand(BATCH))
        for point in product(range(3), repeat=WIDTH)
    ]


LIKELIHOODS: dict[str, tuple[Likelihood, Callable[[], list[tuple[Tensor, Tensor]]]]] = {
    "categorical": (Categorical(), class_labels),
    "bernoulli": (Bernoulli(), attribute_labels),
    "gaussian": (Gaussian(), quadrature_labels),
}
each_likelihood = each("name", LIKELIHOODS)


def score_by_autograd(likelihood: Likelihood, output: Tensor, label: Tensor) -> Tensor:
    """The Jacobian of log_prob, sample by sample."""
    jacobian = torch.autograd.functional.jacobian(lambda z: likelihood.log_prob(z, label), output)
    return torch.stack([jacobian[i, i] for i in range(len(output))])


@each_likelihood
def test_the_factors_add_up_to_the_fisher_matrix_over_all_labels(name: str) -> None:
    likelihood, all_labels = LIKELIHOODS[name]
    expected = torch.zeros(BATCH, WIDTH, WIDTH, dtype=torch.float64)
    total = torch.zeros(BATCH, dtype=torch.float64)
    for label, probability in all_labels():
        score = score_by_autograd(likelihood, outputs(), label)
        expected += probability[:, None, None] * score[:, :, None] * score[:, None, :]
        total += probability
    torch.testing.assert_close(total, torch.ones(BATCH, dtype=torch.float64))
    factors = list(likelihood.expected(outputs()))
    assert len(factors) == WIDTH
    found = sum(w[:, None, None] * d[:, :, None] * d[:, None, :] for w, d in factors)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@each_likelihood
def test_scores_average_to_zero_over_the_models_own_labels(name: str) -> None:
    likelihood, all_labels = LIKELIHOODS[name]
    mean = sum(p[:, None] * likelihood.score(outputs(), y) for y, p in all_labels())
    torch.testing.assert_close(mean, torch.zeros(BATCH, WIDTH, dtype=torch.float64), rtol=0, atol=1e-13)


@each_likelihood
def test_factors_have_a_weight_a_sample_and_a_direction_an_output(name: str) -> None:
    likelihood, _ = LIKELIHOODS[name]
    output = outputs()
    for weight, direction in likelihood.expected(output):
        assert weight.shape == (BATCH,)
        assert direction.shape == output.shape
        assert (weight >= 0).all()
    assert torch.equal(output, outputs()), "the output is not written to"


@each_likelihood
def test_the_score_is_the_gradient_of_the_log_probability_even_without_gradients(name: str) -> None:
    likelihood, all_labels = LIKELIHOODS[name]
    label, _ = all_labels()[-1]
    with torch.no_grad():
        score = likelihood.score(outputs(), label)
    torch.testing.assert_close(score, score_by_autograd(likelihood, outputs(), label))
    assert not score.requires_grad


@each(
    ("likelihood", "reference", "constant"),
    [
        (Categorical(), lambda z: TorchCategorical(logits=z), 0.0),
        (Bernoulli(), lambda z: Independent(TorchBernoulli(logits=z), 1), 0.0),
        (Gaussian(), lambda z: Independent(Normal(z, 1.0), 1), WIDTH * math.log(2 * math.pi) / 2),
    ],
)
@each("scale", [0.1, 2.0, 300.0])
def test_log_probabilities_are_those_of_torch(
    likelihood: Likelihood, reference: Callable[[Tensor], Independent], constant: float, scale: float
) -> None:
    label = reference(outputs()).sample()
    found = likelihood.log_prob(outputs(scale), label)
    assert found.shape == (BATCH,)
    torch.testing.assert_close(found, reference(outputs(scale)).log_prob(label) + constant)


@each_likelihood
def test_no_label_is_more_probable_than_the_mode(name: str) -> None:
    likelihood, all_labels = LIKELIHOODS[name]
    best = likelihood.log_prob(outputs(), likelihood.mode(outputs()))
    assert all((likelihood.log_prob(outputs(), label) <= best + 1e-12).all() for label, _ in all_labels())


def test_the_mode_of_equal_logits_is_the_first_class() -> None:
    assert Categorical().mode(torch.tensor([[0.0, 1, 1], [2, 2, 2]])).tolist() == [1, 0]


@each_likelihood
def test_only_a_gaussians_mode_says_nothing(name: str) -> None:
    likelihood, _ = LIKELIHOODS[name]
    score = likelihood.score(outputs(), likelihood.mode(outputs()))
    assert likelihood.informative_mode == bool(score.count_nonzero())


# ---- missing labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "label", "missing"),
    [
        (Categorical(), torch.tensor([0, 1, 2, 0, 1]), -100),
        (Categorical(ignore_index=255), torch.tensor([0, 1, 2, 0, 1]), 255),
        (Bernoulli(), (outputs() > 0.3).double(), NAN),
        (Gaussian(), outputs() + 1, NAN),
    ],
)
def test_a_missing_label_adds_exactly_zero(likelihood: Likelihood, label: Tensor, missing: float) -> None:
    partly = label.clone()
    partly[[1, 3]] = missing
    log_prob, score = likelihood.log_prob(outputs(), partly), likelihood.score(outputs(), partly)
    assert log_prob[[1, 3]].count_nonzero() == 0
    assert score[[1, 3]].count_nonzero() == 0
    kept = [0, 2, 4]
    assert torch.equal(log_prob[kept], likelihood.log_prob(outputs(), label)[kept])
    assert torch.equal(score[kept], likelihood.score(outputs(), label)[kept])


@pytest.mark.parametrize(
    ("likelihood", "label"), [(Bernoulli(), (outputs() > 0.3).double()), (Gaussian(), outputs() + 1)]
)
def test_an_unknown_entry_leaves_the_probability_of_the_others(likelihood: Likelihood, label: Tensor) -> None:
    partly = label.clone()
    partly[:, 1] = NAN
    known = [0, 2]
    torch.testing.assert_close(
        likelihood.log_prob(outputs(), partly), likelihood.log_prob(outputs()[:, known], label[:, known])
    )
    assert likelihood.score(outputs(), partly)[:, 1].count_nonzero() == 0


# ---- samples -----------------------------------------------------------------------------------------------------

DRAWS = 20_000


def draws(likelihood: Likelihood, output: Tensor) -> Tensor:
    return likelihood.sample(output.expand(DRAWS, -1), torch.Generator().manual_seed(1))


def assert_mean(found: Tensor, expected: Tensor, variance: Tensor) -> None:
    """Within five standard errors."""
    assert ((found - expected).abs() <= 5 * (variance / DRAWS).sqrt()).all(), (found, expected)


def test_classes_are_drawn_as_often_as_the_softmax_says() -> None:
    output = outputs()[0]
    p = output.softmax(0)
    assert_mean(draws(Categorical(), output).bincount(minlength=WIDTH) / DRAWS, p, p * (1 - p))


def test_attributes_are_drawn_as_often_as_the_sigmoid_says_and_apart() -> None:
    output = outputs()[0]
    p = output.sigmoid()
    drawn = draws(Bernoulli(), output)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert_mean(drawn.mean(0), p, p * (1 - p))
    both = p[0] * p[1]
    assert_mean((drawn[:, 0] * drawn[:, 1]).mean(), both, both * (1 - both))


def test_values_are_drawn_around_the_output_with_unit_variance() -> None:
    output = outputs()[0]
    noise = draws(Gaussian(), output) - output
    one = torch.ones(WIDTH, dtype=torch.float64)
    assert_mean(noise.mean(0), 0 * one, one)
    assert_mean(noise.square().mean(0), one, 2 * one)
    assert_mean((noise[:, 0] * noise[:, 1]).mean(), torch.tensor(0.0), torch.tensor(1.0))


@each_likelihood
def test_a_generator_alone_decides_the_samples(name: str) -> None:
    likelihood, _ = LIKELIHOODS[name]
    output = outputs().repeat(20, 1)

    def drawn(seed: int) -> Tensor:
        return likelihood.sample(output, torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert torch.equal(torch.get_rng_state(), state)
    likelihood.sample(output)
    assert not torch.equal(torch.get_rng_state(), state), "without one, torch's own generator draws"


@each_likelihood
def test_samples_and_modes_are_labels_of_every_sample_without_a_gradient(name: str) -> None:
    likelihood, all_labels = LIKELIHOODS[name]
    output = outputs().requires_grad_()
    label, _ = all_labels()[0]
    for found in (likelihood.sample(output), likelihood.mode(output)):
        assert found.shape == label.shape
        assert found.dtype == label.dtype
        assert not found.requires_grad
