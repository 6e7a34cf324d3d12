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
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_FLAGS = ["-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
_SECONDS = 120
"""Time after which a compilation is given up."""
_COMPILE = """
import sys
from torch.utils.cpp_extension import load
name, source, folder, *flags = sys.argv[1:]
load(name, [source], extra_cflags=flags, build_directory=folder, with_cuda=False, is_python_module=False)
"""

_lock = threading.Lock()


def library(name: str) -> ctypes.CDLL | None:
    """Return the compiled library of `<name>.cpp` in this folder; None where torch must do the work.

    Compiles at most once per process and machine, in a few seconds. Without a compiler, without ninja, if compilation
    fails, or if the cache cannot be written, one line is logged and the answer is None.
    """
    if os.environ.get("SPARSEMTL_KERNELS") == "0":
        return None
    with _lock:
        return _own_library(name)


@functools.cache
def _own_library(name: str) -> ctypes.CDLL | None:
    """Return the library of a source in this folder."""
    import pooch  # slow to import

    return _library(Path(__file__).with_name(f"{name}.cpp"), pooch.os_cache("sparsemtl") / "kernels")


@functools.cache
def _library(source: Path, cache: Path) -> ctypes.CDLL | None:
    """Return the library of a source, compiled if the cache does not hold it."""
    try:
        target = cache / f"{source.stem}-{_key(source)}.so"
        if not target.exists():
            _compile(source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        logger.warning("kernel %s is not available, torch computes instead: %s", source.stem, output.strip()[-500:])
        return None


def _key(source: Path) -> str:
    """Return the hash of all that the library depends on. Machines that share the cache may differ in processor."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True, timeout=_SECONDS)
    parts = [source.read_text(), *_FLAGS, *compiler, version.stdout, torch.__version__, _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


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
