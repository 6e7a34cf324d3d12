"""TaskMasks against sets of coordinates, and its sub-networks against physically masked copies."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import CheckpointError, MaskError
from sparsemtl.networks.files import MASKS as FORMAT
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim.masked import FreezeOutsideMask
from sparsemtl.storage.bits import pack, unpack
from sparsemtl.storage.files import read_tensors, write_tensors

Coordinates = set[tuple[str, int]]


@st.composite
def some_masks(draw: st.DrawFn) -> TaskMasks:
    tasks = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True))
    shape = st.lists(st.integers(1, 5), max_size=3)
    shapes = draw(st.dictionaries(st.sampled_from(["w", "conv.weight", "0.1.bias"]), shape, min_size=1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    return TaskMasks(
        {t: {n: torch.rand(s, generator=generator) < density for n, s in shapes.items()} for t in tasks},
        model="Net",
        method="hypothesis",
    )


def coordinates(mask: dict[str, Tensor]) -> Coordinates:
    """The slow reference: a mask as the set of what it keeps."""
    return {(name, i) for name, kept in mask.items() for i, one in enumerate(kept.flatten().tolist()) if one}


def kept_by(masks: TaskMasks) -> dict[str, Coordinates]:
    return {task: coordinates(dict(masks[task])) for task in masks}


@settings(deadline=None)
@given(some_masks())
def test_density_is_the_fraction_of_the_coordinates_kept(masks: TaskMasks) -> None:
    kept, size = kept_by(masks), sum(shape.numel() for shape in masks.shapes().values())
    assert masks.size() == size
    for task in masks:
        assert masks.count(task) == len(kept[task])
        assert masks.density(task) == len(kept[task]) / size
    assert masks.density() == pytest.approx(sum(map(len, kept.values())) / size / len(masks))


@settings(deadline=None)
@given(some_masks())
def test_layer_density_is_density_of_each_parameter(masks: TaskMasks) -> None:
    for name, by_task in masks.layer_density().items():
        for task, density in by_task.items():
            kept = [one for one in kept_by(masks)[task] if one[0] == name]
            assert density == pytest.approx(len(kept) / masks.shapes()[name].numel())


@settings(deadline=None)
@given(some_masks(), st.data())
def test_overlap_is_that_of_the_sets_of_coordinates(masks: TaskMasks, data: st.DataObject) -> None:
    names = st.lists(st.sampled_from(sorted(masks.shapes())), min_size=1, unique=True)
    chosen = data.draw(st.none() | names)
    overlap = masks.overlap(chosen)
    kept = {t: {c for c in own if chosen is None or c[0] in chosen} for t, own in kept_by(masks).items()}
    assert overlap.tasks == masks.tasks
    for i, a in enumerate(masks):
        for j, b in enumerate(masks):
            both = len(kept[a] & kept[b])
            assert overlap.jaccard[i, j] == both / max(len(kept[a] | kept[b]), 1)
            assert overlap.containment[i, j] == both / max(len(kept[a]), 1)


def test_overlap_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = TaskMasks({t: {n: torch.rand(3, 7, generator=generator) < 0.5 for n in "vw"} for t in "abcd"})
    whole = masks.overlap()
    monkeypatch.setattr("sparsemtl.networks.masks._PART", 4)
    parts = masks.overlap()
    assert torch.equal(parts.jaccard, whole.jaccard)
    assert torch.equal(parts.containment, whole.containment)
    for i, a in enumerate(masks):
        for j, b in enumerate(masks):
            both, either = masks.flat(a) & masks.flat(b), masks.flat(a) | masks.flat(b)
            assert parts.jaccard[i, j] == int(both.sum()) / int(either.sum())


@pytest.mark.usefixtures("collected")
def test_a_further_task_costs_one_byte_per_weight_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemtl.networks.masked_product.SMALL", 1)

    def used(tasks: str) -> int:
        layer = nn.Linear(64, 64, bias=False)
        masks = random_masks(layer, tasks)
        networks = TaskNetworks.of_masks(masks)
        optimizer = sm.MaskedOptimizer(torch.optim.Adam(layer.parameters()), masks, layer)
        step_memory: dict[str, Tensor] = {}
        for task in masks:
            optimizer.zero_grad()
            with networks.swapped(layer, task):
                layer(torch.ones(2, 64)).square().mean().backward()
            optimizer.step(task=task)
            with (
                masks.applied(layer, task),
                FreezeOutsideMask(dict(layer.named_parameters()), networks.trainable([task]) or {}, step_memory),
            ):
                layer(torch.ones(2, 64)).sum().backward()
        gc.collect()
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive if t.numel() == 64**2}
        for products in (networks._products, masks._products):
            for block in products.memory._blocks["weight"]:
                sizes[torch.from_numpy(block._memory).data_ptr()] = block.size
        return sum(sizes.values())

    one, few, many = used("a"), used("ab"), used("abcdef")
    assert few - one == 64**2
    assert many - few == 4 * 64**2


def test_overlap_of_an_unknown_parameter_is_an_error_with_the_nearest_name() -> None:
    masks = TaskMasks.ones({"conv.weight": torch.ones(2, 3)}, ["a"])
    with pytest.raises(MaskError, match=r"unknown parameter 'conv\.weigth'\. Did you mean 'conv\.weight'\?"):
        masks.overlap(["conv.weigth"])


def test_overlap_prints_as_a_table_of_jaccard() -> None:
    masks = TaskMasks({"a": {"w": torch.tensor([True, False])}, "depth_map": {"w": torch.tensor([True, True])}})
    rows = [row.split() for row in str(masks.overlap()).splitlines()]
    assert rows == [["a", "depth_map"], ["a", "1.000", "0.500"], ["depth_map", "0.500", "1.000"]]


@settings(deadline=None)
@given(some_masks(), st.integers(0, 10_000))
def test_changed_is_the_part_of_the_earlier_masks_that_is_gone(masks: TaskMasks, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = masks.shapes().items()
    earlier = TaskMasks({t: {n: torch.rand(s, generator=generator) < 0.5 for n, s in shapes} for t in masks})
    before, now = kept_by(earlier), kept_by(masks)
    gone = {task: len(before[task] - now[task]) / max(len(before[task]), 1) for task in masks}
    assert masks.changed(earlier) == gone
    assert set(masks.changed(masks).values()) == {0.0}


@settings(deadline=None)
@given(some_masks(), st.data())
def test_union_and_intersection_are_those_of_sets(masks: TaskMasks, data: st.DataObject) -> None:
    chosen = data.draw(st.none() | st.lists(st.sampled_from(masks.tasks)))
    sets = [kept_by(masks)[task] for task in (masks if chosen is None else chosen)]
    everything = kept_by(TaskMasks.ones(masks[masks.tasks[0]], ["all"]))["all"]
    assert coordinates(masks.union(chosen)) == set().union(*sets)
    assert coordinates(masks.intersection(chosen)) == everything.intersection(*sets)


@settings(deadline=None)
@given(some_masks())
def test_exclusive_is_what_no_other_task_keeps(masks: TaskMasks) -> None:
    kept = kept_by(masks)
    for task in masks:
        others = set().union(*(own for other, own in kept.items() if other != task))
        assert coordinates(masks.exclusive(task)) == kept[task] - others


def test_combining_leaves_the_masks_as_they_are() -> None:
    masks = TaskMasks({"a": {"w": torch.tensor([True, False])}, "b": {"w": torch.tensor([False, True])}})
    copy = TaskMasks({task: {"w": mask["w"].clone()} for task, mask in masks.items()})
    for combined in (masks.union(), masks.intersection(), masks.union(["a"]), masks.exclusive("a")):
        combined["w"].fill_(True)
    assert masks == copy


@settings(deadline=None)
@given(some_masks(), st.data())
def test_masks_are_equal_up_to_a_single_bit(masks: TaskMasks, data: st.DataObject) -> None:
    copy = {t: {n: m.clone() for n, m in mask.items()} for t, mask in masks.items()}
    assert TaskMasks(copy) == masks
    flat = copy[data.draw(st.sampled_from(masks.tasks))][data.draw(st.sampled_from(sorted(masks.shapes())))].view(-1)
    flat[data.draw(st.integers(0, len(flat) - 1))] ^= True
    assert TaskMasks(copy) != masks


def test_masks_of_other_tasks_shapes_or_kind_are_not_equal() -> None:
    ones = {"w": torch.ones(2, 3)}
    masks = TaskMasks.ones(ones, ["a", "b"])
    assert masks != TaskMasks.ones(ones, ["b", "a"])
    assert masks != TaskMasks.ones(ones, ["a"])
    assert masks != TaskMasks.ones({"w": torch.ones(3, 2)}, ["a", "b"])
    assert masks != {task: dict(mask) for task, mask in masks.items()}


def test_masks_are_a_mapping_in_the_order_given_and_cannot_be_hashed() -> None:
    masks = TaskMasks.ones({"w": torch.ones(3), "v": torch.ones(2, 2)}, ["z", "a"])
    assert (masks.tasks, list(masks), len(masks)) == (("z", "a"), ["z", "a"], 2)
    assert list(masks["z"]) == ["w", "v"]
    assert repr(masks) == "TaskMasks(z: 1.000, a: 1.000; 2 parameters, 7 weights)"
    with pytest.raises(TypeError, match="unhashable"):
        hash(masks)


def test_flat_joins_the_parameters_in_order() -> None:
    masks = TaskMasks({"a": {"w": torch.tensor([[True, False], [False, False]]), "v": torch.tensor([True])}})
    assert masks.flat("a").tolist() == [True, False, False, False, True]


def test_an_unknown_task_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(MaskError, match=r"unknown task 'digits'\. Did you mean 'digit'\? Known: digit, slant"):
        TaskMasks.ones({"w": torch.ones(1)}, ["digit", "slant"])["digits"]


def test_moving_to_a_device_moves_every_mask_and_keeps_the_header() -> None:
    masks = TaskMasks.ones({"w": torch.ones(2)}, ["a", "b"], model="Net", method="m")
    moved = masks.to("meta")
    assert {m.device.type for mask in moved.values() for m in mask.values()} == {"meta"}
    assert {m.dtype for mask in moved.values() for m in mask.values()} == {torch.bool}
    assert (moved.model, moved.method) == ("Net", "m")
    assert masks["a"]["w"].device.type == "cpu"


KEPT = torch.tensor([True])
REFUSED: dict[str, tuple[dict[str, dict[str, Tensor]], str]] = {
    "no task": ({}, "at least one task"),
    "no parameter": ({"a": {}, "b": {}}, "at least one parameter"),
    "numbers": ({"a": {"w": KEPT}, "b": {"w": KEPT.float()}}, r"task 'b', parameter 'w': .* bool, got torch\.float32"),
    "other parameters": ({"a": {"w": KEPT}, "b": {"v": KEPT}}, "task 'b' covers other parameters .* than task 'a'"),
    "other shapes": ({"a": {"w": KEPT}, "b": {"w": KEPT[None]}}, "task 'b' covers other .*shapes than task 'a'"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_masks_that_do_not_belong_together_are_refused(why: str) -> None:
    masks, message = REFUSED[why]
    with pytest.raises(MaskError, match=message):
        TaskMasks(masks)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), max_size=4), st.integers(0, 10_000))
def test_packing_puts_eight_weights_in_a_byte_and_loses_none(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-mask.numel() // 8),)
    assert torch.equal(unpack(packed, mask.shape), mask)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_the_first_weight_is_the_highest_bit(kept: list[bool]) -> None:
    text = "".join("01"[one] for one in kept)
    bytes_ = [int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8)]
    assert pack(torch.tensor(kept)).tolist() == bytes_


@pytest.mark.parametrize("packed", [torch.zeros(3), torch.zeros(1), torch.zeros(2, 1), torch.zeros(2).short()])
def test_bytes_that_do_not_fit_the_shape_are_refused(packed: Tensor) -> None:
    packed = packed if packed.dtype == torch.int16 else packed.byte()
    with pytest.raises(MaskError, match=r"shape \(3, 5\) has 2 bytes, got \(.*\) of torch\."):
        unpack(packed, torch.Size([3, 5]))


@settings(deadline=None, max_examples=40)  # every one writes a file to the disk
@given(masks=some_masks())
def test_a_file_gives_back_the_masks_with_their_header_and_order(
    masks: TaskMasks, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    masks.save(path)
    loaded = TaskMasks.load(path)
    assert loaded == masks
    assert list(loaded.shapes()) == list(masks.shapes())
    assert (loaded.model, loaded.method) == ("Net", "hypothesis")


def test_a_file_takes_one_bit_a_weight(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(100, 300, bias=False), nn.Linear(300, 3, bias=False))
    masks = random_masks(model, "abc")
    masks.save(tmp_path / "masks.safetensors")
    bits = sum(tensor.nbytes * 8 for tensor in read_tensors(tmp_path / "masks.safetensors")[0].values())
    assert masks.size() * 3 <= bits < masks.size() * 3 + 6 * 8
    assert (tmp_path / "masks.safetensors").stat().st_size < bits / 8 + 2000


def laid(path: Path, header: dict[str, str] | None = None, packed: dict[str, Tensor] | None = None) -> Path:
    """A mask file of two tasks on the parameter 'w' of shape (3, 4), with parts replaced."""
    tensors = {"a/w": pack(torch.ones(3, 4, dtype=torch.bool)), "b/w": pack(torch.zeros(3, 4, dtype=torch.bool))}
    whole = {"format": FORMAT, "model": "Net", "method": "m", "tasks": '["a", "b"]', "shapes": '{"w": [3, 4]}'}
    write_tensors(path, tensors if packed is None else packed, whole | (header or {}))
    return path


def test_the_file_that_the_refusals_are_made_from_is_read(tmp_path: Path) -> None:
    masks = TaskMasks.load(laid(tmp_path / "m"))
    assert (masks.density("a"), masks.density("b")) == (1.0, 0.0)


BYTES = torch.zeros(2, dtype=torch.uint8)
DAMAGED: dict[str, tuple[dict[str, str], dict[str, Tensor] | None, str]] = {
    "another format": ({"format": "other-7"}, None, f"not a mask file: expected format '{FORMAT}', found 'other-7'"),
    "a mask is gone": ({}, {"a/w": BYTES}, "is damaged: task 'b', parameter 'w' is missing"),
    "a mask is short": ({}, {"a/w": BYTES, "b/w": BYTES[:1]}, r"task 'b', parameter 'w': .*\(3, 4\) has 2 bytes"),
    "a mask is of numbers": ({}, {"a/w": BYTES.float(), "b/w": BYTES}, r"task 'a', parameter 'w': .* torch\.float32"),
    "tasks are no JSON": ({"tasks": "[a"}, None, "is damaged: its header does not list tasks and shapes"),
    "tasks are no list": ({"tasks": "3"}, None, "is damaged: its header does not list tasks and shapes"),
    "shapes are a list": ({"shapes": "[1]"}, None, "is damaged: its header does not list tasks and shapes"),
    "a shape is no shape": ({"shapes": '{"w": "x"}'}, None, "is damaged: its header does not list tasks and shapes"),
    "another shape": ({"shapes": json.dumps({"w": [30, 4]})}, None, r"task 'a', parameter 'w': .*\(30, 4\) has 15"),
}


@pytest.mark.parametrize("why", DAMAGED)
def test_a_file_that_is_no_whole_mask_file_is_refused_by_name(why: str, tmp_path: Path) -> None:
    header, packed, message = DAMAGED[why]
    path = laid(tmp_path / "masks.safetensors", header, packed)
    with pytest.raises(MaskError, match=message) as caught:
        TaskMasks.load(path)
    assert str(path) in str(caught.value)


def test_a_file_of_tensors_without_a_mask_header_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"w": torch.ones(3)}, {})
    with pytest.raises(MaskError, match="is not a mask file: expected format"):
        TaskMasks.load(tmp_path / "model.safetensors")


def test_a_file_cut_short_or_absent_is_refused(tmp_path: Path) -> None:
    path = laid(tmp_path / "masks.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"masks\.safetensors is not a whole safetensors file"):
        TaskMasks.load(path)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        TaskMasks.load(tmp_path / "nowhere")


def random_masks(model: nn.Module, tasks: str, seed: int = 0, density: float = 0.5) -> TaskMasks:
    """Half of all weights of two or more dimensions, another half for every task."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.ndim >= 2}
    return TaskMasks({t: {n: torch.rand(s, generator=generator) < density for n, s in shapes.items()} for t in tasks})


