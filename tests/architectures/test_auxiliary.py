"""Small tasks beside an auxiliary network: where they start, what draws them, and what flows between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import Started
from states import assert_same, state_of
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.architectures.damtl.alignment_loss import FeatureAlignment
from sparsemtl.data import TensorLoader
from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.networks.frozen import Frozen
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.storage.files import read_tree
from sparsemtl.storage.metrics import read_metrics

WEIGHTS = ("own", "shared", "frozen")
NAMES = ("pets", "wheels")
each_weights = pytest.mark.parametrize("weights", WEIGHTS)
each_align = pytest.mark.parametrize("align", ["layer", "feature", "classic"])
COLUMNS = {"pets": [4, 0, 2], "wheels": [1, 3]}
"""The auxiliary classes of every task's classes."""


def everything() -> sm.Classification:
    return sm.Classification("all", ["cat", "car", "fox", "bus", "dog"])


def tasks(**weights: float) -> list[sm.Task]:
    return [
        sm.Classification("pets", ["dog", "cat", "fox"], weight=weights.get("pets", 1.0)),
        sm.Classification("wheels", ["car", "bus"], weight=weights.get("wheels", 1.0)),
    ]


def big(*, norm: bool = False) -> tuple[nn.Sequential, nn.Linear]:
    """An auxiliary network, always the same: an encoder with two fully connected layers, and its last layer."""
    torch.manual_seed(0)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    layers = [nn.Conv2d(1, 4, 3, padding=1), middle, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    encoder = nn.Sequential(*layers, nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU())
    return encoder, sm.SharedBottom(encoder, [everything()], {"all": nn.Linear(6, 5)}).heads["all"]  # type: ignore[return-value]


CONNECTED = ("5", "7")


def model(
    *,
    norm: bool = False,
    chosen: list[sm.Task] | None = None,
    heads: dict[str, nn.Module] | None = None,
    **options: Any,
) -> sm.Auxiliary:
    encoder, head = big(norm=norm)
    samples = TensorLoader(images(30, seed=9), torch.arange(30) % 5)
    return sm.Auxiliary(encoder, chosen or tasks(), heads, sm.Source(everything(), head, samples), **options)


def images(count: int = 12, *, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 12) -> dict[str, Tensor]:
    return {"pets": torch.arange(count) % 3, "wheels": torch.arange(count) % 2}


def loader(count: int = 24, *, batch_size: int = 8, shuffle: bool = True, **options: Any) -> TensorLoader:
    return TensorLoader(images(count), labels(count), batch_size=batch_size, shuffle=shuffle, **options)


def shaken(network: sm.Auxiliary) -> sm.Auxiliary:
    """The same, away from where it starts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return network


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def quiet(network: sm.MultiTaskModel, **options: Any) -> sm.Trainer:
    sgd: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.002, momentum=0.9)  # noqa: E731
    return sm.Trainer(network, **{"optimizer": sgd, "progress": False, "accelerator": "cpu", "epochs": 1, **options})


def penalties(network: sm.Auxiliary, x: Tensor | None = None) -> dict[str, Tensor]:
    """What every task's alignment is on a batch."""
    network.train()(images() if x is None else x)
    found = {task: network.penalty(task, labels()[task]) for task in network.tasks}
    assert all(penalty is not None for penalty in found.values())
    return found  # type: ignore[return-value]


@each_weights
def test_a_task_starts_with_the_auxiliary_networks_features_bit_for_bit(weights: Any) -> None:
    network, (encoder, _) = model(weights=weights).eval(), big()
    for task in NAMES:
        assert torch.equal(network.encoders[task](network.trunk(images())), encoder.eval()(images()))


@each_weights
def test_masks_of_ones_leave_the_auxiliary_networks_features_as_they_are_bit_for_bit(weights: Any) -> None:
    network, (encoder, _) = model(weights=weights).eval(), big()
    sharing = Started(sm.SoftMaskSharing(init="ones"), network)
    for task in NAMES:
        with sharing.view(task):
            assert torch.equal(network.encoders[task](network.trunk(images())), encoder.eval()(images()))


@each_weights
def test_a_tasks_last_layer_is_made_of_the_auxiliary_ones_rows(weights: Any) -> None:
    network, (_, last) = model(weights=weights), big()
    for task, columns in COLUMNS.items():
        head: Any = network.heads[task]
        assert torch.equal(head.weight, last.weight[columns])
        assert torch.equal(head.bias, last.bias[columns])


def test_a_class_without_a_counterpart_starts_afresh() -> None:
    network, (_, last) = model(class_map={"pets": {"fox": None, "cat": "bus"}}), big()
    head: Any = network.heads["pets"]
    assert torch.equal(head.weight[:2], last.weight[[4, 3]])
    assert not any(torch.equal(head.weight[2], row) for row in last.weight)


def test_without_a_source_last_layers_start_afresh_and_the_others_are_aligned() -> None:
    encoder, _ = big()
    network = sm.Auxiliary(encoder, tasks())
    network(images())  # the encoder does not tell its width
    shaken(network)
    found = penalties(network)
    for task in NAMES:
        assert found[task].item() == pytest.approx(0.9 * slow(network, task, last=False), rel=1e-4)


@pytest.mark.parametrize("options", [{"heads": {"pets": nn.Linear(6, 3)}}, {"class_map": {"pets": None}}])
def test_a_last_layer_that_is_not_made_of_rows_is_not_aligned_and_the_other_layers_are(options: Any) -> None:
    network = model(**deepcopy(options))
    network(images())  # the encoder does not tell its width
    shaken(network)
    found = penalties(network)
    assert found["pets"].item() == pytest.approx(0.9 * slow(network, "pets", last=False), rel=1e-4)
    assert found["wheels"].item() == pytest.approx(0.9 * slow(network, "wheels"), rel=1e-4)


@each_weights
def test_the_network_that_was_given_is_not_changed_by_what_tasks_have_for_themselves(weights: Any) -> None:
    encoder, head = big()
    before = state_of(encoder)
    network = sm.Auxiliary(encoder, tasks(), source=sm.Source(everything(), head), weights=weights)
    with torch.no_grad():
        for task in NAMES:
            for p in network.task_parameters(task).values():
                p.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("weights", "layers", "own"),
    [
        ("own", None, {"0", "5", "7"}),
        ("shared", None, {"5", "7"}),
        ("frozen", ["7"], {"7"}),
        ("shared", [], set()),
    ],
)
def test_tasks_have_for_themselves_what_begins_with_the_first_layer_named(
    weights: Any, layers: Any, own: set[str]
) -> None:
    network, (encoder, _) = model(weights=weights, layers=layers), big()
    assert network.connected.keys() == set(CONNECTED if layers is None else layers)
    sizes = sum(encoder.get_parameter(f"{name}.{kind}").numel() for name in own for kind in ("weight", "bias"))
    for task in NAMES:
        assert sum(p.numel() for p in network.encoders[task].parameters()) == sizes
    everywhere = sum(p.numel() for p in encoder.parameters())
    assert sum(p.numel() for p in network.shared_parameters().values()) == (
        0 if weights == "own" else everywhere - sizes
    )


