"""What every method of the registry has to keep. A class put in `SHARING` is tested here at once.

A method goes through the contract with its defaults, and with every value of each parameter that has a closed set of
them, values of several parameters at a time.
"""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from copy import deepcopy
from itertools import pairwise, product
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from loops import each
from policies import Started
from routed_toys import TASKS, TOYS, model_of
from routed_toys import batch_of as batch_of_toy
from sharing_toys import (
    NAMES,
    assert_held,
    batch_of,
    build,
    double,
    encoder,
    engine_of,
    loader,
    model,
    own_loaders,
    parameters_of,
    run_epoch,
    takes,
    tasks,
    trained,
    watch_steps,
)
from states import assert_same, state_of
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import ConfigError, MaskError, ParameterError
from sparsemtl.networks.randomness import random_state
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import parameters_of as keywords_of
from sparsemtl.sharing import SHARING, PBFSSharing, ProximalSharing, Sharing, SoftMaskSharing
from sparsemtl.sharing.sharing import TURNS, Update
from sparsemtl.storage.files import read_tree, write_tree
from sparsemtl.tasks.batches import Loaders
from sparsemtl.training.mixing import epoch_batches
from sparsemtl.training.steps.step import TrainingStep

each_method = each("method", SHARING)


def choices(hint: Any) -> list[Any]:
    """The values of an annotation that lists them."""
    if hint is bool:
        return [False, True]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return [value for option in get_args(hint) for value in choices(option)]
    return []


def variants(method: str) -> list[dict[str, Any]]:
    """The defaults, and options in which each value that is no default occurs once, those of a parameter in turn."""
    base = {"keep": 0.5} if takes(method, "keep") else {}
    values = {
        name: [
            value for value in choices(parameter.hint) if value != parameter.default and can_train(method, name, value)
        ]
        for name, parameter in keywords_of(SHARING[method]).items()
        if name != "linear"  # the toy has no other layers
    }
    rows: list[dict[str, Any]] = [{} for _ in range(max(map(len, values.values()), default=0))]
    for shift, (name, those) in enumerate(values.items()):
        for position, value in enumerate(those):
            rows[(shift + position) % len(rows)][name] = value
    return [base, *(base | row for row in rows)]


def can_train(method: str, name: str, value: Any) -> bool:
    """False for heads, as the toy has no attention, and for `joint` where it is rightly refused; see its test."""
    if (name, value) == ("update", "joint"):
        return Started(build(method, keep=0.5), model()).one_network
    return bool(value != "head")


each_variant = each(("method", "options"), [(method, options) for method in SHARING for options in variants(method)])


@functools.cache
def trained_once(method: str, options: tuple[tuple[str, Any], ...]) -> TrainingStep:
    return trained(build(method, **dict(options)), loader())


def trained_variant(method: str, options: dict[str, Any]) -> TrainingStep:
    """An engine of its own after two epochs, the same for every test that asks."""
    return deepcopy(trained_once(method, tuple(options.items())))


@each_method
def test_its_docstring_begins_with_a_sentence_and_every_parameter_has_a_meaning(method: str) -> None:
    assert SHARING.summary(method).endswith(".")
    for name, parameter in keywords_of(SHARING[method]).items():
        assert parameter.meaning, name


@each_method
def test_values_out_of_range_are_refused_by_name(method: str) -> None:
    with pytest.raises(ConfigError, match="unknown parameter 'nonsense'"):
        SHARING.build(method, nonsense=1)
    for name, parameter in keywords_of(SHARING[method]).items():
        if choices(parameter.hint):
            with pytest.raises(ParameterError, match=rf"'{name}' parameter of \w+ must be .* Got 'nonsense'"):
                SHARING.build(method, **{name: "nonsense"})


@each_method
def test_before_heads_know_their_width_it_starts_or_says_what_to_do(method: str) -> None:
    waiting = sm.SharedBottom(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU()), tasks())
    try:
        build(method, keep=0.5).start(waiting)
    except ParameterError as error:
        assert "has no shape yet. Run the model on one batch first" in str(error) or "first batch" in str(error)  # noqa: PT017


