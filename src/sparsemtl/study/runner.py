"""Run a study: finished runs are skipped, stopped runs are resumed; tables and reports are made at the end."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, ConfigError, SparseMTLError, TrainingError
from sparsemtl.runs.build import make_sharing
from sparsemtl.runs.pretraining import pretraining_config, unfinished_pretraining
from sparsemtl.runs.run import Finished, dry_run, run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.runs.validation import data_section, differences
from sparsemtl.storage.locks import locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.text_files import write_json, write_text
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml
from sparsemtl.study.calls import each
from sparsemtl.study.costs import SPLIT, cost_rows, cost_table, with_costs
from sparsemtl.study.evidence import weak_points
from sparsemtl.study.grid import Study, StudyRun, value_text
from sparsemtl.study.reading import study_results
from sparsemtl.study.results import tuned_settings
from sparsemtl.study.shown import RECORD, digest, read_record
from sparsemtl.study.summary import weak_text
from sparsemtl.study.tables import metric_tables, primary_table, to_csv, to_markdown
from sparsemtl.training.processes import refuse_distributed
from sparsemtl.views.bars import is_live


def run_study(
    study: Study,
    out: str | Path,
    *,
    jobs: int = 1,
    progress: bool = True,
    finished: Finished | None = None,
    run_reports: bool = True,
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
        finished: draws a report into a folder, such as `sparsemtl.report.write_report`. It is called when all runs have
            ended: with the folder of every run that has finished, unless it finished earlier and has a report, and at
            last with the study's, unless nothing on its page has changed. With several jobs it is pickled.
        run_reports: draw the reports of runs; without, only the study's.

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
    _refuse_several(study)
    _check_free(folder)
    todo = _todo(_jobs(study, folder, options))
    _look_ahead(todo)  # before the folder is made
    with locked(folder.path), _dropped_data():
        todo = _todo(todo)
        _record(study, folder)
        ran = _pretrain(todo, options)
        failures = _execute(todo, options, skipped=len(study.runs) - len(todo))
        ran += [job.folder.path for job in todo if job.name not in failures]
        if run_reports:
            _draw(_without_report(study, folder, ran), options)
        _write_results(study, folder)
        if len(failures) < len(study.runs):
            _update(folder, options)
        return failures


def _refuse_several(study: Study) -> None:
    """Raise if a run asks for several processes, which `jobs` are for in a study."""
    for one in study.runs:
        training = one.config["training"]
        if training["devices"] * training["num_nodes"] > 1:
            raise ConfigError(
                f"{one.name}: training.devices: expected 1 in a study, got {training['devices']}. Each run of a study "
                "has one process; `--jobs N` trains N runs at a time."
            )


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


def _jobs(study: Study, folder: StudyFolder, options: _Options) -> list[_Job]:
    """Return all runs; in one process, those with the same data follow each other, so that the data are read once.

    Several processes keep the order of the study: at the same time they would make the same data.
    """
    jobs = [_Job(one.name, one.config, folder.run(one.name)) for one in study.runs]
    if options.jobs > 1:
        return jobs
    order = {key: i for i, key in enumerate(dict.fromkeys(map(_data_key, jobs)))}
    return sorted(jobs, key=lambda job: order[_data_key(job)])


def _todo(jobs: Sequence[_Job]) -> list[_Job]:
    """Return the runs that are not finished."""
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


def _pretrain(todo: Sequence[_Job], options: _Options) -> list[Path]:
    """Run the pretraining of these runs, and its own pretraining first, so that no two processes run the same.

    Returns:
        Folders of the pretraining runs that were run.
    """
    if not (waiting := _pretraining_jobs(todo)):
        return []
    ran = _pretrain(waiting, options)
    now = _pretraining_jobs(todo)
    for name, failure in _execute(now, options, what="pretraining runs").items():
        raise TrainingError(f"{name}, from which runs are to start: {failure}")
    return [*ran, *(job.folder.path for job in now)]


def _pretraining_jobs(todo: Sequence[_Job]) -> list[_Job]:
    waiting = unfinished_pretraining((job.folder, job.config) for job in todo)
    return [_Job("/".join(path.parts[-2:]), config, RunFolder(path)) for path, config in waiting.items()]


def _done(job: _Job) -> bool:
    if job.folder.config.exists() and job.folder.config.read_text(encoding="utf-8") != dump_yaml(job.config):
        wrong = list(differences(read_yaml(job.folder.config), job.config))
        if wrong:
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            split = any(difference.startswith("data.seed is ") for difference in wrong)
            earlier = " Before version 0.3 all seeds had one split by default: `data.seed=0` resumes such a study."
            raise ConfigError(
                f"{job.folder.path} holds a run of another configuration: {'; '.join(wrong[:3])}{more}. "
                f"Use another --out, or delete that folder.{earlier if split else ''}"
            )
    return job.folder.finished


def _record(study: Study, folder: StudyFolder) -> None:
    _write(folder.config, dump_yaml(study.source))
    about = {
        "name": study.name,
        "baseline": study.baseline,
        "methods": list(study.methods),
        "grid": list(study.grid),
        "notes": list(study.notes),
        **({"tune": list(study.tune)} if study.tune else {}),
    }
    if not folder.exists or folder.read_about() != about:
        write_json(folder.about, about)


def _execute(todo: Sequence[_Job], options: _Options, *, what: str = "runs", skipped: int = 0) -> dict[str, str]:
    """Run the jobs and print their progress; return name -> reason of those without a result."""
    failures: dict[str, str] = {}
    with _progress(what, len(todo), options) as (show, advance):
        if skipped:
            show(f"{skipped} of {skipped + len(todo)} runs are finished already.")
        with closing(each(_run_one, todo, options.jobs)) as ended:
            for count, (one, failure) in enumerate(ended, start=1):
                advance()
                show(f"[{count}/{len(todo)}] {one.name}{f': {failure}' if failure else ''}")
                if failure:
                    failures[one.name] = failure
    return failures


def _draw(folders: Sequence[Path], options: _Options) -> None:
    """Draw the reports of runs."""
    if options.finished is None or not folders:
        return
    with _progress("reports", len(folders), options) as (show, advance):
        show(f"Drawing the reports of {len(folders)} {'run' if len(folders) == 1 else 'runs'}.")
        with closing(each(options.finished, folders, options.jobs)) as drawn:
            for _ in drawn:
                advance()


def _without_report(study: Study, folder: StudyFolder, ran: Sequence[Path]) -> list[Path]:
    """Return the folders of the runs that were run now, and of finished ones without a report."""
    pretraining = map(RunFolder, sorted(folder.pretraining.glob("*")))
    now = set(ran)
    earlier = (run for run in (*pretraining, *(folder.run(one.name) for one in study.runs)) if run.path not in now)
    return [*ran, *(run.path for run in earlier if not run.report.exists() and run.finished)]


@contextmanager
def _progress(what: str, total: int, options: _Options) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Show a bar on the error stream; yield a function that prints a line above it, and one that advances it."""
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
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    live = Progress(*columns, console=console, transient=True, disable=not (options.progress and is_live(console)))
    with nullcontext() if live.disable else live:  # rich before 14.1 ends bars that are off with an empty line
        bar = live.add_task(what, total=total)
        yield console.print, lambda: live.advance(bar)


