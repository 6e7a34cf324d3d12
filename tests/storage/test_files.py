"""Files: what is written is read bit for bit, a killed process leaves a whole file, nothing is unpickled."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import sparsemtl
from sparsemtl.compaction.files.loading import check_networks
from sparsemtl.errors import CheckpointError, StorageError
from sparsemtl.storage.files import map_tensors, read_tensors, read_tree, write_tensors, write_tree
from sparsemtl.storage.text_files import read_json, replacing, write_json, write_text

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: object, expected: object) -> None:
    """Equal in type, order and every bit, NaN included."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert bits(found) == bits(expected)
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert_same(list(found.items()), list(expected.items()))
    elif isinstance(expected, (list, tuple)):
        assert isinstance(found, (list, tuple))
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, float) and math.isnan(expected):
        assert isinstance(found, float)
        assert math.isnan(found)
    else:
        assert repr(found) == repr(expected)


# ---- round trips -------------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bits in any dtype and shape, empty and zero-dimensional ones among them."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    content = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype == torch.bool:
        content = bytearray(byte & 1 for byte in content)
    flat = torch.frombuffer(content, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
keys = st.one_of(st.booleans(), st.integers(), st.text(), st.sampled_from(["tensor", "dict", "list"]), st.none())
keys |= st.tuples(st.integers(), st.text())
trees = st.recursive(
    scalars | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(tree=trees)
def test_a_tree_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.getbasetemp() / "trees" / "tree.safetensors"
    write_tree(path, tree)
    assert_same(read_tree(path), tree)


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None, max_examples=50)
@given(tree=json_trees)
def test_json_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.getbasetemp() / "trees" / "tree.json"
    write_json(path, tree)
    assert_same(read_json(path), tree)


def test_what_is_no_number_becomes_null_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": math.nan, "rows": (math.inf, [-math.inf, 1.5])})
    assert read_json(tmp_path / "a.json") == {"loss": None, "rows": [None, [None, 1.5]]}


def test_kinds_of_containers_come_back_as_the_plain_ones(tmp_path: Path) -> None:
    class Pair(NamedTuple):
        left: int
        right: int

    path = tmp_path / "a.safetensors"
    write_tree(path, {"ordered": OrderedDict(b=1, a=2), "named": Pair(1, 2), "shape": torch.Size([3, 4])})
    assert_same(read_tree(path), {"ordered": {"b": 1, "a": 2}, "named": [1, 2], "shape": [3, 4]})


def test_views_parameters_and_strided_tensors_are_written_by_value(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tree = {"whole": whole, "view": whole[1], "turned": whole.T, "parameter": nn.Parameter(whole), "again": whole}
    write_tree(tmp_path / "a", tree)
    found = read_tree(tmp_path / "a")
    assert_same(found, {name: tensor.detach().contiguous() for name, tensor in tree.items()})
    found["whole"].zero_()
    assert found["again"].any(), "tensors read do not share memory"


def test_an_optimizer_goes_on_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()

    def make(values: Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        weight = nn.Parameter(values.clone())
        return weight, torch.optim.AdamW([weight], lr=0.1, amsgrad=True)

    weight, optimizer = make(torch.linspace(-1, 1, 5))
    steps(optimizer, weight)
    write_tree(tmp_path / "a", {"weight": weight, "optimizer": optimizer.state_dict()})
    saved = read_tree(tmp_path / "a")
    resumed, other = make(saved["weight"])
    other.load_state_dict(saved["optimizer"])
    steps(optimizer, weight)
    steps(other, resumed)
    assert torch.equal(weight, resumed)


def test_named_tensors_keep_their_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.ones(2)}, {"model": "SharedBottom", "note": "Größe → 3"})
    named, header = read_tensors(path)
    assert_same(named, {"w": torch.ones(2)})
    assert header == {"model": "SharedBottom", "note": "Größe → 3"}


def test_files_of_other_libraries_are_read_as_they_are(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "plain")
    save_file({"w": torch.ones(2)}, tmp_path / "with header", metadata={"format": "pt"})
    assert_same(read_tensors(tmp_path / "plain"), ({"w": torch.ones(2)}, {}))
    assert_same(read_tensors(tmp_path / "with header"), ({"w": torch.ones(2)}, {"format": "pt"}))


def test_equal_content_makes_equal_files(tmp_path: Path) -> None:
    header = {name: name for name in "abcdefgh"}
    for name in ("first", "second"):
        write_tensors(tmp_path / name, {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.int8)}, header)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


