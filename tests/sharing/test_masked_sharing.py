"""What the methods with masks have in common: exact counts, strict updates, masked gradients, dense criteria."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from policies import Started
from sharing_toys import (
    NAMES,
    OPTIMIZERS,
    assert_held,
    batch_of,
    build,
    double,
    engine_of,
    loader,
    model,
    moved_outside,
    own_loaders,
    parameters_of,
    run_epoch,
    tasks,
    trained,
    watch_steps,
)
from states import assert_same, state_of
from torch import Tensor, nn
from torch.func import functional_call, grad

import sparsemtl as sm
from sparsemtl.balancing import as_balancer
from sparsemtl.balancing.losses import constant
from sparsemtl.criteria.criterion import Criterion
from sparsemtl.criteria.fisher import Fisher
from sparsemtl.criteria.magnitude import Magnitude
from sparsemtl.errors import ParameterError
from sparsemtl.networks.norms import shared_norms
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.sharing import CriterionMasks, Sharing
from sparsemtl.sharing.sharing import Update

METHODS = ["fisher", "random"]
every_method = each("method", METHODS)
every_optimizer = each("optimizer", OPTIMIZERS)
MODES, SEMANTICS = ["alternate", "average"], ["weights", "gradients"]
both_semantics = each("mask_applies_to", SEMANTICS)
both_modes = each("update", MODES)


def masked(method: str, keep: float = 0.4, **options: Any) -> Any:
    """A method that has its masks from the first epoch on."""
    return build(method, keep=keep, **{"warmup": 0} | options)


def attached(sharing: Sharing, network: sm.MultiTaskModel | None = None) -> Started:
    """The method with the masks of its first epoch on a model."""
    started = Started(sharing, network or model())
    started.begin_epoch(0, loader(shuffle=False))
    return started


@each("keep", [0.06, 0.1, 0.3, 0.77, 0.999, 1.0])
@each("mask_all", [False, True])
@every_method
def test_every_task_keeps_exactly_its_fraction_of_the_maskable_weights(
    method: str, mask_all: bool, keep: float
) -> None:
    sharing = attached(masked(method, keep, mask_all=mask_all, scope="global"))
    shared = maskable_parameters(sharing.model, mask_all=mask_all)
    assert list(sharing.masks.shapes()) == list(shared)
    size = sum(p.numel() for p in shared.values())
    assert [sharing.masks.count(task) for task in NAMES] == [min(max(round(keep * size), 1), size)] * 3


@every_method
def test_its_masks_say_what_they_are_for(method: str) -> None:
    masks = attached(masked(method)).masks
    assert (masks.model, masks.method) == ("SharedBottom", type(masked(method)).__name__)
    assert masks.tasks == NAMES


@every_method
def test_before_the_first_epoch_every_task_keeps_everything(method: str) -> None:
    sharing = Started(masked(method), model())
    assert sharing.masks == sm.TaskMasks.ones(maskable_parameters(model()), NAMES)
    assert sharing.active(NAMES) is None


@each(
    ("method", "optimizer", "update", "mask_applies_to"),
    [
        (method, optimizer, MODES[mode], SEMANTICS[semantics])
        for row, method in enumerate(METHODS)
        for column, optimizer in enumerate(OPTIMIZERS)
        for mode, semantics in product(range(2), repeat=2)
        if (row + column + mode + semantics) % 2 == 0  # half of the product, in which each pair of values occurs
    ],
)
def test_what_no_task_keeps_stands_still_between_renewals(
    method: str, optimizer: str, update: Update, mask_applies_to: str
) -> None:
    sharing = masked(method, update=update, mask_applies_to=mask_applies_to)
    engine = trained(build("dense", update=update), loader(), optimizer=optimizer, epochs=1)
    engine.sharing, engine.networks = sharing, sharing.start(engine.model)  # the optimizer has seen a dense epoch
    sharing = Started.of(engine)
    for epoch in range(2):
        sharing.begin_epoch(epoch, loader())
        before = parameters_of(engine.model)
        for seed in range(3):
            engine.step([[batch_of(seed)]])
        union = sharing.masks.union()
        assert_held(before, parameters_of(engine.model), union)
        assert any(bool((~mask).any()) for mask in union.values())
        assert moved_outside(before, parameters_of(engine.model), {n: ~mask for n, mask in union.items()})


@both_semantics
@every_optimizer
@every_method
def test_a_step_for_one_task_moves_its_own_weights_only(method: str, optimizer: str, mask_applies_to: str) -> None:
    sharing = masked(method, update="alternate", mask_applies_to=mask_applies_to)
    engine = engine_of(model(), sharing, optimizer=optimizer)
    sharing = Started.of(engine)
    run_epoch(engine, loader(), 0)
    states = watch_steps(engine)
    for seed in range(2):
        engine.step([[batch_of(seed)]])
    for (before, after), task in zip(pairwise(states), NAMES * 2, strict=True):
        assert_held(before, after, sharing.masks[task])
        assert moved_outside(before, after, {name: ~mask for name, mask in sharing.masks[task].items()})


@both_modes
@every_method
def test_weights_of_absent_tasks_stand_still(method: str, update: Update) -> None:
    engine = trained(masked(method, update=update), loader())
    before = parameters_of(engine.model)
    engine.step([[batch_of(3, ("kind", "side"))]])
    after = parameters_of(engine.model)
    masks = Started.of(engine).masks
    assert masks is not None
    assert_held(before, after, masks.union(["kind", "side"]))
    assert moved_outside(before, after, {name: ~mask for name, mask in masks.exclusive("kind").items()})


@both_modes
@every_optimizer
@every_method
def test_without_strict_memory_and_decay_move_what_no_task_keeps(method: str, optimizer: str, update: Update) -> None:
    sharing = masked(method, update=update, strict=False)
    engine = engine_of(model(), sharing, optimizer=optimizer)
    sharing = Started.of(engine)
    run_epoch(engine, loader(), 0)
    assert sharing.active(NAMES) is None
    before = parameters_of(engine.model)
    engine.step([[batch_of(0)]])
    assert moved_outside(before, parameters_of(engine.model), sharing.masks.union())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_what_no_task_keeps_never_moves_across_a_checkpoint(optimizer: str, tmp_path: Path) -> None:
    """The method whose masks never change: its unused weights end as they were made."""
    start = parameters_of(model())
    for epochs in (2, 4):
        network = model()
        trainer = sm.Trainer(
            network,
            sharing=sm.RandomSharing(keep=0.3),
            optimizer=OPTIMIZERS[optimizer],
            epochs=epochs,
            folder=tmp_path,
            progress=False,
            accelerator="cpu",
        )
        trainer.fit(loader(), loader(seed=2), resume=epochs == 4)
        last = trainer.folder.load(trainer.folder.last)
        union = trainer.masks.union()
        assert last["progress"]["epoch"] == epochs
        assert_held(start, last["model"], union)
        assert moved_outside(start, last["model"], {name: ~mask for name, mask in union.items()})


@every_method
def test_the_gradient_of_a_view_is_zero_outside_of_the_mask_and_only_there(method: str) -> None:
    sharing = attached(masked(method, mask_applies_to="weights"))
    for name, task in sharing.model.tasks.items():
        sharing.model.zero_grad()
        batch = batch_of(1)
        with sharing.view(name):
            task.loss(sharing.model(batch.x, tasks=(name,))[name], task.labels(batch.targets)).backward()
        for parameter, mask in sharing.masks[name].items():
            gradient = sharing.model.get_parameter(parameter).grad
            assert gradient is not None
            assert not gradient[~mask].any()
            assert gradient[mask].any()
        assert sharing.gradient_mask(name) is None


@every_method
def test_with_gradient_semantics_all_tasks_run_the_dense_network(method: str) -> None:
    engine = trained(masked(method, mask_applies_to="gradients"), loader())
    assert engine.update == "joint"
    for mode in (True, False):
        plain = engine.model.train(mode)(batch_of(2).x)
        for task in NAMES:
            with Started.of(engine).view(task):
                assert_same(engine.model(batch_of(2).x), plain)


@both_semantics
@every_method
def test_a_views_output_is_that_of_the_network_that_its_mask_makes(method: str, mask_applies_to: str) -> None:
    engine = trained(masked(method, mask_applies_to=mask_applies_to), loader())
    sharing, network = Started.of(engine), engine.model.eval()
    for task in NAMES:
        copy = deepcopy(network)
        if mask_applies_to == "weights":
            copy.load_state_dict(copy.state_dict() | sharing.norms[task])
            with torch.no_grad():
                for name, mask in sharing.masks[task].items():
                    copy.get_parameter(name).mul_(mask)
        with sharing.view(task):
            assert torch.equal(network(batch_of(4).x)[task], copy(batch_of(4).x)[task])


def loss_of(task: sm.Task, output: Tensor, label: Tensor) -> Tensor:
    """The losses written out once more."""
    if isinstance(task, sm.MultiLabel):
        return -(label * output.sigmoid().log() + (1 - label) * (-output).sigmoid().log()).mean()
    return -output.log_softmax(1).gather(1, label[:, None]).mean()


def gradient_by_hand(
    network: sm.MultiTaskModel, masks: sm.TaskMasks, name: str, mask_applies_to: str
) -> dict[str, Tensor]:
    """S_t * dL_t/dw by functional differentiation: at the masked weights, or at the dense ones."""
    batch, weights = double(batch_of(6)), {n: p.detach() for n, p in network.named_parameters()}
    mask = {n: masks[name][n].double() if n in masks[name] else torch.ones_like(w) for n, w in weights.items()}
    at = {n: w * mask[n] for n, w in weights.items()} if mask_applies_to == "weights" else weights

    def loss(values: dict[str, Tensor]) -> Tensor:
        output = functional_call(network, values, (batch.x,))[name]
        return loss_of(network.tasks[name], output, batch.targets[name])

    return {n: g * mask[n] for n, g in grad(loss)(at).items()}


WEIGHTS = {"mean": [1 / 3, 1 / 3, 1 / 3], "constant": [0.5, 2.0, 0.25]}


@each("balancing", WEIGHTS)
@each(("mask_applies_to", "update"), [("weights", "average"), ("gradients", "average"), ("gradients", "joint")])
@every_method
def test_the_shared_gradient_is_the_weighted_sum_of_the_tasks_masked_gradients(
    method: str, mask_applies_to: str, update: Update, balancing: str
) -> None:
    network = model(norm=False, kind=1.0, marks=3.0, side=0.5).double()
    sharing = masked(method, mask_applies_to=mask_applies_to, update=update)
    balancer = constant(weights=WEIGHTS["constant"]) if balancing == "constant" else as_balancer("mean")
    engine = engine_of(network, sharing, balancing=balancer, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    sharing = Started.of(engine)
    sharing.begin_epoch(0, [(double(batch_of(0)).x, double(batch_of(0)).targets)])
    engine.step([[double(batch_of(6))]])
    rows = {name: gradient_by_hand(network, sharing.masks, name, mask_applies_to) for name in NAMES}
    factors = [w * t.weight for w, t in zip(WEIGHTS[balancing], network.tasks.values(), strict=True)]
    for name, p in network.shared_parameters().items():
        expected = sum(factor * row[name] for factor, row in zip(factors, rows.values(), strict=True))
        torch.testing.assert_close(p.grad, expected, rtol=1e-6, atol=1e-9)  # 1/3 comes in single precision


@both_semantics
@every_method
def test_in_turns_a_step_has_the_tasks_own_masked_gradient(method: str, mask_applies_to: str) -> None:
    network = model(norm=False).double()
    sharing = masked(method, mask_applies_to=mask_applies_to, update="alternate")
    engine = engine_of(network, sharing, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    sharing = Started.of(engine)
    sharing.begin_epoch(0, [(double(batch_of(0)).x, double(batch_of(0)).targets)])
    gradients: list[dict[str, Tensor]] = []
    engine.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(
            {name: p.grad.clone() for name, p in network.shared_parameters().items() if p.grad is not None}
        )
    )
    engine.step([[double(batch_of(6))]])
    for name, found in zip(NAMES, gradients, strict=True):
        expected = gradient_by_hand(network, sharing.masks, name, mask_applies_to)
        for parameter, gradient in found.items():
            torch.testing.assert_close(gradient, expected[parameter], rtol=1e-9, atol=1e-14)


@both_semantics
@every_method
def test_an_aggregator_gets_the_rows_masked(method: str, mask_applies_to: str) -> None:
    """TorchJD's sum of the rows is the sum of the masked gradients."""
    from torchjd.aggregation import Sum

    network = model(norm=False).double()
    sharing = masked(method, mask_applies_to=mask_applies_to, update="average")
    engine = engine_of(network, sharing, balancing=Sum(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    sharing = Started.of(engine)
    sharing.begin_epoch(0, [(double(batch_of(0)).x, double(batch_of(0)).targets)])
    engine.step([[double(batch_of(6))]])
    rows = [gradient_by_hand(network, sharing.masks, name, mask_applies_to) for name in NAMES]
    for name, p in network.shared_parameters().items():
        torch.testing.assert_close(p.grad, sum(row[name] for row in rows), rtol=1e-9, atol=1e-14)


@both_modes
@every_method
def test_a_tasks_batches_never_change_another_tasks_statistics(method: str, update: Update) -> None:
    engine = trained(masked(method, update=update), loader())
    before = deepcopy(Started.of(engine).norms)
    engine.step([[batch_of(5, ("marks",))]])
    after = deepcopy(Started.of(engine).norms)
    for task in ("kind", "side"):
        assert_same(after[task], before[task])
    assert not torch.equal(after["marks"]["encoder.1.running_mean"], before["marks"]["encoder.1.running_mean"])
    assert engine.model.encoder[1].num_batches_tracked == 0


class Stub(Sharing):
    """A method of the criterion given, renewed before every epoch: what a user's own file may hold."""

    def __init__(self, criterion: Criterion, keep: float = 0.4, **options: Any) -> None:
        defaults: dict[str, Any] = {"mask_applies_to": "weights", "update": None, "strict": True, "bn": None}
        defaults |= {"scope": "global", "granularity": "weight", "min_per_layer": 1, "mask_all": False}
        defaults |= {"target_sparsity": None, "reach_at": None}
        self.criterion = criterion
        self._masks = CriterionMasks("Stub", keep, defaults | options)  # type: ignore[arg-type]

    def start(self, model: sm.MultiTaskModel) -> sm.TaskNetworks:
        return self._masks.start(model)

    def begin_epoch(self, epoch: int, model: Any, networks: Any, loaders: Any) -> Any:
        return self._masks.choose(self.criterion, epoch, model, networks, loaders)

    def metrics(self, model: Any, networks: Any) -> Any:
        return self._masks.metrics(networks)


def recalibrated_copy(network: sm.MultiTaskModel, x: Tensor) -> sm.MultiTaskModel:
    """The dense network with statistics of these inputs."""
    copy = deepcopy(network)
    for norm in shared_norms(copy).values():
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        copy.train()(x)
    return copy.eval()


@pytest.mark.parametrize("bn", ["per_task", "batch"])
@pytest.mark.parametrize("norm", [True, False])
def test_masks_are_chosen_from_the_dense_network_with_statistics_of_its_own(norm: bool, bn: str) -> None:
    criterion = Fisher(estimator="true")
    whole = loader(batch_size=24, shuffle=False)
    engine = trained(Stub(criterion, bn=bn), loader(), network=model(norm=norm))
    expected = sm.fisher_masks(recalibrated_copy(engine.model, whole.x), whole, 0.4, estimator="true")
    Started.of(engine).begin_epoch(2, whole)
    assert Started.of(engine).masks == expected


def test_with_shared_statistics_masks_are_chosen_with_the_models_own() -> None:
    whole = loader(batch_size=24, shuffle=False)
    engine = trained(Stub(Fisher(estimator="true"), bn="shared"), loader())
    expected = sm.fisher_masks(engine.model, whole, 0.4, estimator="true")
    assert expected != sm.fisher_masks(recalibrated_copy(engine.model, whole.x), whole, 0.4, estimator="true")
    Started.of(engine).begin_epoch(2, whole)
    assert Started.of(engine).masks == expected


@pytest.mark.parametrize("norm", [True, False])
def test_a_weight_dropped_at_one_renewal_can_come_back_at_the_next(norm: bool) -> None:
    engine = engine_of(model(norm=norm), Stub(Fisher(estimator="true")), optimizer="adam")
    torch.manual_seed(0)
    kept: list[Tensor] = []
    for epoch in range(4):
        run_epoch(engine, loader(), epoch)
        assert Started.of(engine).masks is not None
        kept.append(Started.of(engine).masks.flat("kind"))
    assert bool((kept[0] & ~kept[1] & (kept[2] | kept[3])).any()), "kept, dropped and kept again"
    assert bool((~kept[0] & kept[1]).any()), "never kept before"


def test_renewals_change_masks_and_say_how_much() -> None:
    sharing = Started(Stub(Magnitude(), keep=0.5), model())
    sharing.begin_epoch(0, [])
    first = sharing.masks
    assert {name: value for task, name, value in sharing.metrics() if task == "kind"} == {
        "density": 0.5,
        "changed": 0.5,
    }
    with torch.no_grad():
        for name in first.shapes():
            sharing.model.get_parameter(name).copy_((~first["kind"][name]).float())
    sharing.begin_epoch(1, [])
    assert [value for _, name, value in sharing.metrics() if name == "changed"] == [1.0] * 3


@every_method
def test_the_measured_overlap_is_the_mean_over_pairs_of_tasks(method: str) -> None:
    sharing = attached(masked(method))
    measured = {(task, name): value for task, name, value in sharing.metrics()}
    kept = {task: set(sharing.masks.flat(task).nonzero().flatten().tolist()) for task in NAMES}
    pairs = [(kept[a], kept[b]) for a in NAMES for b in NAMES if a < b]
    assert measured["", "overlap"] == pytest.approx(sum(len(a & b) / len(a | b) for a, b in pairs) / 3)
    for task in NAMES:
        assert measured[task, "density"] == sharing.masks.density(task)


@every_method
def test_a_single_task_has_no_overlap_to_measure(method: str) -> None:
    torch.manual_seed(0)
    alone = sm.SharedBottom(nn.Linear(6, 5), tasks()[:1], {"kind": nn.Linear(5, 3)})
    sharing = attached(masked(method), alone)
    assert {name for _, name, _ in sharing.metrics()} <= {"density", "changed"}


@every_method
def test_on_data_of_its_own_a_task_trains_its_own_weights(method: str) -> None:
    engine = trained(masked(method), own_loaders())
    assert engine.update == "average"
    before = parameters_of(engine.model)
    engine.step([[batch_of(1, ("kind",)), batch_of(2, ("side",))]])
    assert_held(before, parameters_of(engine.model), Started.of(engine).masks.union(["kind", "side"]))


@every_method
def test_channels_are_kept_or_dropped_whole(method: str) -> None:
    sharing = attached(masked(method, granularity="channel"))
    for mask in sharing.masks.values():
        for kept in mask.values():
            rows = kept.flatten(1) if kept.ndim > 1 else kept[:, None]
            assert torch.equal(rows.all(1), rows.any(1))
        layer = [
            mask["encoder.0.weight"].any(1),
            mask["encoder.0.bias"],
            mask["encoder.1.weight"],
            mask["encoder.1.bias"],
        ]
        assert all(torch.equal(layer[0], other) for other in layer[1:])


@every_method
def test_each_layer_keeps_its_share_where_layers_are_ranked_apart(method: str) -> None:
    masks = attached(masked(method, keep=0.25, scope="layer")).masks
    for name, shape in masks.shapes().items():
        assert {int(masks[task][name].sum()) for task in NAMES} == {round(0.25 * shape.numel())}


@every_method
def test_no_layer_dies(method: str) -> None:
    sharing = masked(method, keep=0.2, min_per_layer=7)
    network = model()
    with torch.no_grad():
        network.encoder[3].weight.zero_()  # no gradient reaches the layer before, so that it ranks last
    masks = attached(sharing, network).masks
    assert all(int(masks[task][name].sum()) >= 7 for task in NAMES for name in masks.shapes())


@every_method
def test_attaching_anew_starts_anew(method: str) -> None:
    sharing = masked(method)
    first = trained(sharing, loader())
    second = trained(sharing, loader())
    assert_same(state_of(second.model), state_of(first.model))


@every_method
@each("target", [0.2, 0.55])
def test_a_target_sparsity_is_reached_by_the_epoch_asked_for_on_the_documented_way_and_held(
    method: str, target: float
) -> None:
    sharing = masked(method, target_sparsity=1 - target, reach_at=4)
    start, found = {"fisher": 0, "random": 0}[method], []
    engine = engine_of(model(), sharing, optimizer="adam")
    sharing = Started.of(engine)
    for epoch in range(6):
        run_epoch(engine, loader(), epoch)
        found.append(sharing.masks.density())
    ways = [min(max(epoch - start, 0) / (4 - start), 1) for epoch in range(6)]
    size = sharing.masks.size()
    assert found == [round((1 - (1 - target) * (1 - (1 - way) ** 3)) * size) / size for way in ways]
    assert found[4] == found[5] == round(target * size) / size
    assert [sharing.is_selectable(epoch) for epoch in range(6)] == [epoch >= 4 for epoch in range(6)]


def test_random_masks_are_nested_while_the_density_falls() -> None:
    sharing = sm.RandomSharing(target_sparsity=0.8, reach_at=3)
    engine, kept = engine_of(model(), sharing, optimizer="adam"), []
    for epoch in range(4):
        run_epoch(engine, loader(), epoch)
        kept.append(Started.of(engine).masks.flat("kind"))
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(kept))


@every_method
@each("options", [{"target_sparsity": 0.5}, {"reach_at": 3}])
def test_half_a_target_is_refused(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="`target_sparsity` and `reach_at` go together"):
        masked(method, **options)


def test_a_target_to_be_reached_in_the_warm_up_is_refused() -> None:
    with pytest.raises(ParameterError, match="after the warm-up of 2 epochs, got 2"):
        sm.FisherSharing(target_sparsity=0.5, reach_at=2, warmup=2)
