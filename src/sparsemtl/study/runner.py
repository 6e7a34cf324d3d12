"""Runs a study: what is finished is skipped, what was cut short goes on, and it ends in tables and a report."""

from __future__ import annotations

import csv
import gc
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple

from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, ConfigError, SparseMTLError, TrainingError
from sparsemtl.runs.config import differences, pretraining_config
from sparsemtl.runs.pretraining import pretraining_folder
from sparsemtl.runs.run import dry_run, make_sharing, run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.files import replacing, write_json, write_text
from sparsemtl.storage.locks import locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml
from sparsemtl.study.costs import SPLIT, cost_rows
from sparsemtl.study.grid import Study, StudyRun, value_text
from sparsemtl.study.record import study_results
from sparsemtl.training.processes import end_with_parent, refuse_distributed


def run_study(study: Study, out: str | Path, *, jobs: int = 1, progress: bool = True) -> dict[str, str]:
    """Run all runs of a study and write `results.csv`, tables and the report.

    A run whose training comes to nothing (`TrainingError`: an infinite loss, an empty mask) is left out of the tables
    and the study goes on; any other error ends it, and so does such a one in pretraining.

    Args:
        study: the study.
        out: its folder.
        jobs: runs at a time, each in a process of its own; results do not depend on it, as each run has the threads
            that `training.threads` says.
        progress: show a bar over the runs.

    Returns:
        run -> why it has no result, for the runs that were left out.

    Raises:
        CheckpointError: if the folder holds something else, or another process writes there.
        ConfigError: if a run's folder holds a run of another configuration, or a warm-up lasts too long; nothing is
            changed then.
        SparseMTLError: whatever `dry_run` raises of the first run of a method; nothing is changed then either.
    """
    out = Path(out)
    refuse_distributed()
    _check_free(out)
    _look_ahead(_todo(study, out))  # before the folder is made
    with locked(out):
        return _run_study(study, out, jobs=jobs, progress=progress)


def _check_free(out: Path) -> None:
    if (config := RunFolder(out).config).exists() and not StudyFolder(out).exists:
        raise CheckpointError(f"{out} holds a run, or something else with a {config.name}. Use another --out.")
    refuse_foreign(out)


def _run_study(study: Study, out: Path, *, jobs: int, progress: bool) -> dict[str, str]:
    todo = _todo(study, out)
    _record(study, out)
    _pretrain(todo, jobs, progress)
    failures = _execute(todo, jobs, progress, skipped=len(study.runs) - len(todo))
    write_results(study, out)
    if len(failures) < len(study.runs):
        _write_tables(study, out)
    return failures


class Job(NamedTuple):
    """A run to do: what it is called, its complete configuration, and where it lies."""

    name: str
    config: Mapping[str, Any]
    folder: Path


def _todo(study: Study, out: Path) -> list[Job]:
    """The runs that are not finished."""
    return [Job(one.name, one.config, StudyFolder(out).run(one.name).path) for one in study.runs if not _done(one, out)]


def _look_ahead(todo: Sequence[Job]) -> None:
    """Find mistakes that would come up only in the last run, or after pretraining.

    Of the runs whose pretraining is still to be done, the first of every method is rehearsed.
    """
    first: dict[str, Job] = {}
    for one in todo:
        with _naming(one):
            make_sharing(one.config)
        if _before([one]):
            first.setdefault(one.config["label"], one)
    built: dict[str, TaskData] = {}
    for one in first.values():
        with _naming(one):
            dry_run(RunSpec(one.config, built), RunFolder(one.folder))


def _pretrain(todo: Sequence[Job], jobs: int, progress: bool) -> None:
    """Make the runs before these, and those before them first, so that no two processes make the same."""
    if before := _before(todo):
        _pretrain(before, jobs, progress)
        for name, failure in _execute(_before(todo), jobs, progress, what="runs before them").items():
            raise TrainingError(f"{name}, from which runs are to start: {failure}")


def _before(todo: Sequence[Job]) -> list[Job]:
    """The runs before these that are not finished; one serves all runs that ask for the same."""
    found: dict[Path, Job] = {}
    for one in todo:
        if (config := pretraining_config(one.config)) is not None:
            folder = pretraining_folder(RunFolder(one.folder), config)
            if not folder.finished:
                found[folder.path] = Job(f"pretraining/{folder.path.name}", config, folder.path)
    return list(found.values())


def _done(one: StudyRun, out: Path) -> bool:
    folder = StudyFolder(out).run(one.name)
    if folder.config.exists():
        wrong = list(differences(read_yaml(folder.config), one.config))
        if wrong:
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ConfigError(
                f"{folder.path} holds a run of another configuration: {'; '.join(wrong[:3])}{more}. "
                "Use another --out, or delete that folder."
            )
    return folder.finished