@torch.no_grad()
def slow(network: sm.Auxiliary, task: str, *, last: bool = True) -> float:
    """With `weights: own`: layer by layer, class by class, what both layers give of what the task's feeds to them."""
    (encoder, final), features, total = big(), images(), 0.0
    for layer, original in zip(network.encoders[task], encoder, strict=True):  # type: ignore[call-overload]
        if isinstance(layer, nn.Linear):
            total += by_class(layer(features), original(features), labels()[task])
        features = layer(features)
    if last:
        total += by_class(network.heads[task](features), final(features)[:, COLUMNS[task]], labels()[task])
    return total


def by_class(ours: Tensor, theirs: Tensor, classes: Tensor) -> float:
    gaps = [ours[classes == c].mean(0) - theirs[classes == c].mean(0) for c in classes.unique()]
    return sum(gap.square().sum().item() for gap in gaps)


def test_the_penalty_is_strength_times_the_discrepancies_of_all_layers_and_classes() -> None:
    for strength in (0.9, 2.0):
        network = shaken(model(strength=strength))
        found = penalties(network)
        for task in NAMES:
            assert found[task].item() == pytest.approx(strength * slow(network, task), rel=1e-4)


@each_weights
def test_at_the_start_the_layers_are_at_distance_exactly_zero_and_draw_nowhere(weights: Any) -> None:
    network = model(weights=weights)
    found = penalties(network)
    assert all(penalty.item() == 0 for penalty in found.values())
    torch.stack(list(found.values())).sum().backward()
    assert gradients(network)
    assert not any(gradient.any() for gradient in gradients(network).values())