def test_masks_of_the_model_are_found_in_it(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    masks = random_masks(model, "ab")
    masks.save(tmp_path / "masks")
    assert TaskMasks.load(tmp_path / "masks", model) == masks
    assert masks.check(model)["weight"] is model.weight


def test_masks_of_another_architecture_name_the_parameter_that_is_missing(tmp_path: Path) -> None:
    masks = TaskMasks.ones({"encoder.weight": torch.ones(3, 4)}, ["a"], model="SharedBottom")
    masks.save(tmp_path / "masks")
    model = nn.Sequential()
    model.add_module("encode", nn.Linear(4, 3))
    message = r"'encoder\.weight', which Sequential does not have.*made for SharedBottom.*mean 'encode\.weight'\?"
    with pytest.raises(MaskError, match=message):
        TaskMasks.load(tmp_path / "masks", model)
    for use in (masks.weights, masks.applied):
        with pytest.raises(MaskError, match=message):
            use(model, "a")


def test_masks_of_another_width_name_both_shapes(tmp_path: Path) -> None:
    random_masks(nn.Linear(4, 3), "a").save(tmp_path / "masks")
    message = r"parameter 'weight': the mask has shape \(3, 4\), the parameter \(5, 4\)\. .*another model\?"
    with pytest.raises(MaskError, match=message):
        TaskMasks.load(tmp_path / "masks", nn.Linear(4, 5))


def test_the_sub_network_of_an_unknown_task_is_refused() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(MaskError, match="unknown task 'c'"):
        random_masks(model, "ab").applied(model, "c")


class Tied(nn.Module):
    """Decodes with the weight that it encodes with."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(6, 4)
        self.up = nn.Linear(6, 4)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(x)) * self.down(x)


class Recurrent(nn.Module):
    def __init__(self, make: Callable[..., nn.RNNBase], **options: int) -> None:
        super().__init__()
        self.cells = make(6, 5, num_layers=2, bidirectional=True, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x.view(2, 4, 6))[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, 4, 6)
        return self.attention(x, x, x)[0]


class MixedPrecision(nn.Module):
    """Its second layer is twice as precise as its first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).double())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)),
    "conv": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten()),
    "grouped": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2, groups=2), nn.ConvTranspose1d(4, 2, 2)
    ),
    "tied": Tied,
    "lstm": lambda: Recurrent(nn.LSTM, proj_size=3),
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)),
    "mixed precision": MixedPrecision,
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(3)
    return NETWORKS[kind]()