@each_variant
def test_it_trains_the_way_asked_for_or_the_way_that_fits_the_data(method: str, options: dict[str, Any]) -> None:
    sharing = Started(build(method, **options), model())
    keywords = keywords_of(SHARING[method])
    if asked := options.get("update", keywords["update"].default if "update" in keywords else None):
        assert sharing.update_for(own_data=False) == asked
        # where each task has its own data, each has a forward pass of its own
        assert sharing.update_for(own_data=True) == ("average" if asked == "joint" else asked)
    else:
        assert sharing.update_for(own_data=True) == "average"
        assert sharing.update_for(own_data=False) == ("joint" if sharing.one_network else "alternate")


@each(("method", "bn"), product(SHARING, ["shared", "per_task", "batch"]))
def test_one_forward_for_all_tasks_is_refused_where_each_has_a_network_of_its_own(method: str, bn: str) -> None:
    sharing = Started(build(method, update="joint", bn=bn), model())
    if sharing.one_network:
        assert sharing.update_for(own_data=False) == "joint"
    else:
        with pytest.raises(ParameterError, match=r"update='joint' .* Use update='average', or 'alternate'"):
            sharing.update_for(own_data=False)


@each_variant
def test_beginning_an_epoch_changes_neither_the_model_nor_what_is_drawn_next(
    method: str, options: dict[str, Any]
) -> None:
    network = model(dropout=0.2)
    sharing = Started(build(method, **options), network)
    network.train().encoder[1].eval()
    modes, before = [module.training for module in network.modules()], state_of(network)
    for epoch in range(4):
        drawn = random_state()
        sharing.begin_epoch(epoch, loader())
        assert_same(random_state(), drawn)
    assert_same(state_of(network), before)
    assert [module.training for module in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())


@each_method
def test_a_loop_that_begins_no_epoch_is_refused(method: str) -> None:
    """A method that acts before epochs would train dense networks."""
    network, sharing = model(), build(method)
    engine = engine_of(network, sharing)
    acts = type(sharing).begin_epoch is not Sharing.begin_epoch
    assert sharing.needs_epoch == acts
    groups = next(iter(epoch_batches(loader(), engine.tasks, "longest")))
    if acts:
        before = state_of(network)
        with pytest.raises(ParameterError, match=r"none has begun.*Call `step.begin_epoch"):
            engine.step([groups])
        assert_same(state_of(network), before)
    engine.begin_epoch(0, loader())
    assert not sharing.needs_epoch
    engine.step([groups])
    state = sharing.state_dict()
    sharing.start(network)
    assert sharing.needs_epoch == acts
    sharing.load_state_dict(state)
    assert not sharing.needs_epoch


def entries(network: nn.Module) -> list[dict[str, int]]:
    return [{name: id(value) for name, value in vars(module).items()} for module in network.modules()]


@each_variant
def test_a_view_leaves_nothing_behind_even_where_it_fails(method: str, options: dict[str, Any]) -> None:
    engine = trained_variant(method, options)
    network, sharing = engine.model.eval(), Started.of(engine)
    held, state, norms = entries(network), state_of(network), sharing.state_dict()
    for task in NAMES:
        with torch.no_grad(), sharing.view(task):
            network(batch_of(3).x, tasks=(task,))
        with pytest.raises(ZeroDivisionError), sharing.view(task):
            raise ZeroDivisionError
    assert entries(network) == held
    assert_same(state_of(network), state)
    assert_same(sharing.state_dict(), norms)


@each_variant
def test_one_network_means_that_all_views_compute_the_same(method: str, options: dict[str, Any]) -> None:
    engine = trained_variant(method, options)
    outputs = []
    for task in NAMES:
        with torch.no_grad(), Started.of(engine).view(task):
            outputs.append(engine.model.eval()(batch_of(3).x)["kind"])
    same = all(torch.equal(outputs[0], other) for other in outputs[1:])
    sharing = Started.of(engine)
    assert same if sharing.one_network else not same or masked_alike(sharing) or normed_alike(sharing)


def masked_alike(sharing: Started) -> bool:
    """True if all tasks happen to have one mask, as where magnitude ranks the weights."""
    masks = sharing.masks
    return masks is not None and all(torch.equal(masks.flat(NAMES[0]), masks.flat(task)) for task in NAMES)


