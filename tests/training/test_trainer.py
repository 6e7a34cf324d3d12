from __future__ import annotations

import json
import math
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from loops import each
from states import assert_same, state_of
from test_resume import Dying, Killed, assert_same_end
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from training_toys import apart, encoder, loader, moved, own_loaders, quiet, shared, table, tasks

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import CheckpointError, LabelError, LabelWarning, NonFiniteLossError, ParameterError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.storage.files import read_tensors, read_tree
from sparsemtl.storage.metrics import read_metrics
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.mixing import Mix
from sparsemtl.training.options import Precision

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def held_out(seed: int = 2) -> TensorLoader:
    return loader(20, seed=seed, batch_size=20, shuffle=False)


class Praising:
    """Validation data that agrees with a trainer's model in one epoch, and with it only: task -> epoch, from 1."""

    def __init__(self, trainer: sm.Trainer, **epochs: int) -> None:
        self.trainer, self.epochs = trainer, epochs

    def __iter__(self) -> Iterator[Any]:
        x, _ = table(20, seed=2)
        outputs = self.trainer.predict(x)
        praised = {task: self.trainer.position.epoch + 1 == epoch for task, epoch in self.epochs.items()}
        targets = {}
        if "a" in praised:
            targets["a"] = outputs["a"].argmax(1) if praised["a"] else outputs["a"].argmin(1)
        if "b" in praised:
            targets["b"] = outputs["b"].squeeze(1) if praised["b"] else -outputs["b"].squeeze(1)
        yield x, targets


class History:
    """A trainer's weights after every epoch."""

    def __init__(self, trainer: sm.Trainer) -> None:
        self.weights: list[dict[str, Tensor]] = []
        original = trainer._close_epoch

        def noted(*arguments: Any) -> None:
            self.weights.append(state_of(trainer.model))
            original(*arguments)

        trainer._close_epoch = noted  # type: ignore[method-assign]

    def after(self, epoch: int) -> dict[str, Tensor]:
        """Of an epoch counted from 1; all differ, so that none can be mistaken for another."""
        assert all(moved(self.weights[0], other) for other in self.weights[1:])
        return self.weights[epoch - 1]


# What comes out


def test_it_learns_a_simple_problem() -> None:
    trainer = quiet(shared("abc"), epochs=14, optimizer=partial(torch.optim.Adam, lr=0.03))
    trainer.fit(loader(240, batch_size=16), loader(100, seed=2, batch_size=100))
    results = trainer.test(loader(100, seed=3, batch_size=100))
    assert results["a"]["accuracy"] > 0.85
    assert results["b"]["r2"] > 0.85
    assert results["c"]["accuracy"] > 0.85


@pytest.mark.parametrize("method", [sm.FisherSharing(keep=0.5, estimator="true"), sm.RandomSharing(keep=0.7)])
def test_sparse_methods_learn_it_too(method: sm.Sharing) -> None:
    trainer = quiet(shared(norm=True), sharing=method, epochs=10, optimizer=partial(torch.optim.Adam, lr=0.03))
    trainer.fit(loader(160, batch_size=16), loader(100, seed=2, batch_size=100))
    results = trainer.test(loader(100, seed=3, batch_size=100))
    assert results["a"]["accuracy"] > 0.75
    assert results["b"]["r2"] > 0.6


@pytest.mark.parametrize("restart_every", [None, 1])
def test_training_is_the_plain_loop_bit_for_bit(restart_every: int | None) -> None:
    model = shared(norm=True, dropout=0.2)
    reference = deepcopy(model)
    options: dict[str, Any] = {"monitor": "loss", "seed": 4, "restart_every": restart_every}
    quiet(model, optimizer=SGD, epochs=2, **options).fit(loader(), held_out())
    torch.manual_seed(4)
    optimizer, train = SGD(reference.parameters()), loader()
    for epoch in range(2):
        if restart_every and epoch:
            optimizer = SGD(reference.parameters())
        for x, targets in train:
            optimizer.zero_grad()
            outputs = reference(x)
            losses = [task.loss(outputs[name], targets[name]) * 0.5 for name, task in reference.tasks.items()]
            (losses[0] + losses[1]).backward()
            optimizer.step()
    assert_same(state_of(model), state_of(reference))


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("best", [1, 2, 4])
def test_fit_leaves_the_model_of_the_best_epoch(folder: bool, best: int, tmp_path: Path) -> None:
    trainer = quiet(shared(norm=True), epochs=4, folder=tmp_path / "run" if folder else None)
    history = History(trainer)
    trainer.fit(loader(), Praising(trainer, a=best, b=best))
    assert_same(state_of(trainer.model), history.after(best))
    assert trainer.selection.best_epoch("a") == trainer.selection.best_epoch("b") == best
    assert not trainer.model.training


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(("a", "b"), [(3, 1), (2, 4), (3, 3)])
def test_independent_tasks_end_with_their_own_best_epochs(folder: bool, a: int, b: int, tmp_path: Path) -> None:
    trainer = quiet(apart(norm=True), epochs=4, folder=tmp_path / "run" if folder else None)
    history = History(trainer)
    trainer.fit(loader(), Praising(trainer, a=a, b=b))
    assert (trainer.selection.best_epoch("a"), trainer.selection.best_epoch("b")) == (a, b)
    for name, tensor in state_of(trainer.model).items():
        assert torch.equal(tensor, history.after({"a": a, "b": b}[name.split(".")[1]])[name]), name


