"""Name of the processor, which figures and times depend on."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def processor_name() -> str:
    """Return the processor's model: from /proc/cpuinfo on Linux, else from `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
