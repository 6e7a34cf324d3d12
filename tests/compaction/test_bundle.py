"""A bundle gives every task's network, bit for bit, in little more than the bytes of the dense model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compaction_toys import alive
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.backbones import CNN
from sparsemtl.compaction import Bundle
from sparsemtl.compaction.files.recipes import recipe_for
from sparsemtl.compaction.graph.network import WeightCut
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
from sparsemtl.storage.files import read_tensors, write_tensors

TASKS = ("one", "two", "three")
X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def images() -> sm.SharedBottom:
    torch.manual_seed(0)
    model = sm.SharedBottom(CNN((2, 8, 8), widths=[6, 12, 12]), [sm.Regression(task) for task in TASKS])
    return alive(model).float()  # type: ignore[return-value]


def masked(model: nn.Module, tasks: tuple[str, ...]) -> TaskNetworks:
    """Networks with random masks, of whole channels of task `one` and single weights of others, and norms per task."""
    generator = torch.Generator().manual_seed(0)

    def mask(task: str, weight: Tensor) -> Tensor:
        size = (len(weight), *[1] * (weight.ndim - 1)) if task == "one" else weight.shape
        return (torch.rand(size, generator=generator) < 0.4).expand(weight.shape).clone()

    norms = {name: tensor for name, tensor in model.named_buffers() if name.endswith("running_var")}
    own = {
        task: {name: 0.5 + torch.rand(tensor.shape, generator=generator) for name, tensor in norms.items()}
        for task in tasks
    }
    masks = {task: {n: mask(task, p) for n, p in sm.maskable_parameters(model).items()} for task in tasks}  # type: ignore[arg-type]
    return TaskNetworks.of_masks(sm.TaskMasks(masks), own)


def small_networks(networks: TaskNetworks | None, model: sm.SharedBottom) -> dict[str, Any]:
    return {task: sm.compact(model, networks, task=task, example_inputs=X) for task in model.tasks}


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    model = images()
    return small_networks(masked(model, TASKS), model)


@pytest.fixture(scope="module")
def bundle(networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return sm.save_bundle(networks, tmp_path_factory.mktemp("bundle") / "all.safetensors", model=images())


def stored(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = read_tensors(path)
    return tensors, json.loads(header["bundle"])


@torch.no_grad()
def test_every_task_is_loaded_bit_for_bit(networks: dict[str, Any], bundle: Bundle) -> None:
    assert (bundle.tasks, bundle.difference) == (TASKS, 0)
    assert bundle.bytes == bundle.path.stat().st_size
    for task, network in networks.items():
        again = sm.load_network(bundle.path, task=task)
        expected = dict(network.named_parameters())
        assert {name: p.shape for name, p in again.named_parameters()} == {n: p.shape for n, p in expected.items()}
        assert all(torch.equal(p, expected[name]) for name, p in again.named_parameters())
        assert torch.equal(again(X), network(X))
    _, content = stored(bundle.path)
    for task in TASKS:
        cut = {name for name, place in content["tasks"][task]["tensors"].items() if isinstance(place, dict)}
        assert "encoder.layers.0.weight" in cut


@pytest.mark.slow
def test_eight_tasks_take_at_most_half_as_much_again_as_the_dense_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 96), nn.ReLU())
    tasks = [sm.Regression(f"task{index}") for index in range(8)]
    model = sm.SharedBottom(encoder, tasks, {task.name: nn.Linear(96, 1) for task in tasks}).eval()
    networks = masked(model, tuple(model.tasks))
    small = {task: sm.compact(model, networks, task=task) for task in model.tasks}
    path = sm.save_bundle(small, tmp_path / "all.safetensors", model=model).path
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert sum(tensor.nbytes for tensor in stored(path)[0].values()) < 1.5 * dense


def test_tensors_that_tasks_share_stand_in_the_file_once(tmp_path: Path) -> None:
    model = images()
    networks = small_networks(None, model)
    bundle = sm.save_bundle(networks, tmp_path / "all.safetensors")
    heads = sum(p.numel() for p in model.heads.parameters())
    assert sum(tensor.numel() for tensor in stored(bundle.path)[0].values()) == (
        sm.parameter_count(networks["one"]) + heads * 2 // 3
    )
    assert 4 * sum(map(sm.parameter_count, networks.values())) == bundle.separate


@torch.no_grad()
def test_a_loaded_network_owns_its_tensors(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    layers[2].load_state_dict(layers[0].state_dict())
    sm.save_bundle({"a": layers}, tmp_path / "a.safetensors", example_inputs=torch.rand(2, 4))
    again = sm.load_network(tmp_path / "a.safetensors", task="a")
    next(again.parameters()).zero_()
    assert [bool(p.any()) for p in again.parameters()] == [False, True, True, True]


def test_a_bundle_is_verified_like_any_file(networks: dict[str, Any], bundle: Bundle) -> None:
    assert sm.verify(networks["two"], bundle.path, X, task="two").equal
    assert not sm.verify(networks["two"], bundle.path, X, task="three").equal


def test_a_weight_of_the_task_itself_is_stored_whole(tmp_path: Path) -> None:
    model = images()
    name = "encoder.layers.4.weight"
    own = {task: {name: nn.Parameter(torch.randn(12, 6, 3, 3))} for task in TASKS}
    networks = TaskNetworks({task: TaskNetwork(own_tensors=own[task]) for task in TASKS})
    path = sm.save_bundle(small_networks(networks, model), tmp_path / "all.safetensors", model=model).path
    assert all(isinstance(each["tensors"][name], str) for each in stored(path)[1]["tasks"].values())


class Attention(nn.Module):
    """Attention whose queries are, or are not, what its keys are."""

    def __init__(self, *, self_attention: bool) -> None:
        super().__init__()
        self.inner, self.same = nn.MultiheadAttention(8, 2, batch_first=True), self_attention
        self.inner.in_proj_weight.data[16:20] = 0
        self.inner.in_proj_bias.data[:] = 0

    def forward(self, x: Tensor) -> Tensor:
        keys = x if self.same else x + 1
        return self.inner(x, keys, keys, need_weights=False)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("self_attention", "parts"), [(True, 1), (False, 3)])
def test_packed_attention_is_cut_from_its_one_weight(self_attention: bool, parts: int) -> None:
    torch.manual_seed(0)
    model = Attention(self_attention=self_attention).eval()
    small = sm.compact(model, example_inputs=torch.rand(2, 5, 8))
    cuts = {layer: cut for layer, cut in small.report.cuts.items() if cut.source == "inner.in_proj_weight"}
    assert len(cuts) == parts
    rows = 0
    for layer, cut in cuts.items():
        weight = small.get_parameter(f"{layer}.weight")
        recipe = recipe_for(weight, model.inner.in_proj_weight, cut)
        assert recipe is not None
        assert torch.equal(recipe.tensor(), weight)
        rows += len(weight)
    assert rows == 12  # one head of two is left


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recipe_gives_the_weight_or_there_is_none(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base, factor = torch.randn(7, 9, 3).to(dtype), torch.rand(7, dtype=torch.float64) + 0.5
    rows, columns = torch.tensor([0, 2, 3, 6]), torch.tensor([1, 4, 5, 8])
    cut = WeightCut(factor=factor, entries=(rows, columns))
    weight = (base.double() * factor.view(-1, 1, 1)).to(dtype)[rows][:, columns]
    weight[:, 2, 1:] = 0
    weight[1, 1] = 7
    found = recipe_for(weight, base, cut)
    assert found is not None
    assert torch.equal(found.tensor(), weight)
    assert found.positions is not None
    assert len(found.positions) == 3
    turned = recipe_for(base[:, :, 0].t().contiguous(), base[:, :, 0], WeightCut())
    assert turned is not None
    assert turned.base.shape == (9, 7)
    assert recipe_for(torch.randn(4, 4, 3).to(dtype), base, cut) is None
    assert recipe_for(weight[:, :3], base, cut) is None


def test_a_bundle_in_a_file_of_version_1_is_read() -> None:
    path = Path(__file__).with_name("bundle-version-1.safetensors")
    x = torch.arange(8.0).view(2, 4)
    for task, expected in {"a": [[-0.2196], [-0.2196]], "b": [[-0.1341], [0.1050]]}.items():
        torch.testing.assert_close(sm.load_network(path, task=task)(x), torch.tensor(expected), atol=1e-4, rtol=0)


def test_the_task_must_be_one_of_the_file(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"all.safetensors: the file is a bundle of the tasks one, two, three"):
        sm.load_network(bundle.path)
    with pytest.raises(ParameterError, match=r"unknown task 'tow'. Did you mean 'two'\?"):
        sm.load_network(bundle.path, task="tow")
    alone = sm.export(nn.Linear(3, 2), tmp_path / "alone.safetensors").path
    with pytest.raises(ParameterError, match="holds one network and no tasks, got task='one'"):
        sm.load_network(alone, task="one")
    with pytest.raises(ParameterError, match="`networks` is empty"):
        sm.save_bundle({}, bundle.path)


def test_damaged_and_hostile_bundles_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    tensors, header = read_tensors(bundle.path)
    path = tmp_path / "changed.safetensors"

    def refused(change: Callable[[dict[str, Any]], object], match: str = ".") -> None:
        content = json.loads(header["bundle"])
        change(content["tasks"]["one"])
        write_tensors(path, tensors, {**header, "bundle": json.dumps(content)})
        with pytest.raises(CheckpointError, match=match):
            sm.load_network(path, task="one")

    name = "encoder.layers.0.weight"
    recipe = json.loads(header["bundle"])["tasks"]["one"]["tensors"][name]
    other = next(key for key, tensor in tensors.items() if tensor.dtype == torch.float32)
    for key in recipe:
        for wrong in ("nothing", -1, [], {}):
            refused(lambda task, key=key, wrong=wrong: task["tensors"][name].update({key: wrong}))  # type: ignore[misc]
    refused(lambda task: task["tensors"][name].update(left=[other, other]), "packed mask")
    refused(lambda task: task["tensors"][name].update(positions=other), "without their positions")
    refused(lambda task: task["tensors"].update({name: "nothing"}), "holds no whole network")
    refused(lambda task: task["tensors"].pop(name))
    refused(lambda task: task.update(network=None))
    refused(lambda task: task["network"]["nodes"][0].update(calls="os.system"), "it calls 'os.system'")
    write_tensors(path, tensors, {**header, "version": "2"})
    with pytest.raises(CheckpointError, match="version 2 of the format, and this sparsemtl reads version 1"):
        sm.load_network(path, task="one")