@pytest.mark.parametrize("folder", [False, True])
def test_on_request_tasks_that_share_weights_have_each_their_own_best_epoch(folder: bool, tmp_path: Path) -> None:
    kept = tmp_path / "run" if folder else None
    trainer = quiet(shared(norm=True), epochs=4, choose_per_task=True, folder=kept)
    history = History(trainer)
    trainer.fit(loader(), Praising(trainer, a=3, b=1))
    x, _ = table(20, seed=2)
    found = trainer.predict(x)
    for task, epoch in {"a": 3, "b": 1}.items():
        model = shared(norm=True)
        model.load_state_dict(history.after(epoch))
        assert torch.equal(found[task], model.eval()(x)[task]), task


def test_on_request_a_method_that_chooses_per_task_has_one_epoch_for_all() -> None:
    class PerTask(sm.DenseSharing):
        selects_per_task = True

    trainer = quiet(sharing=PerTask(), epochs=3, choose_per_task=False)
    trainer.fit(loader(), Praising(trainer, a=2, b=2))
    assert list(trainer.selection.parts) == ["all"]
    assert trainer.selection.best_epoch("a") == 2


@pytest.mark.parametrize("model", [shared("b"), apart("b")])
def test_a_single_task_ends_with_its_best_epoch_whole(model: sm.MultiTaskModel) -> None:
    trainer = quiet(model, epochs=3)
    history = History(trainer)
    trainer.fit(loader(), Praising(trainer, b=2))
    assert_same(state_of(model), history.after(2))


def test_single_tasks_train_apart_as_they_would_alone() -> None:
    together = apart("ab")
    quiet(together, optimizer=SGD, epochs=2, monitor="loss").fit(loader(shuffle=False), held_out())
    for task in "ab":
        alone = apart(task)
        alone.load_state_dict({n: t for n, t in apart("ab").state_dict().items() if n in alone.state_dict()})
        quiet(alone, optimizer=SGD, epochs=2, monitor="loss").fit(loader(shuffle=False), held_out())
        for name, tensor in state_of(alone).items():
            torch.testing.assert_close(together.state_dict()[name], tensor)


def test_epochs_of_a_warm_up_are_never_chosen() -> None:
    class Warming(sm.DenseSharing):
        def is_selectable(self, epoch: int) -> bool:
            return epoch >= 3

    trainer = quiet(sharing=Warming(), optimizer=partial(SGD, lr=1e-9), epochs=5, patience=1)
    trainer.fit(loader(), held_out())
    assert trainer.selection.best_epoch("a") == 4
    assert trainer.position.epoch == 5


def test_a_run_that_would_end_in_its_warm_up_is_refused() -> None:
    with pytest.raises(ParameterError, match="FisherSharing would still be warming up when the 2 epochs end"):
        quiet(sharing=sm.FisherSharing(warmup=2), epochs=2)


def test_epochs_that_are_not_to_be_chosen_are_not() -> None:
    trainer = quiet(optimizer=partial(SGD, lr=1e-9), epochs=5, choose_after=3, patience=1)  # all are equally good
    trainer.fit(loader(), held_out())
    assert trainer.selection.best_epoch("a") == 4
    trainer.fit(loader(), held_out())
    assert trainer.selection.best_epoch("a") == 4


def test_a_run_that_leaves_no_epoch_to_choose_is_refused() -> None:
    with pytest.raises(ParameterError, match="`choose_after` must leave an epoch to choose, got 2 of 2 epochs"):
        quiet(epochs=2, choose_after=2)


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_ends_a_run_that_no_longer_gets_better(patience: int) -> None:
    trainer = quiet(optimizer=partial(SGD, lr=1e-12), epochs=9, patience=patience)  # all epochs are equally good
    trainer.fit(loader(), held_out())
    assert trainer.position.epoch == 1 + patience
    assert trainer.selection.best_epoch("a") == 1


@pytest.mark.parametrize("method", [sm.DenseSharing(), sm.DenseSharing(bn="per_task"), sm.RandomSharing(keep=0.5)])
def test_predictions_come_from_the_networks_that_are_evaluated(method: sm.Sharing) -> None:
    trainer = quiet(shared(norm=True, dropout=0.3), sharing=method, epochs=2)
    trainer.fit(loader(), held_out())
    x, targets = table(20, seed=2)
    outputs = trainer.predict(x)
    for name, task in trainer.model.tasks.items():
        loss = float(task.loss(outputs[name], targets[name]))
        assert loss == pytest.approx(trainer.validation[name]["loss"], rel=1e-6)
    assert list(trainer.predict(x, ["b"])) == ["b"]
    assert torch.equal(trainer.predict(x, ["b"])["b"], outputs["b"])
    assert not outputs["a"].requires_grad


