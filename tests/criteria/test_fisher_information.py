"""Every estimate of the Fisher information equals its definition, and taking it leaves no trace."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fisher_oracles import (
    assert_close,
    every_label,
    fisher,
    fisher_of_batches,
    fisher_of_drawn,
    gradient,
    log_prob,
    rounding,
    spy_on_draws,
)
from lightning_fabric import Fabric
from loops import each
from policies import Started
from small_networks import WORDS, Runs, settle_norms
from states import assert_same
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import Criterion, Fisher, Gradient, fisher_information, fisher_masks
from sparsemtl.criteria.gradient_powers import BatchPowers
from sparsemtl.criteria.power_sum import PowerSum
from sparsemtl.criteria.select import select
from sparsemtl.errors import LabelError, LikelihoodWarning, NonFiniteScoreError, ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.tasks import Task

POWERS = ["square", "abs"]
ESTIMATORS = ["fs", "efs", "true", "sample", "batch"]
KINDS: dict[str, Callable[[], Task]] = {
    "softmax": lambda: sm.Classification("t", 3),
    "multi-label": lambda: sm.MultiLabel("t", 3),
    "gaussian": lambda: sm.Regression("t", 2),
}
MISSING = {"softmax": -100, "multi-label": float("nan"), "gaussian": float("nan")}
Batches = list[tuple[Any, dict[str, Tensor]]]


def model_of(*tasks: Task, dtype: torch.dtype = torch.float64) -> sm.SharedBottom:
    """A small convolutional network in training."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.Dropout(0.5), nn.Tanh()
    )
    settle_norms(encoder, torch.Generator().manual_seed(0))
    return sm.SharedBottom(encoder, tasks, {task.name: nn.Linear(4, task.outputs) for task in tasks}).to(dtype)


def labels_of(task: Task, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(task.name))
    if isinstance(task, sm.Classification):
        return torch.randint(task.classes, (count,), generator=generator)
    values = torch.randn(count, task.outputs, generator=generator, dtype=torch.float64)
    return (values > 0).double() if isinstance(task, sm.MultiLabel) else values


