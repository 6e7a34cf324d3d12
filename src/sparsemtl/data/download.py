"""Downloads of official files with a published checksum: a file is whole, or absent."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from sparsemtl.errors import DataError
from sparsemtl.storage.files import replacing

TIMEOUT = 60.0
"""Seconds without an answer after which a server counts as absent."""


class Origin(Protocol):
    """Address of a data set's files."""

    @property
    def address(self) -> str:
        """Address to name in messages."""

    def fetch(self, folder: Path, names: Sequence[str]) -> None:
        """Put the named files into a folder.

        Raises:
            DataError: if a file cannot be downloaded whole.
        """


@dataclass(frozen=True)
class SeparateFiles:
    """Files that lie side by side at an address.

    Attributes:
        address: prefix of the files' addresses.
        md5: name -> checksum.
        mirrors: further addresses of the same files.
    """

    address: str
    md5: Mapping[str, str]
    mirrors: tuple[str, ...] = ()

    def fetch(self, folder: Path, names: Sequence[str]) -> None:
        """Download every named file."""
        for name in names:
            urls = [address + name for address in (self.address, *self.mirrors)]
            download(urls, folder / name, md5=self.md5[name])


@dataclass(frozen=True)
class ZipArchive:
    """Files inside one zip archive.

    Attributes:
        address: address of the archive.
        md5: checksum of the archive.
        inside: folder within the archive in which the files lie.
    """

    address: str
    md5: str
    inside: str

    def fetch(self, folder: Path, names: Sequence[str]) -> None:
        """Download the archive, extract the named files and remove the archive."""
        archive = folder / self.address.rpartition("/")[2]
        download([self.address], archive, md5=self.md5)
        try:
            with zipfile.ZipFile(archive) as content:
                for name in names:
                    with replacing(folder / name) as aside:
                        aside.write_bytes(content.read(f"{self.inside}/{name}"))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, KeyError) as error:
            raise DataError(f"{self.address} is not the expected archive: {error}.") from None
        finally:
            archive.unlink()


def download(urls: Sequence[str], target: Path, *, md5: str) -> None:
    """Download one file from the first address that serves it with the right checksum.

    Args:
        urls: addresses, tried in order.
        target: path of the file; an existing file is replaced once the new one is whole.
        md5: checksum in hexadecimal digits.

    Raises:
        DataError: with the problem of each address, if none served the file.
    """
    import pooch

    problems = []
    for url in urls:
        try:
            with replacing(target) as aside:
                pooch.HTTPDownloader(progressbar=_Bar(target.name), timeout=TIMEOUT)(url, str(aside), None)
                if (found := pooch.file_hash(str(aside), alg="md5")) != md5:
                    raise DataError(f"expected md5 {md5}, found {found}")
            return
        except (DataError, OSError) as problem:  # requests' errors are OSErrors
            problems.append(f"{url}: {problem}")
    raise DataError(f"{target} could not be downloaded. {'; '.join(problems)}.")


class _Bar:
    """Progress bar on a terminal, with the methods that pooch calls."""

    def __init__(self, label: str) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(label)
        self.total = 0

    def update(self, count: int) -> None:
        """Show `count` further bytes."""
        self._progress.start()
        self._progress.update(self._task, total=self.total, advance=count)

    def reset(self) -> None:
        """Begin anew; pooch then reports the whole size once more."""
        self._progress.reset(self._task)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()