@pytest.mark.parametrize(
    "method",
    [
        sm.DenseSharing(),
        sm.DenseSharing(update="alternate", bn="batch"),
        sm.RandomSharing(keep=0.5),
        sm.RandomSharing(keep=0.5, bn="batch"),
        sm.SoftMaskSharing(linear=True, lambda_=0.5),
        sm.PBFSSharing(target_sparsity=0.6, warmup=1, reach_at=3, update_every_steps=2),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_task_s_network_is_a_model_that_needs_nothing_else(method: sm.Sharing) -> None:
    trainer = quiet(shared(norm=True), sharing=method, epochs=4).fit(loader(), held_out())
    before, x = state_of(trainer.model), table(7, seed=9)[0]
    for task in ("a", "b"):
        alone = trainer.network(task)
        with torch.no_grad():
            assert torch.equal(alone(x, tasks=[task])[task], trainer.predict(x)[task])
    assert_same(state_of(trainer.model), before)
    if not isinstance(method, sm.DenseSharing) and method.bn != "batch":
        small = sm.compact(trainer.network("a"), task="a")
        torch.testing.assert_close(small(x), trainer.predict(x)["a"])


def test_masks_and_norms_in_force_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    sharing = sm.RandomSharing(keep=0.5, update_every=1)
    trainer = quiet(shared(norm=True), sharing=sharing, epochs=3, folder=tmp_path)
    states: list[Any] = []
    original = trainer._close_epoch

    def state() -> Any:
        return deepcopy((dict(trainer.networks.masks["a"]), trainer.networks["a"].own_tensors))  # type: ignore[index]

    def noted(*arguments: Any) -> None:
        states.append(state())
        original(*arguments)

    trainer._close_epoch = noted  # type: ignore[method-assign]
    trainer.fit(loader(), Praising(trainer, a=2, b=2))
    assert_same(state(), states[1])
    assert moved(states[1][0], states[2][0]), "the masks did not change, which proves nothing"
    stored = TaskNetworks.load(tmp_path / "networks.safetensors", trainer.model)
    assert stored.masks == trainer.masks
    assert_same(stored.state_dict(), trainer.networks.state_dict())


# Randomness


@pytest.mark.parametrize("single", [False, True])
def test_a_run_repeats_itself_bit_for_bit(single: bool) -> None:
    ends = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        model = (apart if single else shared)(norm=True, dropout=0.3)
        torch.manual_seed(disturbance)
        quiet(model, epochs=2, seed=7).fit(loader(), held_out())
        ends.append(state_of(model))
    assert_same(ends[0], ends[1])


def test_another_seed_is_another_run() -> None:
    ends = []
    for seed in (1, 2):
        model = shared()
        quiet(model, epochs=1, seed=seed).fit(loader(), held_out())
        ends.append(state_of(model))
    assert moved(ends[0], ends[1]) == set(ends[0])


def test_without_a_seed_the_generators_are_left_as_they_are() -> None:
    ends = []
    for _ in range(2):
        model = shared()
        torch.manual_seed(11)
        quiet(model, epochs=1, seed=None).fit(loader(), held_out())
        ends.append(state_of(model))
    assert_same(ends[0], ends[1])


def orders(model: sm.MultiTaskModel, sharing: sm.Sharing | None = None) -> tuple[list[Tensor], Tensor]:
    """The inputs of every batch of two epochs, from a loader with a generator of its own, and a number drawn after."""
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()) if model.training else None)
    own = loader(generator=torch.Generator().manual_seed(5))
    quiet(model, sharing=sharing, epochs=2, monitor="loss").fit(own, held_out())
    return seen, torch.rand(1)


def test_heads_that_learn_their_width_do_not_disturb_the_order_of_the_data() -> None:
    eager, _ = orders(shared())
    lazy, _ = orders(sm.SharedBottom(encoder(lazy=True), tasks()))
    assert_same(lazy, eager)


def test_choosing_masks_does_not_disturb_the_order_of_the_data() -> None:
    gradient = {"mask_applies_to": "gradients", "update": "joint"}
    fisher, drawn = orders(shared(), sm.FisherSharing(keep=0.5, estimator="true", **gradient))
    dense, expected = orders(shared())
    batches = [x for x in fisher if len(x) == 8]
    assert_same(batches, dense)
    assert torch.equal(drawn, expected)


# What goes in


