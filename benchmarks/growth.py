"""Growth of time and memory with tasks, parameters, runs and rows.

    python benchmarks/growth.py [--quick]

Every size runs in a process of its own. The time is the fastest of a few. The memory is the peak while the measured
part runs, without libraries, with its inputs: model, masks or table. The exponent is the slope of a least-squares line
through the logarithms: 1 is linear growth. Two rows are measured at a time. Networks are MLPs of four layers, batches
of 16; masks keep 0.3; a study has ten seeds per setting; a table has four numbers, two categories and a class. One
thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.criteria import Fisher
from sparsemtl.criteria import Random as RandomCriterion
from sparsemtl.data import TensorLoader
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.step import TrainingStep

LAYERS, BATCH, CLASSES, KEEP, SEEDS = 4, 16, 10, 0.3, 10
REPEATS, LEAST = 3, 2.0
"""Runs per size, of which one is enough if it takes so many seconds."""
TASKS, PARAMETERS, RUNS, ROWS = (4, 16, 64), (1e6, 1e7, 1e8), (25, 200, 1000), (1e5, 1e6, 1e7)
Part = Callable[[float], Callable[[], object]]
"""Sets a size up, and returns what is measured."""


def model_of(tasks: float, parameters: float) -> sm.SharedBottom:
    """MLP with about so many shared weights."""
    torch.manual_seed(0)
    width = round(math.sqrt(parameters / LAYERS))
    shared = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())]
    each = [sm.Classification(f"task{index}", CLASSES) for index in range(int(tasks))]
    return sm.SharedBottom(nn.Sequential(*shared), each, {task.name: nn.Linear(width, CLASSES) for task in each})


def group_of(model: sm.SharedBottom) -> Group:
    """A random batch for all tasks."""
    x = torch.randn(BATCH, next(model.parameters()).shape[1])
    return Group(x, {name: torch.randint(CLASSES, (BATCH,)) for name in model.tasks}, tuple(model.tasks))


def step(tasks: float, parameters: float) -> Callable[[], object]:
    """One batch of training with masks: a step per task."""
    model = model_of(tasks, parameters)
    sharing = sm.RandomSharing(keep=KEEP, seed=0)
    networks = sharing.start(model)
    networks = sharing.begin_epoch(0, model, networks, []) or networks
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    engine, groups = TrainingStep(model, optimizer, networks, sharing=sharing, update="average"), [group_of(model)]
    return lambda: engine.step([groups])


def selection(tasks: float, parameters: float) -> Callable[[], object]:
    """Choice of masks by Fisher information."""
    model = model_of(tasks, parameters)
    group = group_of(model)
    loader = TensorLoader(group.x, group.targets, batch_size=BATCH)
    return lambda: sm.choose_masks(Fisher(estimator="true"), model, loader, keep=KEEP)


def masks(tasks: float, parameters: float) -> sm.TaskMasks:
    """Masks drawn at random."""
    return sm.choose_masks(RandomCriterion(), model_of(tasks, parameters), [], keep=KEEP)


def files(tasks: float, parameters: float) -> Callable[[], object]:
    """Masks written to a file and read again."""
    drawn, path = masks(tasks, parameters), Path(tempfile.mkdtemp()) / "masks.safetensors"

    def both() -> None:
        drawn.save(path)
        sm.TaskMasks.load(path)
        path.unlink()

    return both


def overlap(tasks: float, parameters: float) -> Callable[[], object]:
    """Pairwise overlap of masks."""
    return masks(tasks, parameters).overlap


def study(runs: float) -> Callable[[], object]:
    """A finished study run again: its results, tables and report. Run folders are copies of one."""
    from sparsemtl.report import write_report
    from sparsemtl.storage.study_folder import StudyFolder
    from sparsemtl.study.grid import Study, read_study
    from sparsemtl.study.runner import run_study

    folder = Path(tempfile.mkdtemp())
    settings = max(1, round(runs / SEEDS))
    keeps = [round(value, 4) for value in np.linspace(0.1, 0.9, settings).tolist()]

    def parsed(keeps: Sequence[float], seeds: int) -> Study:
        source = {
            "base": {"data": "digits", "encoder": "mlp", "training": {"epochs": 5, "batch_size": 256}},
            "methods": {"random": {"sharing": "random"}},
            "grid": {"sharing.keep": keeps},
            "seeds": list(range(seeds)),
        }
        (folder / "study.yaml").write_text(json.dumps(source))
        return read_study(folder / "study.yaml")

    out, whole = StudyFolder(folder / "out"), parsed(keeps, round(runs / settings))
    run_study(parsed(keeps[:1], 1), out.path, progress=False, finished=write_report)  # imports what draws
    first = out.run(whole.runs[0].name)
    for one in whole.runs[1:]:
        copy = out.run(one.name)
        copy.path.mkdir()
        for file in (first.metrics, first.summary, first.environment):
            shutil.copy(file, copy.path)
        copy.write_config(one.config)
        copy.report.write_text("")  # a finished run has one

    def again() -> None:
        out.report.unlink(missing_ok=True)
        out.tables.unlink(missing_ok=True)
        run_study(whole, out.path, progress=False, finished=write_report)

    return again


def table_file(rows: float) -> Path:
    """A CSV file of random rows, each of one of 10,000 drawn lines."""
    draw = np.random.default_rng(0)
    lines = []
    for values in draw.normal(size=(10_000, 4)).tolist():
        codes = f"c{draw.integers(20)},d{draw.integers(200)},{'no' if draw.random() < 0.5 else 'yes'}"
        lines.append(",".join([*(f"{value:.4f}" for value in values), codes]) + "\n")
    path = Path(tempfile.mkdtemp()) / "table.csv"
    with path.open("w") as file:
        file.write("a,b,c,d,e,f,label\n")
        for _ in range(int(rows) // len(lines)):
            file.writelines(lines)
    return path


def table(path: Path) -> sm.TaskData:
    """Read and encode a table."""
    return sm.data.DATASETS.build("table", path=str(path), targets={"label": "classification"})


def reading(rows: float) -> Callable[[], object]:
    """Table read from CSV, divided and encoded."""
    table(table_file(1e4))  # imports libraries
    path = table_file(rows)
    return lambda: table(path)


def epoch(rows: float) -> Callable[[], object]:
    """Batches of an epoch of a table."""
    split = table(table_file(1e5)).train
    times = math.ceil(rows / len(split))
    coded, labels = split.coded.repeat(times, 1), {name: of.repeat(times) for name, of in split.labels.items()}
    loader = replace(split, coded=coded, labels=labels, rows=torch.arange(int(rows))).loader(1024, shuffle=True)
    return lambda: sum(len(x) for x, _ in loader)


PARTS: dict[str, tuple[Part, Sequence[float], str]] = {
    **{
        f"{title}, by tasks (1 M weights)": (lambda size, part=part: part(size, 1e6), TASKS, remark)
        for title, part, remark in (
            ("masked training step", step, ""),
            ("choice of masks by Fisher information", selection, ""),
            ("masks, save and load", files, ""),
            ("masks, overlap", overlap, "products of all pairs of tasks (exponent 2) beside reading the masks (1)"),
        )
    },
    **{
        f"{title}, by weights (4 tasks)": (lambda size, part=part: part(4, size), PARAMETERS, "")
        for title, part in (
            ("masked training step", step),
            ("choice of masks by Fisher information", selection),
            ("masks, save and load", files),
            ("masks, overlap", overlap),
        )
    },
    "study, finished: results, tables, report, by runs": (study, RUNS, ""),
    "table, read and encode, by rows": (reading, ROWS, ""),
    "table, batches of an epoch, by rows": (epoch, ROWS, ""),
}


@dataclass(frozen=True)
class Growth:
    """One row of the table: seconds and peak megabytes by size, and their exponents."""

    name: str
    sizes: list[float]
    seconds: list[float]
    megabytes: list[float]
    time: float
    memory: float
    remark: str


def memory(field: str) -> float:
    """Megabytes of this process: `VmRSS` are those it holds, `VmHWM` their peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field))


