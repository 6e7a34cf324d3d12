"""Fisher sharing: when masks change, what chooses them, and the corners of the estimate."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, get_args

import pytest
import torch
from loops import each
from policies import Started
from sharing_toys import NAMES, encoder, engine_of, loader, model, own_loaders, run_epoch, table, tasks, trained
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria.estimators import Estimator
from sparsemtl.data import TensorLoader
from sparsemtl.errors import LikelihoodWarning, MaskWarning, ParameterError

SCHEDULES = {
    "every epoch from the first": (0, 1, [0, 1, 2, 3, 4, 5, 6]),
    "once at the start": (0, 0, [0]),
    "the defaults": (1, 1, [1, 2, 3, 4, 5, 6]),
    "every other after two": (2, 2, [2, 4, 6]),
    "every third after one": (1, 3, [1, 4]),
    "once after three": (3, 0, [3]),
    "again too late": (2, 10, [2]),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masks_change_exactly_at_the_epochs_that_they_should(schedule: str) -> None:
    warmup, every, changes = SCHEDULES[schedule]
    sharing = sm.FisherSharing(keep=0.4, warmup=warmup, update_every=every)
    engine = engine_of(model(), sharing, optimizer="adam")
    sharing = Started.of(engine)
    found = []
    for epoch in range(7):
        before = sharing.masks
        run_epoch(engine, loader(), epoch)
        if sharing.masks is not before:
            assert sharing.masks != before, f"epoch {epoch}: nothing learned that would change a mask"
            found.append(epoch)
    assert found == changes


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_a_warm_up_is_dense_and_never_settled(warmup: int) -> None:
    sharing = sm.FisherSharing(keep=0.4, warmup=warmup)
    engine = engine_of(model(), sharing)
    sharing = Started.of(engine)
    for epoch in range(5):
        run_epoch(engine, loader(), epoch)
        assert sharing.is_selectable(epoch) == (epoch >= warmup)
        assert sharing.masks.density() == (1.0 if epoch < warmup else pytest.approx(0.4, abs=0.01))


class Worsening:
    """Validation data on which every epoch is worse than the one before: the first would win."""

    def __init__(self) -> None:
        self.x, self.targets = table(40, seed=5)
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        wrong = 8 * self.passes
        self.passes += 1
        targets = {name: t.clone() for name, t in self.targets.items()}
        for t in targets.values():
            t[:wrong] = 1 - t[:wrong].clamp(max=1)
        yield self.x, targets


def test_an_epoch_of_the_warm_up_is_never_chosen() -> None:
    trainer = sm.Trainer(
        model(), sharing=sm.FisherSharing(keep=0.4, warmup=2), epochs=4, progress=False, accelerator="cpu"
    ).fit(loader(), Worsening())
    assert trainer.masks is not None
    assert trainer.masks.density() == pytest.approx(0.4, abs=0.01)


def test_a_run_that_would_end_in_its_warm_up_is_refused() -> None:
    with pytest.raises(ParameterError, match="FisherSharing would still be warming up when the 2 epochs end"):
        sm.Trainer(model(), sharing=sm.FisherSharing(warmup=2), epochs=2)


def chosen(network: sm.MultiTaskModel, data: Any, **options: Any) -> sm.TaskMasks:
    """The masks of a first epoch."""
    sharing = Started(sm.FisherSharing(**{"warmup": 0, "keep": 0.4} | options), network)
    sharing.begin_epoch(0, data)
    return sharing.masks


@each("power", ["square", "abs"])
@each("estimator", get_args(Estimator))
def test_its_masks_are_those_of_the_estimate_asked_for(estimator: Estimator, power: str) -> None:
    network, data = model(norm=False), loader(shuffle=False)
    found = chosen(network, data, estimator=estimator, power=power)
    assert found == sm.fisher_masks(network, data, 0.4, estimator=estimator, power=power)


def test_estimates_differ_so_that_the_choice_among_them_matters() -> None:
    network, data = model(norm=False), loader(shuffle=False)
    masks = [chosen(network, data, estimator=estimator) for estimator in get_args(Estimator)]
    assert all(a != b for i, a in enumerate(masks) for b in masks[:i])


def test_the_same_run_chooses_the_same_masks() -> None:
    runs = [trained(sm.FisherSharing(keep=0.4, estimator="sample"), loader(), epochs=3) for _ in range(2)]
    assert runs[0].networks.masks == runs[1].networks.masks


def test_labels_are_drawn_anew_at_every_renewal() -> None:
    sharing = Started(sm.FisherSharing(keep=0.4, warmup=0, estimator="sample"), model())
    masks = []
    for epoch in range(2):
        sharing.begin_epoch(epoch, loader(shuffle=False))
        masks.append(sharing.masks)
    assert masks[0] != masks[1]


def test_no_more_samples_are_read_than_asked_for() -> None:
    network, data = model(norm=False), loader(shuffle=False, batch_size=8)
    first = TensorLoader(data.x[:8], {name: t[:8] for name, t in data.targets.items()}, batch_size=8)
    assert chosen(network, data, samples=8) == chosen(network, first)
    assert chosen(network, data, samples=8) != chosen(network, data, samples=24)


@pytest.mark.parametrize("samples", [25, 10_000, None])
def test_more_samples_than_there_are_means_all(samples: int | None) -> None:
    network, data = model(), loader(shuffle=False)
    assert chosen(network, data, samples=samples) == chosen(network, data, samples=24)


@pytest.mark.parametrize("estimator", ["fs", "true"])
def test_of_one_sample_squares_and_absolutes_choose_the_same(estimator: str) -> None:
    network, data = model(norm=False), loader(shuffle=False)
    options = {"samples": 1, "estimator": estimator}
    assert chosen(network, data, power="square", **options) == chosen(network, data, power="abs", **options)


class WithSpare(nn.Module):
    """An encoder with a layer that nothing goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = encoder(norm=False), nn.Linear(4, 6)
        self.out_features = 5

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_weight_that_no_output_depends_on_is_kept_last() -> None:
    torch.manual_seed(0)
    masks = chosen(sm.SharedBottom(WithSpare(), tasks()), loader(), keep=0.5)
    assert [int(masks[task]["encoder.spare.weight"].sum()) for task in NAMES] == [1, 1, 1]
    assert masks.density() == 0.5


