"""Random, magnitude and gradient: what else ranks weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import CRITERIA, Criterion, Gradient, Magnitude, Random, choose_masks
from sparsemtl.errors import LabelError, ParameterError

Batches = list[tuple[Tensor, dict[str, Tensor]]]


class Untouchable:
    """A loader that nobody may read."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the data was read")


def model_of(*tasks: sm.Task, features: int = 6) -> sm.SharedBottom:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, features), nn.BatchNorm1d(features), nn.Tanh(), nn.Linear(features, 3))
    return sm.SharedBottom(encoder, tasks, {t.name: nn.Linear(3, t.outputs) for t in tasks}).double()


def data(*sizes: int) -> Batches:
    """Labels of a classification `kind` and a regression `size`; samples do not depend on the batches."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    kind = torch.randint(3, (sum(sizes),), generator=generator)
    size = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    parts = zip(x.split(sizes), kind.split(sizes), size.split(sizes), strict=True)
    return [(inputs, {"kind": k.clone(), "size": s.clone()}) for inputs, k, s in parts]


def scores(criterion: Criterion, model: sm.SharedBottom, loaders: Any) -> dict[str, dict[str, Tensor]]:
    return criterion.scores(model, loaders, list(model.tasks.values()))


KIND, SIZE = sm.Classification("kind", 3), sm.Regression("size")
MANY = [sm.Classification(f"task{index}", 2) for index in range(6)]


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_the_weights_and_biases_and_norms_if_asked(name: str) -> None:
    model = model_of(KIND)
    found = scores(CRITERIA.build(name), model, data(5))["kind"]
    assert {n: s.shape for n, s in found.items()} == {"encoder.0.weight": (6, 4), "encoder.3.weight": (3, 6)}
    found = scores(CRITERIA.build(name, mask_all=True), model, data(5))["kind"]
    assert {n: s.shape for n, s in found.items()} == {
        n: p.shape for n, p in model.named_parameters() if "heads" not in n
    }


@pytest.mark.parametrize("criterion", [Random(), Magnitude()])
def test_criteria_that_say_so_read_no_data(criterion: Criterion) -> None:
    assert not criterion.reads_data
    assert scores(criterion, model_of(KIND), Untouchable())["kind"]


@pytest.mark.parametrize("name", ["fisher", "gradient", "specific"])
def test_criteria_that_read_data_say_so(name: str) -> None:
    criterion = CRITERIA.build(name)
    assert criterion.reads_data
    with pytest.raises(AssertionError, match="the data was read"):
        scores(criterion, model_of(KIND), Untouchable())


def test_magnitude_is_the_weights_absolute_value_the_same_for_every_task() -> None:
    model = model_of(KIND, SIZE)
    found = scores(Magnitude(), model, [])
    for task in ("kind", "size"):
        for name, score in found[task].items():
            assert torch.equal(score, model.get_parameter(name).abs())
            assert not score.requires_grad


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_tasks_masks_by_magnitude_are_one(keep: float) -> None:
    masks = choose_masks(Magnitude(), model_of(KIND, SIZE), [], keep=keep)
    assert torch.equal(masks.flat("kind"), masks.flat("size"))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_random_scores_follow_the_seed(seed: int) -> None:
    model = model_of(KIND, SIZE)
    one, same, other = (scores(Random(seed=s), model, []) for s in (seed, seed, seed + 1))
    for task, by_name in one.items():
        assert all(torch.equal(by_name[n], s) for n, s in same[task].items())
        assert not any(torch.equal(by_name[n], s) for n, s in other[task].items())
    assert not any(torch.equal(one["kind"][n], s) for n, s in one["size"].items())


def test_random_scores_leave_the_global_dice_alone() -> None:
    model = model_of(KIND)
    state = torch.get_rng_state()
    scores(Random(), model, [])
    assert torch.equal(state, torch.get_rng_state())


@each("keep", [0.1, 0.3, 0.9])
@each("seed", [0, 1, 2])
def test_random_masks_of_tasks_are_independent(seed: int, keep: float) -> None:
    """Two masks have keep^2 of the weights in common, six cover 1 - (1 - keep)^6 of them, within three sigma.

    Masks of exactly K weights spread less than the binomial distribution says.
    """
    model = model_of(*MANY, features=600)
    masks = choose_masks(Random(seed=seed), model, [], keep=keep, scope="global", min_per_layer=0)
    size = masks.size()
    for a in MANY:
        for b in MANY:
            expected = keep**2 if a is not b else keep
            both = float((masks.flat(a.name) & masks.flat(b.name)).double().mean())
            assert abs(both - expected) < 3 * (expected * (1 - expected) / size) ** 0.5 + 1 / size
    covered = float(torch.cat([m.flatten() for m in masks.union().values()]).double().mean())
    expected = 1 - (1 - keep) ** len(MANY)
    assert abs(covered - expected) < 3 * (expected * (1 - expected) / size) ** 0.5 + 1 / size


def test_random_masks_are_uniform_over_the_weights() -> None:
    """Every weight is kept by about the same number of seeds; none is favoured for its place or its layer."""
    model, keep, seeds = model_of(KIND), 0.3, 600
    kept = sum(
        choose_masks(Random(seed=s), model, [], keep=keep, min_per_layer=0).flat("kind").int() for s in range(seeds)
    )
    sigma = (keep * (1 - keep) * seeds) ** 0.5
    assert float((kept - keep * seeds).abs().max()) < 4.5 * sigma  # type: ignore[union-attr]


def mean_loss_gradient(
    model: sm.SharedBottom, batches: Batches, task: sm.Task, samples: int | None
) -> dict[str, Tensor]:
    """The gradient of the mean of single samples' losses."""
    model.eval()
    losses = []
    for x, targets in batches:
        for n in range(len(x)):
            label = targets[task.target][n : n + 1]
            if bool(task.labelled(task.cast(label)).all()):
                losses.append(task.loss(model(x[n : n + 1])[task.name], label))
    loss = torch.stack(losses[:samples]).mean()
    names = ["encoder.0.weight", "encoder.3.weight"]
    return dict(zip(names, torch.autograd.grad(loss, [model.get_parameter(n) for n in names]), strict=True))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-10, atol=1e-14)