def measure(part: Part, size: float) -> tuple[float, float]:
    """Seconds and peak megabytes of one size, in this process."""
    before = memory("VmRSS")
    run, times = part(size), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on, without that of the set-up
    while len(times) < REPEATS and max(times, default=0) < LEAST:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times), memory("VmHWM") - before


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def growth(name: str, *, quick: bool) -> Growth:
    """Measure all sizes of a row, each in a process."""
    _, sizes, remark = PARTS[name]
    points: dict[float, tuple[float, float]] = {}
    for size in sizes[:2] if quick else sizes:
        command = [sys.executable, __file__, "--point", name, str(size)]
        with tempfile.TemporaryDirectory() as folder:  # for all files of the process
            environment = {**os.environ, "TMPDIR": folder}
            done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            remark = f"{remark} {size:,.0f} failed".strip()
        else:
            points[size] = json.loads(done.stdout)
    seconds, megabytes = ([point[index] for point in points.values()] for index in (0, 1))
    slopes = [exponent(list(points), values) if len(points) > 1 else math.nan for values in (seconds, megabytes)]
    return Growth(name, list(points), seconds, megabytes, *slopes, remark)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes")
    parser.add_argument("--only", help="part of the names of the rows to measure")
    parser.add_argument("--json", type=Path, help="file that the rows are written to")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.point:
        name, size = options.point
        print(json.dumps(measure(PARTS[name][0], float(size))))
        return
    rows = []
    names = [name for name in PARTS if options.only is None or options.only in name]
    with ThreadPoolExecutor(2) as pool:
        for name, row in zip(names, pool.map(partial(growth, quick=options.quick), names), strict=True):
            rows.append(asdict(row))
            times, peaks = (" / ".join(f"{value:.3g}" for value in values) for values in (row.seconds, row.megabytes))
            print(f"{name}: {times} s, exponent {row.time:.2f}; {peaks} MB, exponent {row.memory:.2f}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