def test_a_model_with_a_spare_layer_trains() -> None:
    torch.manual_seed(0)
    network = sm.SharedBottom(WithSpare(), tasks())
    spare = deepcopy(network.encoder.spare)
    trained(sm.FisherSharing(keep=0.5), loader(), network=network, optimizer="sgd")
    kept = network.encoder.spare.weight != spare.weight
    assert int(kept.sum()) <= 1, "weight decay moves what the floor keeps, and no more"


def silence(network: sm.SharedBottom, task: str) -> None:
    """Let a head answer the same whatever its features: the Fisher information of its task is zero."""
    with torch.no_grad():
        network.heads[task].weight.zero_()


def test_a_task_without_information_keeps_its_mask_with_a_warning() -> None:
    network = model()
    sharing = Started(sm.FisherSharing(keep=0.4, warmup=0), network)
    sharing.begin_epoch(0, loader(shuffle=False))
    first = sharing.masks
    silence(network, "marks")
    with torch.no_grad():
        network.encoder[0].weight.mul_(-1)
    with pytest.warns(MaskWarning, match="task 'marks': every score is zero; it keeps its mask") as caught:
        sharing.begin_epoch(1, loader(shuffle=False))
    assert len(caught) == 1
    changed = {task: value for task, name, value in sharing.metrics() if name == "changed"}
    assert changed["marks"] == 0.0
    assert all(torch.equal(sharing.masks["marks"][name], mask) for name, mask in first["marks"].items())
    assert changed["kind"] > 0
    assert changed["side"] > 0


def test_from_the_beginning_a_task_without_information_keeps_everything() -> None:
    network = model()
    silence(network, "side")
    with pytest.warns(MaskWarning, match="task 'side'"):
        masks = chosen(network, loader())
    assert masks.density("side") == 1.0
    assert masks.density("kind") == pytest.approx(0.4, abs=0.01)


def test_regression_falls_back_to_the_exact_estimate_with_one_warning_a_run() -> None:
    torch.manual_seed(0)
    network = sm.SharedBottom(encoder(norm=False), [sm.Regression("slope"), *tasks()])
    x, targets = table()
    data = TensorLoader(x, targets | {"slope": x[:, 0]}, batch_size=8)
    sharing = Started(sm.FisherSharing(keep=0.4, warmup=0), network)
    with pytest.warns(LikelihoodWarning, match="task 'slope'") as caught:
        sharing.begin_epoch(0, data)
    assert [warning.category for warning in caught].count(LikelihoodWarning) == 1
    sharing.begin_epoch(1, data)
    exact = sm.fisher_masks(network, data, 0.4, estimator="efs")
    assert all(torch.equal(sharing.masks["slope"][name], mask) for name, mask in exact["slope"].items())


def test_on_data_of_its_own_a_task_is_judged_by_it() -> None:
    network, loaders = model(norm=False), own_loaders()
    for one in loaders.values():
        one.shuffle = False
    masks = chosen(network, loaders)
    for name in NAMES:
        alone = sm.fisher_information(network, loaders[name], name)
        kept = torch.cat([score[masks[name][parameter]] for parameter, score in alone.items()])
        dropped = torch.cat([score[~masks[name][parameter]] for parameter, score in alone.items()])
        assert kept.min() >= dropped.max()


def test_kept_weights_have_more_information_than_dropped_ones() -> None:
    network, data = model(norm=False), loader(shuffle=False)
    masks = chosen(network, data, keep=0.3)
    for name in NAMES:
        scores = sm.fisher_information(network, data, name)
        kept = torch.cat([score[masks[name][parameter]] for parameter, score in scores.items()])
        dropped = torch.cat([score[~masks[name][parameter]] for parameter, score in scores.items()])
        assert kept.min() >= dropped.max()
        assert len(kept) == masks.count(name)
