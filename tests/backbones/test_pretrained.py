from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loops import each
from safetensors.torch import save_file
from torch import Tensor

from sparsemtl.architectures import SharedBottom
from sparsemtl.backbones import MLP, SegNet, load_torchvision, resnet18, resnet50
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.heads import DeepLabV3Head, FCNHead
from sparsemtl.networks.frozen import Frozen
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks import Classification


def published(width: int = 4) -> dict[str, Tensor]:
    """A state dict as torchvision writes it: with a classifier."""
    state = {
        name: torch.randn_like(t) if t.is_floating_point() else t + 3 for name, t in small(width).state_dict().items()
    }
    return {**state, "fc.weight": torch.randn(10, 8 * width), "fc.bias": torch.randn(10)}


def small(width: int = 4) -> torch.nn.Module:
    return resnet18(width=width)


@pytest.mark.parametrize("form", ["mapping", "weights.pth", "weights.safetensors"])
def test_everything_but_the_classifier_is_loaded(form: str, tmp_path: Path) -> None:
    state = published()
    source: dict[str, Tensor] | Path = state
    if form.endswith(".pth"):
        source = tmp_path / form
        torch.save(state, source)
    elif form.endswith(".safetensors"):
        source = tmp_path / form
        save_file(state, source)
    model = small()
    load_torchvision(model, source)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    assert set(state) - set(loaded) == {"fc.weight", "fc.bias"}


def test_old_files_without_batch_counts_keep_the_models_counts() -> None:
    state = {name: t for name, t in published().items() if not name.endswith("num_batches_tracked")}
    model = small()
    load_torchvision(model, state)
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
    assert model.state_dict()["bn1.num_batches_tracked"] == 0


def test_another_architecture_is_named_by_its_parameters() -> None:
    state = published()
    state["layer1.2.conv1.weight"] = state.pop("layer1.1.conv1.weight")
    with pytest.raises(CheckpointError, match=r"'layer1.1.conv1.weight' missing, 'layer1.2.conv1.weight' unexpected"):
        load_torchvision(small(), state)


def test_long_lists_of_names_are_cut() -> None:
    with pytest.raises(CheckpointError, match="and 97 more missing, nothing unexpected"):
        load_torchvision(small(), {"fc.bias": torch.zeros(10)})


def test_another_shape_is_named_with_both_shapes() -> None:
    with pytest.raises(CheckpointError, match=r"'conv1.weight' has shape \(8, 3, 7, 7\), the model's \(4, 3, 7, 7\)"):
        load_torchvision(small(), published(width=8))


