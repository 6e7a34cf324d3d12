"""Coded tables kept on disk: what memory does not hold is coded once, and mapped from its files afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sparsemtl.data.tables.encoding import Category, Coding, Number
from sparsemtl.data.tables.reading import Array
from sparsemtl.data.tables.tabulate import Allocate, Table
from sparsemtl.data.tables.targets import Above, Classes, Equals, Target, Value
from sparsemtl.errors import DataError

FORMAT = 1
"""Raised whenever the same table and options give other files: old ones then rest."""
_TARGETS: dict[str, Callable[..., Target]] = {kind.__name__: kind for kind in (Above, Classes, Equals, Value)}
_ABOUT, _PARTS = "table.json", "parts.npy"


def kept(folder: Path, make: Callable[[Allocate], Table]) -> Table:
    """The table in a folder; where it is not there whole, it is made and put there.

    Args:
        folder: its own.
        make: makes it, given what allocates its arrays.

    Raises:
        DataError: if the folder cannot be written; whatever `make` raises.
    """
    if (table := _mapped(folder)) is not None:
        return table
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        _write(aside, make(_allocating(aside)))
        return _moved(aside, folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _moved(aside: Path, folder: Path) -> Table:
    """Put a whole table in its place, unless another run was quicker."""
    table = _mapped(folder)
    if table is None:
        shutil.rmtree(folder, ignore_errors=True)  # what is left of a damaged one
        aside.rename(folder)
        table = _mapped(folder)
    if table is None:
        raise OSError("what was written cannot be read")
    return table


def digest(paths: Sequence[Path], options: str) -> str:
    """Name of a coded table: another one for other files, newer ones, other options."""
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([FORMAT, files, options]).encode()).hexdigest()[:16]


def _allocating(folder: Path) -> Allocate:
    def allocate(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
        array: Array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        return array

    return allocate


def _write(folder: Path, table: Table) -> None:
    for array in (table.coded, *table.labels.values()):
        if isinstance(array, np.memmap):
            array.flush()
    np.save(folder / _PARTS, table.parts)
    about = {
        "coding": asdict(table.coding),
        "targets": [{"kind": type(target).__name__, **asdict(target)} for target in table.targets],
        "remarks": table.remarks,
        "unseen": table.unseen,
    }
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _mapped(folder: Path) -> Table | None:
    """The table of a folder, its arrays mapped; None if it is not there whole."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        targets = tuple(_target(**target) for target in about["targets"])
        coding = Coding(
            tuple(Number(**number) for number in about["coding"]["numbers"]),
            tuple(Category(of["name"], tuple(of["values"])) for of in about["coding"]["categories"]),
        )
        return Table(
            _map(folder / "coded.npy"),
            {target.name: _map(folder / f"label-{target.name}.npy") for target in targets},
            np.load(folder / _PARTS),
            coding,
            targets,
            tuple(about["remarks"]),
            tuple(about["unseen"]),
        )
    except Exception:  # of damaged files NumPy also raises what Python's tokenizer does; the table is then made anew
        return None


def _map(path: Path) -> Array:
    """An array of a file; what is written into it stays in memory."""
    array: Array = np.load(path, mmap_mode="c")
    return array


def _target(kind: str, **fields: Any) -> Target:
    return _TARGETS[kind](**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"the coded table cannot be kept in {folder}: {error}. Name a folder that can be written by `root` or "
        "SPARSEMTL_DATA, or raise `memory`."
    )