VERSION_1 = Path(__file__).with_name("version-1.safetensors")
"""File that `write_tensors` wrote before it computed one checksum over all bytes."""


def test_a_file_of_version_1_is_read_and_every_flipped_bit_of_it_is_noticed(tmp_path: Path) -> None:
    expected = {"w": torch.arange(4.0), "n": torch.tensor(3), "mask": torch.tensor([True, False])}
    tensors, header = read_tensors(VERSION_1, own=True)
    assert_same(dict(sorted(tensors.items())), dict(sorted(expected.items())))
    assert header == {"model": "SharedBottom", "note": "size"}
    mapped, _, whole = map_tensors(VERSION_1)
    assert_same(dict(sorted(mapped.items())), dict(sorted(expected.items())))
    assert whole()
    content, path = VERSION_1.read_bytes(), tmp_path / "damaged.safetensors"
    for bit in range(8 * len(content)):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(CheckpointError, match=str(path)):
            read_tensors(path, own=True)


def flipped(content: bytes, bit: int) -> bytes:
    """The bytes with another bit."""
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_a_file_of_a_newer_version_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "newer.safetensors"
    own = {"checksum": "00000000", "version": 3, "header": {}}
    save_file({"w": torch.ones(2)}, path, metadata={"sparsemtl": json.dumps(own)})
    with pytest.raises(CheckpointError, match="has version 3 of the format, and this sparsemtl reads 1 and 2"):
        read_tensors(path)


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "Größe\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "Größe\n".encode()


class Anything:
    pass


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", Anything(), 1j, range(3), torch.float32])
def test_what_a_checkpoint_cannot_hold_is_named_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.safetensors"
    write_tree(path, "old")
    with pytest.raises(CheckpointError, match=f"got {type(value).__name__}"):
        write_tree(path, {"deep": [value]})
    assert read_tree(path) == "old"
    assert os.listdir(tmp_path) == ["a.safetensors"]


# ---- whole or not there ------------------------------------------------------------------------------------------


def fail_halfway(path: Path) -> None:
    with replacing(path) as aside:
        aside.write_text("half of the n")
        raise KeyError