def normed_alike(sharing: Started) -> bool:
    """True if masks hold gradients alone and all tasks happen to have seen the same batches with the same weights."""
    first, *others = (sharing.norms[task] for task in NAMES)
    same = all(torch.equal(tensor, other[name]) for name, tensor in first.items() for other in others)
    return same and sharing.gradient_mask(NAMES[0]) is not None


@each_variant
def test_what_it_says_about_weights_fits_the_shared_ones(method: str, options: dict[str, Any]) -> None:
    engine = trained_variant(method, options)
    shared = engine.model.shared_parameters()
    together = Started.of(engine).active(NAMES)
    for task in NAMES:
        alone = Started.of(engine).active((task,))
        for mask in (alone, together, Started.of(engine).gradient_mask(task)):
            for name, tensor in (mask or {}).items():
                assert (tensor.dtype, tensor.shape) == (torch.bool, shared[name].shape)
        for name, wide in (together or {}).items():
            assert alone is not None, "a step for all tasks is held, one for a single task is not"
            assert not bool((alone[name] & ~wide).any())
        penalty = Started.of(engine).penalty(task)
        assert penalty is None or penalty.ndim == 0


@each_variant
def test_a_step_moves_only_what_it_may(method: str, options: dict[str, Any]) -> None:
    engine = trained_variant(method, options)
    Started.of(engine).begin_epoch(2, loader())
    for seed in range(3):
        states, networks = watch_steps(engine), engine.networks
        result = engine.step([[batch_of(seed)]])
        stepped = [(task,) for task in result.losses] if engine.update in TURNS else [NAMES]
        assert len(result.losses) == (1 if engine.update == "random_one" else len(NAMES))
        for those, (before, after) in zip(stepped, pairwise(states), strict=True):
            assert_held(before, after, networks.trainable(those))


@each_variant
def test_a_task_without_labels_has_no_part_in_a_step(method: str, options: dict[str, Any]) -> None:
    engine = trained_variant(method, options)
    before = parameters_of(engine.model)
    engine.step([[batch_of(5, ("marks",))]])
    after = parameters_of(engine.model)
    assert_held(before, after, Started.of(engine).active(("marks",)))
    moved = {
        name.split(".")[1] for name in after if name.startswith("heads") and not torch.equal(after[name], before[name])
    }
    assert moved == {"marks"}


def resumed(engine_state: dict[str, Any], method: str, options: dict[str, Any], path: Path) -> Any:
    """An engine that goes on from a file."""
    write_tree(path, engine_state)
    state = read_tree(path)
    engine = engine_of(model(), build(method, **options))
    engine.model.load_state_dict(state["model"])
    Started.of(engine).load_state_dict(state["sharing"])
    engine.optimizer.load_state_dict(state["optimizer"])
    return engine