@pytest.mark.parametrize("single", [False, True])
def test_heads_may_learn_their_width(single: bool) -> None:
    make = sm.SingleTask if single else sm.SharedBottom
    model = make(encoder(lazy=True, norm=True), tasks("abc"))
    trainer = quiet(model, epochs=1)
    trainer.fit(loader(), held_out())
    assert trainer.predict(table(4)[0])["c"].shape == (4, 2)
    assert sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )


@each(("mix", "steps"), [("longest", 7), ("shortest", 3), ("proportional", 10)])
@each("update", ["joint", "average", "alternate"])
def test_every_task_may_have_a_loader_of_its_own(mix: Mix, steps: int, update: Any) -> None:
    model = shared(norm=True)
    trainer = quiet(model, sharing=sm.DenseSharing(update=update), epochs=2, mix=mix)
    before = state_of(model)
    trainer.fit(own_loaders({"a": 12, "b": 26}), own_loaders({"a": 8, "b": 9}, shuffle=False))
    assert trainer.position.step == 2 * steps
    assert {name for name in before if name.endswith("weight")} <= moved(before, state_of(model))
    assert set(trainer.test(own_loaders({"a": 5, "b": 6}))) == {"a", "b"}


def test_tasks_with_data_of_their_own_are_averaged_by_default() -> None:
    trainer = quiet(epochs=1)
    trainer.fit(own_loaders({"a": 8, "b": 8}), own_loaders({"a": 8, "b": 9}))
    assert trainer.step.update == "average"
    trainer.fit(loader(), held_out())
    assert trainer.step.update == "joint"


