"""A kernel is compiled once per machine, and where it cannot be, one line is logged."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsemtl.kernels import compiled

SOURCE = 'extern "C" int answer() { return 42; }\n'
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None or shutil.which("ninja") is None, reason="needs a C++ compiler and ninja"
)


def write(folder: Path, text: str = SOURCE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "answer.cpp"
    source.write_text(text)
    return source


def assert_logged_once(caplog: pytest.LogCaptureFixture, match: str) -> None:
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("kernel answer is not available, torch computes instead")
    assert match in line


@needs_compiler
def test_second_use_takes_the_cached_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = write(tmp_path), tmp_path / "cache"
    library = compiled._library(source, cache)
    assert library is not None
    assert library.answer() == 42
    (file,) = cache.iterdir()  # no folder of the build is left
    monkeypatch.setattr(compiled, "_compile", None)
    compiled._library.cache_clear()
    again = compiled._library(source, cache)
    assert again is not None
    assert again.answer() == 42
    assert list(cache.iterdir()) == [file]


def test_library_depends_on_source_flags_compiler_torch_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable}")
    source = write(tmp_path)
    keys = [compiled._key(source), compiled._key(source)]
    assert keys[0] == keys[1]
    source.write_text(SOURCE + "\n")
    keys.append(compiled._key(source))
    monkeypatch.setattr(compiled, "_FLAGS", ["-O1"])
    keys.append(compiled._key(source))
    monkeypatch.setenv("CXX", f"{sys.executable} -X utf8")
    keys.append(compiled._key(source))
    monkeypatch.setattr(compiled.torch, "__version__", "0")
    keys.append(compiled._key(source))
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    keys.append(compiled._key(source))
    assert len(set(keys)) == 6


def test_processor_is_known_by_its_instructions() -> None:
    assert compiled._processor().strip()
    if Path("/proc/cpuinfo").exists():
        assert "flags" in compiled._processor() or "Features" in compiled._processor()


def test_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMTL_KERNELS", "0")
    monkeypatch.setattr(compiled, "_library", None)
    assert compiled.library("per_sample") is None


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    for _ in range(2):
        assert compiled._library(write(tmp_path), tmp_path / "cache") is None
    assert_logged_once(caplog, "no-compiler")


def test_without_ninja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(compiled.shutil, "which", lambda name, path: None)
    assert compiled._library(write(tmp_path), tmp_path / "cache") is None
    assert_logged_once(caplog, "pip install 'sparsemtl[kernels]'")


@pytest.mark.parametrize("fails", ["compiler", "no torch.utils.cpp_extension"])
def test_failed_compilation(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(compiled.shutil, "which", lambda name, path: "ninja")
    monkeypatch.setattr(compiled, "_COMPILE", "raise ImportError('no setuptools')")
    assert compiled._library(write(tmp_path / fails), tmp_path / "cache") is None
    assert_logged_once(caplog, "no setuptools")
    (file,) = (tmp_path / "cache").iterdir()  # no folder of the build is left
    assert file.suffix == ".failed"


def test_compilation_that_failed_is_not_tried_again_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, cache = write(tmp_path), tmp_path / "cache"
    tried = []

    def fail(source: Path, target: Path) -> None:
        tried.append(target)
        target.parent.mkdir(exist_ok=True)
        raise subprocess.CalledProcessError(1, "c++", stderr="no headers")

    def another_process() -> object:
        compiled._library.cache_clear()
        return compiled._library(source, cache)

    monkeypatch.setattr(compiled, "_key", lambda source: "key")
    monkeypatch.setattr(compiled, "_compile", fail)
    monkeypatch.setattr(compiled, "_cache", lambda: cache)
    assert another_process() is another_process() is None
    assert len(tried) == 1
    (failure,) = compiled.failures()
    assert failure.read_text() == "no headers"
    assert "no headers" in caplog.messages[-1]
    assert f"delete {failure}" in caplog.messages[-1]
    failure.unlink()
    assert another_process() is None
    assert len(tried) == 2
    os.utime(failure, (0, time.time() - compiled._RETRY_AFTER - 1))
    assert compiled.failures() == []
    assert another_process() is None
    assert len(tried) == 3
    monkeypatch.setattr(compiled, "_key", lambda source: "another source or compiler")
    assert another_process() is None
    assert len(tried) == 4


@needs_compiler
def test_compilation_that_succeeds_forgets_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_key", lambda source: "key")
    (tmp_path / "answer-key.failed").write_text("no headers")
    os.utime(tmp_path / "answer-key.failed", (0, 0))
    assert compiled._library(write(tmp_path), tmp_path) is not None
    assert not list(tmp_path.glob("*.failed"))


def test_what_computes_a_kernel_is_known_once_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_asked", set())
    monkeypatch.setenv("SPARSEMTL_KERNELS", "0")
    compiled.library("per_sample")
    assert compiled.computed_by() == {"per_sample": "torch"}
    monkeypatch.delenv("SPARSEMTL_KERNELS")
    monkeypatch.setattr(compiled, "_library", lambda source, cache: object())
    monkeypatch.setattr(compiled, "_version", lambda compiler: f"{compiler} 12\nmore")
    monkeypatch.setenv("CXX", "clang")
    compiled._own_library.cache_clear()
    compiled.library("per_sample")
    assert compiled.computed_by() == {"per_sample": "C++ (clang 12)"}
    compiled._own_library.cache_clear()


def test_compilation_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "_key", lambda source: "key")
    monkeypatch.setattr(compiled.shutil, "which", lambda name, path: "ninja")
    monkeypatch.setattr(compiled, "_COMPILE", "import time; time.sleep(60)")
    monkeypatch.setattr(compiled, "_SECONDS", 0.2)
    assert compiled._library(write(tmp_path), tmp_path / "cache") is None
    assert_logged_once(caplog, "timed out")


@needs_compiler
def test_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file, not a folder")
    assert compiled._library(write(tmp_path), cache) is None
    assert_logged_once(caplog, str(cache))


def test_library_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "_key", lambda source: "key")
    (tmp_path / "answer-key.so").write_bytes(b"no library")
    assert compiled._library(write(tmp_path), tmp_path) is None
    assert_logged_once(caplog, "answer-key.so")


def test_every_kernel_has_a_source() -> None:
    sources = list(Path(compiled.__file__).parent.glob("*.cpp"))
    assert sources
    assert all((source.with_suffix(".py")).exists() for source in sources)


LOAD = """
import sys
from pathlib import Path
from sparsemtl.kernels import compiled
print(compiled._library(Path(sys.argv[1]), Path(sys.argv[2])).answer())
"""


@pytest.mark.slow
@needs_compiler
def test_processes_compile_at_once_and_one_is_killed(tmp_path: Path) -> None:
    source, cache = write(tmp_path), tmp_path / "cache"
    command = [sys.executable, "-c", LOAD, str(source), str(cache)]
    killed = subprocess.Popen(command)
    while not (cache.exists() and list(cache.iterdir())):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["42", "42"]
    (file,) = cache.glob("*.so")
    assert ctypes.CDLL(str(file)).answer() == 42
