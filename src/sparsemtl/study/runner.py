"""Runs a study: what is finished is skipped, what was cut short goes on, and it ends in tables and a report."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from sparsemtl.errors import ConfigError, SparseMTLError
from sparsemtl.files import read_json, replacing, write_json, write_text
from sparsemtl.run import run
from sparsemtl.study.grid import Study, StudyRun
from sparsemtl.training.folder import RunFolder


def run_study(study: Study, out: str | Path, *, jobs: int = 1, progress: bool = True) -> Path:
    """Run all runs of a study and write `results.csv`, tables and the report.

    Args:
        study: the study.
        out: its folder.
        jobs: runs at a time, each in a process of its own with its part of the cores.
        progress: show a bar over the runs.

    Returns:
        the study's folder.

    Raises:
        ConfigError: if a run's folder holds a run of another configuration.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _record(study, out)
    todo = [r for r in study.runs if not _done(r, out)]
    _execute(todo, out, jobs, progress, skipped=len(study.runs) - len(todo))
    write_results(study, out)
    _finish(study, out)
    return out


def _record(study: Study, out: Path) -> None:
    import yaml

    write_text(out / "study.yaml", yaml.safe_dump(dict(study.source), sort_keys=False, allow_unicode=True))
    notes = list(study.notes)
    write_json(
        out / "study.json",
        {
            "name": study.name,
            "baseline": study.baseline,
            "methods": list(study.methods),
            "grid": list(study.grid),
            "notes": notes,
        },
    )


def _done(one: StudyRun, out: Path) -> bool:
    folder = RunFolder(out / "runs" / one.name)
    if folder.config.exists() and folder.read_config() != _plain(one.config):
        raise ConfigError(
            f"{folder.path} holds a run of another configuration. Use another --out, or delete that folder."
        )
    return folder.finished


def _plain(config: Any) -> Any:
    import yaml

    return yaml.safe_load(yaml.safe_dump(dict(config)))


def _execute(todo: list[StudyRun], out: Path, jobs: int, progress: bool, *, skipped: int) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, quiet=not progress)
    if skipped:
        console.print(f"{skipped} runs are finished already.", highlight=False)
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bars:
        bar = bars.add_task("runs", total=len(todo))
        for count, one in enumerate(_finished(todo, out, jobs), start=1):
            bars.advance(bar)
            console.print(f"[{count}/{len(todo)}] {one.name}", highlight=False, markup=False)


def _finished(todo: list[StudyRun], out: Path, jobs: int) -> Iterator[StudyRun]:
    """Run them, and yield each when it is finished."""
    if jobs == 1:
        for one in todo:
            _run_one(one, out, None)
            yield one
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        pending = {pool.submit(_run_one, one, out, threads): one for one in todo}
        try:
            for future in as_completed(pending):
                future.result()
                yield pending[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_one(one: StudyRun, out: Path, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        run(one.config, out / "runs" / one.name, resume=True, progress=False)
    except SparseMTLError as error:
        error.add_note(f"in run {one.name} of the study") if hasattr(error, "add_note") else None
        raise


def write_results(study: Study, out: Path) -> Path:
    """Gather the summaries of all finished runs into `results.csv`, a row per run, split, task and metric."""
    path = out / "results.csv"
    columns = ["run", "method", "seed", *study.grid, "split", "task", "metric", "higher_is_better", "value"]
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for one in study.runs:
            folder = RunFolder(out / "runs" / one.name)
            if folder.finished:
                writer.writerows(_rows(study, one, read_json(folder.summary)))
    return path


def _rows(study: Study, one: StudyRun, summary: dict[str, Any]) -> Iterator[list[Any]]:
    head = [one.name, one.method, one.seed, *(one.values.get(key, "") for key in study.grid)]
    for task, entry in summary["tasks"].items():
        for split in ("validation", "test"):
            for metric, value in entry[split].items():
                yield [*head, split, task, metric, entry["directions"][metric], "" if value is None else value]
    yield [*head, "run", "", "seconds", False, summary["seconds"]]


def primary_metrics(study: Study, out: Path) -> dict[str, str]:
    """Task -> primary metric, from the first finished run."""
    for one in study.runs:
        folder = RunFolder(out / "runs" / one.name)
        if folder.finished:
            return {task: entry["primary"] for task, entry in read_json(folder.summary)["tasks"].items()}
    return {}


def _finish(study: Study, out: Path) -> None:
    from sparsemtl.report import write_report
    from sparsemtl.study.results import Results, read_results
    from sparsemtl.study.tables import metric_tables, primary_table, to_csv, to_markdown

    primary = primary_metrics(study, out)
    results = Results.of(
        read_results(out / "results.csv"), baseline=study.baseline, methods=study.methods, primary=primary
    )
    tables = [primary_table(results), *metric_tables(results).values()]
    write_text(out / "tables.md", "\n\n".join(to_markdown(table) for table in tables) + "\n")
    write_text(out / "tables.csv", to_csv(tables))
    write_report(out)
