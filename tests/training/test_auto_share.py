"""`auto_share`: the promise, the rule of the choice, halving, and a result that is a model like any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.architectures.assembled import AssembledModel, assembled_networks
from sparsemtl.data import TensorLoader
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.training.choosing.auto_result import AutoResult
from sparsemtl.training.choosing.auto_share import auto_share
from sparsemtl.training.choosing.choice import BlockScores, ChoiceRows, MetricGain, choose_networks
from sparsemtl.training.choosing.halving import RUNGS, SURVIVORS, largest_cost, surviving
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.trained import Trained

NAMES = ("up", "across")


def rows(count: int, seed: int, batch_size: int = 8) -> TensorLoader:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    targets = {"up": x[:, 0] * x[:, 1], "across": torch.tanh(x[:, 4])}
    return TensorLoader(x, targets, batch_size=batch_size)


def candidate(folder: Path, *, apart: bool = False, epochs: int = 4, **options: Any) -> sm.Trainer:
    torch.manual_seed(0)
    tasks = [sm.Regression(name) for name in NAMES]
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
    encoder.out_features = 5  # type: ignore[assignment]
    model = sm.SingleTask(encoder, tasks) if apart else sm.SharedBottom(encoder, tasks)
    common = {"progress": False, "measure_cost": False, "accelerator": "cpu", "epochs": epochs, "folder": folder}
    return sm.Trainer(model, **{**common, **options})


CANDIDATES: dict[str, Callable[[Path], sm.Trainer]] = {
    "dense": candidate,
    "random 0.5": lambda folder: candidate(folder, sharing=sm.RandomSharing(keep=0.5)),
    "random 0.2": lambda folder: candidate(folder, sharing=sm.RandomSharing(keep=0.2, seed=7)),
    "apart": partial(candidate, apart=True),
}


def shared(folder: Path | None = None, **options: Any) -> AutoResult:
    given: dict[str, Any] = {"rungs": [0.5], "survivors": 0.5, **options}
    return auto_share(CANDIDATES, rows(40, 1), rows(24, 2), rows(40, 3), folder=folder, **given)


@pytest.fixture(scope="module")
def result() -> AutoResult:
    return shared()


# ---- the rule --------------------------------------------------------------------------------------------------------


def chosen(values: Mapping[str, tuple[float, list[float]]], dense: set[str]) -> str:
    tasks = [sm.Regression("up")]
    model = sm.SharedBottom(nn.Linear(2, 2), tasks, {"up": nn.Linear(2, 1)})
    scores = {name: {"up": BlockScores(whole, blocks)} for name, (whole, blocks) in values.items()}
    trained: Any = Trained(model, None, model)  # type: ignore[arg-type]
    return choose_networks(scores, dict.fromkeys(values, trained), dense)["up"].candidate


def test_the_best_is_chosen_unless_a_simpler_one_is_within_a_standard_error() -> None:
    sure, unsure = [-0.1, -0.1, -0.11, -0.09], [0.4, -0.7, 0.5, -0.6]
    zero = [0.0] * 4
    assert chosen({"dense": (-1.0, [-1.0] * 4), "near": (-0.1, sure), "best": (0.0, zero)}, {"dense"}) == "best"
    assert chosen({"dense": (-1.0, [-1.0] * 4), "near": (-0.1, unsure), "best": (0.0, zero)}, {"dense"}) == "near"


def test_a_simpler_network_that_is_worse_than_the_best_dense_one_is_not_chosen() -> None:
    """Within a standard error of the best, but behind a dense candidate."""
    unsure = [0.4, -0.7, 0.5, -0.6]
    values = {"near": (-0.1, unsure), "dense": (-0.05, [-0.05] * 4), "best": (0.0, [0.0] * 4)}
    assert chosen(values, {"dense"}) == "best"
    assert chosen({**values, "dense": (-0.2, [-0.2] * 4)}, {"dense"}) == "near"


def test_a_block_without_a_value_does_not_count() -> None:
    values = {"dense": (0.0, [0.0, -float("inf"), 0.0]), "other": (-1.0, [-1.0, 5.0, -1.0])}
    assert chosen(values, {"dense"}) == "dense"


def test_standard_errors_of_means_are_those_of_the_blocks_means() -> None:
    """The jackknife of a mean: its pseudo-values are the means of the blocks."""
    trainer = candidate(None)  # type: ignore[arg-type]
    for task in trainer.model.tasks.values():
        task.primary = "mse"
    trainer.epochs = 1
    trainer.fit(rows(16, 1), rows(16, 2))
    trained = Trained(trainer.model, trainer.networks, trainer.model)
    data = rows(40, 3)
    scores = ChoiceRows(data, NAMES).scores(trained)["up"]
    for value, (x, targets) in zip(scores.blocks, list(data), strict=True):
        error = (trainer.predict(x)["up"].squeeze(1) - targets["up"]).square().mean()
        assert value == pytest.approx(-float(error), rel=1e-4)


def test_intervals_are_those_of_students_t() -> None:
    low, high = MetricGain("mse", 1.0, 0.5, 20).interval()
    assert (low, high) == (pytest.approx(1 - 0.5 * 2.0930, abs=1e-3), pytest.approx(1 + 0.5 * 2.0930, abs=1e-3))
    assert MetricGain("mse", 0.0, 1.0, 6).interval()[1] == pytest.approx(2.5706, abs=5e-3)


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_no_task_is_worse_than_the_best_dense_candidate_on_the_rows_that_chose(result: AutoResult) -> None:
    on_rows = result.evaluate(rows(40, 3))
    for task, choice in result.choices.items():
        assert choice.baseline in ("dense", "apart")
        assert choice.gain.value >= 0
        assert on_rows[task][choice.gain.metric] == pytest.approx(choice.values[choice.candidate])
        assert choice.values[choice.candidate] >= choice.values[choice.baseline]  # R2: higher is better


def test_its_networks_are_those_of_the_candidates(result: AutoResult) -> None:
    x = rows(40, 9).x
    outputs = result.predict(x)
    for task, choice in result.choices.items():
        trained = result.finished[choice.candidate]
        with torch.no_grad(), trained.networks.swapped(trained.model, task):
            expected = trained.model.eval()(x, tasks=(task,))[task]
        assert torch.equal(outputs[task], expected)
        assert torch.equal(result.network(task)(x, tasks=(task,))[task], expected)


def test_gains_on_other_rows_are_differences_of_the_metric(result: AutoResult) -> None:
    test = rows(64, 5)
    for task, gain in result.gains(test).items():
        choice = result.choices[task]
        values = {
            name: evaluate(result.finished[name], test, torch.device("cpu"))[task][gain.metric]
            for name in (choice.candidate, choice.baseline)
        }
        assert gain.value == pytest.approx(values[choice.candidate] - values[choice.baseline], abs=1e-6)
        assert gain.blocks == 8


def test_tables_say_what_was_chosen_who_shares_and_what_it_cost(result: AutoResult) -> None:
    choice, sharing, cost = result.tables(result.gains(rows(64, 5)))
    assert [row[:2] for row in choice.rows] == [(task, c.candidate) for task, c in result.choices.items()]
    assert [row[0] for row in sharing.rows] == list(NAMES)
    assert {row[0]: row[1] for row in cost.rows} == dict(result.epochs)
    assert result.trainings == sum(result.epochs.values()) / 4


def test_half_of_the_candidates_go_on_and_the_cost_is_known_beforehand(result: AutoResult) -> None:
    assert set(result.epochs.values()) <= {2, 4}
    assert set(result.finished) == {name for name, epochs in result.epochs.items() if epochs == 4}
    assert len(result.finished) < 4
    assert result.trainings <= largest_cost([1] * 4, [0.5], 0.5, 4)
    everything = shared(rungs=())
    assert everything.trainings == 4 == largest_cost([1] * 4, (), 0.5, 4)


def test_survivors_are_those_that_together_leave_the_tasks_the_best_networks() -> None:
    values = {"dense": (0.1, 0.2), "one": (0.9, 0.1), "two": (0.8, 0.5), "other": (0.0, 0.9), "dense 2": (0.2, 0.0)}

    class Training:
        def __init__(self, value: tuple[float, float]) -> None:
            self.trainer = SimpleNamespace(model=SimpleNamespace(tasks=["up", "across"]))
            self.value = dict(zip(NAMES, value, strict=True)).get

    trainings: Any = {name: Training(value) for name, value in values.items()}
    assert surviving(trainings, {"dense", "dense 2"}, 0.2) == ["dense", "two"]  # second in both tasks, and two stay
    assert surviving(trainings, {"dense", "dense 2"}, 0.5) == ["dense", "one", "two"]  # best in one task
    assert surviving(trainings, {"dense", "dense 2"}, 0.7) == ["dense", "one", "two", "other"]
    assert surviving(trainings, {"dense", "dense 2"}, 1.0) == list(values)


def test_the_largest_cost_counts_epochs_before_the_first_that_can_be_selected() -> None:
    assert largest_cost([1] * 10, (0.08, 0.2), 0.5, 100) == (10 * 8 + 5 * 12 + 3 * 80) / 100
    assert largest_cost([1] * 9 + [26], (0.08, 0.2), 0.5, 100) == (10 * 8 + 5 * 12 + 3 * 80 + 18) / 100
    assert largest_cost([1] * 5, RUNGS, SURVIVORS, 100) == 4


def test_the_rows_that_stop_choose_where_no_others_are_given() -> None:
    candidates = {name: CANDIDATES[name] for name in ("dense", "apart")}
    both = auto_share(candidates, rows(40, 1), rows(24, 2), rungs=())
    assert both.choices == auto_share(candidates, rows(40, 1), rows(24, 2), rows(24, 2), rungs=()).choices
    for task, choice in both.choices.items():
        assert choice.values[choice.candidate] >= choice.values[choice.baseline]
        assert both.evaluate(rows(24, 2))[task]["r2"] == pytest.approx(choice.values[choice.candidate])


def test_a_halving_that_stopped_ends_like_one_that_did_not(tmp_path: Path) -> None:
    whole = shared(tmp_path / "whole")
    calls = 0

    def stops(folder: Path) -> sm.Trainer:
        nonlocal calls
        calls += 1
        if calls == 3:  # made to be looked at, to be trained to the rung, and to the end
            raise KeyboardInterrupt
        return candidate(folder)

    with pytest.raises(KeyboardInterrupt):
        auto_share(
            {**CANDIDATES, "dense": stops},
            rows(40, 1),
            rows(24, 2),
            rows(40, 3),
            rungs=[0.5],
            survivors=0.5,
            folder=tmp_path / "two",
        )
    again = shared(tmp_path / "two")
    assert again.choices == whole.choices
    assert again.epochs == whole.epochs
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_folder_of_other_candidates_is_refused(tmp_path: Path) -> None:
    shared(tmp_path)
    record = json.loads((tmp_path / "halving.json").read_text())
    assert list(record) == ["0.5"]
    with pytest.raises(CheckpointError, match="is of the candidates"):
        auto_share({"dense": candidate}, rows(40, 1), rows(24, 2), rows(40, 3), rungs=[0.5], folder=tmp_path)


def test_mistakes_are_named(tmp_path: Path) -> None:
    data = (rows(16, 1), rows(16, 2), rows(16, 3))
    with pytest.raises(ParameterError, match="expected a candidate with DenseSharing"):
        auto_share({"random": CANDIDATES["random 0.5"]}, *data)
    with pytest.raises(ParameterError, match=r"`rungs` must rise in \(0, 1\)"):
        auto_share(CANDIDATES, *data, rungs=[0.5, 0.2])
    with pytest.raises(ParameterError, match="in at least two batches"):
        auto_share({"dense": candidate}, *data[:2], rows(16, 3, batch_size=16), rungs=())


# ---- the assembled model ---------------------------------------------------------------------------------------------


def two_models() -> tuple[AssembledModel, sm.TaskNetworks, dict[str, sm.Trainer]]:
    """One task in a masked shared network, the other in a single-task one."""
    trainers = {}
    for name in ("random 0.5", "apart"):
        trainers[name] = CANDIDATES[name](None)  # type: ignore[arg-type]
        trainers[name].epochs = 1
        trainers[name].fit(rows(16, 1), rows(16, 2))
    model = AssembledModel({n: t.model for n, t in trainers.items()}, {"up": "random 0.5", "across": "apart"})
    return model.eval(), assembled_networks(model, {n: t.networks for n, t in trainers.items()}), trainers


def test_an_assembled_model_holds_what_its_tasks_use_and_nothing_else(tmp_path: Path) -> None:
    model, networks, trainers = two_models()
    names = {name for name, _ in model.named_parameters()}
    assert "models.0.encoder.0.weight" in names
    assert not {name for name in names if "heads.across" in name and name.startswith("models.0")}
    assert {name.split(".")[3] for name in names if name.startswith("models.1.heads")} == {"across"}
    assert set(model.parameter_tasks().values()) == {frozenset({"up"}), frozenset({"across"})}
    assert model.independent
    x = rows(16, 4).x
    for task, name in model.choice.items():
        expected = trainers[name].predict(x, tasks=(task,))[task]
        with torch.no_grad(), networks.swapped(model, task):
            assert torch.equal(model(x, tasks=(task,))[task], expected)
    masks = networks.masks
    assert masks is not None
    assert {task: masks.count(task) for task in masks} == {"up": 44, "across": 88}  # half of 88 weights, and its own 88
    assert masks.overlap().jaccard.tolist() == [[1, 0], [0, 1]]
    networks.save(tmp_path / "networks")
    assert sm.TaskNetworks.load(tmp_path / "networks", model).masks == masks


def test_its_networks_are_compacted() -> None:
    model, networks, _ = two_models()
    x: Tensor = rows(16, 4).x
    for task in NAMES:
        small = sm.compact(model, networks, task=task, example_inputs=x)
        with torch.no_grad(), networks.swapped(model, task):
            expected = model(x, tasks=(task,))[task]
        torch.testing.assert_close(small(x), expected)


def test_a_choice_of_what_is_not_there_is_refused() -> None:
    model = candidate(None).model  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"task 'up': there is no model 'b'. Known: a"):
        AssembledModel({"a": model}, {"up": "b"})
    with pytest.raises(ParameterError, match="unknown task 'down'"):
        AssembledModel({"a": model}, {"down": "a"})
