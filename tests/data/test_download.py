from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from web_server import Server

from sparsemtl.data.dkl import SOURCES
from sparsemtl.data.download import SeparateFiles, ZipArchive, download
from sparsemtl.data.images.mnist import LabelledImages
from sparsemtl.errors import DataError


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here" / "raw"


def test_a_file_is_fetched_whole(server: Server, here: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one chunk
    (server / "a").write_bytes(content)
    download([server.url("a")], here / "a", md5=md5(content))
    assert (here / "a").read_bytes() == content
    assert [path.name for path in here.iterdir()] == ["a"]


def test_a_wrong_checksum_leaves_nothing_and_names_both(server: Server, here: Path) -> None:
    (server / "a").write_bytes(b"tampered")
    with pytest.raises(DataError, match=f"expected md5 {md5(b'official')}, found {md5(b'tampered')}"):
        download([server.url("a")], here / "a", md5=md5(b"official"))
    assert list(here.iterdir()) == []


def test_a_failed_download_keeps_the_file_that_was_there(server: Server, here: Path) -> None:
    here.mkdir(parents=True)
    (here / "a").write_bytes(b"old")
    (server / "a").write_bytes(b"tampered")
    with pytest.raises(DataError):
        download([server.url("a")], here / "a", md5=md5(b"official"))
    assert (here / "a").read_bytes() == b"old"


@pytest.mark.parametrize("first", ["absent", "tampered"])
def test_a_mirror_serves_what_the_first_address_does_not(first: str, server: Server, here: Path) -> None:
    (server / "tampered").write_bytes(b"tampered")
    (server / "good").write_bytes(b"official")
    urls = [server.url(first), server.url("good")]
    download(urls, here / "a", md5=md5(b"official"))
    assert (here / "a").read_bytes() == b"official"


def test_every_address_is_named_when_none_serves(server: Server, here: Path) -> None:
    first, second = server.url("one"), server.url("two")
    with pytest.raises(DataError, match=f"a could not be downloaded. {first}: .*; {second}: "):
        download([first, second], here / "a", md5=md5(b""))


def test_separate_files_come_from_the_address_or_its_mirrors(server: Server, here: Path) -> None:
    (server / "a").write_bytes(b"A")
    (server / "mirror").mkdir()
    (server / "mirror" / "b").write_bytes(b"B")
    origin = SeparateFiles(server.url(), {"a": md5(b"A"), "b": md5(b"B")}, (server.url("mirror/"),))
    origin.fetch(here, ["a", "b"])
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {"a": b"A", "b": b"B"}


def zipped(server: Server) -> ZipArchive:
    archive = server / "all.zip"
    with zipfile.ZipFile(archive, "w") as content:
        for name in ("a", "b", "c"):
            content.writestr(f"gzip/{name}", name * 3)
    return ZipArchive(server.url("all.zip"), md5(archive.read_bytes()), inside="gzip")


def test_an_archive_gives_the_named_files_and_goes(server: Server, here: Path) -> None:
    zipped(server).fetch(here, ["a", "c"])
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {"a": b"aaa", "c": b"ccc"}


def test_an_archive_without_a_file_is_refused(server: Server, here: Path) -> None:
    with pytest.raises(DataError, match=r"all.zip is not the expected archive: .*gzip/d"):
        zipped(server).fetch(here, ["d"])
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_official_file_has_a_checksum(source: LabelledImages) -> None:
    origin = source.origin
    sums = list(origin.md5.values()) if isinstance(origin, SeparateFiles) else [origin.md5]
    if isinstance(origin, SeparateFiles):
        assert list(origin.md5) == [f"{name}.gz" for name in source.files]
        assert all(address.endswith("/") for address in (origin.address, *origin.mirrors))
    assert all(len(bytes.fromhex(checksum)) == 16 for checksum in sums)
    assert len(set(sums)) == len(sums)
