"""A multi-task model becomes one network a task, or one for some tasks."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from compaction_toys import alive, assert_same_outputs, compacted, widths, zeroed
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import resnet18
from sparsemtl.compaction import compact, macs, parameter_count
from sparsemtl.errors import MaskError, ParameterError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.storage.files import read_tensors, write_tensors

TASKS = ("a", "b")
IMAGES = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model_of(width: int = 8) -> sm.SharedBottom:
    torch.manual_seed(0)
    model = sm.SharedBottom(resnet18((3, 32, 32), width=width), [sm.Classification("a", 3), sm.Regression("b")])
    alive(model)
    return model


def channel_masks(model: sm.SharedBottom, keep: float = 0.5) -> sm.TaskMasks:
    """Whole output channels for each task, at random."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: weight for name, weight in model.shared_parameters().items() if weight.ndim == 4}
    return sm.TaskMasks(
        {
            task: {
                name: (torch.rand(len(weight), 1, 1, 1, generator=generator) < keep).expand_as(weight).clone()
                for name, weight in weights.items()
            }
            for task in TASKS
        }
    )


def weight_masks(model: sm.SharedBottom) -> sm.TaskMasks:
    """Single weights for each task, at random."""
    torch.manual_seed(0)
    weights = {name: weight for name, weight in model.shared_parameters().items() if weight.ndim == 4}
    return sm.TaskMasks({t: {name: torch.rand_like(weight) < 0.3 for name, weight in weights.items()} for t in TASKS})


def own_norms(model: sm.SharedBottom) -> sm.TaskNorms:
    """Statistics that differ from task to task."""
    generator = torch.Generator().manual_seed(1)
    norms = sm.TaskNorms(model)
    for task in TASKS:
        for name, tensor in norms[task].items():
            if not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norms


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["channels", "weights"])
def test_a_tasks_network_gives_what_the_masked_model_does(task: str, kind: str) -> None:
    model = model_of()
    masks = channel_masks(model) if kind == "channels" else weight_masks(model)
    small = compact(model, masks, task=task)
    with torch.no_grad(), masks.applied(model, task):
        expected = model(IMAGES)[task]
        assert (model(IMAGES)[task] - small(IMAGES)).abs().max() <= 1e-12 * expected.abs().max()
    assert isinstance(small(IMAGES), Tensor)


@pytest.mark.parametrize("task", TASKS)
def test_a_tasks_network_has_the_tasks_norms(task: str) -> None:
    model = model_of()
    masks, norms = channel_masks(model), own_norms(model)
    small = compact(model, masks, task=task, norms=norms)
    with torch.no_grad(), masks.applied(model, task), norms.applied(model, task):
        expected = model(IMAGES)[task]
    with torch.no_grad():
        assert (expected - small(IMAGES)).abs().max() <= 1e-12 * expected.abs().max()
        assert (expected - compact(model, masks, task=task)(IMAGES)).abs().max() > 1e-6 * expected.abs().max()


def test_masks_of_whole_channels_save_multiplications_in_step() -> None:
    model = model_of(width=16)
    small = compact(model, channel_masks(model, keep=0.25), task="a")
    assert macs(small, IMAGES) < 0.2 * macs(model, IMAGES)


