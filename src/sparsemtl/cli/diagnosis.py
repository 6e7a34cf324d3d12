"""State of the installation: versions, devices, extras and plugins, each a finding with its remedy."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path

from sparsemtl.storage.findings import Finding


def diagnosis() -> Iterator[Finding]:
    """Yield the state of every part."""
    yield Finding("Python", f"{platform.python_version()}, {platform.platform()}")
    yield Finding("sparsemtl", version("sparsemtl"))
    yield from _dependencies()
    yield from _devices()
    yield from _imports()
    yield _kernels()
    yield from _plugins()
    yield from _disk()


def _dependencies() -> Iterator[Finding]:
    """Yield each base dependency, and each extra with the packages that it lacks."""
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in requires("sparsemtl") or ()]
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = _extra_of(str(requirement.marker or ""))
        if extra is None:
            yield _package(requirement.name, str(requirement.specifier))
        elif extra not in ("dev", "docs", "all") and requirement.name != "sparsemtl":
            lack = _lack(requirement.name, str(requirement.specifier))
            extras.setdefault(extra, []).extend([lack] if lack else [])
    for extra, lacks in extras.items():
        if lacks:
            remedy = f"pip install 'sparsemtl[{extra}]' if you need it"
            yield Finding(f"extra {extra}", "; ".join(lacks), "missing", remedy)
        else:
            yield Finding(f"extra {extra}", "installed")


def _extra_of(marker: str) -> str | None:
    found = re.search(r"extra == [\"']([^\"']+)[\"']", marker)
    return found[1] if found else None


def _package(name: str, specifier: str) -> Finding:
    lacking = _lack(name, specifier)
    if lacking:
        return Finding(name, lacking, "broken", f"pip install '{name}{specifier}'")
    return Finding(name, version(name))


def _lack(name: str, specifier: str) -> str:
    """Return what is wrong with a package: it is not installed, or too old; "" if it fits."""
    from packaging.specifiers import SpecifierSet

    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    fits = SpecifierSet(specifier).contains(found, prereleases=True)
    return "" if fits else f"{name} {found} is not {specifier}"


def _devices() -> Iterator[Finding]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("CPU", f"cores: {os.cpu_count()}, {capability}, torch's threads: {torch.get_num_threads()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda is not None:
        remedy = "the driver does not serve this build of torch; `nvidia-smi` shows the driver"
        yield Finding("GPU", f"none is seen, though torch is built for CUDA {torch.version.cuda}", "missing", remedy)
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "Apple MPS")
    else:
        yield Finding("GPU", "none (a CPU build of torch)")


_OPTIONAL = ("torchvision", "transformers", "onnxruntime")
"""Packages beside sparsemtl that are often installed for another version of torch."""


def _imports() -> Iterator[Finding]:
    """Yield whether packages that do not fit torch can be imported, each in a process of its own."""
    for name in _OPTIONAL:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        run = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
        if run.returncode:
            error = (run.stderr.strip().splitlines() or ["it ended without a message"])[-1]
            remedy = f"install the {name} that belongs to your torch, or remove it: pip uninstall {name}"
            yield Finding(name, f"{found} cannot be imported: {error}", "broken", remedy)
        else:
            yield Finding(name, found)


def _kernels() -> Finding:
    from sparsemtl.kernels.compiled import failures

    if os.environ.get("SPARSEMTL_KERNELS") == "0":
        return Finding("C++ kernels", "turned off by SPARSEMTL_KERNELS=0")
    compiler = os.environ.get("CXX", "c++").split()[0]
    for tool, remedy in ((compiler, "install a C++ compiler"), ("ninja", "pip install 'sparsemtl[kernels]'")):
        if shutil.which(tool) is None:
            return Finding("C++ kernels", f"{tool} was not found; torch computes instead", "missing", remedy)
    if failed := failures():
        remedy = f"read {failed[0]}, and delete it to compile again"
        return Finding("C++ kernels", "compilation failed; torch computes instead", "broken", remedy)
    return Finding("C++ kernels", f"compiled on first use by {shutil.which(compiler)}")


def _plugins() -> Iterator[Finding]:
    from sparsemtl.registry.plugins import GROUP

    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            remedy = f"ask its authors, or uninstall it ({point.value})"
            yield Finding(f"plugin {point.name}", f"{type(error).__name__}: {error}", "broken", remedy)
        else:
            yield Finding(f"plugin {point.name}", point.value)


def _disk() -> Iterator[Finding]:
    data = Path(os.environ.get("SPARSEMTL_DATA", "data"))
    for what, path in (("data folder", data), ("working folder", Path())):
        existing = next(each for each in (path.resolve(), *path.resolve().parents) if each.exists())
        free = shutil.disk_usage(existing).free / 2**30
        text = f"{path.resolve()}, {free:.0f} GiB free"
        if os.access(existing, os.W_OK):
            yield Finding(what, text)
        else:
            yield Finding(what, f"{text}, read-only", "broken", "choose another with --data-root or --out")
