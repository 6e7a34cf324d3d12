"""Time of a study beside its training: fixed cost per run, a finished study run again, and two jobs against one.

    python benchmarks/study_speed.py [--quick] [--json FILE]

The fixed cost is of six runs in one process that has run a study before: the time of the study less that of training,
by run; a part of it is the report of the study, which is drawn once for all runs. Commands run in fresh processes;
their time holds the import of torch. Jobs have one thread each. Two plain loops of torch on a like network, one thread
each, that run at once in place of one after the other are the bound of what two jobs can gain: the cores of a virtual
machine are often two threads of one core, which share its arithmetic units.

Shares of the processor time of the fixed cost, by a profile on one thread. A chart takes 20 ms, half of it for axes of
matplotlib, which are made anew for each. The cost of a network takes 20 ms, a fifth of it for copies of the model.

| part | % |
| :--- | ---: |
| report of the study: its 19 charts | 17 |
| report of the study, and tables: statistics and page | 24 |
| cost of four networks per run: compacted, verified in two precisions, timed | 33 |
| three evaluations per run: values of five metrics per task | 8 |
| set-up of model, metrics and trainer; checkpoints and other files | 18 |
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import Measure, Ratio, main, seconds, spread

from sparsemtl.report import write_report
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.study.grid import Study, read_study
from sparsemtl.study.runner import run_study

SHORT: dict[str, Any] = {
    "base": {"encoder": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 2, "batch_size": 256}},
    "seeds": [0, 1],
    "methods": {
        "stl": {"architecture": "single-task"},
        "random": {"sharing": "random", "grid": {"sharing.keep": [0.3, 0.6]}},
    },
}
"""Six runs that train for 0.06 seconds each."""


def long(epochs: int) -> dict[str, Any]:
    """A study of four runs that train for 0.3 seconds per epoch (dense) and 1 second (random) on one core."""
    base = {"encoder": "cnn", "training": {"epochs": epochs, "batch_size": 64}}
    return {"base": base, "seeds": [0, 1], "methods": {"dense": {}, "random": {"sharing": "random"}}}


def measures(quick: bool) -> Iterator[Measure]:
    """Yield a row per figure."""
    repeats = 2 if quick else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = _written(folder / "short.yaml", SHORT)
        study = read_study(file)
        run_study(study, folder / "first", progress=False, finished=write_report)
        whole, reports = zip(*(_fixed_cost(study, folder / "again") for _ in range(repeats)), strict=True)
        yield Measure("fixed cost per run of a study", spread(iter(whole).__next__, repeats), goal=0.3, unit="s")
        part = spread(iter(reports).__next__, repeats)
        yield Measure("of it, the report of the study, drawn once", part, unit="s")
        runs = [folder / "first" / "runs" / run.name for run in study.runs]
        yield Measure("report of a run", spread(lambda: seconds(lambda: write_report(runs[0])), repeats), unit="s")
        again = spread(lambda: seconds(lambda: _run(read_study(file), folder / "first")), repeats)
        yield Measure("a finished study run again", again, goal=1, unit="s")
        command = ("study", str(file), "--out", str(folder / "first"), "--quiet")
        value = spread(lambda: seconds(lambda: _command(*command)), repeats)
        yield Measure("the same, as a command", value, goal=1, unit="s")
        if not quick:
            yield Measure("`study --jobs 2`, times faster than one job", _speed_up(folder, 2), goal=1.7, at_least=True)
            yield Measure("two plain loops of torch at once, times faster than in turns", spread(_two_loops, repeats))


def _run(study: Study, folder: Path) -> None:
    run_study(study, folder, progress=False, finished=write_report)


def _fixed_cost(study: Study, folder: Path) -> tuple[float, float]:
    """Return the seconds per run beside its training, and those of them in which the study's report is drawn."""
    shutil.rmtree(folder, ignore_errors=True)
    drawn: list[float] = []

    def draw(path: Path) -> None:
        drawn.append(seconds(lambda: write_report(path)))

    total = seconds(lambda: run_study(study, folder, progress=False, finished=draw, run_reports=False))
    trained = [float(json.loads(path.read_text())["seconds"]) for path in folder.glob("runs/*/summary.json")]
    return (total - sum(trained)) / len(trained), sum(drawn) / len(trained)


PLAIN = """
import sys, time, torch
torch.set_num_threads(1)
layers = []
for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
    layers += [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), fused=True)
x, y = torch.rand(64, 1, 8, 8), torch.randint(10, (64,))
for _ in sys.stdin:
    start = time.perf_counter()
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    print(time.perf_counter() - start, flush=True)
"""
"""Loop that trains a network like that of `long`, once per line of its input, and prints its seconds."""


def _two_loops() -> float:
    """Return the time of two loops in turns over that of the two at once."""
    pipe, code = subprocess.PIPE, [sys.executable, "-c", PLAIN]
    loops = [subprocess.Popen(code, stdin=pipe, stdout=pipe, text=True, bufsize=1) for _ in range(2)]

    def once(chosen: list[Any]) -> list[float]:
        for loop in chosen:
            loop.stdin.write("\n")
        return [float(loop.stdout.readline()) for loop in chosen]

    try:
        for loop in loops:
            once([loop])  # warm
        in_turns = sum(once([loop])[0] for loop in loops)
        return in_turns / max(once(loops))
    finally:
        for loop in loops:
            loop.communicate()


def _speed_up(folder: Path, repeats: int) -> Ratio:
    file = _written(folder / "long.yaml", long(epochs=8))

    def once(jobs: int) -> float:
        shutil.rmtree(folder / "long", ignore_errors=True)
        words = ("study", str(file), "--out", str(folder / "long"), "--quiet", "--jobs", str(jobs))
        return seconds(lambda: _command(*words))

    return spread(lambda: once(1) / once(2), repeats)


def _command(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "sparsemtl", *words], check=True, capture_output=True, env=environment)


def _written(path: Path, study: dict[str, Any]) -> Path:
    path.write_text(dump_yaml(study), encoding="utf-8")
    return path


if __name__ == "__main__":
    main(measures, __doc__)
