"""Run a study: finished runs are skipped, stopped runs are resumed, and tables are written at the end."""

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
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple

from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, ConfigError, SparseMTLError, TrainingError
from sparsemtl.runs.build import make_sharing
from sparsemtl.runs.pretraining import unfinished_pretraining
from sparsemtl.runs.run import Finished, dry_run, run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.runs.validation import differences
from sparsemtl.storage.files import replacing, write_json, write_text
from sparsemtl.storage.locks import locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml
from sparsemtl.study.costs import SPLIT, cost_rows, cost_table, with_costs
from sparsemtl.study.grid import Study, StudyRun, value_text
from sparsemtl.study.record import study_results
from sparsemtl.study.tables import metric_tables, primary_table, to_csv, to_markdown
from sparsemtl.training.processes import end_with_parent, refuse_distributed


def run_study(
    study: Study, out: str | Path, *, jobs: int = 1, progress: bool = True, finished: Finished | None = None
) -> dict[str, str]:
    """Run all runs of a study, and write `results.csv` and the tables.

    A run whose training fails by its own settings (`TrainingError`: an infinite loss, an empty mask) is left out of the
    tables and the study continues; any other error ends the study, and so does a `TrainingError` in pretraining.

    Args:
        study: the study.
        out: its folder.
        jobs: runs at a time, each in a process of its own; results do not depend on the number, as each run has the
            threads of its `training.threads`.
        progress: show a bar over the runs.
        finished: called with the folder of every run that has finished, and at the end with the study's, such as
            `sparsemtl.report.write_report`. With several jobs it is pickled.

    Returns:
        Name of every run without a result -> the reason.

    Raises:
        CheckpointError: if the folder holds something else, or another process writes there.
        ConfigError: if a run's folder holds a run of another configuration, or a warm-up lasts too long; nothing is
            changed then.
        SparseMTLError: errors of a `dry_run` of the first run per method; nothing is changed then either.
    """
    folder, options = StudyFolder(out), _Options(jobs, progress, finished)
    refuse_distributed()
    _check_free(folder)
    _look_ahead(_todo(study, folder))  # before the folder is made
    with locked(folder.path):
        todo = _todo(study, folder)
        _record(study, folder)
        _pretrain(todo, options)
        failures = _execute(todo, options, skipped=len(study.runs) - len(todo))
        _write_results(study, folder)
        if len(failures) < len(study.runs):
            _write_tables(study, folder)
            if finished is not None:
                finished(folder.path)
        return failures


class _Options(NamedTuple):
    """Options of `run_study`."""

    jobs: int
    progress: bool
    finished: Finished | None


@dataclass(frozen=True)
class _Job:
    """Run to do: its name, its complete configuration, and its folder."""

    name: str
    config: Mapping[str, Any]
    folder: RunFolder


def _check_free(folder: StudyFolder) -> None:
    if (config := RunFolder(folder.path).config).exists() and not folder.exists:
        raise CheckpointError(f"{folder.path} holds a run, or something else with a {config.name}. Use another --out.")
    refuse_foreign(folder.path)


def _todo(study: Study, folder: StudyFolder) -> list[_Job]:
    """Return the runs that are not finished."""
    jobs = [_Job(one.name, one.config, folder.run(one.name)) for one in study.runs]
    return [job for job in jobs if not _done(job)]


def _look_ahead(todo: Sequence[_Job]) -> None:
    """Raise mistakes that would come up only in the last run, or after pretraining.

    Of the runs whose pretraining is not finished, the first run per method is set up.
    """
    first: dict[str, _Job] = {}
    for job in todo:
        with _naming(job):
            make_sharing(job.config)
        if _pretraining_jobs([job]):
            first.setdefault(job.config["label"], job)
    built: dict[str, TaskData] = {}
    for job in first.values():
        with _naming(job):
            dry_run(RunSpec(job.config, built), job.folder)


def _pretrain(todo: Sequence[_Job], options: _Options) -> None:
    """Run the pretraining of these runs, and its own pretraining first, so that no two processes run the same."""
    if waiting := _pretraining_jobs(todo):
        _pretrain(waiting, options)
        for name, failure in _execute(_pretraining_jobs(todo), options, what="pretraining runs").items():
            raise TrainingError(f"{name}, from which runs are to start: {failure}")


def _pretraining_jobs(todo: Sequence[_Job]) -> list[_Job]:
    waiting = unfinished_pretraining((job.folder, job.config) for job in todo)
    return [_Job("/".join(path.parts[-2:]), config, RunFolder(path)) for path, config in waiting.items()]


