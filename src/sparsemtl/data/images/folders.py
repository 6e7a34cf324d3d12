"""Folders of files, one per sample: every listed file must exist, and errors name the absent ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sparsemtl.data.attributes import text_lines
from sparsemtl.data.images.pictures import Array, Files
from sparsemtl.data.options import ROOT_VARIABLE
from sparsemtl.errors import DataError


def complete(folder: Path, names: Sequence[str], decode: Callable[[Path], Array]) -> Files:
    """Return files of a folder, one per sample."""
    parents = {parent: _names(folder / parent) for parent in {Path(name).parent for name in names}}
    lacking = [name for name in names if Path(name).name not in parents[Path(name).parent]]
    if lacking:
        raise DataError(f"{folder} lacks {len(lacking)} of {len(names)} files, the first is {lacking[0]}.")
    return Files(folder, tuple(names), decode)


def numbered(folder: Path) -> list[str]:
    """Return the names of the files 0.npy, 1.npy, ... of a folder, by number."""
    numbers = [int(name.removesuffix(".npy")) for name in _names(folder) if name.removesuffix(".npy").isdecimal()]
    if not numbers:
        raise DataError(f"{folder} has no files 0.npy, 1.npy and so on.")
    return [f"{number}.npy" for number in sorted(numbers)]


def listed(path: Path) -> list[str]:
    """Return the lines of a list, without blank ones."""
    names = [line.strip() for line in text_lines(path) if line.strip()]
    if not names:
        raise DataError(f"{path} names no sample.")
    if len(set(names)) < len(names):
        raise DataError(f"{path} names {len(names) - len(set(names))} of its {len(names)} samples twice.")
    return names


def suffix_of(folder: Path, stem: str, suffixes: Sequence[str]) -> str:
    """Return the first of some suffixes that the file of a stem has."""
    for suffix in suffixes:
        if (folder / f"{stem}{suffix}").is_file():
            return suffix
    raise DataError(f"{folder} has no {stem} with any of the endings {', '.join(suffixes)}.")


def absent(name: str, folder: Path, files: Sequence[str], *, one_of: bool = False) -> DataError:
    """Return the error for absent files of a data set.

    Args:
        name: registered name of the data set.
        folder: folder that lacks them.
        files: absent files.
        one_of: whether one of them is enough.
    """
    return DataError(
        f"{name}: {folder.absolute()} lacks {', '.join(files)}{', of which one is needed' if one_of else ''}. "
        f"`sparsemtl data check {name}` says how to get it. Let `root` or {ROOT_VARIABLE} name the folder in which "
        "data sets lie."
    )


def counted(found: Mapping[str, int], official: Mapping[str, int]) -> tuple[str, ...]:
    """Return the notes on numbers of images that differ from the official ones; both map a part to its number."""
    texts = {part: f"{count:,} {part} (officially {official[part]:,})" for part, count in found.items()}
    fewer = [texts[part] for part, count in found.items() if count < official[part]]
    more = [texts[part] for part, count in found.items() if count > official[part]]
    kinds = {"not the whole data set": fewer, "more than the official data set": more}
    return tuple(f"{kind}: {', '.join(parts)}" for kind, parts in kinds.items() if parts)


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} is no folder.") from None