@each_weights
def test_at_the_start_features_are_at_distance_zero_but_for_rounding(weights: Any) -> None:
    for penalty in penalties(model(weights=weights, align="feature")).values():
        assert penalty.item() == pytest.approx(0, abs=1e-10)


@each_weights
@each_align
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_penalty_draws_what_the_task_trains_only(weights: Any, align: Any, kernel: Any) -> None:
    network = shaken(model(weights=weights, align=align, kernel=kernel))
    penalty = penalties(network)["pets"]
    assert penalty.item() > 0
    penalty.backward()
    trained = {
        name for name, p in network.named_parameters() if p.requires_grad and "pets" in network.parameter_tasks()[name]
    }
    drawn = {name for name, gradient in gradients(network).items() if gradient.any()}
    assert drawn == trained
    assert any("encoders.pets" in name for name in drawn)


@each_align
def test_masks_are_drawn_through_the_features(align: Any) -> None:
    network = shaken(model(align=align))
    sharing = Started(sm.SoftMaskSharing(init="uniform"), network)
    with sharing.view("pets"):
        network(images(), tasks=["pets"])
    penalty = network.penalty("pets", labels()["pets"])
    assert penalty is not None
    penalty.backward()
    assert all(psi.grad is not None and psi.grad.any() for psi in sharing.soft["pets"].values())
    assert all(psi.grad is None for psi in sharing.soft["wheels"].values())


def test_unlabelled_samples_add_nothing() -> None:
    network = shaken(model())
    network(images())
    target = labels()["pets"]
    target[::3] = -100
    found = network.penalty("pets", target)
    network(images()[target >= 0])
    expected = network.penalty("pets", target[target >= 0])
    assert found is not None
    assert expected is not None
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.item() > 0


@pytest.mark.parametrize(
    ("options", "ask"),
    [
        ({}, lambda network: None),
        ({}, lambda network: network.eval()(images())),
        ({}, lambda network: network.train()(images(), tasks=["wheels"])),
        ({"align": "none"}, lambda network: network.train()(images())),
        ({"strength": 0}, lambda network: network.train()(images())),
    ],
    ids=["no forward pass", "eval mode", "another task", "align none", "strength 0"],
)
def test_there_is_no_penalty_without_a_batch_that_was_trained_on(options: Any, ask: Callable[[Any], Any]) -> None:
    network = model(**options)
    ask(network)
    assert network.penalty("pets", labels()["pets"]) is None


def test_there_is_no_penalty_without_gradients() -> None:
    network = model().train()
    with torch.no_grad():
        network(images())
    assert network.penalty("pets", labels()["pets"]) is None


def test_a_batch_is_penalised_once() -> None:
    network = model()
    assert penalties(network).keys() == set(NAMES)
    assert all(network.penalty(task, labels()[task]) is None for task in NAMES)


def test_outputs_are_the_same_whether_layers_are_looked_at_or_not() -> None:
    network = shaken(model()).train()
    found = network(images())
    for task, output in network.eval()(images()).items():
        assert torch.equal(found[task], output)


def test_the_measure_is_the_mean_discrepancy_of_an_epoch() -> None:
    network = shaken(model(strength=0.5))
    assert list(network.metrics()) == []
    pets = [penalties(network, images(seed=seed))["pets"].item() / 0.5 for seed in (1, 2)]
    found = {task: value for task, name, value in network.metrics() if name == "discrepancy"}
    assert found.keys() == set(NAMES)
    assert found["pets"] == pytest.approx(sum(pets) / 2)
    network.begin_epoch(1)
    assert list(network.metrics()) == []


