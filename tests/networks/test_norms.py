"""Norm statistics of a task: those of a copy of the model that only ever saw this task's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
from lightning_fabric import Fabric
from loops import each
from torch import Tensor, nn

from sparsemtl import Classification, SharedBottom, TaskMasks, TaskNorms
from sparsemtl.errors import MaskError
from sparsemtl.networks.norms import own_statistics, shared_norms, statistics_of
from sparsemtl.networks.recomputed_norms import dense_statistics
from sparsemtl.networks.task_networks import dense_networks


def dense_encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4))


def conv_encoder() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Flatten()
    )


def cumulative_encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None, affine=False))


ENCODERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "linear": (dense_encoder, 4),
    "conv": (conv_encoder, 8),
    "cumulative": (cumulative_encoder, 4),
}
every_encoder = each("kind", ENCODERS)


def model_of(kind: str) -> SharedBottom:
    """A model whose encoder has norms, and whose head of task `b` has one of its own."""
    torch.manual_seed(0)
    make, width = ENCODERS[kind]
    heads = {"a": nn.Linear(width, 2), "b": nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 3))}
    return SharedBottom(make(), [Classification("a", 2), Classification("b", 3)], heads)


def batches(seed: int, count: int = 3, size: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(size, 6, generator=generator) + 1 for _ in range(count)]


def frozen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def see(model: nn.Module, norms: TaskNorms, task: str, seen: list[Tensor]) -> None:
    model.train()
    for x in seen:
        with norms.applied(model, task):
            model(x, tasks=(task,))


@every_encoder
def test_every_task_starts_with_the_models_statistics(kind: str) -> None:
    model = model_of(kind)
    for x in batches(1):
        model(x)
    norms = TaskNorms(model)
    own = frozen(statistics_of(model))
    see(model, norms, "a", batches(2))
    assert_equal(norms["b"], own)


@every_encoder
def test_a_tasks_statistics_are_those_of_a_copy_that_saw_its_batches_only(kind: str) -> None:
    model = model_of(kind)
    norms = TaskNorms(model)
    own = frozen(statistics_of(model))
    copies = {task: deepcopy(model) for task in model.tasks}
    for step in range(3):
        for number, (task, copy) in enumerate(copies.items()):
            x = batches(10 * step + number, 1)
            see(model, norms, task, x)
            copy.train()(x[0], tasks=(task,))
    for task, copy in copies.items():
        assert_equal(norms[task], statistics_of(copy))
    assert_equal(statistics_of(model), own)


@every_encoder
def test_a_tasks_batches_never_change_another_tasks_statistics(kind: str) -> None:
    model = model_of(kind)
    norms = TaskNorms(model)
    see(model, norms, "b", batches(1))
    before = frozen(norms["b"])
    see(model, norms, "a", batches(2))
    assert_equal(norms["b"], before)
    changed = [name for name, tensor in norms["a"].items() if not torch.equal(tensor, before[name])]
    assert {name.rsplit(".", 1)[1] for name in changed} >= {"running_mean", "running_var"}


@every_encoder
def test_in_eval_mode_a_task_uses_its_own_statistics_and_changes_none(kind: str) -> None:
    model = model_of(kind)
    norms = TaskNorms(model)
    for seed, task in enumerate(model.tasks):
        see(model, norms, task, batches(seed))
    before = norms.state_dict()
    x = batches(5, 1)[0]
    for task in model.tasks:
        copy = deepcopy(model).eval()
        copy.load_state_dict(copy.state_dict() | norms[task])
        with norms.applied(model.eval(), task):
            found = model(x, tasks=(task,))[task]
        assert torch.equal(found, copy(x)[task])
        assert not torch.equal(found, model(x)[task])
    for task in model.tasks:
        assert_equal(norms[task], before[task])


def test_scale_and_shift_stay_shared_and_heads_keep_their_own_statistics() -> None:
    model = model_of("linear")
    norms = TaskNorms(model)
    head = model.heads["b"][0].running_mean.clone()
    see(model, norms, "b", batches(1))
    assert list(norms["b"]) == [name for name, _ in model.named_buffers() if name.startswith("encoder.")]
    assert not torch.equal(model.heads["b"][0].running_mean, head)
    with norms.applied(model, "a"):
        assert model.encoder[1].weight is model.get_parameter("encoder.1.weight")


def test_norms_without_running_statistics_have_none_a_task() -> None:
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4))
    model = SharedBottom(encoder, [Classification("a", 2)], {"a": nn.Linear(4, 2)})
    norms = TaskNorms(model)
    assert norms["a"] == {}
    with norms.applied(model, "a"):
        assert torch.equal(model(batches(0, 1)[0])["a"], model(batches(0, 1)[0])["a"])


@pytest.mark.parametrize("masks_first", [True, False])
def test_norms_go_with_masks_in_either_order(masks_first: bool) -> None:
    model = model_of("linear")
    generator = torch.Generator().manual_seed(3)
    mask = {"encoder.0.weight": torch.rand(5, 6, generator=generator) < 0.5}
    masks, norms = TaskMasks({"a": mask, "b": mask}), TaskNorms(model)
    copy = deepcopy(model)
    with torch.no_grad():
        copy.encoder[0].weight.mul_(mask["encoder.0.weight"])
    x = batches(1, 1)[0]
    contexts = [masks.applied(model, "a"), norms.applied(model, "a")]
    first, second = contexts if masks_first else reversed(contexts)
    with first, second:
        assert torch.equal(model(x, tasks=("a",))["a"], copy(x, tasks=("a",))["a"])
    assert_equal(norms["a"], statistics_of(copy))


def test_norms_reach_through_fabric() -> None:
    model = model_of("linear")
    norms = TaskNorms(model)
    copy = deepcopy(model)
    see(Fabric(accelerator="cpu", devices=1).setup_module(model), norms, "a", batches(1))
    for x in batches(1):
        copy(x, tasks=("a",))
    assert_equal(norms["a"], statistics_of(copy))


def test_statistics_follow_the_model_to_its_device_even_in_inference_mode() -> None:
    model = model_of("linear")
    norms = TaskNorms(model)
    with torch.inference_mode(), norms.applied(model.to("meta"), "a"):
        pass
    assert {tensor.device.type for tensor in norms["a"].values()} == {"meta"}
    assert not any(tensor.is_inference() for tensor in norms["a"].values())


def test_an_unknown_task_is_an_error_with_the_nearest_name() -> None:
    model = model_of("linear")
    norms = TaskNorms(model)
    with pytest.raises(MaskError, match=r"unknown task 'c'\. Known: a, b"):
        norms["c"]
    with pytest.raises(MaskError, match=r"unknown task 'c'\. Known: a, b"):
        norms.applied(model, "c")


@every_encoder
def test_a_state_is_a_copy_that_brings_everything_back(kind: str) -> None:
    model = model_of(kind)
    norms = TaskNorms(model)
    see(model, norms, "a", batches(1))
    state, expected = norms.state_dict(), frozen(norms["a"])
    see(model, norms, "a", batches(2))
    assert_equal(state["a"], expected)
    other = TaskNorms(model_of(kind))
    other.load_state_dict(state)
    see(model, other, "a", batches(2))
    assert_equal(other["a"], norms["a"])
    assert_equal(state["a"], expected)


State = dict[str, dict[str, Tensor]]
FOREIGN: dict[str, tuple[Callable[[State], State], str]] = {
    "a task less": (lambda s: {"a": s["a"]}, r"b/encoder\.1\.running_mean: the state has shape absent, .* \(5,\)"),
    "a task more": (lambda s: s | {"c": s["a"]}, r"c/encoder\.1\.running_mean: .* \(5,\), the model absent"),
    "a norm less": (lambda s: s | {"b": dict(list(s["b"].items())[:3])}, r"b/encoder\.4\.running_mean: .* absent"),
    "another width": (
        lambda s: s | {"b": {name: tensor[..., None] for name, tensor in s["b"].items()}},
        r"b/encoder\.1\.running_mean: the state has shape \(5, 1\), the model \(5,\)",
    ),
}


@pytest.mark.parametrize("why", FOREIGN)
def test_a_state_of_another_model_is_refused(why: str) -> None:
    make, message = FOREIGN[why]
    state = make(TaskNorms(model_of("linear")).state_dict())
    norms = TaskNorms(model_of("linear"))
    before = norms.state_dict()
    with pytest.raises(MaskError, match=message):
        norms.load_state_dict(state)
    for task in before:
        assert_equal(norms[task], before[task])


@every_encoder
def test_batch_statistics_in_eval_mode_are_those_of_train_mode_and_are_not_remembered(kind: str) -> None:
    model = model_of(kind)
    see(model, TaskNorms(model), "a", batches(1))
    before = frozen(statistics_of(model))
    x = batches(2, 1)[0]
    expected = deepcopy(model).train()(x, tasks=("a",))["a"]
    for training in (False, True):
        networks = dense_networks(model, model.tasks, own_statistics(model, "batch"))
        with networks.swapped(model.train(training), next(iter(model.tasks))):
            assert torch.equal(model(x, tasks=("a",))["a"], expected)
    assert_equal(statistics_of(model), before)
    assert not torch.equal(model.eval()(x)["a"], expected)


@every_encoder
def test_recalibrated_statistics_are_the_averages_over_the_batches(kind: str) -> None:
    model = model_of(kind)
    for x in batches(9):
        model(x)
    copy = deepcopy(model)
    for norm in shared_norms(copy).values():
        norm.reset_running_stats()
        norm.momentum = None
    for x in batches(1, 4):
        copy(x, tasks=("a",))
    x = batches(2, 1)[0]
    with dense_statistics(model, batches(1, 4), "a"):
        torch.testing.assert_close(model.eval()(x)["a"], copy.eval()(x)["a"])


def test_the_first_norms_recalibrated_mean_is_the_mean_of_its_inputs() -> None:
    model = model_of("linear").double()
    x = [batch.double() for batch in batches(1, 4)]
    with dense_statistics(model, x, "a"):
        read = model.encoder[1].running_mean
        assert torch.allclose(read, model.encoder[0](torch.cat(x)).mean(0), rtol=1e-12)


def condition(model: nn.Module) -> list[object]:
    """Modes, momenta, statistics, and what every module holds."""
    modes = [module.training for module in model.modules()]
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    buffers = [buffer.tolist() for buffer in model.buffers()]
    return [modes, momenta, buffers, [set(vars(module)) for module in model.modules()]]


def failing(count: int) -> Iterator[Tensor]:
    yield from batches(1, count)
    raise ZeroDivisionError


def test_recalibrating_changes_nothing_afterwards() -> None:
    model = model_of("linear").train()
    model.encoder[1].eval()
    before = condition(model)
    with dense_statistics(model, batches(1), "a"):
        assert [module.training for module in model.modules()] == before[0]
    assert condition(model) == before


def test_recalibrating_changes_nothing_where_it_fails() -> None:
    model = model_of("linear").train()
    before = condition(model)
    with pytest.raises(ZeroDivisionError), dense_statistics(model, failing(2), "a"):
        pass
    assert condition(model) == before
    with pytest.raises(ZeroDivisionError), dense_statistics(model, batches(1), "a"):
        raise ZeroDivisionError
    assert condition(model) == before


def test_recalibrating_a_model_without_norms_reads_no_data() -> None:
    model = SharedBottom(nn.Linear(6, 4), [Classification("a", 2)], {"a": nn.Linear(4, 2)})
    x = batches(1, 1)[0]
    plain = model(x)["a"]
    with dense_statistics(model, failing(0), "a"):  # reading a batch would raise
        assert torch.equal(model(x)["a"], plain)