def test_an_error_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError):
        fail_halfway(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_until_the_end_the_old_file_is_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == path.parent, "a rename is at once within one folder only"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_file_written_aside_takes_the_name_and_readers_of_the_old_one_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with path.open() as reader:
        with replacing(path) as aside:
            aside.write_text("new")
            written = aside.stat().st_ino
        assert path.stat().st_ino == written
        assert reader.read() == "old"


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


WRITER = '''
"""Writes new versions and is killed: before every line that writes, every call to the system, after so many bytes."""

import json, os, resource, signal, sys
from pathlib import Path

import torch
from sparsemtl.storage import files, text_files

KINDS = {
    "tree": lambda path, text: files.write_tree(path, {"text": text, "weights": torch.full((300,), float(len(text)))}),
    "text": lambda path, text: text_files.write_text(path, 100 * text),
}
WRITING = ("replacing", "write_tensors", "write_text")


def killed_before_line(number):
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename not in (files.__file__, text_files.__file__) or frame.f_code.co_name not in WRITING:
            return None
        if event == "line":
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def killed_before_call(number):
    seen = 0

    def audit(event, arguments):
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def killed_after_bytes(number):
    """The kernel kills whoever writes a file beyond the limit: at that byte, in the middle of the write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))


def attempt(folder, kind, arm, number, old):
    """Fork, write, and tell by which signal the writer died (0: it ended well)."""
    folder.mkdir(parents=True)
    if old:
        KINDS[kind](folder / "file", "old")
    child = os.fork()
    if child == 0:
        arm(number)
        KINDS[kind](folder / "file", "newer")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


deaths = {}
for kind in KINDS:
    for old in (True, False):
        name = f"{kind}/{'over an old file' if old else 'for the first time'}"
        for moment, arm in (("line", killed_before_line), ("call", killed_before_call)):
            number, death = 1, None
            while death != 0:
                key = f"{name}/{moment} {number:03d}"
                deaths[key] = death = attempt(Path(sys.argv[1], key), kind, arm, number, old)
                number += 1
        for number in (0, 1, 9, 100, 250):
            key = f"{name}/byte {number:03d}"
            deaths[key] = attempt(Path(sys.argv[1], key), kind, killed_after_bytes, number, old)
print(json.dumps(deaths))
'''

Killed = tuple[Path, dict[str, int]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """The folder in which writers were really killed, and the signal that each died of."""
    if not hasattr(os, "fork"):
        pytest.skip("kills forked processes")
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, "-c", WRITER, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


def content(path: Path) -> object:
    """Which version is in a file, whole; None if it is not there."""
    if not path.exists():
        return None
    if "text" in path.parts:
        text = path.read_text()
        return {100 * "old": "old", 100 * "newer": "newer"}[text]
    tree = read_tree(path)
    assert torch.equal(tree["weights"], torch.full((300,), float(len(tree["text"]))))
    return tree["text"]


def outcomes(killed: Killed, case: str) -> tuple[list[int], list[object]]:
    """The signals of which the writers died, moment by moment, and what they left."""
    root, deaths = killed
    moments = [name for name in deaths if name.startswith(case)]
    return [deaths[name] for name in moments], [content(root / name / "file") for name in moments]


each_kind_of_file = pytest.mark.parametrize("kind", ["tree", "text"])
each_time = pytest.mark.parametrize(("when", "before"), [("over an old file", "old"), ("for the first time", None)])


@each_kind_of_file
@each_time
@pytest.mark.parametrize("moment", ["line", "call"])
def test_a_process_killed_at_any_moment_leaves_the_old_file_whole_or_the_new_one(
    killed: Killed, kind: str, when: str, before: object, moment: str
) -> None:
    deaths, left = outcomes(killed, f"{kind}/{when}/{moment}")
    assert set(deaths[:-1]) == {-signal.SIGKILL}
    assert deaths[-1] == 0
    replaced = left.index("newer")
    assert replaced > 3, "the rename comes late"
    assert left == [before] * replaced + ["newer"] * (len(left) - replaced)


@each_kind_of_file
@each_time
def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file_whole(
    killed: Killed, kind: str, when: str, before: object
) -> None:
    deaths, left = outcomes(killed, f"{kind}/{when}/byte")
    assert deaths == [-signal.SIGXFSZ] * 5
    assert left == [before] * 5


def test_what_a_killed_process_left_beside_the_file_does_not_stop_the_next_one(killed: Killed) -> None:
    folder = killed[0] / "tree" / "over an old file" / "byte 100"
    assert len(os.listdir(folder)) > 1, "the half-written file is still there"
    write_tree(folder / "file", {"text": "newest"})
    assert read_tree(folder / "file") == {"text": "newest"}


class Full(NamedTuple):
    """What the system says of a disk that is full, and what we make of it."""

    number: int
    words: str


TEXTS = (
    "Error while serializing: I/O error: {text} (os error {number})",
    'Error while serializing: IoError(Os {{ code: {number}, kind: StorageFull, message: "{text}" }})',
)
"""Texts of safetensors for an error of the system: of today, and of 0.4."""


@pytest.mark.parametrize(
    "full",
    [
        Full(errno.ENOSPC, "no space is left on the disk"),
        Full(errno.EFBIG, "the file would be larger than the system allows"),
        Full(errno.EDQUOT, "the disk quota is used up"),
    ],
)
@pytest.mark.parametrize("text", TEXTS, ids=["today", "0.4"])
def test_a_full_disk_is_named_with_the_file_and_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Full, text: str
) -> None:
    path = tmp_path / "last.safetensors"
    write_tree(path, "old")

    def no_space(*given: Any, **options: Any) -> None:
        raise SafetensorError(text.format(text=os.strerror(full.number), number=full.number))

    monkeypatch.setattr("sparsemtl.storage.files.save_file", no_space)
    with pytest.raises(
        StorageError, match=rf"{path} cannot be written: {full.words}.* It needs 4,000 bytes; .* free in"
    ):
        write_tree(path, torch.ones(1000))
    assert read_tree(path) == "old"
    assert os.listdir(tmp_path) == ["last.safetensors"]


LIMITED = """
import resource, sys, torch
from sparsemtl.storage import files, text_files
from sparsemtl.errors import StorageError
from sparsemtl.storage.metrics import MetricRow
from sparsemtl.training.callbacks import CSVCallback
from pathlib import Path

folder = Path(sys.argv[1])
logger = CSVCallback(folder / "metrics.csv")
logger.on_test_end([])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda: files.write_tree(folder / "tree", torch.ones(3000)),
    lambda: text_files.write_text(folder / "text", "x" * 3000),
    lambda: text_files.write_json(folder / "json", "x" * 3000),
    lambda: logger.append([MetricRow(1, 1, "train", "a", "loss", 1.0)] * 100),
):
    try:
        write()
    except StorageError as error:
        print(error)
"""


def test_whatever_is_written_beyond_a_real_limit_is_refused_in_our_words(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [Path(line.split()[0]).name for line in lines] == ["tree", "text", "json", "metrics.csv"]
    assert all("larger than the system allows" in line and "bytes" in line for line in lines)
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_the_folder_is_synchronised_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"), fsync(fd))
    )
    write_text(tmp_path / "a.txt", "a")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_decides_who_may_read_a_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "text", "a")
        write_tree(tmp_path / "tree", torch.ones(2))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_masks_take_one_bit_per_weight(tmp_path: Path) -> None:
    mask = torch.rand(100, 1000) < 0.3
    write_tree(tmp_path / "tree", {"masks": {"a": mask}})
    assert (tmp_path / "tree").stat().st_size < mask.numel() / 8 + 1000
    assert_same(read_tree(tmp_path / "tree"), {"masks": {"a": mask}})