def _done(job: _Job) -> bool:
    if job.folder.config.exists():
        wrong = list(differences(read_yaml(job.folder.config), job.config))
        if wrong:
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ConfigError(
                f"{job.folder.path} holds a run of another configuration: {'; '.join(wrong[:3])}{more}. "
                "Use another --out, or delete that folder."
            )
    return job.folder.finished


def _record(study: Study, folder: StudyFolder) -> None:
    write_text(folder.config, dump_yaml(study.source))
    about = {
        "name": study.name,
        "baseline": study.baseline,
        "methods": list(study.methods),
        "grid": list(study.grid),
        "notes": list(study.notes),
    }
    write_json(folder.about, about)


def _execute(todo: Sequence[_Job], options: _Options, *, what: str = "runs", skipped: int = 0) -> dict[str, str]:
    """Run the jobs and print their progress; return name -> reason of those without a result."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, quiet=not options.progress, highlight=False, markup=False, soft_wrap=True)
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
    live = Progress(*columns, console=console, transient=True, disable=not (options.progress and console.is_terminal))
    with live, closing(_finished(todo, options)) as finished:
        bar = live.add_task(what, total=len(todo))
        for count, (one, failure) in enumerate(finished, start=1):
            live.advance(bar)
            console.print(f"[{count}/{len(todo)}] {one.name}{f': {failure}' if failure else ''}")
            if failure:
                failures[one.name] = failure
    return failures


def _finished(todo: Sequence[_Job], options: _Options) -> Generator[tuple[_Job, str | None], None, None]:
    """Run the jobs; yield each when it has ended, with the reason if it has no result."""
    if options.jobs == 1:
        for job in todo:
            yield job, _run_one(job, options.finished)
    elif todo:
        yield from _in_processes(todo, options)


def _in_processes(todo: Sequence[_Job], options: _Options) -> Iterator[tuple[_Job, str | None]]:
    others = set(active_children())
    workers, start = min(options.jobs, len(todo)), (warnings.formatwarning,)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=start) as pool:
        with _ignored_interrupts():  # inherited by the processes: this process ends them, not Ctrl-C
            pending = {pool.submit(_run_one, job, options.finished): job for job in todo}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BrokenProcessPool:
            raise SparseMTLError(
                "a process that trained runs was killed, perhaps because memory was used up. Resume with the same "
                "command; fewer --jobs need less memory."
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


def _run_one(job: _Job, finished: Finished | None) -> str | None:
    try:
        with _naming(job):
            run(job.config, job.folder.path, resume=True, progress=False, finished=finished)
    except TrainingError as error:
        return str(error)
    finally:
        gc.collect()  # models refer to themselves, and with them a run's data would stay until Python looks for cycles
    return None


@contextmanager
def _naming(job: _Job) -> Iterator[None]:
    """Add the name of the run to the message of an error."""
    try:
        yield
    except TrainingError:
        raise
    except SparseMTLError as error:
        error.args = (f"{error} (in run {job.name} of the study)",)
        raise


def _write_results(study: Study, folder: StudyFolder) -> None:
    """Write the summaries of all finished runs to `results.csv`, a row per run, split, task and metric."""
    columns = ["run", "method", "seed", *study.grid, "split", "task", "metric", "higher_is_better", "value"]
    with replacing(folder.results) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for one in study.runs:
            if (run_folder := folder.run(one.name)).finished:
                writer.writerows(_rows(study, one, run_folder.read_summary()))


def _rows(study: Study, one: StudyRun, summary: dict[str, Any]) -> Iterator[list[Any]]:
    head = [one.name, one.method, one.seed, *(value_text(one.values.get(key, "")) for key in study.grid)]
    for task, entry in summary["tasks"].items():
        for split in ("validation", "test"):
            for metric, value in entry[split].items():
                yield [*head, split, task, metric, entry["directions"][metric], "" if value is None else value]
    yield [*head, "run", "", "seconds", False, summary["seconds"]]
    for metric, value in cost_rows(summary):
        yield [*head, SPLIT, "", metric, False, value]


def _write_tables(study: Study, folder: StudyFolder) -> None:
    results = study_results(folder)
    tables = [with_costs(primary_table(results), results), *metric_tables(results).values()]
    if (costs := cost_table(results)) is not None:
        tables.append(costs)
    sections = [f"## {table.title}\n\n{to_markdown(table)}" for table in tables]
    write_text(folder.tables, "\n".join([f"# {study.name}\n", *sections]))
    write_text(folder.table_figures, to_csv(tables))
