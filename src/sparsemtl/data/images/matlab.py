"""MATLAB files: stacks of arrays in version 7.3, which is HDF5, and small variables in version 5."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsemtl.data.images.pictures import Array
from sparsemtl.errors import DataError, missing_extra


@dataclass(frozen=True)
class Stack:
    """Arrays of a variable along its last axis, one per sample; `rows` are their indices, from 0."""

    path: Path
    variable: str
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """Return the file, the variable and MATLAB's number of a sample's array."""
        return f"{self.path}, {self.variable} number {self.rows[row] + 1}"

    def read(self, row: int) -> Array:
        """Return the array of a sample as in MATLAB; the file is opened anew, as threads do not share an open one."""
        with _opened(self.path) as file:
            variable = _variable(file, self.variable, self.path)
            try:
                return np.asarray(variable[self.rows[row]]).T  # HDF5 reverses the axes
            except Exception as error:  # h5py raises errors of any type for a damaged file
                raise DataError(f"{self.where(row)} cannot be read: {error}. Get the file again.") from None


def shape_of(path: Path, variable: str) -> tuple[int, ...]:
    """Return the shape of a variable as in MATLAB."""
    with _opened(path) as file:
        return tuple(reversed(_variable(file, variable, path).shape))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise missing_extra("h5py", "vision", f"reading {path}") from None
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{path} is not a whole MATLAB 7.3 file: {error}. Get it again.") from None
    with file:
        yield file


def _variable(file: Any, name: str, path: Path) -> Any:
    try:
        known = sorted(file)
        found = file[name] if name in known else None
        shape = getattr(found, "shape", None)
    except Exception as error:  # h5py raises errors of any type for a damaged file
        raise DataError(f"{path}, {name}: cannot be read: {error}. Get the file again.") from None
    if name not in known:
        raise DataError(f"{path} has no variable {name!r}, only {', '.join(known)}.")
    if not shape:
        raise DataError(f"{path}: {name!r} is no stack of arrays. Get the file again.")
    return found


def whole_numbers(path: Path, variable: str) -> list[int]:
    """Return a variable of whole numbers in a file of version 5."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise missing_extra("scipy", "vision", f"reading {path}") from None
    try:
        content = loadmat(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except Exception as error:  # SciPy raises errors of any type for a damaged file
        raise DataError(f"{path} is not a whole MATLAB file of version 5: {error}.") from None
    if variable not in content:
        raise DataError(f"{path} has no variable {variable!r}, only {', '.join(sorted(content))}.")
    found = np.asarray(content[variable])
    if found.dtype.kind not in "buif" or not np.isfinite(found).all():
        raise DataError(f"{path}: {variable!r} holds no whole numbers.")
    numbers: list[int] = found.reshape(-1).astype(int).tolist()
    return numbers