@each_weights
def test_the_loss_of_a_task_reaches_another_only_through_weights_that_both_train(weights: Any) -> None:
    network = shaken(model(weights=weights)).train()
    network.tasks["pets"].loss(network(images())["pets"], labels()["pets"]).backward(retain_graph=True)
    penalty = network.penalty("pets", labels()["pets"])
    assert penalty is not None
    penalty.backward()
    reached = {name for name, gradient in gradients(network).items() if gradient.any()}
    theirs = {name for name, users in network.parameter_tasks().items() if "wheels" in users}
    assert set(reached & theirs) == (set(network.shared_parameters()) if weights == "shared" else set())
    assert network.independent == (weights != "shared")


@each_weights
def test_parts_that_every_task_has_of_its_own_are_masked_like_shared_ones(weights: Any) -> None:
    network = model(norm=True, weights=weights)
    sharing = Started(sm.SoftMaskSharing(), network)
    masked = {task: set(soft) for task, soft in sharing.soft.items()}
    if weights == "own":
        assert masked == {task: {f"encoders.{task}.0.weight"} for task in NAMES}
        assert set(network.replicated_parameters()) == {
            f"encoders.{task}.{name}" for task in NAMES for name in ("0.weight", "0.bias", "1.weight", "1.bias")
        }
    else:
        assert masked["pets"] == masked["wheels"]
        assert len(masked["pets"]) == 1
        assert masked["pets"] < set(network.shared_parameters())
        assert not network.replicated_modules()


def test_training_tasks_together_is_training_them_apart_bit_for_bit() -> None:
    def trained(*names: str) -> dict[str, Tensor]:
        network = shaken_alike(model(norm=True, chosen=[task for task in tasks() if task.name in names]))
        sharing = sm.SoftMaskSharing(init="ones", lambda_=0.01)
        trainer = quiet(network, sharing=sharing, epochs=2, monitor="loss")
        trainer.fit(loader(shuffle=False), loader(8, shuffle=False))
        soft = {
            f"psi.{t}.{n}": psi.detach() for t, own in trainer.networks.items() for n, psi in own.weight_factors.items()
        }
        return {**state_of(network), **soft}

    together = trained(*NAMES)
    start = state_of(shaken_alike(model(norm=True)))
    for task in NAMES:
        alone = trained(task)
        own = [name for name in alone if name.startswith((f"encoders.{task}.", f"heads.{task}.", f"psi.{task}."))]
        assert len(own) == 14
        assert all(torch.equal(alone[name], together[name]) for name in own)
        assert not torch.equal(alone[f"encoders.{task}.0.weight"], start[f"encoders.{task}.0.weight"])