# ---- files that cannot be trusted --------------------------------------------------------------------------------

TREE = {"epoch": 3, "weights": torch.arange(4.0), "names": ["a", (True, None)]}


@pytest.fixture
def tree_file(tmp_path: Path) -> Path:
    path = tmp_path / "last.safetensors"
    write_tree(path, TREE)
    return path


def test_a_file_cut_anywhere_is_refused_by_name(tree_file: Path) -> None:
    whole = tree_file.read_bytes()
    for length in range(len(whole)):
        tree_file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=str(tree_file)):
            read_tree(tree_file)


def read_or_refusal(path: Path) -> object:
    try:
        return read_tree(path)
    except CheckpointError as error:
        return error


def test_a_bit_that_flips_in_any_byte_is_noticed(tree_file: Path) -> None:
    whole = tree_file.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        tree_file.write_bytes(damaged)
        refusal = read_or_refusal(tree_file)
        assert isinstance(refusal, CheckpointError), f"byte {position}"
        assert str(tree_file) in str(refusal)


def test_a_bit_that_flips_in_any_byte_of_a_file_of_tensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"w": torch.arange(4.0), "n": torch.tensor(3)}, {"model": "SharedBottom"})
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(CheckpointError, match=str(path)):
            read_tensors(path)


def test_a_file_that_must_be_ours_has_a_checksum(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="was not written by sparsemtl"):
        read_tensors(tmp_path / "plain", own=True)


