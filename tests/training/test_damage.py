"""Damaged and crafted files: whatever is read from disk is checked where it is read, and the error is ours."""

from __future__ import annotations

import copy
import gzip
import random
import shutil
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.backbones import load_torchvision
from sparsemtl.data import TensorLoader
from sparsemtl.data.images.idx import read_idx
from sparsemtl.data.images.pictures import read_array
from sparsemtl.data.tables.text_file import check_names
from sparsemtl.errors import CheckpointError, DataError, RecordWarning, SparseMTLError
from sparsemtl.storage.files import read_tree, write_tree
from sparsemtl.storage.metrics import read_metrics
from sparsemtl.training.callbacks import CSVCallback, FitInfo

WRONG = ["x", -1, 1.5, True, None, [], {}, [1, "a"], {"a": 1}, torch.ones(2), torch.tensor([float("nan")])]
"""What stands in a field of a crafted file in place of what belongs there."""


def loader() -> TensorLoader:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    return TensorLoader(x, {"a": x[:, :3].argmax(1), "b": x[:, 0]}, batch_size=8, shuffle=True)


def trainer(folder: Path) -> sm.Trainer:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    model = sm.SharedBottom(encoder, [sm.Classification("a", 3), sm.Regression("b")])
    sharing = sm.RandomSharing(keep=0.5)
    return sm.Trainer(model, sharing=sharing, folder=folder, epochs=2, progress=False, accelerator="cpu")


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a nest; of a long list the first."""
    if place:
        yield place
    items = (
        tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:1] if isinstance(tree, (list, tuple)) else ()
    )
    for key, value in items:
        yield from places(value, (*place, key))


def changed(tree: Any, place: tuple[Any, ...], value: Any, *, drop: bool) -> Any:
    """The nest with another value in a place, or without the place."""
    key, *rest = place
    made = list(tree) if isinstance(tree, (list, tuple)) else dict(tree)
    if rest:
        made[key] = changed(tree[key], tuple(rest), value, drop=drop)
    elif drop:
        del made[key]
    else:
        made[key] = value
    return type(tree)(made) if isinstance(tree, (list, tuple)) else made


@pytest.mark.parametrize(
    ("name", "most"), [("last", 25), ("best", 25), pytest.param("last", 10_000, marks=pytest.mark.slow)]
)
def test_a_crafted_checkpoint_with_a_right_checksum_is_refused_or_taken_and_never_a_foreign_error(
    tmp_path: Path, name: str, most: int
) -> None:
    trainer(tmp_path / "whole").fit(loader(), loader())
    (tmp_path / "whole" / "summary.json").unlink()
    file = Path("checkpoints") / f"{name}.safetensors"
    tree = read_tree(tmp_path / "whole" / file)
    draw = random.Random(0)
    cases = [
        (place, value, drop) for place in places(tree) for value, drop in [(draw.choice(WRONG), False), (None, True)]
    ]
    refused = 0
    for place, value, drop in draw.sample(cases, min(most, len(cases))):
        shutil.copytree(tmp_path / "whole", tmp_path / "copy")
        write_tree(tmp_path / "copy" / file, changed(copy.deepcopy(tree), place, value, drop=drop))
        state = torch.get_rng_state()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer(tmp_path / "copy").fit(loader(), loader(), resume=True)
        except SparseMTLError:
            refused += 1
        torch.set_rng_state(state)
        shutil.rmtree(tmp_path / "copy")
    assert refused > 10, "the fields that were changed are read"


# ---- metrics.csv -------------------------------------------------------------------------------------------------

ROWS = "epoch,step,split,task,metric,value\n1,2,train,a,loss,0.5\n1,2,train,b,loss,0.25\n"


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x00", b"1,2,train\n", b"1,x,train,a,loss,1\n", b'"' + b"x" * 200_000 + b'"\n', b"\0\n"]
)
def test_a_damaged_table_of_figures_is_kept_aside_and_the_run_goes_on(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.csv"
    content = ROWS.encode() + damage + (b"" if damage.endswith(b"\n") else b"\n")
    path.write_bytes(content)
    with pytest.warns(RecordWarning, match="is damaged: 1 of its lines cannot be read, the other 2 are kept"):
        CSVCallback(path).on_fit_start(FitInfo("demo", tmp_path, {}, 2, {}, resume_at=2))
    assert [row.task for row in read_metrics(path)] == ["a", "b"]
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == content


def test_a_last_line_that_a_kill_cut_short_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"{ROWS}1,2,tr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CSVCallback(path).on_fit_start(FitInfo("demo", tmp_path, {}, 2, {}, resume_at=2))
    assert path.read_text().splitlines() == ROWS.splitlines()


# ---- weights of others -------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((2,), torch.nan), "holds NaN or infinity"),
        (torch.full((2,), torch.inf), "holds NaN or infinity"),
        (torch.ones(2, dtype=torch.long), "holds whole numbers .* expected floats"),
        (torch.ones(2, dtype=torch.bool), "holds truth values .* expected floats"),
        (torch.ones(2, dtype=torch.complex64), "holds complex numbers .* expected floats"),
        (torch.ones(2).to_sparse(), "expected a dense tensor"),
    ],
)
def test_pretrained_weights_are_finite_floats(value: torch.Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"'conv.bias'.* {message}|'conv.bias'.*{message}"):
        load_torchvision(Small(), {**Small().state_dict(), "conv.bias": value})


def test_pretrained_weights_of_half_precision_are_fine() -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in Small().state_dict().items()}
    network = Small()
    load_torchvision(network, half)
    assert torch.equal(network.state_dict()["conv.bias"], half["conv.bias"].float())


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(CheckpointError, match="expected names of parameters, found 3"):
        load_torchvision(Small(), {3: torch.ones(1)})  # type: ignore[dict-item]


# ---- data --------------------------------------------------------------------------------------------------------


def test_an_idx_file_unpacks_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 10) + bytes(200_000_000), compresslevel=1))
    began = time.process_time()
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(
        DataError, match="is too long: its header announces 10 numbers in 10 bytes, at least 11 bytes follow"
    ):
        read_idx(path, ndim=1)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert time.process_time() - began < 5


def test_an_idx_header_that_promises_more_than_a_file_can_hold_asks_for_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "small.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBII", 0, 8, 2, 2**31, 2**31) + bytes(100)))
    with pytest.raises(DataError, match="announces 4,611,686,018,427,387,904 bytes"):
        read_idx(path, ndim=2)


def test_every_flipped_byte_of_an_array_is_an_array_or_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6.0))
    whole = path.read_bytes()
    for position in range(len(whole)):
        for mask in (0x01, 0x10, 0x80, 0xFF):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert isinstance(read_array(path), np.ndarray)
                except DataError:
                    continue


def test_every_damaged_stack_of_matlab_is_read_or_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from sparsemtl.data.images.matlab import Stack, shape_of

    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        file["depths"] = np.arange(24.0).reshape(2, 3, 4)
        file.create_group("group")
    whole = path.read_bytes()
    draw = random.Random(0)
    for position in draw.sample(range(len(whole)), 300):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            shape_of(path, "depths")
            Stack(path, "depths", (0, 1)).read(1)
        except DataError:
            continue
    path.write_bytes(whole)
    with pytest.raises(DataError, match="'group' is no stack of arrays"):
        shape_of(path, "group")


def test_names_of_columns_are_checked_in_linear_time() -> None:
    names = [f"column {number}" for number in range(200_000)]
    began = time.process_time()
    check_names(Path("wide.csv"), names)
    assert time.process_time() - began < 5, "200,000 names compared with one another would take minutes"
    with pytest.raises(DataError, match="columns 3 and 200001 are both named 'column 2'"):
        check_names(Path("wide.csv"), [*names, "column 2"])
