from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsemtl.backbones import load_torchvision, resnet18
from sparsemtl.errors import CheckpointError


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
