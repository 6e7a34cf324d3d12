"""Downloads of official files with a published checksum: a file is whole, or absent."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsemtl.errors import DataError
from sparsemtl.storage.text_files import replacing

_TIMEOUT = 60.0
"""Seconds without an answer after which a server counts as absent."""


@dataclass(frozen=True)
class SeparateFiles:
    """Files that lie side by side at an address.

    The address and the mirrors are prefixes of the names; `md5` maps a name to its checksum.
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
    """Files inside one zip archive, in its folder `inside`; `md5` is the checksum of the archive."""

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


Origin = SeparateFiles | ZipArchive
"""Address of a data set's files; `fetch` puts the named ones into a folder, or raises a DataError."""


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
                get = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 20, timeout=_TIMEOUT)
                get(url, str(aside), None)
                if (found := pooch.file_hash(str(aside), alg="md5")) != md5:
                    raise DataError(f"expected md5 {md5}, found {found}")
            return
        except (DataError, OSError) as problem:  # requests' errors are OSErrors
            problems.append(f"{url}: {problem}")
    raise DataError(f"{target} could not be downloaded. {'; '.join(problems)}.")
