"""Fisher information the slow way: one sample and one label at a time, with nothing but formulas and autograd."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.tasks import Classification, MultiLabel, Task
from sparsemtl.tasks.likelihoods import Bernoulli, Categorical, Gaussian

Batch = tuple[Any, dict[str, Tensor]]
Scores = dict[str, Tensor]
Terms = list[tuple[float, Tensor]]
"""What a sample adds: scalars to differentiate, and how much the power of each one's gradient counts."""


def log_prob(task: Task, output: Tensor, label: Tensor) -> Tensor:
    """log p(label | output) of one sample, up to a constant; unknown entries of the label add nothing."""
    if isinstance(task, Classification):
        return output.log_softmax(0)[int(label)]
    known = ~label.isnan()
    output, label = output[known], label[known]
    if isinstance(task, MultiLabel):
        return (label * output.sigmoid().log() + (1 - label) * (1 - output.sigmoid()).log()).sum()
    return -0.5 * (output - label).square().sum()


def every_label(task: Task, output: Tensor) -> Terms:
    """log p of every label there is, weighted by its probability.

    These are the classes, or all 2^A answers to A questions. A normal distribution's labels are replaced by the 2^D
    corners one deviation from its mean, at which quadratic functions such as squared scores have the same mean.
    """
    if isinstance(task, Classification):
        labels = list(torch.arange(len(output)))
        return [(float(output.detach().softmax(0)[label]), log_prob(task, output, label)) for label in labels]
    if isinstance(task, MultiLabel):
        answers = [torch.tensor(a, dtype=output.dtype) for a in itertools.product([0.0, 1.0], repeat=len(output))]
        return [(float(log_prob(task, output, a).detach().exp()), log_prob(task, output, a)) for a in answers]
    signs = [torch.tensor(s, dtype=output.dtype) for s in itertools.product([-1.0, 1.0], repeat=len(output))]
    return [(1 / len(signs), log_prob(task, output, output.detach() + s)) for s in signs]


def every_column(task: Task, output: Tensor) -> Terms:
    """What `efs` documents for |gradient| of independent labels: every output by its variance."""
    p = output.detach().sigmoid()
    variance = p * (1 - p) if isinstance(task, MultiLabel) else torch.ones_like(p)
    return [(float(v), z) for v, z in zip(variance, output, strict=True)]


def predicted(task: Task, output: Tensor) -> Tensor:
    if isinstance(task, Classification):
        return output.argmax()
    return (output > 0).to(output.dtype) if isinstance(task, MultiLabel) else output.detach()


def terms(task: Task, output: Tensor, label: Tensor, estimator: str, power: str) -> Terms:
    """What one sample adds to an estimate."""
    if estimator == "fs":
        return [(1.0, log_prob(task, output, predicted(task, output)))]
    if estimator == "true":
        return [(1.0, log_prob(task, output, label))]
    independent = not isinstance(task, Classification)
    return every_column(task, output) if independent and power == "abs" else every_label(task, output)


def fisher(
    model: MultiTaskModel,
    batches: Iterable[Batch],
    task: Task,
    names: Sequence[str],
    *,
    estimator: str = "fs",
    power: str = "square",
    samples: int | None = None,
) -> Scores:
    """The mean over the first `samples` labelled samples, each run through the dense network on its own."""
    model.eval()
    total: Scores = {}
    chosen = list(itertools.islice(labelled_samples(batches, task), samples))
    for x, label in chosen:
        output = model(x)[task.name][0]
        for weight, value in terms(task, output, label, estimator, power):
            add(total, weight / len(chosen), gradient(model, value, names), power)
    return total


def fisher_of_drawn(
    model: MultiTaskModel,
    batches: Iterable[Batch],
    task: Task,
    names: Sequence[str],
    drawn: Sequence[Tensor],
    power: str,
) -> Scores:
    """The mean over labels that were drawn, one tensor of labels (B, ...) a draw, for a single batch of samples."""
    model.eval()
    total: Scores = {}
    for n, (x, _) in enumerate(labelled_samples(batches, task)):
        for labels in drawn:
            value = log_prob(task, model(x)[task.name][0], labels[n])
            add(total, 1 / (len(labels) * len(drawn)), gradient(model, value, names), power)
    return total


def fisher_of_batches(
    model: MultiTaskModel, batches: Iterable[Batch], task: Task, names: Sequence[str], power: str
) -> Scores:
    """Algorithm 2: the power of a batch's mean gradient at the data's labels, weighted by the batch's samples."""
    model.eval()
    total: Scores = {}
    groups = [list(labelled_samples([batch], task)) for batch in batches]
    for group in groups:
        mean = torch.stack([log_prob(task, model(x)[task.name][0], label) for x, label in group]).mean()
        add(total, len(group) / sum(map(len, groups)), gradient(model, mean, names), power)
    return total


def labelled_samples(batches: Iterable[Batch], task: Task) -> Iterator[tuple[Any, Tensor]]:
    """(input as a batch of one, label) of every sample that has a label."""
    for x, targets in batches:
        target = targets[task.target]
        for n, label in enumerate(target):
            unknown = label.isnan().all() if label.is_floating_point() else label == -100
            if not bool(unknown):
                yield one(x, n), label


def one(x: Any, n: int) -> Any:
    """Sample n of an input, as a batch of one."""
    return tree_map_only(Tensor, lambda leaf: leaf[n : n + 1], x)


def gradient(model: MultiTaskModel, value: Tensor, names: Sequence[str]) -> Scores:
    """d value / d parameter, zero where the value does not depend on it."""
    parameters = [model.get_parameter(name) for name in names]
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(names, parameters, found, strict=True)
    return {n: torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g) for n, p, g in pairs}


def add(total: Scores, weight: float, gradients: Mapping[str, Tensor], power: str) -> None:
    for name, g in gradients.items():
        total[name] = total.get(name, torch.zeros_like(g)) + weight * (g.square() if power == "square" else g.abs())


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], relative: float = 1e-10) -> None:
    """Compare scores, relative to the largest score of their parameter or 1e-4 of the largest of all."""
    assert list(found) == list(expected)
    largest = max(float(score.max()) for score in expected.values())
    for name, score in expected.items():
        assert found[name].shape == score.shape, name
        scale = max(float(score.max()), 1e-4 * largest)
        error = float((found[name].to(score.dtype) - score).abs().max()) / scale
        assert error <= relative, f"{name}: relative error {error:.1e}"


def rounding(model: nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """Relative error that rounding may leave in a gradient: 10 √n u (Higham & Mary 2019, 10 for near certainty).

    n counts the summands of a path through the network and back: fan-in and fan-out of every weight, and the
    numbers that a norm averages.
    """
    sizes = [parameter.shape for parameter in model.parameters()]
    summands = sum(s.numel() // s[0] + s.numel() // s[1] if len(s) > 1 else 2 * s.numel() for s in sizes)
    return 10 * math.sqrt(summands) * torch.finfo(dtype).eps / 2


def spy_on_draws(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every tensor of labels that a likelihood draws from now on."""
    drawn: list[Tensor] = []
    for likelihood in (Categorical, Bernoulli, Gaussian):

        def recorded(self: Any, *args: Any, _sample: Any = likelihood.sample, **options: Any) -> Tensor:
            drawn.append(_sample(self, *args, **options))
            return drawn[-1]

        monkeypatch.setattr(likelihood, "sample", recorded)
    return drawn
