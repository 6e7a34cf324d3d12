"""Lottery tickets: pruning, rewinding, independence of the tasks, choice, and resuming at any step."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import Started
from sharing_toys import (
    NAMES,
    assert_held,
    batch_of,
    build,
    engine_of,
    loader,
    model,
    own_loaders,
    run_epoch,
    trained,
    watch_steps,
)
from states import assert_same, state_of
from torch import nn

import sparsemtl as sm
from sparsemtl.errors import MaskError, MaskWarning, ParameterError
from sparsemtl.sharing.masking import masks_of
from sparsemtl.training import Callback

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu", "measure_cost": False}
SIZE = 6 * 8 + 8 * 5


def SGD(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


def lottery(**options: Any) -> sm.LotterySharing:
    return sm.LotterySharing(**{"iterations": 3, "epochs_per_iteration": 1, "target_sparsity": 0.8, **options})


def effective(engine: Any, task: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in engine.networks.tensors(engine.model, task).items() if t is not None}


def counts(sparsity: float, iterations: int) -> list[int]:
    left = [SIZE]
    for _ in range(iterations):
        left.append(left[-1] - round((1 - (1 - sparsity) ** (1 / iterations)) * left[-1]))
    return left


def test_masks_are_nested_with_the_prescribed_counts_and_survivors_begin_again_from_theta_0() -> None:
    sharing = lottery()
    engine = engine_of(model(), sharing)
    theta = state_of(engine.model)
    for epoch in range(4):
        torch.manual_seed(epoch)
        Started.of(engine).begin_epoch(epoch, loader())
        assert [sharing.masks(i).count("kind") for i in range(epoch + 1)] == counts(0.8, 3)[: epoch + 1]
        for task in NAMES:
            mask = sharing.masks(epoch)[task]
            now = effective(engine, task)
            for name, value in theta.items():
                expected = value * mask[name] if name in mask else value
                if name.startswith(("encoder", f"heads.{task}")):
                    assert torch.equal(now[name], expected), name
            for before, after in ((sharing.masks(i)[task], sharing.masks(i + 1)[task]) for i in range(epoch)):
                assert not any(bool((after[name] & ~before[name]).any()) for name in after)
        run_epoch_body(engine)
    assert_same(state_of(engine.model), theta)


def run_epoch_body(engine: Any) -> None:
    engine.model.train()
    for seed in range(2):
        engine.step([[batch_of(seed)]])


def test_a_task_finds_what_it_would_find_alone() -> None:
    """A slow reference: plain torch, one task, masks multiplied by hand, a new optimizer per iteration."""
    network, sharing = model(norm=False), lottery(iterations=2, epochs_per_iteration=2)
    trainer = sm.Trainer(network, sharing=sharing, epochs=7, optimizer=SGD, **QUIET)
    theta = deepcopy(network)
    data = loader(shuffle=False)
    trainer.fit(data, loader(seed=2))
    for task in NAMES:
        masks = {name: torch.ones_like(theta.get_parameter(name)) for name in ("encoder.0.weight", "encoder.2.weight")}
        for number in range(1, 3):
            alone = deepcopy(theta)
            optimizer = SGD(alone.parameters())
            for _ in range(2):
                for x, labels in data:
                    optimizer.zero_grad()
                    weights = {n: p * masks[n] if n in masks else p for n, p in alone.named_parameters()}
                    outputs = torch.func.functional_call(alone, weights, (x,))
                    loss: Any = alone.tasks[task].loss(outputs[task], labels[task])
                    loss.backward()
                    optimizer.step()
            values = sorted(
                (abs(v), name, i)
                for name, mask in masks.items()
                for i, v in enumerate(alone.get_parameter(name).detach().flatten().tolist())
                if mask.flatten()[i]
            )
            for _, name, i in values[: round((1 - 0.2 ** (1 / 2)) * len(values))]:
                masks[name].view(-1)[i] = 0
            assert_same({n: m.bool() for n, m in masks.items()}, dict(sharing.masks(number)[task]))


@pytest.mark.parametrize("data", ["shared", "own"])
def test_masks_that_keep_everything_are_tasks_in_turn_from_theta_0(data: str) -> None:
    train = loader() if data == "shared" else own_loaders()
    ends = []
    for sharing in (lottery(iteration=0, update="alternate"), build("dense", update="alternate", bn="per_task")):
        trainer = sm.Trainer(model(dropout=0.3), sharing=sharing, epochs=2, **QUIET).fit(train, loader(seed=2))
        ends.append({task: trainer.networks.tensors(trainer.model, task) for task in NAMES})
    assert_same(ends[0], ends[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_phase_b_moves_no_weight_outside_of_the_mask(optimizer: str) -> None:
    engine = trained(lottery(iteration=2), loader(), epochs=3, optimizer=optimizer)
    assert not engine.networks.apart
    states = watch_steps(engine)
    engine.step([[batch_of(3)]])
    assert len(states) == 4
    for task, before, after in zip(NAMES, states, states[1:], strict=False):
        assert_held(before, after, masks_of(engine.networks)[task])


def test_balancers_weigh_nothing_while_tasks_train_alone() -> None:
    found = []
    for balancing in ("mean", "uncertainty", "aligned-mtl"):
        sharing = lottery()
        trainer = sm.Trainer(model(), sharing=sharing, balancing=balancing, epochs=5, optimizer=SGD, **QUIET)
        trainer.fit(loader(shuffle=False), loader(seed=2))
        found.append((dict(sharing.masks(3).items()), sharing.scores))
        assert trainer.history.metric.eq("iteration").any()
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_the_best_iteration_is_taken_and_of_equals_the_sparsest() -> None:
    scores = {
        "kind": (9.0, 1.0, 3.0, 2.0),  # the dense network is no candidate
        "marks": (0.0, 2.0, 2.0, 1.0),
        "side": (0.0, 1.0, 1.0, 1.0),
    }
    sharing = lottery()
    engine = engine_of(model(), sharing)
    for epoch in range(5):
        Started.of(engine).begin_epoch(epoch, loader())
        if epoch < 4:
            run_epoch_body(engine)
            sharing.observe_validation(epoch, {task: value[epoch] for task, value in scores.items()})
    assert sharing.chosen == {"kind": 2, "marks": 2, "side": 3}
    masks = masks_of(engine.networks)
    for task, number in sharing.chosen.items():
        assert_same(dict(masks[task]), dict(sharing.masks(number)[task]))
    assert sharing.summary(engine.model, engine.networks)["iteration"] == sharing.chosen
    densities, values = sharing.tables(engine.model, engine.networks)
    assert [row[1] for row in densities.rows] == [count / SIZE for count in counts(0.8, 3)]
    assert [row[2] for row in values.rows] == list(scores["marks"])


def test_an_iteration_is_scored_by_its_best_epoch_and_undefined_scores_are_left_out() -> None:
    sharing = lottery(iterations=1, epochs_per_iteration=2)
    engine = engine_of(model(), sharing)
    for epoch in range(4):
        Started.of(engine).begin_epoch(epoch, loader())
        run_epoch_body(engine)
        sharing.observe_validation(epoch, {"kind": (1.0, 5.0, 4.0, 2.0)[epoch], "marks": 1.0})
    assert sharing.scores == {"kind": {"0": 5.0, "1": 4.0}, "marks": {"0": 1.0, "1": 1.0}, "side": {}}
    with pytest.raises(
        MaskError, match=r"task 'side': no iteration .* call `observe_validation` .* or set `iteration`"
    ):
        Started.of(engine).begin_epoch(4, loader())


def test_the_warm_up_trains_all_tasks_together_and_gives_theta_0() -> None:
    sharing = lottery(warmup=2, iteration=1)
    engine = engine_of(model(), sharing)
    start = state_of(engine.model)
    for epoch in range(2):
        run_epoch(engine, loader(), epoch)
        assert not engine.networks.apart
    theta = state_of(engine.model)
    assert not torch.equal(theta["encoder.0.weight"], start["encoder.0.weight"])
    run_epoch(engine, loader(), 2)
    assert engine.networks.apart
    assert_same(state_of(engine.model), theta)
    Started.of(engine).begin_epoch(3, loader())
    assert not engine.networks.apart
    assert_same(state_of(engine.model), theta)


def test_optimizer_and_scheduler_begin_again_with_every_iteration() -> None:
    rates: list[float] = []
    moments: list[int] = []

    class Watch(Callback):
        def on_epoch_end(self, rows: Any, improved: bool) -> None:
            rates.append(trainer.optimizer.param_groups[0]["lr"])

        def on_step(self, step: Any) -> None:
            if step.batch == 1:
                moments.append(max(int(s["step"]) for s in trainer.optimizer.state.values()))

    trainer = sm.Trainer(
        model(),
        sharing=lottery(iterations=1, epochs_per_iteration=2),
        epochs=6,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        callbacks=[Watch()],
        **QUIET,
    )
    trainer.fit(loader(), loader(seed=2))
    first = rates[0]
    assert rates == [first, first / 2, first, first / 2, first, first / 2]
    assert moments[0] == moments[2] == 1
    assert moments[1] == moments[3] == 4


def test_copies_have_the_options_of_their_originals() -> None:
    trainer = sm.Trainer(
        model(), sharing=lottery(), epochs=5, parameter_groups=[{"parameters": "encoder.0", "lr": 0.5}], **QUIET
    )
    trainer.set_up(loader())
    copies = {(task, name): copy for task, name, copy in trainer.networks.copies()}
    assert {name for _, name in copies} == {name for name, _ in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        held = {id(p) for p in group["params"]}
        for (_, name), copy in copies.items():
            assert (id(copy) in held) == (id(trainer.model.get_parameter(name)) in held)


def test_a_check_before_training_reads_the_gradients_of_the_copies() -> None:
    check = sm.Trainer(model(), sharing=lottery(), epochs=5, **QUIET).check(loader())
    assert all(probe.gradient_norm for probe in check.probes.tasks)
    assert not [text for text in check.warnings if "no gradient" in text]


class Stop(Exception):
    """Ends a run from outside."""


class StopAt(Callback):
    """Ends a run after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, step: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


