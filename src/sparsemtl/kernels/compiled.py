"""Compilation of a kernel's C++ source on first use, and the cache of compiled libraries.

A source is plain C++ without torch's headers, so that it compiles in a second; ctypes calls its `extern "C"` functions.
torch.utils.cpp_extension compiles it in a process of its own, in a private folder, and the library is then moved into
the user's cache: processes need no lock, and one that is killed leaves none behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

NAMES = tuple(sorted(source.stem for source in Path(__file__).parent.glob("*.cpp")))
"""Names of the kernels."""

_FLAGS = ["-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
_SECONDS = 120
"""Time after which a compilation is given up."""
_RETRY_AFTER = 24 * 3600
"""Seconds after which a compilation that failed is tried again."""
_COMPILE = """
import sys
from torch.utils.cpp_extension import load
name, source, folder, *flags = sys.argv[1:]
load(name, [source], extra_cflags=flags, build_directory=folder, with_cuda=False, is_python_module=False)
"""

_lock = threading.Lock()
_asked: set[str] = set()


def computed_by() -> dict[str, str]:
    """Return name of each kernel that this process has asked for -> "torch", or "C++" with the compiler's version."""
    return {name: _found(name)[1] for name in sorted(_asked)}


def library(name: str, *, exact: bool = False) -> ctypes.CDLL | None:
    """Return the compiled library of `<name>.cpp` in this folder; None where torch must do the work.

    Compiles at most once per machine, in a few seconds. Without a compiler, without ninja, if compilation fails, or if
    the cache cannot be written, one line is logged and the answer is None. After a failure, no process compiles again
    for a day, unless the file is deleted that holds the compiler's output.

    Args:
        name: name of the kernel.
        exact: the results are torch's, bit for bit, so that a run need not record what computed them.
    """
    if not exact:
        _asked.add(name)
    return _found(name)[0]


def _found(name: str) -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("SPARSEMTL_KERNELS") == "0":
        return None, "torch"
    with _lock:
        return _own_library(name)


@functools.cache
def _own_library(name: str) -> tuple[ctypes.CDLL | None, str]:
    """Return the library of a source in this folder, and what computes with it or without it."""
    found = _library(Path(__file__).with_name(f"{name}.cpp"), _cache())
    return found, "torch" if found is None else _compiler()


def failures() -> list[Path]:
    """Return the files with the output of compilations that failed and are not tried again yet."""
    return [file for file in sorted(_cache().glob("*.failed")) if _is_recent(file)]


def _cache() -> Path:
    import pooch  # slow to import

    return Path(pooch.os_cache("sparsemtl")) / "kernels"


@functools.cache
def _library(source: Path, cache: Path) -> ctypes.CDLL | None:
    """Return the library of a source, compiled if the cache does not hold it."""
    try:
        target = cache / f"{source.stem}-{_key(source)}.so"
        if not target.exists():
            _compile_or_recall(source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("kernel %s is not available, torch computes instead: %s", source.stem, _output(error)[-500:])
        return None


def _compile_or_recall(source: Path, target: Path) -> None:
    """Compile a source, unless that failed within the last day; the output of a failure is kept beside the library."""
    failure = target.with_suffix(".failed")
    if failure.exists() and _is_recent(failure):
        raise OSError(f"{failure.read_text()[-300:]} (Earlier failure; delete {failure} to compile again.)")
    try:
        _compile(source, target)
    except subprocess.SubprocessError as error:
        failure.write_text(_output(error))
        raise
    failure.unlink(missing_ok=True)


def _is_recent(failure: Path) -> bool:
    return time.time() - failure.stat().st_mtime < _RETRY_AFTER


def _output(error: Exception) -> str:
    output = getattr(error, "stderr", None) or str(error)
    return (output.decode(errors="replace") if isinstance(output, bytes) else output).strip()


def _key(source: Path) -> str:
    """Return the hash of all that the library depends on. Machines that share the cache may differ in processor."""
    compiler = os.environ.get("CXX", "c++")
    parts = [source.read_text(), *_FLAGS, *shlex.split(compiler), _version(compiler), torch.__version__, _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _version(compiler: str) -> str:
    """Return the version text of a compiler.

    Raises:
        OSError: if there is no such compiler.
        subprocess.SubprocessError: if it fails.
    """
    command = [*shlex.split(compiler), "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout


def _compiler() -> str:
    """Return the name of C++ with the first line of the compiler's version."""
    return f"C++ ({_version(os.environ.get('CXX', 'c++')).partition(chr(10))[0].strip()})"


def _processor() -> str:
    """Return the model and the instructions of the processor, which `-march=native` compiles for."""
    with contextlib.suppress(OSError):
        fields = dict.fromkeys(  # of all cores, for they may differ
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(_PROCESSOR_FIELDS)
        )
        return "\n".join(fields)
    return f"{platform.machine()} {platform.processor()}"


_PROCESSOR_FIELDS = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


def _compile(source: Path, target: Path) -> None:
    """Compile a source to a library of the cache.

    Raises:
        OSError: if there is no ninja, or the cache cannot be written.
        subprocess.SubprocessError: if compilation fails, or takes too long.
    """
    environment = _environment()
    if shutil.which("ninja", path=environment["PATH"]) is None:
        raise FileNotFoundError("no ninja; pip install 'sparsemtl[kernels]' installs it")
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("compiling kernel %s, once per machine", source.stem)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as folder:
        command = [sys.executable, "-c", _COMPILE, source.stem, str(source), folder, *_FLAGS]
        subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=folder, env=environment, timeout=_SECONDS
        )
        os.replace(Path(folder, f"{source.stem}.so"), target)


def _environment() -> dict[str, str]:
    """Return this environment, in which the compiling process finds torch, setuptools and pip's ninja."""
    environment = {"PATH": os.defpath, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if importlib.util.find_spec("ninja") is not None:  # in an environment that is not activated it is not on the path
        scripts = Path(sys.executable).parent
        environment["PATH"] = os.pathsep.join([str(scripts), environment["PATH"]])
    return environment
