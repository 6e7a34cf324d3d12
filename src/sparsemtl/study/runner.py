"""Run a study: finished runs are skipped, stopped runs are resumed; tables and reports are made at the end."""

from __future__ import annotations

import functools
import json
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, ConfigError, ParameterError, SparseMTLError, TrainingError
from sparsemtl.runs.build import make_sharing
from sparsemtl.runs.pretraining import pretraining_config, unfinished_pretraining
from sparsemtl.runs.run import Finished, dry_run, run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.runs.validation import data_section, differences
from sparsemtl.storage.locks import locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml
from sparsemtl.study.calls import Lost
from sparsemtl.study.engines import Each, Engine, LocalEngine
from sparsemtl.study.grid import Study
from sparsemtl.study.outputs import update_outputs, write_if_changed, write_record
from sparsemtl.study.progress import study_progress
from sparsemtl.study.rows import results_text
from sparsemtl.study.search import check_search, run_search
from sparsemtl.study.study_runs import StudyRun, corner_runs
from sparsemtl.training.callbacks import Callback
from sparsemtl.training.processes.workers import refuse_distributed


def run_study(
    study: Study,
    out: str | Path,
    *,
    jobs: int = 1,
    engine: Engine | None = None,
    progress: bool = True,
    finished: Finished | None = None,
    run_reports: bool = True,
) -> dict[str, str]:
    """Run all runs of a study, and write `results.csv` and the tables.

    A run whose training fails by its own settings (`TrainingError`: an infinite loss, an empty mask), whose checkpoint
    cannot be read, or whose process is killed, is left out of the tables and the study continues; any other error ends
    the study, and so does a failure of a pretraining run.

    Args:
        study: the study.
        out: its folder.
        jobs: runs at a time, each in a process of its own; results do not depend on the number, as each run has the
            threads of its `training.threads`.
        engine: where the runs are computed, such as `RayEngine()`; by default `LocalEngine(jobs)`.
        progress: show a bar over the runs.
        finished: draws a report into a folder, such as `sparsemtl.report.write_report`. It is called when all runs have
            ended: with the folder of every run that has finished, unless it finished earlier and has a report, and at
            last with the study's, unless nothing on its page has changed. With several jobs it is pickled.
        run_reports: draw the reports of runs; without, only the study's.

    Returns:
        Name of every run without a result -> the reason.

    Raises:
        ParameterError: if `jobs` is given beside `engine`.
        CheckpointError: if the folder holds something else, or another process writes there.
        ConfigError: if a run's folder holds a run of another configuration, or a warm-up lasts too long; nothing is
            changed then.
        SparseMTLError: errors of a `dry_run` of the first run per method; nothing is changed then either.
    """
    if engine is not None and jobs != 1:
        raise ParameterError(f"expected `jobs` or `engine`, got `jobs={jobs}` beside {engine!r}.")
    engine = engine or LocalEngine(jobs)
    folder = StudyFolder(Path(out).absolute())  # workers may have another working directory
    refuse_distributed()
    _refuse_several(study)
    check_search(study)
    _check_free(StudyFolder(out))
    todo = _todo(_jobs(study, folder, in_turn=engine.in_turn))
    _look_ahead(todo, _corners(study, folder))  # before the folder is made
    with locked(out), _dropped_data(), engine.open() as each:
        options = _Options(each, progress, finished)
        todo = _todo(todo)
        write_record(study, folder)
        ran = _pretrain(todo, options)
        failures = _execute(todo, options, skipped=len(study.runs) - len(todo))
        ran += [job.folder.path for job in todo if job.name not in failures]
        missing, runs = dict(failures), list(study.runs)
        if study.arms:
            found = run_search(study, folder, functools.partial(_execute_trials, folder, options, ran), options.say)
            runs, missing, failures = [*runs, *found.runs], missing | found.missing, failures | found.failures
        if run_reports:
            _draw(_without_report(runs, folder, ran), options)
        write_if_changed(folder.results, results_text(runs, study.grid, folder))
        folder.write_failures(missing)
        if folder.has_results:
            update_outputs(folder, finished)
        return failures


def _refuse_several(study: Study) -> None:
    """Raise if a run asks for several processes, which `jobs` are for in a study."""
    corners = [run for arm in study.arms for run in corner_runs(arm)]
    for one in (*study.runs, *corners):
        training = one.config["training"]
        if training["devices"] * training["num_nodes"] > 1:
            raise ConfigError(
                f"{one.name}: training.devices: expected 1 in a study, got {training['devices']}. Each run of a study "
                "has one process; `--jobs N` trains N runs at a time."
            )


class _Options(NamedTuple):
    """Options of `run_study`."""

    each: Each
    progress: bool
    finished: Finished | None

    def say(self, line: str) -> None:
        """Print a line on the error stream."""
        if self.progress:
            print(line, file=sys.stderr)


@dataclass(frozen=True)
class _Job:
    """Run to do: its name, its complete configuration, its folder, and callbacks beside those of the configuration."""

    name: str
    config: Mapping[str, Any]
    folder: RunFolder
    callbacks: tuple[Callback, ...] = ()


