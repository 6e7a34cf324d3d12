"""One run from a configuration: pretraining, training and test; started anew, resumed, or set up only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, ConfigError
from sparsemtl.runs.auto import run_auto
from sparsemtl.runs.auto_options import AUTO
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.config import check
from sparsemtl.runs.model_inputs import write_inputs
from sparsemtl.runs.pretraining import pretrain, stand_in
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.locks import locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.stops import recorded_stop
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.wrong_folder import wrong_folder
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.training import Trainer
from sparsemtl.training.callbacks import Callback
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.processes.launch import (
    announces_several,
    is_first_process,
    refuse_other_launchers,
    start_processes,
    starts_first,
)
from sparsemtl.training.processes.machine import use_threads

Finished = Callable[[Path], object]
"""Called with the folder of every run when it has finished, that of a pretraining run included."""


def run(
    config: Mapping[str, Any],
    folder: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    finished: Finished | None = None,
    built: dict[str, TaskData] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Results:
    """Train and test one run.

    Args:
        config: a configuration; it is checked and completed.
        folder: the run folder.
        resume: resume from the folder's last checkpoint, if there is one.
        progress: show a live bar.
        finished: called with the folder when the run has finished, such as `sparsemtl.report.write_report`.
        built: cache of data sets, see `RunSpec`; several runs may have one.
        callbacks: callbacks beside those of the configuration; a pretraining run and candidates have none.

    Returns:
        Test metrics per task.

    Raises:
        ConfigError: if the configuration is not valid.
        CheckpointError: if the folder holds a run and `resume` is false, or files of others, or if another process
            writes there.
        ParameterError: if processes of MPI, or not as many as in the configuration, are announced.
        ProcessError: if another process of the run ends.
    """
    spec = RunSpec(check(config), built)
    training = spec.config["training"]
    if announces_several(training):
        _check_together(spec.config)
        if starts_first(training) and not resume:
            _check_free(RunFolder(folder))  # before other processes are started
    with start_processes(training).announced_end():
        return _run(spec, RunFolder(folder), callbacks, resume=resume, progress=progress, finished=finished)


def _check_together(config: Mapping[str, Any]) -> None:
    """Raise unless several processes can train a configuration together."""
    if config[AUTO] is not None:
        raise ConfigError(
            "sharing: expected one method with several processes, got 'auto', whose candidates are chosen from files "
            "that one process writes. Use `training.devices: 1`, or the chosen method alone with several."
        )


def _run(
    spec: RunSpec,
    folder: RunFolder,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool,
    progress: bool,
    finished: Finished | None,
) -> Results:
    if not is_first_process():  # it computes, and leaves the folder to the first
        with use_threads(spec.config["training"]["threads"]):
            return _train(spec, folder, callbacks, resume=resume, progress=False, finished=None)
    if not resume:
        _check_free(folder)
    elif not folder.begun:
        refuse_foreign(folder.path)
    with locked(folder.path), use_threads(spec.config["training"]["threads"]):  # data, too, depend on the threads
        if not resume:
            _check_free(folder)  # again: another process may have begun and ended a run meanwhile
        with recorded_stop(folder):
            results = _train(spec, folder, callbacks, resume=resume, progress=progress, finished=finished)
            if finished is not None:
                finished(folder.path)
            return results


def _train(
    spec: RunSpec,
    folder: RunFolder,
    callbacks: Sequence[Callback],
    *,
    resume: bool,
    progress: bool,
    finished: Finished | None,
) -> Results:
    """Pretrain, train and test a run; the caller holds the lock of its folder."""
    pretrain_for = partial(
        pretrain, train=partial(_run, resume=True, progress=progress, finished=finished), dry_run=dry_run
    )
    if spec.config[AUTO] is not None:
        return run_auto(spec, folder, pretrain=pretrain_for, progress=progress)
    pretrained = pretrain_for(spec, folder)
    trainer = make_trainer(spec.config, spec.data, folder.path, pretrained=pretrained, progress=progress)
    trainer.callbacks = (*trainer.callbacks, *callbacks)
    train, validation, test = spec.loaders()
    processes = start_processes(spec.config["training"])
    goes_on = processes.from_first(lambda: resume and folder.last.exists())
    with _written_inputs(spec, folder):
        trainer.fit(train, validation, resume=goes_on, overwrite=not goes_on)  # the folder was checked before
    return trainer.test(test)


@contextmanager
def _written_inputs(spec: RunSpec, folder: RunFolder) -> Iterator[None]:
    """Write what the model is built from; remove it if training does not begin, so that the folder stays as it was."""
    if not is_first_process():
        yield
        return
    new = not folder.inputs.exists()
    write_inputs(folder, spec.data, spec.config["task_options"])
    try:
        yield
    except BaseException:
        if new and not folder.last.exists():
            folder.inputs.unlink(missing_ok=True)
        raise


def resume(folder: str | Path, *, progress: bool = True, finished: Finished | None = None) -> Results:
    """Resume the run in a folder; arguments and result as those of `run`.

    Raises:
        CheckpointError: if the folder is no run folder, or the run is finished or never began, or its configuration
            has changed, or if another process writes there.
        ParameterError: if processes of MPI, or not as many as in the configuration, are announced.
        ProcessError: if another process of the run ends.
    """
    refuse_other_launchers()
    own = RunFolder(folder)
    if StudyFolder(own.path).exists:
        raise CheckpointError(f"{own.path} is a study. Resume it with the same `sparsemtl study` command.")
    if not own.config.exists():
        raise wrong_folder(own.path, "a run")
    if own.finished:
        raise CheckpointError(f"the run in {own.path} is finished; there is nothing to resume.")
    if not own.begun:
        raise CheckpointError(
            f"{own.path} has no checkpoint to resume from. "
            f"Start the run anew: `sparsemtl run {own.config} --out {own.path}`."
        )
    config = check(read_yaml(own.config), where=str(own.config))
    return run(config, folder, resume=True, progress=progress, finished=finished)


def _check_free(folder: RunFolder) -> None:
    path = folder.path
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; a run needs a folder of its own. Use another --out.")
    if folder.finished:
        raise CheckpointError(f"{path} holds a finished run. Use another --out, or delete it.")
    if folder.last.exists() or folder.ended or folder.candidates.exists():
        with suppress(OSError), locked(path):  # raises if that run has not stopped yet
            pass
        why = f" It {folder.stop}" if folder.stop else ""
        raise CheckpointError(
            f"{path} holds a run that stopped. Resume it with `sparsemtl resume {path}`, use another --out, or "
            f"delete it.{why}"
        )
    if StudyFolder(path).exists:
        raise CheckpointError(f"{path} is a study; a run needs a folder of its own. Use another --out.")
    refuse_foreign(path)


def dry_run(spec: RunSpec, folder: RunFolder) -> Trainer:
    """Set up a run and its pretraining run, but train and write nothing, so that mistakes are raised before training.

    Args:
        spec: the run.
        folder: its folder, for messages.

    Returns:
        The run's trainer at its start, with an untrained encoder.

    Raises:
        SparseMTLError: any error of the run's start; errors of the pretraining run begin with "pretraining: ".
    """
    data = spec.data
    pretrained = stand_in(spec, folder, dry_run)
    trainer = make_trainer(spec.config, data, None, pretrained=pretrained, progress=False)
    train, *_ = spec.loaders()
    trainer.set_up(train)
    return trainer