def _record(study: Study, out: Path) -> None:
    write_text(StudyFolder(out).config, dump_yaml(study.source))
    about = {
        "name": study.name,
        "baseline": study.baseline,
        "methods": list(study.methods),
        "grid": list(study.grid),
        "notes": list(study.notes),
    }
    write_json(StudyFolder(out).about, about)


def _execute(todo: Sequence[Job], jobs: int, progress: bool, *, what: str = "runs", skipped: int = 0) -> dict[str, str]:
    """Run what is to do and tell of it; returns run -> why it has no result."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, quiet=not progress, highlight=False, markup=False, soft_wrap=True)
    if skipped:
        console.print(f"{skipped} of {skipped + len(todo)} runs are finished already.")
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    failures: dict[str, str] = {}
    live = Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal))
    with live, closing(_finished(todo, jobs)) as finished:
        bar = live.add_task(what, total=len(todo))
        for count, (one, failure) in enumerate(finished, start=1):
            live.advance(bar)
            console.print(f"[{count}/{len(todo)}] {one.name}{f': {failure}' if failure else ''}")
            if failure:
                failures[one.name] = failure
    return failures


def _finished(todo: Sequence[Job], jobs: int) -> Generator[tuple[Job, str | None], None, None]:
    """Run them, and yield each when it has ended, with what its result failed by."""
    if jobs == 1:
        for one in todo:
            yield one, _run_one(one)
    elif todo:
        yield from _in_processes(todo, min(jobs, len(todo)))


def _in_processes(todo: Sequence[Job], jobs: int) -> Iterator[tuple[Job, str | None]]:
    others = set(active_children())
    start = (warnings.formatwarning,)
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start_worker, initargs=start) as pool:
        with _ignored_interrupts():  # the processes inherit it: they end when this one says so, not by Ctrl-C
            pending = {pool.submit(_run_one, one): one for one in todo}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BrokenProcessPool:
            raise SparseMTLError(
                "a process that trained runs was killed, perhaps for want of memory. The same command goes on where it "
                "was; fewer --jobs need less."
            ) from None
        except BaseException:
            for worker in set(active_children()) - others:
                worker.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(formatwarning: Callable[..., str]) -> None:
    end_with_parent()
    warnings.formatwarning = formatwarning


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _OF_A_TERMINAL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_OF_A_TERMINAL = [signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals that a terminal sends to all its processes at once."""


def _run_one(one: Job) -> str | None:
    try:
        with _naming(one):
            run(one.config, one.folder, resume=True, progress=False)
    except TrainingError as error:
        return str(error)
    finally:
        gc.collect()  # models refer to themselves, and with them a run's data would stay until Python looks for cycles
    return None


@contextmanager
def _naming(one: Job) -> Iterator[None]:
    """Say in which run an error was made."""
    try:
        yield
    except TrainingError:
        raise
    except SparseMTLError as error:
        error.args = (f"{error} (in run {one.name} of the study)",)
        raise


def write_results(study: Study, out: Path) -> Path:
    """Gather the summaries of all finished runs into `results.csv`, a row per run, split, task and metric."""
    folder = StudyFolder(out)
    columns = ["run", "method", "seed", *study.grid, "split", "task", "metric", "higher_is_better", "value"]
    with replacing(folder.results) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for one in study.runs:
            run_folder = folder.run(one.name)
            if run_folder.finished:
                writer.writerows(_rows(study, one, run_folder.read_summary()))
    return folder.results


def _rows(study: Study, one: StudyRun, summary: dict[str, Any]) -> Iterator[list[Any]]:
    head = [one.name, one.method, one.seed, *(value_text(one.values.get(key, "")) for key in study.grid)]
    for task, entry in summary["tasks"].items():
        for split in ("validation", "test"):
            for metric, value in entry[split].items():
                yield [*head, split, task, metric, entry["directions"][metric], "" if value is None else value]
    yield [*head, "run", "", "seconds", False, summary["seconds"]]
    for metric, value in cost_rows(summary):
        yield [*head, SPLIT, "", metric, False, value]


def _write_tables(study: Study, out: Path) -> None:
    from sparsemtl.report import write_report
    from sparsemtl.study.costs import cost_table, with_costs
    from sparsemtl.study.tables import metric_tables, primary_table, to_csv, to_markdown

    folder = StudyFolder(out)
    results = study_results(folder)
    tables = [with_costs(primary_table(results), results), *metric_tables(results).values()]
    if (costs := cost_table(results)) is not None:
        tables.append(costs)
    sections = [f"## {table.title}\n\n{to_markdown(table)}" for table in tables]
    write_text(folder.tables, "\n".join([f"# {study.name}\n", *sections]))
    write_text(folder.table_figures, to_csv(tables))
    write_report(out)