def _check_free(folder: StudyFolder) -> None:
    if (config := RunFolder(folder.path).config).exists() and not folder.exists:
        raise CheckpointError(f"{folder.path} holds a run, or something else with a {config.name}. Use another --out.")
    refuse_foreign(folder.path)


def _jobs(study: Study, folder: StudyFolder, *, in_turn: bool) -> list[_Job]:
    """Return all runs; in turn, those with the same data follow each other, so that the data are read once.

    Several processes keep the order of the study: at the same time they would make the same data.
    """
    jobs = [_Job(one.name, one.config, folder.run(one.name)) for one in study.runs]
    if not in_turn:
        return jobs
    order = {key: i for i, key in enumerate(dict.fromkeys(map(_data_key, jobs)))}
    return sorted(jobs, key=lambda job: order[_data_key(job)])


def _todo(jobs: Sequence[_Job]) -> list[_Job]:
    """Return the runs that are not finished."""
    return [job for job in jobs if not _done(job)]


def _corners(study: Study, folder: StudyFolder) -> list[_Job]:
    """Return runs with the extreme values of a search."""
    runs = [run for arm in study.arms for run in corner_runs(arm, study.seeds[0])]
    return [_Job(one.name, one.config, folder.run(one.name)) for one in runs]


def _look_ahead(todo: Sequence[_Job], searched: Sequence[_Job]) -> None:
    """Raise mistakes that would come up only in the last run, after pretraining, or in the search of the last method.

    Of the runs whose pretraining is not finished, and of those of a search, the first run per method is set up.
    """
    first: dict[str, _Job] = {}
    for job in (*todo, *searched):
        with _naming(job):
            make_sharing(job.config)
        if job in searched or _pretraining_jobs([job]):
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


def _execute(todo: Sequence[_Job], options: _Options, *, what: str = "runs", skipped: int = 0) -> dict[str, str]:
    """Run the jobs and print their progress; return name -> reason of those without a result."""
    failures: dict[str, str] = {}
    with study_progress(what, [job.folder for job in todo], show=options.progress) as progress:
        if skipped:
            progress.say(f"{skipped} of {skipped + len(todo)} runs are finished already.")
        with closing(options.each(_run_one, todo)) as ended:
            for count, (one, result) in enumerate(ended, start=1):
                failure = result.reason if isinstance(result, Lost) else result
                progress.advance(one.folder, failed=failure is not None)
                progress.say(f"[{count}/{len(todo)}] {one.name}{f': {failure}' if failure else ''}")
                if failure:
                    failures[one.name] = failure
    return failures


def _execute_trials(
    folder: StudyFolder,
    options: _Options,
    ran: list[Path],
    runs: Sequence[StudyRun],
    callbacks: Mapping[str, Callback],
    what: str,
) -> dict[str, str]:
    """Run the runs of a search that are not finished, their pretraining first, and add their folders to `ran`."""
    jobs = []
    for name, one in {one.name: one for one in runs}.items():
        own = (callbacks[name],) if name in callbacks else ()
        jobs.append(_Job(name, one.config, folder.run(name), own))
    todo = _todo(jobs)
    ran += _pretrain(todo, options)
    failures = _execute(todo, options, what=what)
    ran += [job.folder.path for job in todo if job.name not in failures]
    return failures


def _draw(folders: Sequence[Path], options: _Options) -> None:
    """Draw the reports of runs."""
    if options.finished is None or not folders:
        return
    with study_progress("reports", [RunFolder(path) for path in folders], show=options.progress) as progress:
        progress.say(f"Drawing the reports of {len(folders)} {'run' if len(folders) == 1 else 'runs'}.")
        with closing(options.each(options.finished, folders)) as drawn:
            for path, result in drawn:
                progress.advance(RunFolder(path), failed=isinstance(result, Lost))
                if isinstance(result, Lost):
                    progress.say(f"No report of {path.name}: {result.reason}")


def _without_report(runs: Sequence[StudyRun], folder: StudyFolder, ran: Sequence[Path]) -> list[Path]:
    """Return the folders of the runs that were run now, and of finished ones without a report."""
    pretraining = map(RunFolder, sorted(folder.pretraining.glob("*")))
    now = set(ran)
    earlier = (run for run in (*pretraining, *(folder.run(one.name) for one in runs)) if run.path not in now)
    return [*ran, *(run.path for run in earlier if not run.report.exists() and run.finished)]


def _run_one(job: _Job) -> str | None:
    if StudyFolder.of_run(job.folder) is None:
        raise CheckpointError(
            f"{job.folder.path} is not in a study folder on {socket.gethostname()}. All machines of a study need --out "
            "on a file system that they share."
        )
    try:
        with _naming(job):
            run(
                job.config,
                job.folder.path,
                resume=True,
                progress=False,
                built=_data_with(_data_key(job)),
                callbacks=job.callbacks,
            )
    except (TrainingError, CheckpointError) as error:
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
    except (TrainingError, CheckpointError):
        raise
    except SparseMTLError as error:
        error.args = (f"{error} (in run {job.name} of the study)",)
        raise