def shaken_alike(network: sm.Auxiliary) -> sm.Auxiliary:
    """Moved away from the start, every task's network in the same way whichever the tasks are."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return network


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_frozen_never_moves(masked: bool) -> None:
    network = model(norm=True, weights="frozen")
    assert isinstance(network.trunk, Frozen)
    before = state_of(network)
    sharing = sm.SoftMaskSharing(lambda_=0.1) if masked else sm.DenseSharing()
    decaying: Any = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1)  # noqa: E731
    quiet(network, sharing=sharing, optimizer=decaying, epochs=2).fit(loader(), loader(8))
    network.train()
    assert not any(module.training for module in network.trunk.modules())
    after = state_of(network)
    still = {name for name in before if name.startswith(("trunk.", "alignment_loss."))}
    assert len(still) > 6
    assert all(torch.equal(after[name], before[name]) for name in still)
    own = [name for name in before if name.startswith(("encoders.", "heads."))]
    assert not any(torch.equal(after[name], before[name]) for name in own)


@each_weights
def test_the_auxiliary_network_never_moves(weights: Any) -> None:
    network = model(norm=True, weights=weights, align="feature")
    before = state_of(network.alignment_loss)  # type: ignore[arg-type]
    quiet(network, epochs=2).fit(loader(), loader(8))
    assert before
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(network.alignment_loss).items())  # type: ignore[arg-type]


def one_step(network: sm.Auxiliary, folder: Path, **options: Any) -> sm.Trainer:
    """A run of one step of plain SGD of rate 1."""
    sgd: Any = lambda p: torch.optim.SGD(p, lr=1.0)  # noqa: E731
    whole = loader(12, batch_size=12, shuffle=False)
    return quiet(network, optimizer=sgd, folder=folder, **options).fit(whole, whole)


@each_align
def test_a_step_follows_loss_and_alignment_times_the_weight_of_the_task(tmp_path: Path, align: Any) -> None:
    network = shaken(model(align=align, strength=0.7, chosen=tasks(pets=3.0, wheels=0.5)))
    network.train()
    expected = deepcopy(network)
    before = state_of(network)
    one_step(network, tmp_path)
    outputs = expected(images())
    for name, task in expected.tasks.items():
        penalty = expected.penalty(name, labels()[name])
        assert penalty is not None
        ((task.loss(outputs[name], labels()[name]) + penalty) * task.weight).backward()
    for name, gradient in gradients(expected).items():
        torch.testing.assert_close(before[name] - network.get_parameter(name), gradient, rtol=1e-3, atol=1e-5)


def test_the_loss_that_is_told_is_the_tasks_own(tmp_path: Path) -> None:
    network = shaken(model(strength=5.0))
    with torch.no_grad():
        outputs = network.eval()(images())
    expected = {name: task.loss(outputs[name], labels()[name]).item() for name, task in network.tasks.items()}
    discrepancies = {name: slow(network, name) for name in NAMES}
    one_step(network, tmp_path)
    rows = read_metrics(tmp_path / "metrics.csv")
    told = {row.task: row.value for row in rows if (row.split, row.name) == ("train", "loss") and row.task}
    assert told == pytest.approx(expected, rel=1e-5)
    shown = {row.task: row.value for row in rows if row.name == "discrepancy"}
    assert shown == pytest.approx(discrepancies, rel=1e-4)


@pytest.mark.parametrize(("granularity", "strength"), [("weight", 2.0), ("channel", 0.7)])
@each_weights
def test_masks_are_never_negative_and_zero_exactly_where_the_proximal_step_says(
    weights: Any, granularity: Any, strength: float
) -> None:
    rate, weight = 0.05, 0.8
    network = shaken(model(weights=weights, chosen=tasks(pets=weight, wheels=weight)))
    sharing = sm.SoftMaskSharing(init="uniform", lambda_=strength, granularity=granularity)
    zeros = []

    def checked(model: Any, networks: Any, optimizer: Any, weights: Any) -> None:
        stepped = {psi: psi.detach().clone() for psi in networks.parameters() if psi.grad is not None}
        plain(model, networks, optimizer, weights)
        assert stepped
        for psi, value in stepped.items():
            assert bool((psi >= 0).all())
            assert torch.equal(psi == 0, value <= rate * weight * strength)
            zeros.append(int((psi == 0).sum()))

    plain = sharing.after_step
    sharing.after_step = checked  # type: ignore[method-assign]
    sgd: Any = lambda p: torch.optim.SGD(p, lr=rate)  # noqa: E731
    quiet(network, sharing=sharing, optimizer=sgd, epochs=2).fit(loader(), loader(8))
    assert len(zeros) == 2 * 2 * 3
    assert max(zeros) > 0


@each_weights
def test_a_network_of_one_task_is_the_masked_model_without_the_auxiliary_network(weights: Any) -> None:
    network = shaken(model(norm=True, weights=weights, align="classic"))
    sharing = sm.SoftMaskSharing(init="uniform", lambda_=0.05)
    trainer = quiet(network, sharing=sharing, epochs=2).fit(loader(), loader(8))
    for task in NAMES:
        with trainer.networks.swapped(network, task), torch.no_grad():
            expected = network.eval()(images(), tasks=[task])[task]
        folded = trainer.network(task)
        assert torch.equal(folded(images(), tasks=[task])[task], expected)
        small = sm.compact(folded, task=task)
        torch.testing.assert_close(small(images()), expected, rtol=1e-4, atol=1e-5)
        inference = [network.trunk, network.encoders[task], network.heads[task]]
        assert sum(t.numel() for t in small.state_dict().values()) <= sum(
            p.numel() for module in inference for p in module.parameters()
        )


def test_classes_of_another_batch_are_refused() -> None:
    network = shaken(model()).train()
    network(images())
    with pytest.raises(LabelError, match=r"task 'pets': expected the classes of the \d+ samples it saw, got 3"):
        network.penalty("pets", torch.tensor([0, 1, 2]))
    with pytest.raises(ParameterError, match="unknown task 'pet'"):
        network.penalty("pet", labels()["pets"])


@each_weights
def test_a_run_folder_has_what_a_tasks_network_needs_and_no_more(weights: Any, tmp_path: Path) -> None:
    network = shaken(model(weights=weights, align="feature"))
    sharing = sm.SoftMaskSharing(init="uniform", lambda_=0.05)
    trainer = quiet(network, sharing=sharing, epochs=2, folder=tmp_path).fit(loader(), loader(8))
    for task in NAMES:
        stored = TaskNetworks.load(tmp_path / "networks.safetensors", network)
        assert all(name.startswith(("trunk.", f"encoders.{task}.")) for name in stored[task].weight_factors)
        tensors: Any = stored.tensors(network, task)
        with torch.no_grad():
            alone = torch.func.functional_call(network, tensors, (images(),), {"tasks": (task,)})[task]
        assert torch.equal(trainer.predict(images())[task], alone)


class Killed(Exception):
    pass


class Dying:
    """A loader that dies before its n-th batch, counted over all epochs."""

    def __init__(self, loader: TensorLoader, batches: int) -> None:
        self.loader, self.left = loader, batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


@pytest.mark.parametrize(
    ("align", "weights"),
    [
        ("layer", "own"),
        ("feature", "shared"),
        ("classic", "own"),
        pytest.param("layer", "shared", marks=pytest.mark.slow),
        pytest.param("feature", "own", marks=pytest.mark.slow),
        pytest.param("classic", "shared", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_like_the_uninterrupted_one(tmp_path: Path, align: Any, weights: Any) -> None:
    """The run is stopped twice, in different epochs."""

    def trainer(name: str) -> sm.Trainer:
        network = shaken(model(norm=True, align=align, weights=weights))
        sharing = sm.SoftMaskSharing(init="uniform")
        return quiet(network, sharing=sharing, epochs=3, folder=tmp_path / name, checkpoint_every=2)

    trainer("whole").fit(loader(), loader(8))
    with pytest.raises(Killed):
        trainer("cut").fit(Dying(loader(), 2), loader(8))
    with pytest.raises(Killed):
        trainer("cut").fit(Dying(loader(), 5), loader(8), resume=True)
    trainer("cut").fit(loader(), loader(8), resume=True)
    whole, cut = (read_tree(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("whole", "cut"))
    assert_same(whole["model"], cut["model"])
    assert_same(whole["parts"], cut["parts"])
    figures = [[r for r in read_metrics(tmp_path / n / "metrics.csv") if r.name != "seconds"] for n in ("whole", "cut")]
    assert figures[0] == figures[1]
    assert any(row.name == "discrepancy" and row.value > 0 for row in figures[0])


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@each_align
def test_it_trains_in_mixed_precision(align: Any, kernel: Any) -> None:
    network = shaken(model(align=align, kernel=kernel))
    before = state_of(network)
    quiet(network, precision="bf16-mixed").fit(loader(8), loader(8))
    after = state_of(network)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not torch.equal(after["encoders.pets.5.weight"], before["encoders.pets.5.weight"])
    assert next(network.metrics())[2] > 0


@each_weights
@each_align
def test_a_copy_made_in_training_computes_the_same_and_has_seen_no_batch(weights: Any, align: Any) -> None:
    network = shaken(model(weights=weights, align=align)).train()
    network(images())
    copied = deepcopy(network)
    assert copied.penalty("pets", labels()["pets"]) is None
    assert network.penalty("pets", labels()["pets"]) is not None
    for task, penalty in penalties(network).items():
        assert torch.equal(penalties(copied)[task], penalty)


def test_a_copy_has_forgotten_what_the_auxiliary_network_gave() -> None:
    network = model(align="feature")
    penalties(network)
    loss, copied = network.alignment_loss, deepcopy(network).alignment_loss
    assert isinstance(loss, FeatureAlignment)
    assert isinstance(copied, FeatureAlignment)
    assert (len(loss.cache), len(copied.cache)) == (12, 0)


@each_weights
@each_align
def test_a_state_dict_restores_outputs_and_alignment(weights: Any, align: Any) -> None:
    network, fresh = shaken(model(weights=weights, align=align)), model(weights=weights, align=align)
    for tensor in fresh.buffers():
        tensor.zero_()
    fresh.load_state_dict(network.state_dict())
    for task, penalty in penalties(network).items():
        assert torch.equal(penalties(fresh)[task], penalty)
    for task, output in network.eval()(images()).items():
        assert torch.equal(fresh.eval()(images())[task], output)


def test_with_a_linear_kernel_no_copy_of_the_convolutions_is_kept() -> None:
    layers = sum(p.numel() for p in (*big()[0][5:].parameters(), *big()[1].parameters()))
    assert sum(t.numel() for t in model().alignment_loss.buffers()) == layers  # type: ignore[union-attr]
    assert model(strength=0).alignment_loss is None


@each_weights
def test_tasks_that_are_no_classifications_do_without_alignment(weights: Any) -> None:
    mixed = [*tasks(), sm.Regression("size")]
    with pytest.raises(ParameterError, match="task 'size' is a Regression, and alignment compares classes"):
        model(chosen=mixed, weights=weights)
    with torch.no_grad():
        assert model(chosen=mixed, weights=weights, align="none")(images())["size"].shape == (12, 1)


@pytest.mark.parametrize("align", ["layer", "none"])
def test_layers_that_are_not_there_are_refused_with_the_nearest_name(align: Any) -> None:
    with pytest.raises(ParameterError, match=r"layers: Sequential: unknown linear layer '55'\. Did you mean '5'\?"):
        model(layers=["55"], align=align)
    with pytest.raises(ParameterError, match="layers: Sequential: unknown linear layer '0'"):
        model(layers=["0"])  # a convolution


@pytest.mark.parametrize("weights", ["shared", "frozen"])
def test_nothing_is_shared_by_networks_that_begin_with_a_fully_connected_layer(weights: Any) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 6))
    with pytest.raises(
        ParameterError, match=r"nothing before its first fully connected layer.*`weights: own`.*`layers`"
    ):
        sm.Auxiliary(encoder, tasks(), weights=weights)
    assert sm.Auxiliary(encoder, tasks(), weights=weights, layers=["3"]).shared_parameters()


def test_the_classic_reading_needs_samples() -> None:
    encoder, head = big()
    with pytest.raises(ParameterError, match="align='classic' compares with the samples"):
        sm.Auxiliary(encoder, tasks(), source=sm.Source(everything(), head), align="classic")


@pytest.mark.parametrize("options", [{"heads": {"pets": nn.Linear(6, 3)}}, {"class_map": {"pets": None}}])
def test_the_classic_reading_needs_the_classes_of_every_task(options: Any) -> None:
    with pytest.raises(ParameterError, match="task 'pets': its classes are not known"):
        model(align="classic", **options)


def test_a_map_without_a_source_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"class_map: the auxiliary network's last layer is not known"):
        sm.Auxiliary(big()[0], tasks(), class_map={"pets": {"dog": "cat"}})


def test_a_class_that_the_auxiliary_task_lacks_is_named() -> None:
    with pytest.raises(ParameterError, match=r"lacks its class 'dogs' \(perhaps 'dog'\)"):
        model(chosen=[sm.Classification("pets", ["dogs", "cat"])])


def test_a_network_without_a_layer_to_align_is_refused() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    with pytest.raises(ParameterError, match="task 'pets' has no fully connected layer to align"):
        sm.Auxiliary(encoder, tasks())


def test_layers_that_read_sequences_are_named_when_they_do() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(2), nn.Linear(4, 3), nn.Flatten(), nn.Linear(12, 6))
    with pytest.raises(ParameterError, match=r"layer '2' reads features of shape \(12, 4, 4\)"):
        sm.Auxiliary(encoder, tasks()).train()(images())
    assert sm.Auxiliary(encoder, tasks(), layers=["4"]).train()(images())["pets"].shape == (12, 3)


def test_strength_is_not_negative() -> None:
    with pytest.raises(ParameterError, match="strength"):
        model(strength=-1)