@pytest.mark.parametrize(("mix", "died_after"), [("longest", 11), ("proportional", 5)])
def test_a_run_on_loaders_of_tasks_resumes_bit_for_bit(tmp_path: Path, mix: Mix, died_after: int) -> None:
    def fresh(folder: str) -> sm.Trainer:
        options = {"sharing": sm.DenseSharing(bn="per_task"), "balancing": "random"}
        return quiet(
            shared(norm=True, dropout=0.3), folder=tmp_path / folder, epochs=3, mix=mix, checkpoint_every=1, **options
        )

    validation = own_loaders({"a": 8, "b": 9})
    fresh("whole").fit(own_loaders({"a": 12, "b": 26}), validation)
    train = own_loaders({"a": 12, "b": 26})
    with pytest.raises(Killed):
        fresh("cut").fit({**train, "b": Dying(train["b"], died_after)}, validation)
    fresh("cut").fit(own_loaders({"a": 12, "b": 26}), validation, resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


class Rows(Dataset[Any]):
    """A map-style data set of dictionaries, noisy on purpose: it draws from the global generator."""

    def __init__(self, count: int = 40, noise: float = 0.0) -> None:
        self.x, self.targets = table(count)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + self.noise * torch.randn(6), {task: label[i] for task, label in self.targets.items()}


@pytest.mark.parametrize("own", [False, True])
def test_a_torch_data_loader_works_and_resumes_bit_for_bit(tmp_path: Path, own: bool) -> None:
    def data() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(3) if own else None
        return DataLoader(Rows(noise=0.1), batch_size=8, shuffle=True, generator=generator)

    def fresh(folder: str) -> sm.Trainer:
        return quiet(shared(norm=True, dropout=0.3), folder=tmp_path / folder, epochs=3, checkpoint_every=2)

    fresh("whole").fit(data(), held_out())
    dying = Dying(data(), 8)  # type: ignore[arg-type]
    dying.generator = dying.loader.generator  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        fresh("cut").fit(dying, held_out())
    fresh("cut").fit(data(), held_out(), resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_batches_may_be_accumulated(tmp_path: Path) -> None:
    trainer = quiet(epochs=2, accumulate=2, folder=tmp_path)
    trainer.fit(loader(40), held_out())
    assert trainer.position.step == 2 * 3  # five batches a pass: two, two and one
    large, small = shared(), shared()
    options = {"optimizer": SGD, "epochs": 2, "monitor": "loss"}
    quiet(large, **options).fit(loader(40, batch_size=20, shuffle=False), held_out())
    quiet(small, accumulate=4, **options).fit(loader(40, batch_size=5, shuffle=False), held_out())
    for name, tensor in state_of(large).items():
        torch.testing.assert_close(small.state_dict()[name], tensor)


@pytest.mark.parametrize("clip", [0.01, 1e9])
def test_gradients_are_clipped_to_a_norm(clip: float) -> None:
    model, free = shared(), shared()
    rate = partial(torch.optim.SGD, lr=1.0)
    before = state_of(model)
    one = {"optimizer": rate, "epochs": 1}
    quiet(model, clip_norm=clip, **one).fit(loader(8, shuffle=False), held_out())
    quiet(free, **one).fit(loader(8, shuffle=False), held_out())
    steps = [
        torch.cat([(before[name] - tensor).flatten() for name, tensor in state_of(m).items()]) for m in (model, free)
    ]
    assert float(steps[0].norm()) == pytest.approx(min(clip, float(steps[1].norm())), rel=1e-3)
    torch.testing.assert_close(steps[0] / steps[0].norm(), steps[1] / steps[1].norm(), rtol=1e-3, atol=1e-4)


def test_an_architecture_s_own_learning_rates_are_followed_by_the_schedule() -> None:
    network = sm.CrossStitch(encoder(), tasks(), lr_factor=100.0)
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    trainer = quiet(network, optimizer=partial(SGD, lr=1e-3), scheduler=halving, epochs=1).fit(loader(), held_out())
    groups = trainer.optimizer.param_groups
    stitches = {id(mixer.weight) for mixer in network.mixers}
    assert [group["lr"] for group in groups] == pytest.approx([0.5e-3, 0.5e-1])
    assert {id(p) for p in groups[1]["params"]} == stitches
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_a_schedule_steps_once_an_epoch(tmp_path: Path) -> None:
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    quiet(optimizer=partial(SGD, lr=0.1), scheduler=halving, epochs=3, folder=tmp_path).fit(loader(), held_out())
    rates = [row.value for row in read_metrics(tmp_path / "metrics.csv") if row.name == "lr"]
    assert rates == pytest.approx([0.1, 0.05, 0.025])


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
@pytest.mark.parametrize("sharing", [sm.DenseSharing(), sm.RandomSharing(keep=0.5)])
def test_it_trains_in_other_precisions(precision: Precision, sharing: sm.Sharing) -> None:
    model = shared("abc", norm=True)
    options = {"epochs": 6, "optimizer": partial(SGD, lr=0.05), "clip_norm": 5.0}
    trainer = quiet(model, sharing=sharing, precision=precision, **options)
    trainer.fit(loader(80, batch_size=16), held_out())
    dtype = {"bf16-mixed": torch.float32, "64-true": torch.float64, "bf16-true": torch.bfloat16}[precision]
    assert {p.dtype for p in model.parameters()} == {dtype}
    first = trainer.selection.best["all"].merit.value
    assert math.isfinite(first)
    assert trainer.test(loader(40, seed=3))["b"]["loss"] < 4.0


def test_a_checkpoint_holds_what_half_precision_has_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_fabric.plugins.precision import Precision as Plugin

    monkeypatch.setattr(Plugin, "state_dict", lambda self: {"scale": 512.0})
    quiet(folder=tmp_path, epochs=1).fit(loader(), held_out())
    found: list[Any] = []
    monkeypatch.setattr(Plugin, "load_state_dict", lambda self, state: found.append(state))
    quiet(folder=tmp_path, epochs=2).fit(loader(), held_out(), resume=True)
    assert found == [{"scale": 512.0}]


@pytest.mark.parametrize("balancing", ["uncertainty", "mgda", "famo"])
def test_balancers_work_in_mixed_precision(balancing: str) -> None:
    trainer = quiet(shared("abc", norm=True), balancing=balancing, precision="bf16-mixed", epochs=2)
    trainer.fit(loader(), held_out())
    assert math.isfinite(trainer.selection.best["all"].merit.value)


# What is refused


def test_test_data_is_other_data() -> None:
    train, validation = loader(), held_out()
    trainer = quiet(epochs=1).fit(train, validation)
    for used in (train, validation):
        with pytest.raises(ParameterError, match="this loader trained or chose the model"):
            trainer.test(used)
    assert set(trainer.test(held_out(seed=3))) == {"a", "b"}


def test_test_data_is_other_data_for_every_task() -> None:
    train, validation = own_loaders({"a": 8, "b": 8}), own_loaders({"a": 8, "b": 9})
    trainer = quiet(epochs=1).fit(train, validation)
    fresh = own_loaders({"a": 5, "b": 6})
    for used in (
        dict(train),
        dict(validation),
        {**fresh, "b": validation["b"]},
        {**fresh, "a": train["b"]},
        train["a"],
    ):
        with pytest.raises(ParameterError, match="this loader trained or chose the model"):
            trainer.test(used)
    assert set(trainer.test(fresh)) == {"a", "b"}


def test_a_scheduler_steps_after_every_epoch_or_every_step() -> None:
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    steps = len(list(loader()))
    for every, count in (("epoch", 2), ("step", 2 * steps)):
        sgd = partial(torch.optim.SGD, lr=2.0**-10)
        trainer = quiet(epochs=2, scheduler=halving, scheduler_every=every, optimizer=sgd).fit(loader(), held_out())
        assert trainer.optimizer.param_groups[0]["lr"] == 2.0 ** (-10 - count)
    plateaus: list[Any] = [torch.optim.lr_scheduler.ReduceLROnPlateau, "plateau"]
    for scheduler in plateaus:
        with pytest.raises(ParameterError, match=r"reads validation results, .* leave `per_step` out, or use"):
            quiet(scheduler=scheduler, scheduler_every="step").fit(loader(), held_out())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_over_steps_covers_the_whole_training(accumulate: int) -> None:
    epochs, batches = 3, len(loader())
    steps = epochs * math.ceil(batches / accumulate)  # two do not divide five batches
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    wanted = torch.optim.lr_scheduler.LambdaLR(
        sgd, lambda step: (step + 1) / 3 if step < 2 else 1 - (step - 2) / (steps - 2)
    )
    rates: list[float] = []
    for _ in range(steps):
        rates += wanted.get_last_lr()
        sgd.step()
        wanted.step()

    found: list[float] = []
    quiet(
        epochs=epochs,
        accumulate=accumulate,
        scheduler=sm.optim.Schedule("linear", per_step=True, warmup=2),
        optimizer=partial(Recording, found, lr=0.1),
    ).fit(loader(), held_out())
    assert found == rates


class Recording(torch.optim.SGD):
    """SGD that writes down the learning rate of every step."""

    def __init__(self, rates: list[float], parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.rates = rates

    def step(self, closure: Any = None) -> Any:
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def test_a_name_of_a_schedule_is_that_schedule_over_the_epochs_or_steps() -> None:
    for every, per_step in (("epoch", False), ("step", True)):
        ends = [
            state_of(quiet(epochs=3, optimizer=SGD, **how).fit(loader(), held_out()).model)
            for how in (
                {"scheduler": "cosine", "scheduler_every": every},
                {"scheduler": sm.optim.Schedule("cosine", per_step=per_step)},
                {
                    "scheduler": partial(
                        torch.optim.lr_scheduler.CosineAnnealingLR, T_max=3 * len(loader()) if per_step else 3
                    ),
                    "scheduler_every": every,
                },
            )
        ]
        assert_same(ends[0], ends[1])
        assert_same(ends[0], ends[2])


def test_a_schedule_over_steps_wants_a_loader_with_a_length() -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Any]:
            return iter(loader())

    with pytest.raises(ParameterError, match="'linear' steps with every training step, and the training loader has no"):
        quiet(scheduler=sm.optim.Schedule("linear", per_step=True)).fit(Unsized(), held_out())


def test_a_trainer_prints_in_one_line() -> None:
    trainer = quiet(epochs=1)
    assert repr(trainer) == "Trainer(SharedBottom of a, b; DenseSharing(); not trained)"
    assert repr(trainer.fit(loader(), held_out())).endswith("; epoch 1 of 1)")


def test_nothing_is_tested_or_predicted_before_training() -> None:
    with pytest.raises(ParameterError, match=r"nothing was trained yet; call fit"):
        quiet().test(held_out())
    with pytest.raises(ParameterError, match=r"nothing was trained yet; call fit"):
        quiet().predict(table(4)[0])


def test_a_prediction_for_an_unknown_task_is_refused() -> None:
    with pytest.raises(ParameterError, match="unknown task 'd'"):
        quiet(epochs=1).fit(loader(), held_out()).predict(table(4)[0], ["d"])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"a": loader()}, "task 'b' has no loader"),
        ({**own_loaders({"a": 8, "b": 8}), "d": loader()}, "unknown task 'd'"),
        ([], "gave no batch"),
        ([(torch.zeros(3, 6), {"a": torch.zeros(3)})], "the batch has no target 'b'"),
        ([torch.zeros(3, 6)], "a loader yields pairs"),
    ],
)
def test_loaders_that_do_not_fit_are_refused(train: Any, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        quiet(epochs=1).fit(train, held_out())


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"accumulate": 0}, {"clip_norm": 0.0}, {"mix": "all"}, {"precision": "8"}, {"patience": 0}],
)
def test_parameters_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ParameterError, match=f"The '{name}' parameter of Trainer must be"):
        quiet(**options)


