"""A criterion that looks at the dense network sees the dense network's norm statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from policies import Started
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import Criterion, Fisher, Gradient, Random, fisher_masks
from sparsemtl.criteria.batch_norm import with_recomputed_batch_norm
from sparsemtl.errors import LabelError

Batches = list[tuple[Tensor, dict[str, Tensor]]]
TASKS = [sm.Classification("kind", 3), sm.Regression("size")]


def model_of(*norms: nn.Module) -> sm.SharedBottom:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 6), *norms, nn.Tanh(), nn.Linear(6, 3))
    return sm.SharedBottom(encoder, TASKS, {t.name: nn.Linear(3, t.outputs) for t in TASKS}).double()


def data(*sizes: int, shift: float = 0.0) -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            2 * torch.randn(n, 4, generator=generator, dtype=torch.float64) + shift,
            {
                "kind": torch.randint(3, (n,), generator=generator),
                "size": torch.randn(n, generator=generator, dtype=torch.float64),
            },
        )
        for n in sizes
    ]


def settled(model: sm.SharedBottom, batches: Batches) -> sm.SharedBottom:
    """A copy whose batch norm has the mean over batches of each batch's mean and unbiased variance."""
    other = copy.deepcopy(model)
    hidden = [other.encoder[0](x).detach() for x, _ in batches]
    other.encoder[1].running_mean.copy_(torch.stack([h.mean(0) for h in hidden]).mean(0))
    other.encoder[1].running_var.copy_(torch.stack([h.var(0) for h in hidden]).mean(0))
    return other


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-9, atol=1e-14)


class Reading:
    """A loader that counts the batches that were read."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.read = batches, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.read += 1
            yield batch


@pytest.mark.parametrize("criterion", [Fisher(estimator="true"), Gradient()], ids=lambda c: type(c).__name__)
def test_the_criterion_sees_the_exact_averages_over_the_data(criterion: Criterion) -> None:
    model, batches = model_of(nn.BatchNorm1d(6)), data(5, 5)
    found = with_recomputed_batch_norm(criterion).scores(model, batches, TASKS)
    expected = criterion.scores(settled(model, batches), batches, TASKS)
    plain = criterion.scores(model, batches, TASKS)
    for task in TASKS:
        assert_same(found[task.name], expected[task.name])
        assert not torch.allclose(found[task.name]["encoder.0.weight"], plain[task.name]["encoder.0.weight"])


def test_tasks_with_data_of_their_own_have_statistics_of_their_own() -> None:
    model = model_of(nn.BatchNorm1d(6))
    own = {"kind": data(5, 5), "size": data(4, 4, shift=3.0)}
    criterion = Fisher(estimator="true")
    found = with_recomputed_batch_norm(criterion).scores(model, own, TASKS)
    assert list(found) == ["kind", "size"]
    for task in TASKS:
        expected = criterion.scores(settled(model, own[task.name]), own, [task])
        assert_same(found[task.name], expected[task.name])


def test_statistics_come_from_no_more_samples_than_asked_for() -> None:
    model, batches = model_of(nn.BatchNorm1d(6)), data(5, 5, 5)
    criterion = Fisher(estimator="true", samples=5)
    found = with_recomputed_batch_norm(criterion, samples=6).scores(model, batches, TASKS)
    expected = criterion.scores(settled(model, batches[:2]), batches, TASKS)
    assert_same(found["kind"], expected["kind"])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(training: bool) -> None:
    model = model_of(nn.BatchNorm1d(6), nn.Dropout(0.5)).train(training)
    model.encoder[1].momentum = 0.3
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with_recomputed_batch_norm(Fisher(estimator="true")).scores(model, data(5, 5), TASKS)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(module.training is training for module in model.modules())
    assert model.encoder[1].momentum == 0.3
    assert "running_mean" not in vars(model.encoder[1])


def test_the_model_is_as_before_even_if_the_criterion_fails() -> None:
    class Failing(Criterion):
        def scores(self, model: nn.Module, loaders: Any, tasks: Sequence[sm.Task]) -> Any:
            raise LabelError("nothing here")

    model = model_of(nn.BatchNorm1d(6)).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(LabelError):
        with_recomputed_batch_norm(Failing()).scores(model, data(5), TASKS)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert "running_mean" not in vars(model.encoder[1])


def test_networks_without_batch_norm_are_scored_as_they_are() -> None:
    model, batches = model_of(nn.LayerNorm(6)), data(5)
    criterion = Fisher(estimator="true")
    found, expected = (c.scores(model, batches, TASKS) for c in (with_recomputed_batch_norm(criterion), criterion))
    for task in TASKS:
        assert all(torch.equal(found[task.name][n], s) for n, s in expected[task.name].items())


def test_a_criterion_that_reads_no_data_costs_no_data() -> None:
    model, loader = model_of(nn.BatchNorm1d(6)), Reading(data(5))
    found = with_recomputed_batch_norm(Random(seed=3)).scores(model, loader, TASKS)
    assert loader.read == 0
    expected = Random(seed=3).scores(model, loader, TASKS)
    assert all(torch.equal(found["kind"][n], s) for n, s in expected["kind"].items())


def test_any_module_is_passed_on() -> None:
    """A plain module has no tasks to run for; its norms are taken as they are."""
    plain = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    assert with_recomputed_batch_norm(Random()).scores(plain, [], [TASKS[0]])["kind"].keys() == {"0.weight"}


def test_fisher_sharing_ranks_the_recalibrated_dense_network() -> None:
    model, batches = model_of(nn.BatchNorm1d(6)), data(5, 5)
    sharing = Started(sm.FisherSharing(keep=0.4, warmup=0, estimator="true"), model)
    sharing.begin_epoch(0, batches)
    assert sharing.masks == fisher_masks(settled(model, batches), batches, 0.4, estimator="true")
    assert sharing.masks != fisher_masks(model, batches, 0.4, estimator="true")