def test_a_model_is_left_as_it_was_by_a_failed_load() -> None:
    model = small()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = published()
    state["layer4.1.bn2.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"layer4.1.bn2.bias"):
        load_torchvision(model, state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_checkpoint_around_the_state_dict_is_explained() -> None:
    with pytest.raises(CheckpointError, match="'model' is a dict, not a tensor"):
        load_torchvision(small(), {"model": published()})


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    listed, text = tmp_path / "list.pth", tmp_path / "text.pth"
    torch.save([torch.zeros(2)], listed)
    text.write_text("no tensors")
    with pytest.raises(CheckpointError, match=r"list.pth holds a list"):
        load_torchvision(small(), listed)
    with pytest.raises(CheckpointError, match=r"text.pth is not a file of tensors"):
        load_torchvision(small(), text)
    with pytest.raises(CheckpointError, match=r"absent.pth does not exist"):
        load_torchvision(small(), tmp_path / "absent.pth")


@pytest.mark.parametrize(
    "content", [b"epoch,loss\n1,0.5\n", b"", b"\x80\x02", b"(", b"cab\n", b"PK\x03\x04 short", b"0", b"}"]
)
@pytest.mark.parametrize("name", ["metrics.csv", "weights.pth"])
def test_bytes_of_whatever_else_are_no_weights(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is not a file of tensors that torch\.save wrote"):
        load_torchvision(small(), path)


def test_a_folder_of_a_run_is_told_from_its_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder; it has no model\.safetensors, as the folder of a run has"):
        load_torchvision(small(), tmp_path)
    weights = RunFolder(tmp_path).model
    save_file(published(), weights)
    with pytest.raises(CheckpointError, match=f"{tmp_path} is a folder; its weights are {weights}"):
        load_torchvision(small(), tmp_path)


def test_a_checkpoint_of_a_run_is_told_from_its_weights(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save(folder.last, {"model": published(), "epoch": 3})
    with pytest.raises(CheckpointError, match=rf"{folder.last} is a checkpoint.*Its model is in {folder.model.name} "):
        load_torchvision(small(), folder.last)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match=r"trap.pth is not a file of tensors"):
        load_torchvision(small(), tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def segmentation() -> dict[str, Tensor]:
    """A state dict as torchvision writes it of DeepLabV3 on ResNet-50, narrow and of 5 classes."""
    parts = {
        "backbone": resnet50(width=2, output_stride=8),
        "classifier": DeepLabV3Head(64, 5, 8, channels=4).classifier,
        "aux_classifier": FCNHead(32, 5, 16).classifier,
    }
    named = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    return {name: torch.randn_like(t) if t.is_floating_point() else t + 3 for name, t in named.items()}


@pytest.mark.parametrize("stride", [8, 16, None])
def test_a_segmentation_networks_backbone_is_loaded_at_any_stride(stride: int | None) -> None:
    state, model = segmentation(), resnet50(width=2, output_stride=stride)
    load_torchvision(model, state)
    assert all(torch.equal(tensor, state[f"backbone.{name}"]) for name, tensor in model.state_dict().items())


def test_a_segmentation_networks_head_is_loaded() -> None:
    state, head = segmentation(), DeepLabV3Head(64, 5, 8, channels=4)
    load_torchvision(head, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("fresh", ["classifier.4", ("classifier.4",), ["classifier.4.weight", "classifier.4.bias"]])
def test_a_head_of_other_classes_keeps_its_last_layer_if_told_to(fresh: str | list[str]) -> None:
    state, head = segmentation(), DeepLabV3Head(64, 9, 8, channels=4)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'classifier.4.weight' has shape \(5, .* the model's \(9, .*`fresh`"):
        load_torchvision(head, state)
    load_torchvision(head, state, fresh=fresh)
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith("classifier.4.") else state[name])


def test_another_networks_head_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'classifier.0.weight', .* missing, 'classifier.0.convs.0.0.weight'"):
        load_torchvision(FCNHead(64, 5, 8), segmentation())


def test_a_classifier_has_no_dense_head() -> None:
    with pytest.raises(CheckpointError, match=r"missing, 'conv1.weight', 'bn1.weight'"):
        load_torchvision(FCNHead(32, 5, 8), published())


OURS = {
    "resnet": small,
    "segnet": lambda: SegNet(width=2),
    "an encoder behind a stem": lambda: Stemmed(torch.nn.Linear(3, 4), MLP((4,), hidden=[5])),
    "an encoder with a part called network": lambda: Frozen(MLP((4,), hidden=[5])),
}


@each("freeze", [False, True])
@each("make", OURS.values())
def test_the_encoder_of_an_earlier_run_is_loaded_whole(make: Callable[[], torch.nn.Module], freeze: bool) -> None:
    earlier, model = make(), make()
    for tensor in earlier.state_dict().values():
        tensor.copy_(torch.rand_like(tensor, dtype=torch.float32) * 9)
    encoder = Frozen(earlier) if freeze else earlier
    run = SharedBottom(encoder, [Classification("kind", 3)])
    load_torchvision(model, run.state_dict())
    loaded = model.state_dict()
    assert loaded.keys() == earlier.state_dict().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in earlier.state_dict().items())


def test_a_part_of_the_decoder_of_an_earlier_run_is_not_enough() -> None:
    state = {f"encoder.{name}": tensor for name, tensor in SegNet(width=2).state_dict().items()}
    del state["encoder.decoder.0.0.weight"]
    with pytest.raises(CheckpointError, match=r"'decoder\.0\.0\.weight' missing, nothing unexpected"):
        load_torchvision(SegNet(width=2), state)


def test_a_part_that_is_to_stay_fresh_does_so_whatever_the_file_has() -> None:
    earlier, model = SegNet(width=2), SegNet(width=2)
    decoder = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    load_torchvision(model, {f"encoder.{name}": t for name, t in earlier.state_dict().items()}, fresh="decoder")
    assert all(torch.equal(tensor, decoder[name]) for name, tensor in model.decoder.state_dict().items())
    assert torch.equal(model.features[0].weight, earlier.features[0].weight)  # type: ignore[arg-type]


def test_a_part_that_stays_fresh_must_be_there() -> None:
    with pytest.raises(ParameterError, match="fresh: ResNet has no module or parameter 'layer'"):
        load_torchvision(small(), published(), fresh=["layer4", "layer"])


def test_vgg16_bn_fills_the_encoder_of_segnet_and_leaves_the_decoder() -> None:
    model = SegNet(width=2)
    decoder = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    state = {f"features.{name}": torch.randn_like(t.double()) for name, t in model.features.state_dict().items()}
    load_torchvision(model, {**state, "classifier.0.weight": torch.zeros(3, 3), "classifier.0.bias": torch.zeros(3)})
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in state.items())
    assert all(torch.equal(loaded[f"decoder.{name}"], tensor) for name, tensor in decoder.items())