@pytest.mark.parametrize("monitor", ["test", "test_accuracy"])
def test_test_data_cannot_choose(monitor: Any) -> None:
    with pytest.raises(ParameterError, match="monitor"):
        quiet(monitor=monitor)


def test_a_task_that_no_training_sample_has_a_label_of_is_told() -> None:
    x, targets = table()
    without = TensorLoader(x, {**targets, "a": torch.full((40,), -100)}, batch_size=8)
    with pytest.warns(LabelWarning, match="task 'a' had no labelled sample in epoch 1"):
        quiet(epochs=1).fit(without, held_out())


# A loss that is not finite


class Breaking:
    """A loader whose labels become infinite as inputs in one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.passes = epoch, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for i, (x, targets) in enumerate(loader(shuffle=False)):
            broken = self.passes == self.epoch and i == 2
            yield x * (math.inf if broken else 1), targets


@pytest.mark.parametrize("checkpoint_every", [None, 1])
def test_a_broken_loss_names_its_place_and_the_last_good_checkpoint_stays(
    tmp_path: Path, checkpoint_every: int | None
) -> None:
    model = shared()
    trainer = quiet(model, folder=tmp_path, epochs=4, checkpoint_every=checkpoint_every)
    where = "epoch 2, batch 3, step 8"
    with pytest.raises(
        NonFiniteLossError, match=f"the loss of task 'a' is nan at {where}. .* inputs of this batch hold"
    ):
        trainer.fit(Breaking(2), held_out())
    last = read_tree(tmp_path / "checkpoints" / "last.safetensors")
    assert last["progress"]["step"] == (7 if checkpoint_every else 5)
    assert all(bool(tensor.isfinite().all()) for tensor in last["model"].values())
    assert all(bool(tensor.isfinite().all()) for tensor in model.parameters())
    if checkpoint_every:
        assert_same(last["model"], state_of(model))
    best = read_tree(tmp_path / "checkpoints" / "best.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in best["model"].values())


def test_after_a_broken_loss_the_run_can_be_resumed_or_begun_anew(tmp_path: Path) -> None:
    trainer = quiet(folder=tmp_path, epochs=3)
    with pytest.raises(NonFiniteLossError):
        trainer.fit(Breaking(2), held_out())
    trainer.fit(loader(shuffle=False), held_out(), resume=True)
    assert trainer.position.step == 15
    again = quiet(epochs=3)
    with pytest.raises(NonFiniteLossError):
        again.fit(Breaking(1), held_out())
    again.fit(loader(), held_out())
    assert again.position.step == 15


# More than one run


def test_a_second_fit_is_a_second_run(tmp_path: Path) -> None:
    model, other = shared(norm=True), shared(norm=True)
    trainer = quiet(model, epochs=2, folder=tmp_path / "one")
    trainer.fit(loader(), held_out())
    other.load_state_dict(model.state_dict())
    with pytest.raises(
        CheckpointError, match=r"holds a run that stopped.*resume=True.*another `folder`.*overwrite=True"
    ):
        trainer.fit(loader(), held_out())
    trainer.fit(loader(), held_out(), overwrite=True)
    quiet(other, epochs=2, folder=tmp_path / "two").fit(loader(), held_out())
    assert_same(state_of(model), state_of(other))
    assert trainer.position.epoch == 2
    assert_same_end(tmp_path / "one", tmp_path / "two")


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from"):
        quiet(folder=tmp_path).fit(loader(), held_out(), resume=True)
    with pytest.raises(CheckpointError, match="a trainer without a folder has no checkpoint"):
        quiet().fit(loader(), held_out(), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": shared("abc")}, "another model: parameter 'heads.c.weight' is absent there"),
        ({"sharing": sm.RandomSharing()}, "another run: its sharing is DenseSharing there and RandomSharing here"),
        ({"optimizer": "sgd"}, "another run: its optimizer is Adam there and SGD here"),
        (
            {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)},
            "another run: its scheduler is absent there and StepLR here",
        ),
    ],
)
def test_a_run_is_not_resumed_as_another(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    quiet(folder=tmp_path, epochs=1).fit(loader(), held_out())
    with pytest.raises(CheckpointError, match=message):
        quiet(**{"folder": tmp_path, "epochs": 2, **change}).fit(loader(), held_out(), resume=True)


def test_a_finished_run_may_be_made_longer(tmp_path: Path) -> None:
    quiet(shared(dropout=0.2), folder=tmp_path / "long", epochs=4).fit(loader(), held_out())
    quiet(shared(dropout=0.2), folder=tmp_path / "short", epochs=2).fit(loader(), held_out())
    quiet(shared(dropout=0.2), folder=tmp_path / "short", epochs=4).fit(loader(), held_out(), resume=True)
    assert_same_end(tmp_path / "long", tmp_path / "short")


# The run folder


def sorted_state(model: nn.Module) -> dict[str, Tensor]:
    return dict(sorted(state_of(model).items()))


def finished(folder: Path, **options: Any) -> tuple[sm.Trainer, Results]:
    sharing = sm.RandomSharing(keep=0.5, update="average")
    trainer = quiet(shared("abc", norm=True), sharing=sharing, folder=folder, epochs=3, name="a run", **options)
    trainer.fit(loader(), held_out())
    return trainer, trainer.test(held_out(seed=3))


def test_the_folder_holds_everything_about_a_run(tmp_path: Path) -> None:
    trainer, results = finished(tmp_path, balancing="uncertainty", notes=["a remark"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["name"], summary["status"], summary["epochs"], summary["seed"]) == ("a run", "finished", 3, 0)
    assert summary["notes"] == ["a remark"]
    for task, metrics in results.items():
        assert summary["tasks"][task]["test"] == pytest.approx(metrics)
        assert summary["tasks"][task]["validation"] == pytest.approx(trainer.validation[task])
        assert summary["tasks"][task]["best_epoch"] == trainer.selection.best_epoch(task)
    assert summary["tasks"]["b"]["primary"] == "r2"
    assert summary["tasks"]["b"]["directions"] == dict.fromkeys(["loss", "mse", "rmse", "mae"], False) | {"r2": True}
    assert trainer.masks is not None
    assert summary["parameters"]["total"] == sum(p.numel() for p in trainer.model.parameters())
    assert summary["parameters"]["shared"] == sum(p.numel() for p in trainer.model.encoder.parameters())
    assert summary["parameters"]["kept"] == {task: trainer.masks.count(task) for task in "abc"}
    assert_same(dict(sorted(read_tensors(tmp_path / "model.safetensors")[0].items())), sorted_state(trainer.model))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["sharing"]["keep"] == 0.5
    versions = json.loads((tmp_path / "environment.json").read_text())["versions"]
    assert torch.__version__.startswith(versions["torch"].split("+")[0])
    samples = read_tree(tmp_path / "samples.safetensors")["all"]
    assert torch.equal(samples["x"], table(20, seed=3)[0][:12])
    assert [path.name for path in tmp_path.rglob("*.part")] == []


def test_the_figures_of_every_epoch_are_logged(tmp_path: Path) -> None:
    trainer, results = finished(tmp_path, balancing="uncertainty")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row.step for row in rows if row.name == "lr"] == [5, 10, 15]
    for split, metric in (("train", "loss"), ("validation", "loss"), ("balancing", "weight"), ("sharing", "density")):
        found = [(row.epoch, row.task) for row in rows if (row.split, row.name) == (split, metric)]
        assert found == [(epoch, task) for epoch in (1, 2, 3) for task in "abc"], split
    tested = {(row.task, row.name): row.value for row in rows if row.split == "test"}
    assert tested == {(task, metric): value for task, metrics in results.items() for metric, value in metrics.items()}
    best = trainer.selection.best_epoch("b")
    assert trainer.validation["b"]["r2"] in [
        row.value for row in rows if (row.epoch, row.split, row.task, row.name) == (best, "validation", "b", "r2")
    ]


def test_a_balancer_that_compares_epochs_is_told_when_one_ends(tmp_path: Path) -> None:
    quiet(balancing="dwa", epochs=3, folder=tmp_path).fit(loader(), held_out())
    rows = [row for row in read_metrics(tmp_path / "metrics.csv") if row.split == "balancing"]
    assert [row.value == 1.0 for row in rows] == [True] * 4 + [False] * 2


def test_testing_twice_leaves_the_last_figures(tmp_path: Path) -> None:
    trainer, _ = finished(tmp_path)
    before = len(read_metrics(tmp_path / "metrics.csv"))
    again = trainer.test(held_out(seed=4))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert len(rows) == before
    assert [row.value for row in rows if (row.split, row.task, row.name) == ("test", "b", "r2")] == [again["b"]["r2"]]


def test_training_losses_are_means_over_the_epochs_steps(tmp_path: Path) -> None:
    model = shared()
    quiet(model, optimizer=partial(SGD, lr=1e-12), epochs=1, folder=tmp_path).fit(loader(40), held_out())
    x, targets = table()
    with torch.no_grad():
        outputs = model(x)
    logged = {row.task: row.value for row in read_metrics(tmp_path / "metrics.csv") if row.split == "train"}
    for name, task in model.tasks.items():
        assert logged[name] == pytest.approx(float(task.loss(outputs[name], targets[name])), rel=1e-5)


def test_tensorboard_is_written_where_asked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    quiet(folder=tmp_path / "with", epochs=1, tensorboard=True).fit(loader(), held_out())
    quiet(folder=tmp_path / "without", epochs=1).fit(loader(), held_out())
    assert list((tmp_path / "with" / "tensorboard").iterdir())
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = quiet(epochs=1).fit(loader(), held_out())
    trainer.test(held_out(seed=3))
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_inside_of_an_epoch_come_every_so_many_batches(tmp_path: Path, monkeypatch: Any) -> None:
    trainer = quiet(folder=tmp_path, epochs=1, checkpoint_every=2, accumulate=3)
    saved: list[int] = []
    original = trainer._save

    def noted(*arguments: Any) -> None:
        saved.append(trainer.position.batch)
        original(*arguments)

    monkeypatch.setattr(trainer, "_save", noted)
    trainer.fit(loader(80), held_out())
    assert saved == [0, 3, 6, 9, 10, 0]  # at the start, whenever a multiple of two was passed, at the end of the epoch


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_told_on_the_error_stream(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    sm.Trainer(shared(), epochs=2, progress=shown, accelerator="cpu").fit(loader(), held_out())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("epoch   2/2  a accuracy 0." in captured.err) is shown


def test_the_model_stays_the_users_own_module() -> None:
    model = shared()
    trainer = quiet(model, epochs=1).fit(loader(), held_out())
    assert trainer.model is model
    assert isinstance(model(table(4)[0])["a"], Tensor)
    assert isinstance(model.encoder, nn.Sequential)