@each("task", [KIND, SIZE])
@each("samples", [None, 1, 4, 7])
@each("sizes", [(9,), (4, 5), (1,) * 9])
def test_gradient_is_that_of_the_mean_loss_whatever_the_batches(
    sizes: tuple[int, ...], samples: int | None, task: sm.Task
) -> None:
    model = model_of(KIND, SIZE)
    truth = mean_loss_gradient(model, data(*sizes), task, samples)
    found = scores(Gradient(samples=samples), model, data(*sizes))[task.name]
    assert_close(found, {name: g.abs() for name, g in truth.items()})


def test_gradient_times_weight_is_snips_sensitivity() -> None:
    model = model_of(KIND, SIZE)
    for task in (KIND, SIZE):
        truth = mean_loss_gradient(model, data(5, 4), task, None)
        found = scores(Gradient(times_weight=True), model, data(5, 4))[task.name]
        assert_close(found, {name: (g * model.get_parameter(name)).abs() for name, g in truth.items()})


@pytest.mark.parametrize("samples", [None, 3, 5])
def test_gradient_counts_labelled_samples_alone(samples: int | None) -> None:
    model, batches = model_of(KIND, SIZE), data(4, 5)
    batches[0][1]["kind"][:3] = -100
    batches[1][1]["size"][[0, 2]] = float("nan")
    found = scores(Gradient(samples=samples), model, batches)
    for task in (KIND, SIZE):
        truth = mean_loss_gradient(model, batches, task, samples)
        assert_close(found[task.name], {name: g.abs() for name, g in truth.items()})


def test_gradient_of_loaders_of_their_own_is_that_of_a_shared_one() -> None:
    model, batches = model_of(KIND, SIZE), data(4, 5)
    own = {t: [(x, y[t]) for x, y in batches] for t in ("kind", "size")}
    shared, apart = (scores(Gradient(), model, loaders) for loaders in (batches, own))
    for task, expected in shared.items():
        assert_close(apart[task], expected)


def test_gradient_uses_the_tasks_own_loss() -> None:
    task = sm.Regression("size", loss=lambda output, label: (output - label).abs().mean())
    model = model_of(task)
    truth = mean_loss_gradient(model, data(9), task, None)
    assert_close(scores(Gradient(), model, data(9))["size"], {name: g.abs() for name, g in truth.items()})


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradient_needs_neither_gradients_enabled_nor_weights_that_train(context: Any) -> None:
    model, batches = model_of(KIND), data(5)
    expected = scores(Gradient(), model, batches)["kind"]
    model.requires_grad_(False)
    with context():
        found = scores(Gradient(), model, batches)["kind"]
    assert_close(found, expected)


def test_a_parameter_that_a_task_does_not_use_has_no_gradient() -> None:
    encoder = nn.ModuleDict({"used": nn.Linear(4, 3), "idle": nn.Linear(4, 3)})
    encoder.forward = lambda x: encoder["used"](x)  # type: ignore[method-assign]
    model = sm.SharedBottom(encoder, [KIND], {"kind": nn.Linear(3, 3)}).double()
    found = scores(Gradient(), model, data(5))["kind"]
    assert found["encoder.used.weight"].any()
    assert not found["encoder.idle.weight"].any()


NOTHING: dict[str, Batches] = {
    "no batch": [],
    "no label": [(torch.zeros(2, 4).double(), {"kind": torch.tensor([-100, -100])})],
}


@pytest.mark.parametrize("batches", NOTHING.values(), ids=NOTHING)
def test_gradient_without_a_labelled_sample_is_an_error(batches: Batches) -> None:
    with pytest.raises(LabelError, match="task 'kind' has no labelled sample to take gradients on"):
        scores(Gradient(), model_of(KIND), batches)


@pytest.mark.parametrize(
    ("name", "options"),
    [("random", {"seed": -1}), ("gradient", {"samples": 0}), ("magnitude", {"mask_all": 1}), ("random", {"seed": 0.5})],
)
def test_options_out_of_range_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=f"The {next(iter(options))!r} parameter of"):
        CRITERIA.build(name, **options)
