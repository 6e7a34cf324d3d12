"""Tiny data sets in the official layout, made up on the spot, and the real ones where they are."""

from __future__ import annotations

import gzip
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from object_files import OBJECTS, lay_folders
from table_files import lay_census, lay_movielens, lay_student, write
from torch import Tensor
from vision_files import lay_celeba, lay_celebamask, lay_cityscapes, lay_nyu_arrays
from web_server import Server

from sparsemtl.data.dkl import SOURCES
from sparsemtl.data.images.mnist import LabelledImages

REAL = Path(os.environ.get("SPARSEMTL_DATA") or "/work/shared/data")

Lay = Callable[..., dict[str, Tensor]]


def idx_bytes(numbers: Tensor) -> bytes:
    """Bytes of an idx file of unsigned bytes."""
    header = struct.pack(f">HBB{numbers.ndim}I", 0, 0x08, numbers.ndim, *numbers.shape)
    return header + bytes(numbers.flatten().tolist())


def lay_files(
    root: Path, source: LabelledImages, *, train: int = 40, test: int = 20, gzipped: bool = True
) -> dict[str, Tensor]:
    """Write the four files of a data set; an image's first and last pixel are its index, plus 100 in the test files.

    Returns:
        file name -> its numbers.
    """
    generator = torch.Generator().manual_seed(len(source.name))
    folder = root / source.folder / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    laid = {}
    for images, labels, count, offset in ((*source.files[:2], train, 0), (*source.files[2:], test, 100)):
        pixels = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        pixels[:, 0, 0] = pixels[:, -1, -1] = torch.arange(count) + offset
        classes = torch.arange(count) % len(source.classes) + source.first_label
        laid[images], laid[labels] = pixels, classes.to(torch.uint8)
    for name, numbers in laid.items():
        content = idx_bytes(numbers)
        path = folder / (f"{name}.gz" if gzipped else name)
        path.write_bytes(gzip.compress(content, 1) if gzipped else content)
    return laid


@pytest.fixture
def to_idx() -> Callable[[Tensor], bytes]:
    return idx_bytes


@pytest.fixture
def lay() -> Lay:
    return lay_files


@pytest.fixture(scope="session")
def laid_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that holds every data set, tiny."""
    root = tmp_path_factory.mktemp("laid")
    for source in SOURCES.values():
        lay_files(root, source)
    for lay_pictures in (lay_nyu_arrays, lay_cityscapes, lay_celeba, lay_celebamask):
        lay_pictures(root)
    for lay_objects in (*OBJECTS.values(), lay_folders):
        lay_objects(root)
    for lay_table in (lay_census, lay_student, lay_movielens):
        lay_table(root)
    rows = [(n * n % 17, "ab"[n % 2], "yes" if n % 3 else "no") for n in range(60)]
    write(root / "shop.csv", [("number", "letter", "bought"), *rows])
    return root


@pytest.fixture
def real_root() -> Path:
    """The folder of the official files, where it is."""
    if not (REAL / "MNIST/raw").is_dir() or not (REAL / "FashionMNIST/raw").is_dir():
        pytest.skip(f"no MNIST and FashionMNIST under {REAL}")
    return REAL


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()
