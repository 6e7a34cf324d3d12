"""Folders of files, one a sample: what is listed must be there, and what is absent is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sparsemtl.data.base import Samples
from sparsemtl.data.options import ROOT_VARIABLE
from sparsemtl.data.pictures import Array, Files
from sparsemtl.data.splitting import hold_out
from sparsemtl.errors import DataError


def complete(folder: Path, names: Sequence[str], decode: Callable[[Path], Array]) -> Files:
    """Files of a folder, all of them there.

    Args:
        folder: the folder.
        names: of the files, one a sample, under the folder.
        decode: path -> array.

    Raises:
        DataError: saying how many are absent, and the first.
    """
    parents = {parent: _names(folder / parent) for parent in {Path(name).parent for name in names}}
    lacking = [name for name in names if Path(name).name not in parents[Path(name).parent]]
    if lacking:
        raise DataError(f"{folder} lacks {len(lacking)} of {len(names)} files, the first is {lacking[0]}.")
    return Files(folder, tuple(names), decode)


def numbered(folder: Path) -> list[str]:
    """Names of the files 0.npy, 1.npy, ... of a folder, by number.

    Raises:
        DataError: if there is none.
    """
    numbers = [int(name.removesuffix(".npy")) for name in _names(folder) if name.removesuffix(".npy").isdecimal()]
    if not numbers:
        raise DataError(f"{folder} has no files 0.npy, 1.npy and so on.")
    return [f"{number}.npy" for number in sorted(numbers)]


def listed(path: Path) -> list[str]:
    """The lines of a list, without blank ones.

    Raises:
        DataError: if it is absent, empty or names something twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: {error}.") from None
    if not names:
        raise DataError(f"{path} names no sample.")
    if len(set(names)) < len(names):
        raise DataError(f"{path} names {len(names) - len(set(names))} of its {len(names)} samples twice.")
    return names


def suffix_of(folder: Path, stem: str, suffixes: Sequence[str]) -> str:
    """The suffix that a folder's files have, by the first of them.

    Raises:
        DataError: if there is no such file.
    """
    for suffix in suffixes:
        if (folder / f"{stem}{suffix}").is_file():
            return suffix
    raise DataError(f"{folder} has no {stem} with any of the endings {', '.join(suffixes)}.")


def absent(name: str, place: Path, wanted: Sequence[str], *, one_of: bool = False) -> DataError:
    """Word the error for a data set's files that are not there.

    Args:
        name: the data set, as it is registered.
        place: where it was looked for.
        wanted: what is absent there.
        one_of: one of them would do.
    """
    return DataError(
        f"{name}: {place.absolute()} lacks {', '.join(wanted)}{', of which one is needed' if one_of else ''}. "
        f"`sparsemtl data check {name}` says how to get it. Let `root` or {ROOT_VARIABLE} name the folder in which "
        "data sets lie."
    )


def held_out(train: Samples, validation: float, *, seed: int) -> tuple[Samples, Samples]:
    """Split training samples into those that are trained on and those that validate."""
    rows, rest = hold_out(len(train), validation, seed=seed)
    return train.select(rows), train.select(rest)


def counted(found: Mapping[str, int], official: Mapping[str, int]) -> tuple[str, ...]:
    """Say beside every figure that there are fewer images than officially, or more.

    Args:
        found: part of the data set -> number of its images.
        official: the same for the official distribution.
    """
    said = {part: f"{count:,} {part} (officially {official[part]:,})" for part, count in found.items()}
    fewer = [said[part] for part, count in found.items() if count < official[part]]
    more = [said[part] for part, count in found.items() if count > official[part]]
    kinds = {"not the whole data set": fewer, "more than the official data set": more}
    return tuple(f"{kind}: {', '.join(parts)}" for kind, parts in kinds.items() if parts)


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} is no folder.") from None
