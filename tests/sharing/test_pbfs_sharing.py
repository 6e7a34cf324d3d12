"""PBFS: pruning on time, kernel by kernel, never back, and every task with its own best epoch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import Started
from sharing_toys import NAMES, batch_of, engine_of, loader, model, parameters_of, run_epoch, trained
from states import assert_same

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import NonFiniteScoreError, ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing import PBFSSharing
from sparsemtl.sharing.schedules import Ramp, StepRamp, cubic
from sparsemtl.storage.metrics import read_metrics


def attached(**options: Any) -> Started:
    return Started(PBFSSharing(**options), model())


def steps(sharing: Started, epochs: int, per_epoch: int) -> list[sm.TaskMasks]:
    """The masks after every step of a training that moves no weight."""
    found = []
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    for epoch in range(epochs):
        sharing.begin_epoch(epoch, [()] * per_epoch)
        for _ in range(per_epoch):
            sharing.after_step(optimizer)
            found.append(sharing.masks)
    return found


def sparsities(sharing: Started) -> dict[str, dict[str, float]]:
    return sharing.method.sparsities(sharing.model, sharing.networks)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("way", "sparsity"), [(0, 0.6), (0.25, 0.6578), (0.5, 0.6875), (0.75, 0.6984), (1, 0.7)])
def test_the_schedule_has_the_values_of_the_paper_s_library(way: float, sparsity: float) -> None:
    assert 0.6 + 0.1 * cubic(way) == pytest.approx(sparsity, abs=5e-5)


def test_a_ramp_is_at_every_step_where_it_should_be() -> None:
    ramp, found = StepRamp(Ramp(1, 3)), []
    for epoch in range(4):
        ramp.begin_epoch(epoch, [()] * 4)
        for _ in range(4):
            found.append(ramp.progress)
            ramp.step()
    assert found == [0.0] * 4 + [step / 8 for step in range(8)] + [1.0] * 4


@pytest.mark.parametrize("every", [1, 4, 100])
def test_every_kernel_keeps_exactly_what_the_schedule_asks_for(every: int) -> None:
    sharing = attached(initial_sparsity=0.3, target_sparsity=0.8, warmup=1, reach_at=3, update_every_steps=every)
    masks = steps(sharing, epochs=4, per_epoch=6)
    for step, now in enumerate(masks, start=1):
        since = step - 6
        due = max(since - since % every, (since - 1) // 6 * 6)  # the last step that a pruning knew of
        sparsity = 0.3 + 0.5 * (1 - (1 - min(due / 12, 1.0)) ** 3) if since > 0 else 0.0
        for name, shape in now.shapes().items():
            kept = max(round(shape.numel() * (1 - sparsity)), 1)
            assert [int(now[task][name].sum()) for task in NAMES] == [kept] * 3, (step, name)


def test_masks_are_nested_though_the_weights_go_on_moving() -> None:
    sharing = PBFSSharing(initial_sparsity=0.2, target_sparsity=0.8, warmup=0, reach_at=3, update_every_steps=1)
    engine, kept = engine_of(model(), sharing, optimizer="adam"), []
    for epoch in range(4):
        run_epoch(engine, loader(), epoch)
        kept.append(engine.networks.masks)
    for earlier, later in pairwise(kept):
        assert all(bool((later.flat(task) <= earlier.flat(task)).all()) for task in NAMES)
    dense = engine.model.get_parameter("encoder.0.weight").detach().abs().flatten()
    assert kept[-1].flat("kind").sum() < kept[0].flat("kind").sum()
    assert len(dense.unique()) > 1


def test_the_largest_weights_of_each_kernel_survive() -> None:
    sharing = attached(target_sparsity=0.5, initial_sparsity=0.5, warmup=0, reach_at=1)
    sharing.begin_epoch(0, [()])
    for name, weight in maskable_parameters(sharing.model).items():
        kept = sharing.masks["kind"][name]
        assert weight[kept].abs().min() >= weight[~kept].abs().max()


def test_a_pruned_weight_gets_no_gradient_of_its_task_and_one_of_a_task_that_keeps_it() -> None:
    network = model(norm=False)
    sharing = Started(PBFSSharing(target_sparsity={"kind": 0.5, "side": 0.0}, warmup=0, reach_at=1), network)
    steps(sharing, epochs=2, per_epoch=2)
    group = batch_of(16)
    gradients = {}
    for task in ("kind", "side"):
        network.zero_grad()
        with sharing.view(task):
            network.tasks[task].loss(network(group.x, tasks=(task,))[task], group.targets[task]).backward()
        gradients[task] = network.get_parameter("encoder.0.weight").grad
    pruned = ~sharing.masks["kind"]["encoder.0.weight"]
    assert pruned.any()
    assert not gradients["kind"][pruned].any()
    assert gradients["side"][pruned].any()


def test_sparsities_are_given_by_task_and_module() -> None:
    sharing = attached(target_sparsity={"kind": 0.5, "side/encoder": 0.25}, warmup=0, reach_at=1, update_every_steps=1)
    steps(sharing, epochs=2, per_epoch=1)
    found = {task: modules["encoder"] for task, modules in sparsities(sharing).items()}
    assert found == pytest.approx({"kind": 0.5, "side": 0.25, "marks": 0.0}, abs=0.02)
    assert sharing.summary()["sparsity"]["kind"] == sparsities(sharing)["kind"]


@pytest.mark.parametrize(("allow_empty", "kept"), [(False, 1), (True, 0)])
def test_only_who_asks_for_it_gets_empty_kernels(allow_empty: bool, kept: int) -> None:
    sharing = attached(target_sparsity=1.0, warmup=0, reach_at=1, update_every_steps=1, allow_empty=allow_empty)
    steps(sharing, epochs=2, per_epoch=1)
    assert {int(mask.sum()) for mask in sharing.masks["kind"].values()} == {kept}


def test_without_sparsity_it_is_dense_training_bit_for_bit() -> None:
    sparse = trained(PBFSSharing(target_sparsity=0.0, warmup=0, reach_at=1), loader())
    dense = trained(sm.DenseSharing(update="average", bn="per_task"), loader())
    assert_same(parameters_of(sparse.model), parameters_of(dense.model))


@pytest.mark.parametrize("criterion", ["fisher", "gradient"])
def test_other_criteria_give_the_tasks_masks_of_their_own(criterion: Any) -> None:
    sharing = PBFSSharing(target_sparsity=0.5, warmup=0, reach_at=1, criterion=criterion)
    sharing = Started.of(trained(sharing, loader()))
    assert not torch.equal(sharing.masks.flat("kind"), sharing.masks.flat("side"))
    assert sparsities(sharing)["kind"]["encoder"] == pytest.approx(0.5, abs=0.02)


def splits() -> tuple[TensorLoader, TensorLoader]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, 6, generator=generator)
    targets = {"a": (x[:, 0] > 0).long(), "b": x[:, 1] * 2}
    train = TensorLoader(x[:60], {t: v[:60] for t, v in targets.items()}, batch_size=10, shuffle=True)
    return train, TensorLoader(x[60:], {t: v[60:] for t, v in targets.items()}, batch_size=15)


def trainer(folder: Path | None, **options: Any) -> sm.Trainer:
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 8))
    network = sm.SharedBottom(encoder, [sm.Classification("a", 2), sm.Regression("b")])
    sharing = PBFSSharing(initial_sparsity=0.3, target_sparsity=0.9, warmup=1, reach_at=5, update_every_steps=2)
    return sm.Trainer(network, sharing=sharing, epochs=6, folder=folder, progress=False, **options)


@pytest.mark.parametrize("in_folder", [False, True])
def test_every_task_ends_with_the_epoch_that_is_best_for_it(tmp_path: Path, in_folder: bool) -> None:
    """The score reported of a task is the best that was logged of it after the warm-up, whatever the others did."""
    fitted = trainer(tmp_path)
    train, validation = splits()
    fitted.fit(train, validation)
    rows = [row for row in read_metrics(tmp_path / "metrics.csv") if row.split == "validation" and row.step > 6]
    for task, metric, best in (("a", "accuracy", max), ("b", "r2", max)):
        logged = [row.value for row in rows if (row.task, row.name) == (task, metric)]
        assert fitted.validation[task][metric] == best(logged)
    assert fitted.selection.best_epoch("a") is not None
    if in_folder:
        assert (tmp_path / "networks.safetensors").is_file()


def test_predictions_are_those_of_the_tasks_own_networks(tmp_path: Path) -> None:
    fitted = trainer(tmp_path)
    train, validation = splits()
    fitted.fit(train, validation)
    networks = TaskNetworks.load(tmp_path / "networks.safetensors", fitted.model)
    for task in ("a", "b"):
        tensors: dict[str, Any] = networks.tensors(fitted.model, task)
        with torch.no_grad():
            alone = torch.func.functional_call(fitted.model, tensors, (validation.x,), {"tasks": (task,)})[task]
        assert torch.equal(fitted.predict(validation.x)[task], alone)
        for name, mask in fitted.masks[task].items():  # type: ignore[index]
            assert not tensors[name][~mask].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 3, "reach_at": 3}, "after the warm-up of 3 epochs, got 3"),
        (
            {"target_sparsity": {"kind": 1.5}},
            r"'target_sparsity' parameter .* must be a float in \[0, 1\] or a mapping .* Got {'kind': 1.5}",
        ),
        ({"target_sparsity": 0.5, "initial_sparsity": 0.6}, "what a task has dropped does not come back"),
        ({"target_sparsity": {"kimd": 0.5}}, "unknown task 'kimd'. Did you mean 'kind'"),
        ({"target_sparsity": {"kind/encode": 0.5}}, "unknown shared module 'encode'. Did you mean 'encoder'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        attached(**options)


def test_scores_that_are_undefined_rank_nothing() -> None:
    sharing = attached(warmup=0, reach_at=2)
    with torch.no_grad():
        next(iter(sharing.model.shared_parameters().values())).view(-1)[3] = torch.nan
    with pytest.raises(NonFiniteScoreError, match=r"parameter 'encoder.0.weight': 1 scores are NaN. Did training"):
        sharing.begin_epoch(0, [()] * 4)