@each_variant
def test_a_run_goes_on_from_its_state_bit_for_bit(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    engine = trained_variant(method, options)
    parts = {"model": engine.model, "sharing": Started.of(engine), "optimizer": engine.optimizer}
    state = {name: part.state_dict() for name, part in parts.items()}
    again = resumed(state, method, options, tmp_path / "state.safetensors")
    assert list(Started.of(again).metrics()) == list(Started.of(engine).metrics())
    for one in (engine, again):
        torch.manual_seed(11)
        for epoch in (2, 3):
            run_epoch(one, loader(), epoch)
    assert_same(state_of(again.model), state_of(engine.model))
    assert_same(Started.of(again).state_dict(), Started.of(engine).state_dict())


@each_variant
def test_its_measures_are_finite_numbers_of_tasks_or_of_the_whole(method: str, options: dict[str, Any]) -> None:
    engine = trained_variant(method, options)
    measures = list(Started.of(engine).metrics())
    assert len({(task, name) for task, name, _ in measures}) == len(measures)
    for task, name, value in measures:
        assert task in ("", *NAMES)
        assert name
        assert isinstance(value, float)
        assert math.isfinite(value)


@each_method
def test_once_settled_it_stays_settled(method: str) -> None:
    sharing = build(method)
    settled = [sharing.is_selectable(epoch) for epoch in range(50)]
    assert settled == sorted(settled)
    assert settled[-1]


@pytest.mark.filterwarnings(
    "ignore:.*none is zero in the selected model"
)  # penalties have no time to act in two epochs
@each(("method", "data"), product(SHARING, ["shared", "own"]))
def test_the_trainer_runs_it_on_data_of_both_kinds(method: str, data: str, tmp_path: Path) -> None:
    train, validation, test = (loader(seed=s) if data == "shared" else own_loaders(8 * (s + 1)) for s in range(3))
    network = model()
    trainer = sm.Trainer(
        network,
        sharing=build(method),
        epochs=2,
        folder=tmp_path / f"{method}-{data}",
        measure_cost=data == "shared",
        progress=False,
        accelerator="cpu",
    ).fit(train, validation)
    results = trainer.test(test)
    assert list(results) == list(NAMES)
    assert all(math.isfinite(value) for metrics in results.values() for value in metrics.values())
    assert all(len(output) == 8 for output in trainer.predict(batch_of(0).x).values())


@pytest.mark.filterwarnings("ignore::sparsemtl.errors.SparseMTLWarning")  # of layers that die, and of regression
@each(("method", "toy"), product(SHARING, TOYS))
def test_it_trains_networks_of_every_kind_whose_files_compute_the_same(method: str, toy: str, tmp_path: Path) -> None:
    network = model_of(toy)
    data = [batch_of_toy(toy, seed=seed) for seed in range(2)]
    engine = engine_of(network, build(method, keep=0.5), optimizer="sgd")
    for epoch in range(2):
        run_epoch(engine, data, epoch)
    engine.networks.save(tmp_path / "networks")
    loaded = TaskNetworks.load(tmp_path / "networks", network)
    for task in TASKS:
        outputs = []
        for networks in (engine.networks, loaded):
            with torch.no_grad(), networks.swapped(network, task):
                outputs.append(network.eval()(data[0][0], tasks=(task,))[task])
        assert torch.equal(*outputs)
        assert bool(outputs[0].isfinite().all())


@pytest.mark.filterwarnings("ignore::sparsemtl.errors.SparseMTLWarning")  # of networks that run whole
@each_method
def test_training_on_slices_ends_with_the_weights_of_masked_execution(method: str) -> None:
    """Single weights are no slices, and run masked; so do masks that act on outputs of a norm that others read."""
    ends = []
    hint = keywords_of(SHARING[method])["granularity"].hint if takes(method, "granularity") else None
    units = {"granularity": "channel"} if "channel" in choices(hint) else {}
    for slices in (False, True):
        engine = engine_of(model().double(), build(method, keep=0.5, **units), optimizer="sgd")
        engine.slices = sm.TaskSlices(engine.model) if slices else None
        torch.manual_seed(7)
        for epoch in range(3):
            Started.of(engine).begin_epoch(epoch, loader())
            engine.model.train()
            for seed in range(3):
                engine.step([[double(batch_of(seed))]])
        ends.append(parameters_of(engine.model))
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, rtol=1e-9, atol=1e-9)


@each_method
def test_it_works_without_norms(method: str) -> None:
    engine = trained(build(method, keep=0.5), loader(), network=model(norm=False))
    assert all(bool(p.isfinite().all()) for p in engine.model.parameters())


@each_method
def test_a_model_that_shares_nothing_is_trained_or_refused_in_words(method: str) -> None:
    torch.manual_seed(0)
    apart, sharing = sm.SingleTask(encoder(), tasks()), build(method)
    name = type(sharing).__name__
    refused = {
        (
            sm.FisherSharing,
            sm.RandomSharing,
            PBFSSharing,
            sm.TaskRoutingSharing,
            sm.MaximumRoamingSharing,
            sm.DiSparseSharing,
            sm.SparseTrainingSharing,
            sm.LotterySharing,
        ): pytest.raises(MaskError, match=rf"{name} masks .* SingleTask shares none. Use Dense"),
        ProximalSharing: pytest.raises(
            ParameterError, match=rf"{name} finds nothing to make sparse: SingleTask shares 0"
        ),
        SoftMaskSharing: pytest.raises(ParameterError, match=rf"{name} finds nothing to mask: .* SingleTask share"),
    }
    with next((context for kind, context in refused.items() if isinstance(sharing, kind)), nullcontext()):
        assert trained(sharing, loader(), network=apart).update == "alternate"