def test_data_that_changed_on_disk_is_told_from_a_file_of_another_kind(tree_file: Path) -> None:
    whole = tree_file.read_bytes()
    tree_file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{tree_file} is damaged: its checksum does not match its content"):
        read_tensors(tree_file)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "an empty file": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("epoch: 3\n"),
    "JSON": lambda path: path.write_text("{}"),
    "a header without tensors": lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"),
    "a header that claims too much": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "an image": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200)),
    "torch's own format": lambda path: torch.save(TREE, path),
    "a folder": lambda path: path.mkdir(),
    "tensors alone": lambda path: save_file({"w": torch.ones(2)}, path),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "last.safetensors"
    FOREIGN[kind](path)
    with pytest.raises(CheckpointError, match=str(path)):
        read_tree(path)


@pytest.mark.parametrize(
    "skeleton",
    [
        "{",
        "{}",
        '{"dict": 3}',
        '{"dict": [[1]]}',
        '{"dict": [[{"list": []}, 1]]}',
        '{"list": 3}',
        '{"list": [], "dict": []}',
        '{"tensor": "t9"}',
        '{"tensor": ["t0"]}',
        '{"set": [1]}',
        5000 * "[",
    ],
)
def test_a_skeleton_that_makes_no_tree_is_refused_by_name(tmp_path: Path, skeleton: str) -> None:
    path = tmp_path / "last.safetensors"
    write_tensors(path, {"t0": torch.ones(2)}, {"tree": skeleton})
    with pytest.raises(CheckpointError, match=f"{path} is not a checkpoint of sparsemtl"):
        read_tree(path)


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\x80\x04K\x01.", b"\xff\xfe{}", b"[1] [2]"])
def test_a_damaged_json_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path} is not valid JSON"):
        read_json(path)


@pytest.mark.parametrize("read", [read_tree, read_tensors, read_json])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'nowhere'} does not exist"):
        read(tmp_path / "nowhere")


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dump", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
@pytest.mark.parametrize("read", [read_tree, read_tensors, read_json])
def test_a_planted_pickle_is_refused_without_being_run(
    tmp_path: Path, read: Callable[[Path], Any], dump: Callable[[object, Path], object]
) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "last.safetensors"
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists(), "the bait works"
    mark.unlink()
    dump({"state": Planted(mark)}, path)
    with pytest.raises(CheckpointError, match=str(path)):
        read(path)
    assert not mark.exists()


def loads_pickles(call: ast.Call) -> bool:
    """Tell whether a call may run what a file says."""
    name = ast.unparse(call.func)
    options = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name == "torch.load":
        return options.get("weights_only") != "True"
    if name == "pickle.dumps" or ast.unparse(call).startswith("pickle.loads(pickle.dumps("):
        return False  # a copy of what is in memory
    return name.split(".")[0] in ("pickle", "cPickle", "dill", "joblib") or options.get("allow_pickle") == "True"


def test_no_module_of_the_library_loads_a_pickle() -> None:
    for load in ("torch.load(path)", "pickle.loads(content)", "pickle.load(file)"):
        assert loads_pickles(ast.parse(load).body[0].value)  # type: ignore[attr-defined]
    for path in Path(sparsemtl.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(word in text for word in ("torch.load", "pickle", "dill", "joblib")):
            continue  # a syntax tree of every module takes seconds
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        assert not [f"{path}:{call.lineno}" for call in calls if loads_pickles(call)]


def test_a_mapped_file_has_the_same_tensors_and_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    kinds = (torch.float64, torch.bfloat16, torch.float8_e5m2, torch.complex64, torch.int8, torch.uint16, torch.bool)
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 4)}
    write_tensors(path, tensors, {"kind": "test"})
    found, header, whole = map_tensors(path)
    write_tensors(path, {"other": torch.ones(2)}, {})
    assert header == {"kind": "test"}
    assert whole()
    assert_same(dict(sorted(found.items())), dict(sorted(tensors.items())))


def test_a_bit_that_flips_in_any_byte_of_a_mapped_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"w": torch.arange(4.0), "n": torch.tensor(3)}, {"model": "SharedBottom"})
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"0", *(flipped(content, bit) for bit in range(8 * len(content)))):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{path} (is damaged|is not a whole|was not written|has version)"):
            check_networks(path)
