from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import Started
from states import assert_same, state_of
from torch import Tensor, nn
from training_toys import apart, moved, shared

import sparsemtl as sm
from sparsemtl.errors import CheckpointError
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training.checkpoints.snapshots import Snapshots


@pytest.fixture(params=["memory", "folder"])
def snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshots:
    return Snapshots(RunFolder(tmp_path) if request.param == "folder" else None)


def attached(model: sm.MultiTaskModel, sharing: sm.Sharing | None = None) -> Started:
    return Started(sharing or sm.DenseSharing(), model)


def keep(snapshots: Snapshots, part: str, sharing: Started) -> None:
    snapshots.keep(part, sharing.model, sharing.networks, sharing.method)


def restore(snapshots: Snapshots, parts: list[str], sharing: Started) -> None:
    sharing.networks = snapshots.restore(parts, sharing.model, sharing.networks, sharing.method)


def disturb(module: nn.Module) -> None:
    """Move every parameter and buffer, in place, as training does."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)


def test_what_was_kept_comes_back_whole(snapshots: Snapshots) -> None:
    model = shared(norm=True)
    sharing, kept = attached(model), state_of(model)
    keep(snapshots, "all", sharing)
    disturb(model)
    assert moved(kept, state_of(model)) == set(kept)
    restore(snapshots, ["all"], sharing)
    assert_same(state_of(model), kept)


def test_the_last_that_was_kept_counts(snapshots: Snapshots) -> None:
    model = shared()
    sharing = attached(model)
    keep(snapshots, "all", sharing)
    disturb(model)
    kept = state_of(model)
    keep(snapshots, "all", sharing)
    disturb(model)
    restore(snapshots, ["all"], sharing)
    assert_same(state_of(model), kept)


def test_masks_and_norms_come_back_with_the_weights(snapshots: Snapshots) -> None:
    model = shared(norm=True)
    sharing = attached(model, sm.RandomSharing(keep=0.5, update_every=1))
    sharing.begin_epoch(0, ())
    masks, norms = sharing.masks, deepcopy(sharing.norms)
    keep(snapshots, "all", sharing)
    sharing.begin_epoch(1, ())
    model.train()
    with sharing.view("a"):
        model(torch.randn(8, 6))
    assert sharing.masks != masks
    restore(snapshots, ["all"], sharing)
    assert sharing.masks == masks
    assert_same(sharing.norms, norms)


def test_independent_tasks_come_back_from_epochs_of_their_own(snapshots: Snapshots) -> None:
    model = apart()
    sharing, first = attached(model), state_of(model)
    keep(snapshots, "a", sharing)
    disturb(model)
    second = state_of(model)
    keep(snapshots, "b", sharing)
    disturb(model)
    restore(snapshots, ["a", "b"], sharing)
    assert sharing.one_network
    for name, tensor in state_of(model).items():
        assert torch.equal(tensor, {"a": first, "b": second}[name.split(".")[1]][name]), name


@pytest.mark.parametrize("mask_applies_to", ["weights", "gradients"])
def test_tasks_that_share_weights_come_back_with_a_network_each(snapshots: Snapshots, mask_applies_to: Any) -> None:
    """Each is what the task saw at its own epoch: weights, masks and statistics."""
    model, x = shared(norm=True), torch.randn(8, 6)
    sharing = attached(model, sm.RandomSharing(keep=0.5, update_every=1, mask_applies_to=mask_applies_to))
    seen: dict[str, Tensor] = {}
    masks: dict[str, Any] = {}
    for epoch, task in enumerate(("a", "b")):
        sharing.begin_epoch(epoch, ())
        disturb(model)
        with sharing.view(task):
            model.train()(x)  # moves the statistics
            seen[task] = model.eval()(x)[task]
        masks[task] = dict(sharing.masks[task])
        keep(snapshots, task, sharing)
    disturb(model)
    sharing.begin_epoch(2, ())
    restore(snapshots, ["a", "b"], sharing)
    for task, expected in seen.items():
        with sharing.view(task):
            assert torch.equal(model(x)[task], expected)
        assert_same(dict(sharing.masks[task]), masks[task])


@pytest.mark.parametrize("name", ["a", "all"])
def test_the_only_task_of_a_model_comes_back_with_its_encoder(snapshots: Snapshots, name: str) -> None:
    model = sm.SharedBottom(shared().encoder, [sm.Regression(name)])
    sharing, kept = attached(model), state_of(model)
    keep(snapshots, "all", sharing)
    disturb(model)
    restore(snapshots, ["all"], sharing)
    assert_same(state_of(model), kept)


def test_what_was_never_kept_cannot_come_back(snapshots: Snapshots) -> None:
    model = shared()
    with pytest.raises(CheckpointError, match=r"no snapshot of 'all' was kept|best\.safetensors does not exist"):
        restore(snapshots, ["all"], attached(model))