MODES: list[Update] = ["alternate", "average"]
MASKED = [method for method in SHARING if takes(method, "keep")]


def everything(method: str, **options: Any) -> Sharing:
    """The method at the value of its parameter at which it keeps all weights."""
    return build(method, keep=1.0, warmup=1, update_every=1, **options)


@functools.cache
def dense(update: Update, bn: str, data: str = "shared", **options: Any) -> tuple[dict[str, Tensor], Any]:
    """Tensors of a model and norms of its tasks after dense training, which the tests only read."""
    if "epochs" in options:
        options["network"] = model(dropout=0.3)
    engine = trained(build("dense", bn=bn), loader() if data == "shared" else own_loaders(), update=update, **options)
    return state_of(engine.model), Started.of(engine).norms


WAYS: list[tuple[Update, str, str]] = [
    ("alternate", "shared", "weights"),
    ("alternate", "per_task", "weights"),
    ("alternate", "batch", "gradients"),
    ("average", "shared", "gradients"),
    ("average", "per_task", "gradients"),
    ("average", "batch", "weights"),
]
"""Way of training, norms, and what masks act on."""
PARTS = [
    ("shared", True, "weight"),
    ("shared", False, "channel"),
    ("own", True, "channel"),
    ("own", False, "weight"),
]
"""Data, strict steps or not, and granularity."""


@each(("method", "update", "bn", "mask_applies_to"), [(method, *way) for method in MASKED for way in WAYS])
def test_keeping_everything_is_dense_training_bit_for_bit(
    method: str, update: Update, bn: str, mask_applies_to: str
) -> None:
    sharing = everything(method, update=update, bn=bn, mask_applies_to=mask_applies_to)
    masked = trained(sharing, loader(), epochs=3, network=model(dropout=0.3))
    assert_same((state_of(masked.model), Started.of(masked).norms), dense(update, bn, epochs=3))


@each(("method", "data", "strict", "granularity"), [(method, *part) for method in MASKED for part in PARTS])
def test_keeping_everything_is_dense_training_on_any_data_and_granularity(
    method: str, data: str, strict: bool, granularity: str
) -> None:
    loaders: Loaders = loader() if data == "shared" else own_loaders()
    sharing = everything(method, strict=strict, granularity=granularity)
    masked = trained(sharing, loaders, optimizer="sgd")
    like = dense(masked.update, sharing.bn, data, optimizer="sgd")
    assert_same((state_of(masked.model), Started.of(masked).norms), like)


@each("method", [method for method in MASKED if takes(method, "mask_applies_to")])
def test_keeping_everything_in_one_forward_is_dense_training_up_to_rounding(method: str) -> None:
    """The tasks go backward one by one here and all at once there, so sums round differently."""
    sharing = everything(method, mask_applies_to="gradients", update="joint")
    masked = trained(sharing, loader(), optimizer="sgd", network=model(norm=False))
    plain = trained(build("dense"), loader(), optimizer="sgd", network=model(norm=False))
    assert masked.update == plain.update == "joint"
    for name, p in masked.model.named_parameters():
        torch.testing.assert_close(p, plain.model.get_parameter(name), rtol=1e-4, atol=1e-6)


@each(("method", "update"), product(MASKED, MODES))
def test_the_trainer_with_everything_kept_ends_like_the_dense_one(method: str, update: Update) -> None:
    kept = build(method, keep=1.0, warmup=0, update=update)
    assert_same(trainers_end(kept), dense_trainers_end(update, kept.bn))


@functools.cache
def dense_trainers_end(update: Update, bn: str) -> dict[str, Any]:
    return trainers_end(build("dense", update=update, bn=bn))


def trainers_end(sharing: Sharing) -> dict[str, Any]:
    """Per task the tensors of its network after two epochs."""
    trainer = sm.Trainer(
        model(dropout=0.3), sharing=sharing, epochs=2, measure_cost=False, progress=False, accelerator="cpu"
    ).fit(loader(), loader(seed=2))
    return {task: trainer.networks.tensors(trainer.model, task) for task in NAMES}