def test_the_model_is_not_changed_by_masks() -> None:
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compact(model, channel_masks(model), task="a", norms=own_norms(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_compacting_inside_of_masks_is_refused() -> None:
    model = model_of()
    with (
        channel_masks(model).applied(model, "a"),
        pytest.raises(MaskError, match=r"inside a task's network .* Call it outside"),
    ):
        compact(model, task="a")


def test_a_network_of_all_tasks_gives_all_outputs() -> None:
    small = compacted(zeroed(model_of(), "inputs", 0.5), IMAGES)
    assert list(small(IMAGES)) == ["a", "b"]


@pytest.mark.parametrize("tasks", [("a",), ("b", "a")])
def test_a_network_of_some_tasks_has_only_their_heads(tasks: tuple[str, ...]) -> None:
    model = zeroed(model_of(), "inputs", 0.5)
    small = compact(model, tasks=tasks)
    found, expected = small(IMAGES), model(IMAGES)
    assert list(found) == list(tasks)
    for task in tasks:
        assert (found[task] - expected[task]).abs().max() <= 1e-12 * expected[task].abs().max()
    assert {name for name, _ in small.heads.named_children()} == set(tasks)


def test_what_one_task_reads_stays_for_both() -> None:
    model = sm.SharedBottom(nn.Linear(5, 6), [sm.Regression("a"), sm.Regression("b")])
    with torch.no_grad():
        model.heads["a"].weight[:, 2:] = 0
        model.heads["b"].weight[:, :4] = 0
    x = torch.randn(4, 5, dtype=torch.float64)
    small = compacted(alive(model), x)
    assert small.encoder.out_features == 4
    assert compact(model, task="a").encoder.out_features == 2


def test_networks_side_by_side_can_be_compacted_for_one_task() -> None:
    model = sm.SingleTask(nn.Linear(4, 8), [sm.Classification("a", 3), sm.Regression("b")])
    small = compact(model, task="b")
    assert widths(small) == [(4, 8), (8, 1)]


@each(
    ("options", "message"),
    [
        ({"masks": True}, "name the one"),
        ({"masks": True, "tasks": ["a"]}, "name the one"),
        ({"norms": True}, "name the one"),
        ({"task": "a", "tasks": ["a"]}, "not both"),
        ({"tasks": "a"}, "task='a'"),
        ({"tasks": []}, "empty"),
        ({"task": "c"}, "unknown task 'c'"),
        ({"tasks": ["a", "c"]}, "unknown task 'c'"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(options: dict[str, object], message: str) -> None:
    model = model_of()
    made = {"masks": channel_masks(model), "norms": own_norms(model)}
    given = {name: made.get(name, value) for name, value in options.items()}
    with pytest.raises(ParameterError, match=message):
        compact(model, **given)


def test_a_module_without_tasks_has_no_network_of_one() -> None:
    with pytest.raises(ParameterError, match="no tasks"):
        compact(nn.Linear(2, 2), task="a")


def test_masks_of_an_encoder_alone_can_be_compacted() -> None:
    encoder = alive(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    masks = sm.TaskMasks.ones({"2.weight": encoder[2].weight}, TASKS)
    masks["b"]["2.weight"][:, 2:] = False
    x = torch.randn(5, 4, dtype=torch.float64)
    with masks.applied(encoder, "b"):
        expected = encoder(x)
    small = compact(encoder, masks, task="b")
    assert small.get_submodule("0").out_features == 2
    torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12)


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(MaskError):
        compact(model_of(width=4), channel_masks(model_of()), task="a")


def test_weights_go_through_a_file_into_a_network_compacted_alike(tmp_path: Path) -> None:
    model = zeroed(model_of(), "inputs", 0.5)
    small, other = compact(model, task="a"), compact(model, task="a")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    write_tensors(tmp_path / "small.safetensors", small.state_dict(), {})
    other.load_state_dict(read_tensors(tmp_path / "small.safetensors")[0])
    assert torch.equal(other(IMAGES), small(IMAGES))


def test_the_network_can_be_exported() -> None:
    model = zeroed(model_of(), "both", 0.3)
    small = compact(model, task="a")
    stored = io.BytesIO()
    torch.export.save(torch.export.export(small, (IMAGES,)), stored)
    stored.seek(0)
    assert torch.equal(torch.export.load(stored).module()(IMAGES), small(IMAGES))


def test_parts_keep_their_names() -> None:
    model = model_of()
    small = compact(model)
    assert torch.equal(small.heads.a.weight, model.heads["a"].weight)
    folded = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    names = {name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in folded}
    added = {name for name, _ in small.named_parameters()} - names
    assert names <= {name for name, _ in small.named_parameters()}
    assert all(name.endswith(".bias") for name in added)


def test_the_count_of_parameters_is_that_of_the_small_network() -> None:
    model = zeroed(model_of(), "inputs", 0.5)
    small = compact(model)
    assert parameter_count(small) == sum(parameter.numel() for parameter in small.parameters())
    assert_same_outputs(small, model, IMAGES)


@each("masked", [False, True])
@each("architecture", ["mmoe", "cgc", "ple", "pbfs"])
def test_a_task_of_an_architecture_with_experts_becomes_its_own_network(architecture: str, masked: bool) -> None:
    """Experts and pools that the task does not use are gone."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
    tasks = [sm.Classification("a", 3), sm.Regression("b"), sm.Regression("c")]
    options = {"pools": [["a", "b"], ["b", "c"]]} if architecture == "pbfs" else {}
    model = ARCHITECTURES.build(architecture, encoder, tasks, **options).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    model(x)  # heads learn their width
    masks = None
    if masked:
        shared = {name: p for name, p in model.shared_parameters().items() if p.ndim > 1}
        masks = sm.TaskMasks({t: {n: torch.rand_like(p) < 0.5 for n, p in shared.items()} for t in model.tasks})
    small = compact(model, masks, task="a")
    with nullcontext() if masks is None else masks.applied(model, "a"):
        expected = model(x, tasks=["a"])["a"]
    torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12)
    assert parameter_count(small) < parameter_count(model)


@pytest.mark.parametrize("task", ["a", "b"])
def test_the_tasks_networks_take_the_place_of_masks_and_norms(task: str) -> None:
    model = model_of()
    masks = channel_masks(model)
    networks = TaskNetworks.of_masks(masks)
    assert torch.equal(
        compact(model, networks, task=task, example_inputs=(IMAGES,))(IMAGES),
        compact(model, masks, task=task, example_inputs=(IMAGES,))(IMAGES),
    )
    with pytest.raises(ParameterError, match=r"name the task to compact for \(task=...\)"):
        compact(model, networks)
