"""Time until the command line answers, of a first run, and time that `import sparsemtl` adds to `import torch`.

    python benchmarks/start_speed.py [--quick] [--json FILE]

Every figure is of fresh processes with compiled bytecode in the disk's cache; differences are of processes in turns.
The run trains a perceptron of eight hidden units on digits for two epochs, and draws its report. A process that imports
torch and makes an optimizer pays for torch and torch._dynamo, which torch imports with the first optimizer.
"""

from __future__ import annotations

import operator
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from common import Measure, main, seconds, spread

ALL = "import torch; from sparsemtl import *"
TORCH = "import torch; torch.optim.Adam(torch.nn.Linear(2, 2).parameters())"
RUN = "data: digits\nencoder: {name: mlp, hidden: [8]}\ntraining: {epochs: 2, batch_size: 256}\n"


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
        if not quick:
            yield from _first_run(Path(cache), run)
        run("-c", ALL)
        imports: list[tuple[str, str, float | None]] = [
            ("`import sparsemtl` over `import torch`", "import torch, sparsemtl", 0.2)
        ]
        if not quick:
            imports.append(("the same, then all exported names", ALL, None))
        for name, code, goal in imports:
            yield Measure(name, spread(lambda code=code: added(code), repeats), goal=goal, unit="s")  # type: ignore[misc]


def _first_run(folder: Path, run: Callable[..., None]) -> Iterator[Measure]:
    """Yield the rows of a small run; `run` starts a process with the same cache of bytecode."""
    file = folder / "run.yaml"
    file.write_text(RUN)

    def train() -> None:
        run("-m", "sparsemtl", "run", str(file), "--out", tempfile.mkdtemp(dir=folder), "--quiet")

    train(), run("-c", TORCH)
    ours, torchs = zip(*((seconds(train), seconds(lambda: run("-c", TORCH))) for _ in range(3)), strict=True)
    yield Measure("small run on digits", spread(iter(ours).__next__, 3), unit="s")
    over = map(operator.truediv, ours, torchs)
    yield Measure("the same, over `import torch` and an optimizer", spread(over.__next__, 3))


if __name__ == "__main__":
    main(measures, __doc__)