def data_of(*tasks: Task, sizes: tuple[int, ...] = (3, 2), dtype: torch.dtype = torch.float64) -> Batches:
    """Batches of these sizes; the samples do not depend on how they are batched."""
    x = torch.randn(sum(sizes), 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    targets = {task.target: labels_of(task, sum(sizes)) for task in tasks}
    return cut(x, targets, sizes)


def cut(x: Tensor, targets: dict[str, Tensor], sizes: tuple[int, ...]) -> Batches:
    stops = list(itertools.accumulate(sizes))
    return [(x[b - n : b], {t: y[b - n : b] for t, y in targets.items()}) for n, b in zip(sizes, stops, strict=True)]


def score(model: sm.SharedBottom, loaders: Any, task: str = "t", **options: Any) -> dict[str, Tensor]:
    return quiet_scores(model, loaders, **options)[task]


def quiet_scores(model: sm.SharedBottom, loaders: Any, **options: Any) -> dict[str, dict[str, Tensor]]:
    criterion = Fisher(**{"samples": None, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LikelihoodWarning)
        return criterion.scores(model, loaders, list(model.tasks.values()))


def names_of(model: sm.SharedBottom) -> list[str]:
    return list(maskable_parameters(model))


def without_labels(batches: Batches, missing: float, *, samples: tuple[int, ...]) -> Batches:
    """The same batches, in which some samples of the first one have no label."""
    (x, targets), *rest = batches
    label = targets["t"].clone()
    label[list(samples)] = missing
    return [(x, {"t": label}), *rest]


@each("power", POWERS)
@each("kind", KINDS)
@each("estimator", ["fs", "efs", "true"])
def test_an_estimate_equals_its_definition_sample_by_sample_and_label_by_label(
    estimator: str, kind: str, power: str
) -> None:
    task = KINDS[kind]()
    model, batches = model_of(task), data_of(task)
    meant = "efs" if (estimator, kind) == ("fs", "gaussian") else estimator
    truth = fisher(model, batches, task, names_of(model), estimator=meant, power=power)
    found = score(model, batches, estimator=estimator, power=power)
    assert_close(found, truth)
    assert all(s.any() and bool((s >= 0).all()) for s in found.values())


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_labels_count_equally_each_sample_by_sample(
    kind: str, power: str, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = KINDS[kind]()
    model, batches = model_of(task), data_of(task, sizes=(5,))
    drawn = spy_on_draws(monkeypatch)
    found = score(model, batches, estimator="sample", power=power, draws=draws)
    assert len(drawn) == draws
    assert_close(found, fisher_of_drawn(model, batches, task, names_of(model), drawn, power))


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_batch_estimate_is_the_power_of_a_batchs_mean_gradient(kind: str, power: str) -> None:
    task = KINDS[kind]()
    model, batches = model_of(task), data_of(task, sizes=(3, 1, 2))
    truth = fisher_of_batches(model, batches, task, names_of(model), power)
    assert_close(score(model, batches, estimator="batch", power=power), truth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ["efs", "true"])
def test_biases_and_norms_are_scored_only_if_asked_for(estimator: str, kind: str) -> None:
    task = KINDS[kind]()
    model, batches = model_of(task), data_of(task)
    everything = [name for name, _ in model.named_parameters() if name.startswith("encoder.")]
    assert list(score(model, batches, estimator=estimator)) == ["encoder.0.weight", "encoder.4.weight"]
    found = score(model, batches, estimator=estimator, mask_all=True)
    assert_close(found, fisher(model, batches, task, everything, estimator=estimator))


def test_all_tasks_of_a_shared_loader_are_scored_as_if_alone() -> None:
    tasks = [sm.Classification("a", 3), sm.MultiLabel("b", 2), sm.Regression("c", 2), sm.Classification("d", 2)]
    model, batches = model_of(*tasks), data_of(*tasks)
    found = quiet_scores(model, batches, estimator="efs")
    assert list(found) == ["a", "b", "c", "d"]
    for task in tasks:
        assert_close(found[task.name], fisher(model, batches, task, names_of(model), estimator="efs"))


@pytest.mark.parametrize("estimator", ["fs", "efs"])
def test_the_models_own_labels_are_taken_not_the_datas(estimator: str) -> None:
    task = sm.Classification("t", 3)
    model, batches = model_of(task), data_of(task)
    others = [(x, {"t": (targets["t"] + 1) % 3}) for x, targets in batches]
    one, other = (score(model, data, estimator=estimator) for data in (batches, others))
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (score(model, data, estimator="true") for data in (batches, others))
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_gradients_that_cancel_in_a_batch_count_in_every_estimate_but_batch() -> None:
    """Algorithm 2 read literally is not Eq. 10."""
    task = sm.Regression("t")
    model = sm.SharedBottom(nn.Sequential(nn.Linear(2, 2, bias=False)), [task], {"t": nn.Linear(2, 1, bias=False)})
    nn.init.ones_(model.encoder[0].weight)
    nn.init.ones_(model.heads["t"].weight)
    batches = [(torch.ones(2, 2), {"t": torch.tensor([[3.0], [5.0]])})]  # the model says 4
    assert not score(model, batches, estimator="batch")["encoder.0.weight"].any()
    assert torch.equal(score(model, batches, estimator="true")["encoder.0.weight"], torch.ones(2, 2))


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_batch_estimate_of_single_samples_is_the_empirical_fisher(kind: str, power: str) -> None:
    task = KINDS[kind]()
    model, batches = model_of(task), data_of(task, sizes=(1,) * 5)
    one, other = (score(model, batches, estimator=estimator, power=power) for estimator in ("batch", "true"))
    assert_close(one, other)


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_exact_abs_of_independent_labels_bounds_the_mean_over_all_combinations(labels: int) -> None:
    """By columns it is half of an upper bound, and exactly half of the mean if there is one column."""
    task = sm.MultiLabel("t", labels)
    model, batches = model_of(task), data_of(task)
    names = names_of(model)
    found = score(model, batches, estimator="efs", power="abs")
    mean = {name: torch.zeros_like(found[name]) for name in names}
    for x, _ in batches:
        for n in range(len(x)):
            for weight, value in every_label(task, model.eval()(x[n : n + 1])["t"][0]):
                for name, g in gradient(model, value, names).items():
                    mean[name] += weight * g.abs() / 5
    if labels == 1:
        assert_close({name: 2 * s for name, s in found.items()}, mean)
    for name in names:
        assert bool((2 * found[name] >= mean[name] - 1e-12).all())


def test_two_classes_tie_the_exact_information_to_that_of_the_prediction() -> None:
    """For one sample EFS = p / (1 - p) FS, with p the larger probability."""
    task = sm.Classification("t", 2)
    model = model_of(task)
    for x, targets in data_of(task, sizes=(1,) * 5):
        p = float(model.eval()(x)["t"].detach().softmax(1).max())
        fs, efs = (score(model, [(x, targets)], estimator=estimator) for estimator in ("fs", "efs"))
        assert_close(efs, {name: p / (1 - p) * s for name, s in fs.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_the_models_own_labels_have_mean_zero(kind: str) -> None:
    """sum_y p(y|x) d log p(y|x) / d weight = 0, at the output and at the weights."""
    task = KINDS[kind]()
    model, ((x, _),) = model_of(task).eval(), data_of(task, sizes=(1,))
    output = model(x)["t"]
    labels = labels_and_weights(task, output[0].detach())
    mean = sum(weight * task.likelihood.score(output, label[None]) for weight, label in labels)
    assert float(mean.abs().max()) < 1e-12  # type: ignore[union-attr]
    for weight, label in labels:
        exact = torch.autograd.grad(log_prob(task, output[0], label), output, retain_graph=True)[0]
        torch.testing.assert_close(task.likelihood.score(output, label[None]), exact)
        assert weight > 0
    powers = BatchPowers(model, maskable_parameters(model), PowerSum("square", 0))
    powers.forward(x, ("t",))
    gradients = [
        {n: w * g for n, g in powers.gradients({"t": task.likelihood.score(output, y[None])}).items()}
        for w, y in labels
    ]
    for name in names_of(model):
        assert float(sum(g[name] for g in gradients).abs().max()) < 1e-12  # type: ignore[attr-defined]


def labels_and_weights(task: Task, output: Tensor) -> list[tuple[float, Tensor]]:
    if isinstance(task, sm.Classification):
        return [(float(p), torch.tensor(c)) for c, p in enumerate(output.softmax(0))]
    if isinstance(task, sm.Regression):
        return [(0.25, output + torch.tensor(s).double()) for s in itertools.product([-1.0, 1.0], repeat=2)]
    answers = [torch.tensor(a).double() for a in itertools.product([0.0, 1.0], repeat=3)]
    return [(float(log_prob(task, output, a).exp()), a) for a in answers]


@each("kind", ["softmax", "multi-label"])
@each("estimator", ["fs", "true", "sample", "batch"])
def test_masks_of_one_sample_and_one_label_do_not_depend_on_the_power(estimator: str, kind: str) -> None:
    task = KINDS[kind]()
    model, batches = model_of(task), data_of(task, sizes=(1,))
    for keep in (0.1, 0.3, 0.7):
        by_square, by_abs = (
            fisher_masks(model, batches, keep, estimator=estimator, power=power) for power in ("square", "abs")
        )
        assert by_square == by_abs


def test_drawn_labels_estimate_the_exact_information_without_bias() -> None:
    tasks = [sm.Classification("a", 4), sm.MultiLabel("b", 2), sm.Regression("c", 2)]
    model, batches = model_of(*tasks), data_of(*tasks, sizes=(4,))
    exact = quiet_scores(model, batches, estimator="efs")
    drawn = quiet_scores(model, batches, estimator="sample", draws=400)
    for task in exact:
        assert_close(drawn[task], exact[task], relative=0.15)


def test_drawn_labels_follow_the_seed_and_not_the_other_tasks() -> None:
    tasks = [sm.Classification("a", 4), sm.Classification("b", 4)]
    model, batches = model_of(*tasks), data_of(*tasks)
    one, same, other = (quiet_scores(model, batches, estimator="sample", seed=seed) for seed in (1, 1, 2))
    alone = Fisher(estimator="sample", seed=1, samples=None).scores(model, batches, [tasks[1]])
    for name, s in one["b"].items():
        assert torch.equal(s, same["b"][name])
        assert torch.equal(s, alone["b"][name])
        assert not torch.equal(s, other["b"][name])
        assert not torch.equal(s, one["a"][name])


def test_draws_of_two_tasks_are_not_the_same_dice(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [sm.Classification("a", 4), sm.Classification("b", 4)]
    model, batches = model_of(*tasks), data_of(*tasks, sizes=(64,))
    model.heads["b"].load_state_dict(model.heads["a"].state_dict())
    drawn = spy_on_draws(monkeypatch)
    quiet_scores(model, batches, estimator="sample")
    assert 0 < int((drawn[0] == drawn[1]).sum()) < 64


@pytest.mark.parametrize("power", POWERS)
def test_regression_says_that_its_prediction_is_uninformative_and_takes_the_exact_information(power: str) -> None:
    task = sm.Regression("t", 2)
    model, batches = model_of(task), data_of(task)
    with pytest.warns(LikelihoodWarning, match=r"task 't': a Gaussian has no slope.*using 'efs'"):
        found = Fisher(estimator="fs", power=power).scores(model, batches, [task])["t"]
    exact = score(model, batches, estimator="efs", power=power)
    for name, s in found.items():
        assert torch.equal(s, exact[name])
        assert s.any()


@pytest.mark.parametrize("estimator", ["efs", "true", "sample", "batch"])
def test_no_other_estimator_warns(estimator: str) -> None:
    task = sm.Regression("t", 2)
    model, batches = model_of(task), data_of(task)
    Fisher(estimator=estimator).scores(model, batches, [task])


def test_one_criterion_warns_once_a_task() -> None:
    tasks = [sm.Regression("a"), sm.Classification("b", 2), sm.Regression("c")]
    model, batches = model_of(*tasks), data_of(*tasks)
    criterion = Fisher()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            criterion.scores(model, batches, tasks)
            criterion.reseeded(5).scores(model, batches, tasks)
    assert [str(w.message).split(":")[0] for w in caught] == ["tasks 'a', 'c'"]


@pytest.mark.parametrize("own_data", [False, True])
def test_a_run_that_renews_its_masks_every_epoch_warns_once(own_data: bool) -> None:
    tasks = [sm.Regression("a"), sm.Classification("b", 2)]
    model, batches = model_of(*tasks), data_of(*tasks)
    loaders = {t.name: [(x, y[t.name]) for x, y in batches] for t in tasks} if own_data else batches
    sharing = Started(sm.FisherSharing(keep=0.5, warmup=1), model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(5):
            sharing.begin_epoch(epoch, loaders)
    assert [w.category for w in caught] == [LikelihoodWarning]


def test_another_run_on_other_tasks_warns_again() -> None:
    method = sm.FisherSharing(keep=0.5, warmup=0)
    for _ in range(2):
        task = sm.Regression("a")
        sharing = Started(method, model_of(task))
        with pytest.warns(LikelihoodWarning):
            sharing.begin_epoch(0, data_of(task))


def test_a_reseeded_criterion_differs_in_the_drawn_labels_alone() -> None:
    task = sm.Classification("t", 4)
    model, batches = model_of(task), data_of(task)
    criterion = Fisher(estimator="sample", power="abs", samples=4, draws=2, seed=1, mask_all=True)
    fresh = Fisher(estimator="sample", power="abs", samples=4, draws=2, seed=7, mask_all=True)
    found, expected = (c.scores(model, batches, [task])["t"] for c in (criterion.reseeded(7), fresh))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert criterion.seed == 1


@each("estimator", ESTIMATORS)
@each("kind", KINDS)
def test_samples_without_a_label_add_exactly_nothing(kind: str, estimator: str) -> None:
    task = KINDS[kind]()
    model = model_of(task)
    batches = without_labels(data_of(task, sizes=(5, 2)), MISSING[kind], samples=(1, 3))
    (x, targets), last = batches
    replaced = x.clone()
    replaced[[1, 3]] = 100.0
    one, other = (score(model, [(inputs, targets), last], estimator=estimator) for inputs in (x, replaced))
    assert all(torch.equal(one[name], other[name]) for name in one)


@each("power", POWERS)
@each("estimator", ["fs", "efs", "true", "batch"])
@each("kind", KINDS)
def test_the_mean_is_over_labelled_samples_alone(kind: str, estimator: str, power: str) -> None:
    task = KINDS[kind]()
    model = model_of(task)
    batches = without_labels(data_of(task, sizes=(5, 2)), MISSING[kind], samples=(1, 3))
    (x, targets), last = batches
    known = [(x[[0, 2, 4]], {"t": targets["t"][[0, 2, 4]]}), last]
    one, other = (score(model, data, estimator=estimator, power=power) for data in (batches, known))
    assert_close(one, other)


@pytest.mark.parametrize("kind", ["multi-label", "gaussian"])
def test_unknown_entries_of_a_label_add_nothing_to_the_empirical_information(kind: str) -> None:
    task = KINDS[kind]()
    model, batches = model_of(task), data_of(task)
    batches[0][1]["t"][0, 1] = batches[1][1]["t"][1, 0] = float("nan")
    truth = fisher(model, batches, task, names_of(model), estimator="true")
    assert_close(score(model, batches, estimator="true"), truth)


@each("estimator", ["fs", "efs", "true"])
@each("limit", range(1, 8))
def test_the_limit_counts_labelled_samples_exactly(limit: int, estimator: str) -> None:
    task = sm.Classification("t", 3)
    model = model_of(task)
    batches = without_labels(data_of(task, sizes=(4, 1, 3)), -100, samples=(0, 2))  # six of eight have labels
    truth = fisher(model, batches, task, names_of(model), estimator=estimator, samples=limit)
    assert_close(score(model, batches, estimator=estimator, samples=limit), truth)


def test_every_task_counts_its_own_samples() -> None:
    tasks = [sm.Classification("t", 3), sm.Classification("full", 2)]
    model, batches = model_of(*tasks), data_of(*tasks, sizes=(3, 3))
    batches[0][1]["t"][:] = -100
    found = quiet_scores(model, batches, estimator="true", samples=2)
    for task in tasks:
        truth = fisher(model, batches, task, names_of(model), estimator="true", samples=2)
        assert_close(found[task.name], truth)


def test_no_more_data_is_read_than_needed() -> None:
    task = sm.Classification("t", 3)
    batches = data_of(task, sizes=(2, 2, 2, 2))
    read = []

    def loader() -> Iterator[Any]:
        for batch in batches:
            read.append(len(read))
            yield batch

    score(model_of(task), loader(), samples=3)
    assert read == [0, 1]


@each("power", POWERS)
@each("estimator", ["fs", "efs", "true"])
@each("kind", KINDS)
def test_batch_size_does_not_matter(kind: str, estimator: str, power: str) -> None:
    task = KINDS[kind]()
    model = model_of(task)
    whole, *others = (
        score(model, data_of(task, sizes=sizes), estimator=estimator, power=power)
        for sizes in [(6,), (1,) * 6, (4, 2), (1, 5)]
    )
    for found in others:
        assert_close(found, whole)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_loaders_of_the_tasks_own_give_what_a_shared_one_gives(estimator: str) -> None:
    tasks = [sm.Classification("a", 3), sm.MultiLabel("b", 2), sm.Regression("c", 2)]
    model, batches = model_of(*tasks), data_of(*tasks)
    shared = quiet_scores(model, batches, estimator=estimator)
    bare = {t.name: [(x, y[t.name]) for x, y in batches] for t in tasks}
    named = {t.name: [(x, {t.name: y[t.name]}) for x, y in batches] for t in tasks}
    for own in (bare, named):
        found = quiet_scores(model, own, estimator=estimator)
        for task, scores in shared.items():
            assert all(torch.equal(found[task][name], s) for name, s in scores.items())


def test_every_task_may_have_data_of_another_length() -> None:
    tasks = [sm.Classification("a", 3), sm.Classification("b", 2)]
    model = model_of(*tasks)
    own = {"a": data_of(tasks[0], sizes=(3, 2)), "b": data_of(tasks[1], sizes=(2, 4, 1))}
    found = quiet_scores(model, own, estimator="true")
    for task in tasks:
        truth = fisher(model, own[task.name], task, names_of(model), estimator="true")
        assert_close(found[task.name], truth)


@pytest.mark.parametrize("labels", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_may_have_another_precision_than_the_model(dtype: torch.dtype, labels: torch.dtype) -> None:
    task = sm.MultiLabel("t", 3)
    batches = data_of(task, dtype=dtype)
    cast = [(x, {"t": y["t"].to(labels)}) for x, y in batches]
    model = model_of(task, dtype=dtype)
    found = score(model, cast, estimator="true")
    exact = [(x.double(), {"t": y["t"].double()}) for x, y in batches]
    truth = fisher(model.double(), exact, task, ["encoder.0.weight", "encoder.4.weight"], estimator="true")
    assert_close(found, truth, rounding(model, dtype))
    assert {s.dtype for s in found.values()} == {dtype}


@pytest.mark.parametrize("gap", [6.0, 8.0, 9.0])
@pytest.mark.parametrize("estimator", ["fs", "efs"])
def test_probabilities_near_one_keep_their_distance_from_it_in_half_precision(estimator: str, gap: float) -> None:
    """1 - p is below float16's resolution at one; it is taken in single precision."""
    task = sm.Classification("t", 2)
    model = sm.SharedBottom(nn.Sequential(nn.Linear(1, 1, bias=False)), [task], {"t": nn.Linear(1, 2, bias=False)})
    nn.init.ones_(model.encoder[0].weight)
    model.heads["t"].weight.data = torch.tensor([[1.0], [0.0]])
    x, targets = torch.full((3, 1), gap), {"t": torch.zeros(3)}
    truth = score(model, [(x, targets)], estimator=estimator, power="abs")
    half = score(model.half(), [(x.half(), targets)], estimator=estimator, power="abs")
    assert_close(half, truth, relative=0.01)


@each("path", ["auto", "hooks", "functional", "loop"])
@each("estimator", ["efs", "true"])
def test_a_parameter_outside_of_a_tasks_graph_scores_zero(estimator: str, path: str) -> None:
    tasks = [sm.Classification("a", 3), sm.Classification("b", 2)]

    def fork(module: Any, x: Tensor) -> dict[str, Tensor]:
        trunk = module.trunk(x)
        return {"a": trunk, "b": module.branch(trunk.tanh())}

    encoder = Runs(fork, trunk=nn.Linear(4, 4), branch=nn.Linear(4, 4))  # type: ignore[arg-type]
    heads = {t.name: Runs(lambda m, x, n=t.name: m.out(x[n]), out=nn.Linear(4, t.outputs)) for t in tasks}
    model = sm.SharedBottom(encoder, tasks, heads).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    batches = [(x, {t.name: labels_of(t, 5) for t in tasks})]
    found = quiet_scores(model, batches, estimator=estimator, path=path)
    assert not found["a"]["encoder.branch.weight"].any()
    for task in tasks:
        assert_close(found[task.name], fisher(model, batches, task, names_of(model), estimator=estimator))


@pytest.mark.parametrize("path", ["auto", "hooks", "functional", "loop"])
def test_a_task_whose_head_ignores_the_encoder_scores_zero(path: str) -> None:
    tasks = [sm.Classification("a", 3), sm.Classification("b", 2)]
    prior = Runs(lambda m, x: m.logits.expand(len(x), 2), logits=nn.Parameter(torch.tensor([[0.3, 0.1]]).double()))
    model = sm.SharedBottom(nn.Linear(4, 4), tasks, {"a": nn.Linear(4, 3), "b": prior}).double()
    batches = [(torch.randn(5, 4, dtype=torch.float64), {t.name: labels_of(t, 5) for t in tasks})]
    found = quiet_scores(model, batches, estimator="true", path=path)
    assert found["a"]["encoder.weight"].any()
    assert not found["b"]["encoder.weight"].any()


def test_masks_in_force_do_not_hide_the_dense_network() -> None:
    """Under its own mask every other weight would score zero and no mask could ever change."""
    task = sm.Classification("t", 3)
    batches = data_of(task)
    model = model_of(task)
    sharing = Started(sm.FisherSharing(keep=0.3, warmup=0, bn="shared"), model)
    sharing.begin_epoch(0, batches)
    before = sharing.masks
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    sharing.begin_epoch(1, batches)
    assert sharing.masks != before
    assert sharing.masks == fisher_masks(model, batches, 0.3)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_the_one_of_evaluation_whatever_its_mode(training: bool) -> None:
    task = sm.Classification("t", 3)
    model, batches = model_of(task), data_of(task)
    truth = fisher(model, batches, task, names_of(model), estimator="true")
    assert_close(score(model.train(training), batches, estimator="true"), truth)


@each("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
@each("path", ["auto", "functional", "loop"])
def test_the_surroundings_do_not_matter(path: str, context: Callable[[], Any]) -> None:
    task = sm.Classification("t", 3)
    model, batches = model_of(task, dtype=torch.float32), data_of(task, dtype=torch.float32)
    plain = score(model, batches, estimator="true", path=path)
    with context():
        found = score(model, batches, estimator="true", path=path)
    assert all(torch.equal(found[name], s) for name, s in plain.items())


@pytest.mark.parametrize("criterion", [Fisher(estimator="true"), Gradient()], ids=lambda c: type(c).__name__)
def test_a_model_that_fabric_wrapped_is_scored_as_itself(criterion: Criterion) -> None:
    task = sm.Classification("t", 3)
    model, batches = model_of(task, dtype=torch.float32), data_of(task, dtype=torch.float32)
    wrapped = Fabric(accelerator="cpu", devices=1).setup_module(model)
    found, truth = (criterion.scores(m, batches, [task])["t"] for m in (wrapped, model))
    assert list(found) == list(truth)
    assert all(torch.equal(found[name], s) for name, s in truth.items())


def test_frozen_weights_are_scored_as_well() -> None:
    task = sm.Classification("t", 3)
    model, batches = model_of(task), data_of(task)
    truth = score(model, batches)
    model.requires_grad_(False)
    found = score(model, batches)
    assert all(torch.equal(found[name], s) for name, s in truth.items())


class Counting(nn.Module):
    """Writes buffers and draws random numbers in every forward, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("in_place", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.in_place += 1
        self.replaced = self.replaced + 1
        return x + 0 * torch.rand(1)


def busy_model() -> sm.SharedBottom:
    """A model in the midst of training, with everything that could be disturbed."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Embedding(5, 3, max_norm=0.5), Counting(), nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
    )
    encoder[5].requires_grad_(False)
    model = sm.SharedBottom(encoder, [sm.Classification("t", 3)], {"t": nn.Linear(4, 3)}).train()
    encoder[4].eval()
    model.heads["t"].weight.grad = torch.ones(3, 4)
    encoder[3].weight.grad = torch.ones(6, 12)
    encoder[3].register_forward_hook(lambda module, x, y: None)
    return model


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and its surroundings that a look at it could change."""
    modules = dict(model.named_modules())
    hooks = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"]
    return {
        "weights": {n: (id(t), t.detach().clone()) for n, t in model.state_dict(keep_vars=True).items()},
        "grads": {n: None if p.grad is None else (id(p.grad), p.grad.clone()) for n, p in model.named_parameters()},
        "frozen": {n: p.requires_grad for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in modules.items()},
        "hooks": {n: [list(getattr(m, kind)) for kind in hooks] for n, m in modules.items()},
        "tensor hooks": {n: p._backward_hooks for n, p in model.named_parameters()},
        "attributes": {n: list(vars(m)) for n, m in modules.items()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


class Drawing:
    """A loader that shuffles by all global generators."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            torch.rand(1), np.random.rand(), random.random()
            yield batch


@each("estimator", ESTIMATORS)
@each("path", ["auto", "loop"])
def test_the_model_its_gradients_and_the_dice_are_as_before(path: str, estimator: str) -> None:
    model = busy_model()
    before = traces(model)
    score(model, Drawing([(WORDS, {"t": torch.tensor([0, 2, 1, 1])})]), estimator=estimator, path=path)
    assert_same(before, traces(model))


@pytest.mark.parametrize("path", ["auto", "hooks", "functional", "loop"])
def test_the_model_is_as_before_even_if_something_fails(path: str) -> None:
    model = busy_model()
    before = traces(model)
    with pytest.raises((RuntimeError, ValueError)):
        score(model, Drawing([(WORDS, {"t": torch.tensor([0, 2, 1, 1])}), (WORDS, {"other": WORDS})]), path=path)
    assert_same(before, traces(model))


@pytest.mark.parametrize("path", ["auto", "hooks", "functional", "loop"])
def test_inputs_keep_their_values_and_gradients(path: str) -> None:
    task = sm.Classification("t", 3)
    model, ((x, targets),) = model_of(task), data_of(task, sizes=(4,))
    before = x.clone()
    score(model, [(x.requires_grad_(), targets)], path=path)
    assert torch.equal(x, before)
    assert x.grad is None


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ParameterError, "the loader gave no batch"),
        ([(torch.zeros(2, 1, 3, 3), {"t": torch.tensor([-100, -100])})], LabelError, "task 't' has no labelled sample"),
        ([(torch.zeros(2, 1, 3, 3), {"u": torch.tensor([0, 1])})], LabelError, "task 't': the batch has no target 't'"),
        ([(torch.zeros(2, 1, 3, 3), {"t": torch.tensor([0])})], LabelError, "task 't': 2 outputs but 1 labels"),
        ([(torch.zeros(2, 1, 3, 3), {"t": torch.tensor([0, 3])})], LabelError, "task 't': label 3"),
    ],
)
def test_data_that_says_nothing_is_an_error(batches: Batches, error: type[Exception], message: str) -> None:
    model = model_of(sm.Classification("t", 3), dtype=torch.float32)
    with pytest.raises(error, match=message):
        score(model, batches)


def test_a_model_without_shapes_is_an_error() -> None:
    model = sm.SharedBottom(nn.Sequential(nn.LazyLinear(3)), [sm.Classification("t", 3)], {"t": nn.Linear(3, 3)})
    with pytest.raises(ParameterError, match=r"'encoder\.0\.weight' has no shape yet\. Run the model on one batch"):
        score(model, [])


@pytest.mark.parametrize(
    "options",
    [{"estimator": "fisher"}, {"power": 2}, {"samples": 0}, {"draws": 0}, {"seed": -1}, {"chunk_mb": 0}, {"path": "x"}],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=f"The {next(iter(options))!r} parameter of Fisher must be"):
        Fisher(**options)


def test_fisher_information_of_one_task_is_the_criterions() -> None:
    tasks = [sm.Classification("a", 3), sm.Classification("b", 2)]
    model, batches = model_of(*tasks), data_of(*tasks)
    for estimator in ("fs", "efs", "true"):
        found = fisher_information(model, batches, "b", estimator, mask_all=True)
        expected = quiet_scores(model, batches, estimator=estimator, mask_all=True)["b"]
        assert all(torch.equal(found[name], s) for name, s in expected.items())


def test_fisher_information_reads_bare_labels_of_its_task() -> None:
    tasks = [sm.Classification("a", 3), sm.Classification("b", 2)]
    model, batches = model_of(*tasks), data_of(*tasks)
    named, bare = (fisher_information(model, b, "b") for b in (batches, [(x, y["b"]) for x, y in batches]))
    assert all(torch.equal(named[name], bare[name]) for name in named)


def test_fisher_information_wants_a_known_task_and_a_multi_task_model() -> None:
    tasks = [sm.Classification("first", 3), sm.Classification("second", 2)]
    model = model_of(*tasks)
    with pytest.raises(ParameterError, match="name a task, the model has 2: first, second"):
        fisher_information(model, [])
    with pytest.raises(ParameterError, match="Did you mean 'second'"):
        fisher_information(model, [], "secnd")
    with pytest.raises(ParameterError, match="needs a MultiTaskModel, got Linear"):
        fisher_information(nn.Linear(3, 3), [], "first")  # type: ignore[arg-type]


def test_a_model_of_one_task_needs_no_name() -> None:
    task = sm.Classification("t", 3)
    model, batches = model_of(task), data_of(task)
    found, truth = fisher_information(model, batches), score(model, batches)
    assert all(torch.equal(found[name], truth[name]) for name in truth)
    assert select(found, 0.5)


@each("estimator", ESTIMATORS)
@each("kind", ["softmax", "multi-label"])
def test_a_network_that_diverged_is_named_whatever_the_estimator(kind: str, estimator: Any) -> None:
    task = KINDS[kind]()
    model = model_of(task)
    nn.init.constant_(model.get_parameter("encoder.4.weight"), float("nan"))
    batch = (torch.ones(4, 1, 3, 3, dtype=torch.float64), {"t": labels_of(task, 4)})
    with pytest.raises(NonFiniteScoreError, match="Did training diverge"):
        fisher_masks(model, [batch], estimator=estimator)
