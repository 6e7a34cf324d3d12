"""Files with random damage, of every kind that is read: they are read, or refused in our words, and run no code."""

from __future__ import annotations

import gzip
import random
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from loops import each
from PIL import Image
from torch import nn

import sparsemtl as sm
from sparsemtl.data.images.idx import read_idx
from sparsemtl.data.images.pictures import read_array, read_picture
from sparsemtl.data.tables.formats import Dialect
from sparsemtl.data.tables.rows import read_rows
from sparsemtl.errors import SparseMTLError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.runs.config import check
from sparsemtl.storage.files import read_tree, write_tree
from sparsemtl.storage.metrics import read_metrics
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.yaml_text import read_yaml

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "shutil.rmtree")
"""Audit events of code that a file brings along."""


class Kind(NamedTuple):
    """A kind of file: how a whole one is written, and how it is read."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def masks() -> sm.TaskMasks:
    draw = torch.Generator().manual_seed(0)
    return sm.TaskMasks({t: {"w": torch.rand(5, 7, generator=draw) > 0.5, "b": torch.ones(3) > 0} for t in "ab"})


def exported(path: Path) -> None:
    torch.manual_seed(0)
    model = sm.SharedBottom(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU()), [sm.Classification("a", 3)], {"a": nn.Linear(6, 3)}
    )
    chosen = sm.TaskNetworks.of_masks(sm.TaskMasks({"a": {"encoder.0.weight": torch.arange(24).view(6, 4) % 3 > 0}}))
    small = sm.compact(model, chosen, task="a", example_inputs=torch.ones(2, 4))
    sm.export(small, path, example_inputs=torch.ones(2, 4))


def gzipped_idx(path: Path) -> None:
    path.write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 2, 3, 4) + bytes(range(24)), mtime=0))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", TABLE)


def picture(path: Path) -> None:
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(path)


def summary_of(path: Path) -> object:
    folder = RunFolder(path.parent)
    return folder.ended, folder.stop, folder.finished, folder.read_summary()


TABLE = "".join(["n,kind,when\n", *(f"{n},{'ab'[n % 2]},2020-01-{n + 1:02d}\n" for n in range(20))])
CONFIG = "data: digits\nencoder: {name: mlp, hidden: [8]}\nsharing: {name: fisher, keep: 0.3}\ntraining: {epochs: 2}\n"
TREE = {"a": [1, 2.5, None, "text"], "b": {"w": torch.arange(6.0).view(2, 3), "m": torch.ones(9) > 0}}
METRICS = "epoch,step,split,task,metric,value\n" + "1,2,train,a,loss,0.5\n1,2,validation,b,loss,0.25\n" * 4
SUMMARY = '{"name": "r", "status": "failed", "error": {"type": "E", "message": "m", "place": ""}, "tasks": {"a": {}}}'
KINDS = [
    Kind("last.safetensors", lambda path: write_tree(path, TREE), read_tree),
    Kind("masks.safetensors", lambda path: masks().save(path), sm.TaskMasks.load),
    Kind("networks.safetensors", lambda path: TaskNetworks.of_masks(masks()).save(path), TaskNetworks.load),
    Kind("small.safetensors", exported, sm.load_network),
    Kind("metrics.csv", lambda path: path.write_text(METRICS), read_metrics),
    Kind("summary.json", lambda path: path.write_text(SUMMARY), summary_of),
    Kind("config.yaml", lambda path: path.write_text(CONFIG), lambda path: check(read_yaml(path), where=str(path))),
    Kind("images.gz", gzipped_idx, lambda path: read_idx(path, ndim=3)),
    Kind("a.npy", lambda path: np.save(path, np.arange(12.0).reshape(3, 4)), read_array),
    Kind("a.png", picture, lambda path: read_picture(path, rgb=True, upright=True)),
    Kind("a.jpg", picture, lambda path: read_picture(path, rgb=True, upright=True)),
    Kind("a.csv", lambda path: path.write_text(TABLE), lambda path: read_rows([path], Dialect())),
    Kind("a.csv.gz", lambda p: p.write_bytes(gzip.compress(TABLE.encode())), lambda p: read_rows([p], Dialect())),
    Kind("a.zip", zipped, lambda path: read_rows([path], Dialect())),
]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content with one damage, or several: flipped bits, a cut, bytes that are lost, doubled, zero or of others."""
    made = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        begin = draw.randrange(len(made) + 1)
        end = min(begin + draw.choice([1, 1, 4, 16, 200]), len(made))
        kind = draw.randrange(6)
        if kind == 0 and begin < len(made):
            made[begin] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del made[begin:]
        elif kind == 2:
            del made[begin:end]
        elif kind == 3:
            made[begin:begin] = made[begin:end]
        elif kind == 4:
            made[begin:end] = bytes(end - begin)
        else:
            made[begin:end] = draw.randbytes(end - begin)
    return bytes(made)


_events: list[str] = []


def _audit(event: str, arguments: Any) -> None:
    if event in FORBIDDEN:
        _events.append(event)


@pytest.fixture(scope="module", autouse=True)
def audited() -> None:
    """Record forbidden events; a hook cannot be removed, so that it stays, and costs a look at each event."""
    sys.addaudithook(_audit)


def assert_read_or_refused(kind: Kind, folder: Path, count: int, seed: int) -> None:
    """Damage a file `count` times; any error but one of ours passes on, with the content that led to it."""
    path = folder / kind.name
    kind.write(path)
    kind.read(path)
    content, draw = path.read_bytes(), random.Random(f"{kind.name} {seed}")
    _events.clear()
    refused = 0
    for number in range(count):
        path.write_bytes(damaged(content, draw))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(path)
        except SparseMTLError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{kind.name}, damage {number}: {path.read_bytes()[:300]!r}") from error
    assert not _events
    assert refused > count // 20, f"{kind.name}: {refused} of {count} were refused"


@each("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert_read_or_refused(kind, tmp_path_factory.mktemp("damaged"), 40, seed=0)


@pytest.mark.slow
@each("kind", KINDS)
def test_ten_thousand_damaged_files_are_read_or_refused(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert_read_or_refused(kind, tmp_path_factory.mktemp("damaged"), 10_000 // len(KINDS) + 1, seed=1)
