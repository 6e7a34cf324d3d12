"""Getting a data set's official files: of the published checksum and whole, or not there at all."""

from __future__ import annotations

import hashlib
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

from sparsemtl.errors import DataError
from sparsemtl.storage.files import replacing

TIMEOUT = 60.0
"""Seconds without an answer after which a server counts as absent."""
CHUNK = 1 << 20
"""Bytes read at a time."""


class Origin(Protocol):
    """Where a data set's files can be got."""

    @property
    def address(self) -> str:
        """The address to name in messages."""

    def fetch(self, folder: Path, names: Sequence[str]) -> None:
        """Put the named files into a folder.

        Raises:
            DataError: if one cannot be had whole.
        """


@dataclass(frozen=True)
class SeparateFiles:
    """Files that lie side by side at an address.

    Attributes:
        address: what their names are appended to.
        md5: name -> checksum.
        mirrors: other addresses with the same files.
    """

    address: str
    md5: Mapping[str, str]
    mirrors: tuple[str, ...] = ()

    def fetch(self, folder: Path, names: Sequence[str]) -> None:
        """Download every named file."""
        for name in names:
            mirrors = [mirror + name for mirror in self.mirrors]
            download(self.address + name, folder / name, md5=self.md5[name], mirrors=mirrors)


@dataclass(frozen=True)
class ZipArchive:
    """Files inside one zip archive.

    Attributes:
        address: of the archive.
        md5: its checksum.
        inside: folder within the archive in which the files lie.
    """

    address: str
    md5: str
    inside: str

    def fetch(self, folder: Path, names: Sequence[str]) -> None:
        """Download the archive, take the named files out and remove it."""
        archive = folder / self.address.rpartition("/")[2]
        download(self.address, archive, md5=self.md5)
        try:
            with zipfile.ZipFile(archive) as content:
                for name in names:
                    with replacing(folder / name) as aside:
                        aside.write_bytes(content.read(f"{self.inside}/{name}"))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, KeyError) as error:
            raise DataError(f"{self.address} is not the archive that it was: {error}.") from None
        finally:
            archive.unlink()


def download(url: str, target: Path, *, md5: str, mirrors: Sequence[str] = ()) -> None:
    """Fetch one file; what does not have the checksum is thrown away.

    Args:
        url: where it is.
        target: where it goes; an existing file is replaced once the new one is whole.
        md5: checksum in hexadecimal digits.
        mirrors: further addresses, tried in order when one fails.

    Raises:
        DataError: with what each address answered, if none gave the file.
    """
    problems = []
    for address in (url, *mirrors):
        try:
            with replacing(target) as aside:
                found = _fetch(address, aside, target.name)
                if found != md5:
                    raise DataError(f"expected md5 {md5}, found {found}")
            return
        except (DataError, OSError, HTTPException) as problem:
            problems.append(f"{address}: {problem}")
    raise DataError(f"{target} could not be downloaded. {'; '.join(problems)}.")


def _fetch(url: str, aside: Path, label: str) -> str:
    """Write what is at `url` into `aside` and return its md5."""
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, aside.open("wb") as file:
        size = answer.headers.get("Content-Length")
        with _progress(label, None if size is None else int(size)) as advance:
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
                advance(len(chunk))
    return digest.hexdigest()


@contextmanager
def _progress(label: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar of `size` bytes on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=size)
        yield lambda count: progress.advance(task, count)
