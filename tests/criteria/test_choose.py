"""Masks made of scores: the right number, the same every time, and never by accident."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from loops import each
from policies import Started
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import (
    CRITERIA,
    Criterion,
    Fisher,
    Gradient,
    Magnitude,
    Random,
    choose_masks,
    fisher_masks,
    select,
)
from sparsemtl.criteria.top_k import budget
from sparsemtl.errors import LabelError, MaskError, MaskWarning, ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters

Batches = list[tuple[Tensor, dict[str, Tensor]]]
CHOOSERS: dict[str, Criterion] = {
    "fisher": Fisher(estimator="true"),
    "drawn fisher": Fisher(estimator="sample", seed=3),
    "random": Random(seed=3),
    "magnitude": Magnitude(),
    "gradient": Gradient(),
}


def model_and_data() -> tuple[sm.SharedBottom, Batches]:
    torch.manual_seed(0)
    tasks = [sm.Classification("kind", 3), sm.Regression("size")]
    encoder = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 6))
    model = sm.SharedBottom(encoder, tasks, {"kind": nn.Linear(6, 3), "size": nn.Linear(6, 1)})
    x = torch.randn(12, 5)
    return model, [(x, {"kind": torch.randint(3, (12,)), "size": torch.randn(12)})]


class Given(Criterion):
    """Scores that are known beforehand: a number a task."""

    reads_data = False

    def __init__(self, **scores: float) -> None:
        self.given = scores

    def scores(self, model: nn.Module, loaders: Any, tasks: Sequence[sm.Task]) -> dict[str, dict[str, Tensor]]:
        parameters = maskable_parameters(model)
        return {t: {n: torch.full_like(p, score) for n, p in parameters.items()} for t, score in self.given.items()}


@each("keep", [0.05, 0.3, 0.9, 1.0])
@each("name", CHOOSERS)
def test_every_task_keeps_exactly_k_weights(name: str, keep: float) -> None:
    model, batches = model_and_data()
    masks = choose_masks(CHOOSERS[name], model, batches, keep=keep, scope="global")
    assert masks.tasks == ("kind", "size")
    assert masks.size() == 88
    assert {masks.count(task) for task in masks} == {budget(88, keep)}
    assert {mask.dtype for task in masks for mask in masks[task].values()} == {torch.bool}


@each("keep", [0.05, 0.3, 0.9, 1.0])
@each("name", CHOOSERS)
def test_layer_scope_keeps_exactly_k_of_every_layer(name: str, keep: float) -> None:
    model, batches = model_and_data()
    masks = choose_masks(CHOOSERS[name], model, batches, keep=keep, scope="layer", min_per_layer=3)
    for task in masks:
        counts = {n: int(mask.sum()) for n, mask in masks[task].items()}
        assert counts == {"encoder.0.weight": max(budget(40, keep), 3), "encoder.3.weight": max(budget(48, keep), 3)}


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("name", ["fisher", "sample", "random"])
def test_the_same_seed_gives_the_same_masks(name: str, granularity: Any) -> None:
    makers = {
        "fisher": lambda: Fisher(estimator="true", mask_all=True),
        "sample": lambda: Fisher(estimator="sample", seed=4, mask_all=True),
        "random": lambda: Random(seed=4, mask_all=True),
    }
    model, batches = model_and_data()
    one = choose_masks(makers[name](), model, batches, keep=0.3, granularity=granularity)
    torch.rand(7)
    assert choose_masks(makers[name](), model, batches, keep=0.3, granularity=granularity) == one


@pytest.mark.parametrize("name", CHOOSERS)
def test_masks_are_the_selection_by_the_criterions_scores(name: str) -> None:
    model, batches = model_and_data()
    masks = choose_masks(CHOOSERS[name], model, batches, keep=0.4, min_per_layer=10)
    for task, score in CHOOSERS[name].scores(model, batches, list(model.tasks.values())).items():
        chosen = select(score, 0.4, min_per_layer=10)
        assert list(chosen) == list(masks[task])
        assert all(torch.equal(chosen[n], mask) for n, mask in masks[task].items())
        assert all(int(mask.sum()) >= 10 for mask in masks[task].values())


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("keyword", ["estimator", "power", "samples"])
def test_fisher_masks_passes_on_how_to_estimate(keyword: str, granularity: Any) -> None:
    options: dict[str, Any] = {
        "estimator": "true",
        keyword: {"estimator": "efs", "power": "abs", "samples": 2}[keyword],
    }
    model, batches = model_and_data()
    masks = fisher_masks(model, batches, 0.3, granularity=granularity, **options)
    criterion = Fisher(mask_all=granularity == "channel", **options)
    assert masks == choose_masks(criterion, model, batches, keep=0.3, granularity=granularity)


def test_biases_and_norms_are_covered_only_if_asked_for() -> None:
    model, batches = model_and_data()
    assert list(fisher_masks(model, batches, estimator="true")["kind"]) == ["encoder.0.weight", "encoder.3.weight"]
    everything = fisher_masks(model, batches, estimator="true", mask_all=True)["kind"]
    assert list(everything) == [name for name, _ in model.named_parameters() if name.startswith("encoder.")]


def test_the_header_says_what_chose() -> None:
    model, batches = model_and_data()
    assert fisher_masks(model, batches, estimator="true").method == "fisher"
    masks = choose_masks(Magnitude(), model, batches, keep=0.3)
    assert (masks.model, masks.method) == ("SharedBottom", "Magnitude")


def test_a_task_whose_scores_are_all_zero_keeps_its_mask_and_says_so() -> None:
    model, batches = model_and_data()
    before = choose_masks(Random(), model, batches, keep=0.5)
    with pytest.warns(MaskWarning, match="task 'size': every score is zero; it keeps its mask"):
        after = choose_masks(Given(kind=1.0, size=0.0), model, batches, keep=0.5, previous=before)
    assert torch.equal(after.flat("size"), before.flat("size"))
    assert not torch.equal(after.flat("kind"), before.flat("kind"))


def test_a_saturated_task_keeps_the_mask_it_had_in_a_run() -> None:
    """Probabilities of exactly one leave no slope: the Fisher information is zero everywhere."""
    model, batches = model_and_data()
    with torch.no_grad():
        model.heads["kind"].weight.zero_()
        model.heads["kind"].bias.copy_(torch.tensor([500.0, -500.0, -500.0]))
    sharing = Started(sm.FisherSharing(keep=0.5, warmup=0, estimator="efs"), model)
    with pytest.warns(MaskWarning, match="task 'kind'"):
        sharing.begin_epoch(0, batches)
    assert sharing.masks.density("kind") == 1
    assert sharing.masks.density("size") == 0.5


def test_without_a_mask_to_keep_all_zero_scores_are_an_error() -> None:
    model, batches = model_and_data()
    with pytest.raises(MaskError, match="task 'kind': every score is zero, so that its weights cannot be ranked"):
        choose_masks(Given(kind=0.0), model, batches, keep=0.5)


def test_scores_that_are_nan_are_an_error() -> None:
    model, batches = model_and_data()
    with torch.no_grad():
        model.encoder[3].weight[0, 0] = float("nan")
    with pytest.raises(MaskError, match="scores are NaN"):
        fisher_masks(model, batches, estimator="true")


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_keep_out_of_range_is_refused(keep: float) -> None:
    model, batches = model_and_data()
    with pytest.raises(ParameterError, match=r"`keep` must be in \(0, 1\]"):
        fisher_masks(model, batches, keep, estimator="true")


def test_a_model_that_shares_no_weights_is_refused() -> None:
    model = sm.SharedBottom(nn.Flatten(), [sm.Classification("kind", 3)], {"kind": nn.Linear(5, 3)})
    with pytest.raises(ParameterError, match="the model shares no weights"):
        fisher_masks(model, [(torch.randn(2, 5), {"kind": torch.tensor([0, 1])})])


def test_channels_by_a_criterion_that_forgot_the_biases_are_refused() -> None:
    model, batches = model_and_data()
    with pytest.raises(MaskError, match="mask_all=True"):
        choose_masks(Magnitude(), model, batches, keep=0.5, granularity="channel")


class Drawing:
    """A loader that shuffles by the global generator."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for x, targets in self.batches:
            order = torch.randperm(len(x))
            yield x[order], {name: target[order] for name, target in targets.items()}


@each("granularity", ["weight", "channel"])
@each("name", CRITERIA)
def test_neither_the_model_nor_the_order_of_a_loader_is_disturbed(name: str, granularity: Any) -> None:
    model, batches = model_and_data()
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    true: dict[str, Any] = {"estimator": "true"}  # of a regression, `fs` would warn
    options = {"fisher": true, "specific": {"of": {"name": "fisher", **true}}}.get(name, {})
    criterion = CRITERIA.build(name, mask_all=True, **options)
    choose_masks(criterion, model, Drawing(batches), keep=0.5, granularity=granularity)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_missing_loader_is_named() -> None:
    model, ((x, targets),) = model_and_data()
    with pytest.raises(LabelError, match="task 'size' has no loader"):
        fisher_masks(model, {"kind": [(x, targets["kind"])]}, estimator="true")