def _run_one(job: _Job) -> str | None:
    try:
        with _naming(job):
            run(job.config, job.folder.path, resume=True, progress=False, built=_data_with(_data_key(job)))
    except TrainingError as error:
        return str(error)
    return None


def _data_key(job: _Job) -> str:
    """Return all that the data of a run and of its pretraining run depend on."""
    parts = [job.config, *filter(None, [pretraining_config(job.config)])]
    return json.dumps([(data_section(part), part["training"]["threads"]) for part in parts], sort_keys=True)


@functools.lru_cache(maxsize=1)
def _data_with(key: str) -> dict[str, TaskData]:
    """Return the cache of data sets of the runs with this key in this process; that of other runs is dropped."""
    return {}


@contextmanager
def _dropped_data() -> Iterator[None]:
    """Drop the data sets of runs on exit."""
    try:
        yield
    finally:
        _data_with.cache_clear()


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
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    for one in study.runs:
        if (run_folder := folder.run(one.name)).finished:
            writer.writerows(_rows(study, one, run_folder.read_summary()))
    _write(folder.results, file.getvalue())


def _rows(study: Study, one: StudyRun, summary: dict[str, Any]) -> Iterator[list[Any]]:
    head = [one.name, one.method, one.seed, *(value_text(one.values.get(key, "")) for key in study.grid)]
    for task, entry in summary["tasks"].items():
        for split in ("validation", "test"):
            for metric, value in entry[split].items():
                yield [*head, split, task, metric, entry["directions"][metric], "" if value is None else value]
    yield [*head, "run", "", "seconds", False, summary["seconds"]]
    for metric, value in cost_rows(summary):
        yield [*head, SPLIT, "", metric, False, value]


def _update(folder: StudyFolder, options: _Options) -> None:
    """Write the tables and draw the study's report, unless they are there and nothing that they show has changed."""
    shown, before = digest(folder), read_record(folder)
    if before.get("tables") != shown or not (folder.tables.is_file() and folder.table_figures.is_file()):
        _write_tables(folder)
    drawn = before.get("report")
    if options.finished is not None and (drawn != shown or not folder.report.is_file()):
        options.finished(folder.path)
        drawn = shown
    if before != (now := {"tables": shown, "report": drawn}):
        write_json(folder.path / RECORD, now)


def _write_tables(folder: StudyFolder) -> None:
    whole = study_results(folder)
    results = tuned_settings(whole)
    tables = [with_costs(primary_table(results), results), *metric_tables(results).values()]
    if (costs := cost_table(results)) is not None:
        tables.append(costs)
    sections = [f"## {table.title}\n\n{to_markdown(table)}" for table in tables]
    weak = [f"{weak_text(points)}\n"] if (points := weak_points(whole)) else []
    write_text(folder.tables, "\n".join([f"# {folder.read_about()['name']}\n", *weak, *sections]))
    write_text(folder.table_figures, to_csv(tables))


def _write(path: Path, text: str) -> None:
    """Write a text file unless it holds this text."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
