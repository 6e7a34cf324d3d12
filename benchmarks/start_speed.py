"""Time until the command line answers, and time that `import sparsemtl` adds to `import torch`.

    python benchmarks/start_speed.py [--quick] [--json FILE]

Every figure is of fresh processes with compiled bytecode in the disk's cache; differences are of processes in turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from common import Measure, main, seconds, spread

ALL = "import torch; from sparsemtl import *"


def measures(quick: bool) -> Iterator[Measure]:
    """Yield a row per command and import."""
    repeats = 2 if quick else 5
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(*words: str) -> None:
            subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)

        def added(code: str) -> float:
            return seconds(lambda: run("-c", code)) - seconds(lambda: run("-c", "import torch"))

        for words in ("--help", "study --help"):
            command = ("-m", "sparsemtl", *words.split())
            run(*command)
            value = spread(lambda command=command: seconds(lambda: run(*command)), repeats)  # type: ignore[misc]
            yield Measure(f"`sparsemtl {words}`", value, goal=0.4, unit="s")
        run("-c", ALL)
        imports: list[tuple[str, str, float | None]] = [
            ("`import sparsemtl` over `import torch`", "import torch, sparsemtl", 0.2)
        ]
        if not quick:
            imports.append(("the same, then all exported names", ALL, None))
        for name, code, goal in imports:
            yield Measure(name, spread(lambda code=code: added(code), repeats), goal=goal, unit="s")  # type: ignore[misc]


if __name__ == "__main__":
    main(measures, __doc__)