def stoppable(folder: Path, *callbacks: Callback) -> sm.Trainer:
    """A run of one dense epoch, two iterations of two epochs, and two epochs together, of three batches each."""
    return sm.Trainer(
        model(dropout=0.3),
        sharing=lottery(iterations=1, epochs_per_iteration=2, warmup=1),
        epochs=7,
        folder=folder,
        checkpoint_every=1,
        seed=3,
        callbacks=callbacks,
        **QUIET,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> sm.Trainer:
    return stoppable(tmp_path_factory.mktemp("whole")).fit(loader(), loader(seed=2))


@pytest.mark.parametrize(
    "steps", [pytest.param(2, marks=pytest.mark.slow), 9, pytest.param(11, marks=pytest.mark.slow), 17]
)
def test_a_run_stopped_at_any_step_ends_bit_for_bit_like_one_that_was_not(
    steps: int, whole: sm.Trainer, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        stoppable(tmp_path, StopAt(steps)).fit(loader(), loader(seed=2))
    again = stoppable(tmp_path).fit(loader(), loader(seed=2), resume=True)
    assert_same(state_of(again.model), state_of(whole.model))
    assert_same(again.networks.state_dict(), whole.networks.state_dict())
    assert_same(again.sharing.state_dict(), whole.sharing.state_dict())
    rows = [t.history[t.history.metric != "seconds"].drop(columns="value") for t in (again, whole)]
    assert rows[0].equals(rows[1])


def test_schedules_without_progress_and_layers_that_die_are_named() -> None:
    with pytest.raises(ParameterError, match=r"task 'kind' has 88 of 88 weights left in iteration 1, .* drop none"):
        lottery(iterations=100, target_sparsity=0.1).start(model())
    with pytest.raises(ParameterError, match=r"would drop all. Use fewer `iterations` .* a lower `target_sparsity`"):
        lottery(iterations=1, target_sparsity=0.999).start(model())
    with pytest.raises(ParameterError, match="`iteration` is 4, of 3 iterations"):
        lottery(iteration=4)
    with pytest.raises(ParameterError, match=r"LotterySharing would still .* Raise `epochs` to at least 5, or"):
        sm.Trainer(model(), sharing=lottery(), epochs=4)
    network: Any = model(norm=False)
    with torch.no_grad():
        network.encoder[2].weight.mul_(1e-9)
    sharing = lottery(iterations=1, only="Linear")
    engine = engine_of(network, sharing)
    Started.of(engine).begin_epoch(0, loader())
    with pytest.warns(MaskWarning, match=r"no weight of 'encoder.2.weight' is left in the network of task '\w+'"):
        Started.of(engine).begin_epoch(1, loader())


def test_the_function_leaves_the_model_alone_goes_on_and_reads_what_it_found(tmp_path: Path) -> None:
    network = model()
    before = state_of(network)
    options: dict[str, Any] = {**QUIET, "folder": tmp_path, "seed": 1}
    with pytest.raises(Stop):
        sm.lottery_masks(network, loader(), loader(seed=2), sharing=lottery(), callbacks=[StopAt(7)], **options)
    drawn = torch.random.get_rng_state()
    masks = sm.lottery_masks(network, loader(), loader(seed=2), sharing=lottery(), **options)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    again = sm.lottery_masks(network, loader(), loader(seed=2), sharing=lottery(), **options)
    whole = sm.lottery_masks(network, loader(), loader(seed=2), sharing=lottery(), **{**options, "folder": None})
    assert masks == again == whole
    assert_same(state_of(network), before)
    assert all(masks.count(task) in counts(0.8, 3)[1:] for task in NAMES)


def test_a_run_loads_and_compacts(tmp_path: Path) -> None:
    trainer = sm.Trainer(model(), sharing=lottery(), epochs=5, folder=tmp_path, **QUIET)
    trainer.fit(loader(), loader(seed=2))
    trainer.test(loader(seed=3))
    x = batch_of(5).x
    for task in NAMES:
        small = trainer.compact(task, x)
        with torch.no_grad():
            torch.testing.assert_close(small(x), trainer.predict(x)[task])
    assert isinstance(trainer.network("kind"), nn.Module)