def inputs() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(4))


def masked_copy(model: nn.Module, masks: TaskMasks, task: str) -> nn.Module:
    """The slow reference: another model, whose weights outside of the mask are zero."""
    copy = deepcopy(model)
    with torch.no_grad():
        for name, mask in masks[task].items():
            copy.get_parameter(name).mul_(mask)
    return copy


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient at the input after a backward pass."""
    torch.manual_seed(5)
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@each("training", [True, False])
@each("kind", NETWORKS)
def test_a_sub_network_computes_and_learns_like_a_masked_copy_bit_for_bit(kind: str, training: bool) -> None:
    model = network(kind).train(training)
    masks = random_masks(model, "ab")
    for task in masks:
        copy = masked_copy(model, masks, task)
        expected = run(copy, inputs())
        model.zero_grad()
        with masks.applied(model, task):
            found = run(model, inputs())
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one, other)
        assert not torch.equal(found[0], run(deepcopy(model), inputs())[0]), "the mask changes nothing"
        for name, p in model.named_parameters():
            gradient = copy.get_parameter(name).grad
            assert gradient is not None
            assert torch.equal(p.grad, gradient * masks[task].get(name, 1)), name


@pytest.mark.parametrize("kind", ["mlp", "conv", "lstm"])
def test_gradients_outside_of_the_mask_are_exactly_zero_and_inside_they_are_not(kind: str) -> None:
    model = network(kind)
    masks = random_masks(model, "a")
    with masks.applied(model, "a"):
        run(model, inputs())
    for name, mask in masks["a"].items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert not gradient[~mask].any()
        assert gradient[mask].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_sub_network_has_the_precision_of_its_model(dtype: torch.dtype) -> None:
    model = network("mlp").to(dtype)
    masks = random_masks(model, "a")
    expected = run(masked_copy(model, masks, "a"), inputs().to(dtype))
    with masks.applied(model, "a"):
        found = run(model, inputs().to(dtype))
    assert found[0].dtype == dtype
    assert torch.equal(found[0], expected[0])


def test_a_model_that_changes_precision_keeps_its_masks() -> None:
    model = network("mlp")
    masks = random_masks(model, "a")
    with masks.applied(model, "a"):
        run(model, inputs())
    model, x = model.bfloat16(), inputs().bfloat16()
    with masks.applied(model, "a"):
        found = run(model, x)[0]
    assert torch.equal(found, run(masked_copy(model, masks, "a"), x)[0])


def test_a_sub_network_used_for_inference_can_still_learn() -> None:
    model = network("mlp")
    masks = random_masks(model, "a")
    with torch.inference_mode(), masks.applied(model, "a"):
        model(inputs())
    with masks.applied(model, "a"):
        run(model, inputs())
    assert model[0].weight.grad is not None


def test_masks_that_keep_everything_change_no_bit() -> None:
    model = network("conv")
    masks = TaskMasks.ones(dict(model.named_parameters()), ["a"])
    expected = run(deepcopy(model), inputs())
    with masks.applied(model, "a"):
        found = run(model, inputs())
    assert all(map(torch.equal, expected, found))


def test_a_step_inside_moves_the_dense_weights_by_the_masked_gradient() -> None:
    model = network("mlp")
    masks = random_masks(model, "a")
    before = model[0].weight.detach().clone()
    with masks.applied(model, "a"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        run(model, inputs())
        optimizer.step()
    assert torch.equal(model[0].weight, before - 0.5 * model[0].weight.grad)
    assert not torch.equal(model[0].weight, before)
    assert torch.equal(model[0].weight[~masks["a"]["0.weight"]], before[~masks["a"]["0.weight"]])


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_weights_serve_functional_calls(kind: str) -> None:
    model = network(kind).eval()
    masks = random_masks(model, "ab")
    for task in masks:
        found = torch.func.functional_call(model, masks.weights(model, task), (inputs(),))
        assert torch.equal(found, masked_copy(model, masks, task)(inputs()))


def test_the_way_round_compilation_that_the_refusal_names_works() -> None:
    model = network("mlp").eval()
    masks = random_masks(model, "ab")
    function = torch.compile(
        lambda weights, x: torch.func.functional_call(model, weights, (x,)), backend="eager", fullgraph=True
    )
    for task in masks:
        model.zero_grad()
        y = function(masks.weights(model, task), inputs())
        y.square().sum().backward()
        copy = masked_copy(model, masks, task)
        assert torch.equal(y, run(copy, inputs())[0])
        assert torch.equal(model[0].weight.grad, copy[0].weight.grad * masks[task]["0.weight"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_masks_reach_through_fabric(precision: str) -> None:
    model = network("conv")
    masks = random_masks(model, "a")
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    expected = fabric.setup_module(masked_copy(model, masks, "a"))(inputs())
    wrapped = fabric.setup_module(model)
    with masks.applied(wrapped, "a"):
        found = wrapped(inputs())
    assert torch.equal(found, expected)
    assert masks.check(wrapped)["1.weight"] is model[1].weight


@pytest.fixture
def one_process() -> object:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_masks_reach_through_distributed_data_parallel() -> None:
    model = network("mlp")
    masks = random_masks(model, "a")
    copy = masked_copy(model, masks, "a")
    expected = run(copy, inputs())
    wrapped = nn.parallel.DistributedDataParallel(model)
    with masks.applied(wrapped, "a"):
        found = run(wrapped, inputs())
    assert all(map(torch.equal, found, expected))
    assert torch.equal(model[0].weight.grad, copy[0].weight.grad * masks["a"]["0.weight"])


def test_data_parallel_is_refused_with_the_name_of_a_parameter() -> None:
    model = network("mlp")
    with pytest.raises(MaskError, match=r"'0\.weight', which DataParallel does not have"):
        random_masks(model, "a").applied(nn.DataParallel(model), "a")


def test_a_compiled_model_is_refused_before_its_names_are() -> None:
    model = network("mlp")
    with pytest.raises(MaskError, match=r"compiled module ignores replaced weights.*functional_call"):
        random_masks(model, "a").applied(torch.compile(model, backend="eager"), "a")
