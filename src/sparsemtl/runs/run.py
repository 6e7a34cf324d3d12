"""One run from a configuration: data, model and trainer made, trained, tested, reported."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sparsemtl.architectures import ARCHITECTURES, Source
from sparsemtl.backbones import ENCODERS, load_torchvision
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.balancing import BALANCERS
from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, ConfigError, SparseMTLError
from sparsemtl.heads import HEADS
from sparsemtl.networks.frozen import Frozen
from sparsemtl.networks.model import MultiTaskModel, stride_of, width_of
from sparsemtl.networks.randomness import seed_everything
from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
from sparsemtl.runs.config import check, differences
from sparsemtl.runs.pretraining import Earlier, Pretrained, Untrained, named_pretraining, pretraining_folder
from sparsemtl.runs.schema import TRAINER_KEYS
from sparsemtl.runs.spec import RunSpec
from sparsemtl.sharing import SHARING, Sharing
from sparsemtl.storage.locks import locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.tasks.batches import Loaders
from sparsemtl.training import Trainer
from sparsemtl.training.evaluation import Results
from sparsemtl.training.machine import use_threads
from sparsemtl.training.processes import refuse_distributed


def run(config: Mapping[str, Any], folder: str | Path, *, resume: bool = False, progress: bool = True) -> Results:
    """Train, test and report one run.

    Args:
        config: a configuration; it is checked and completed.
        folder: the run folder.
        resume: go on from the folder's last checkpoint, if there is one.
        progress: show a live bar.

    Returns:
        the test metrics of every task.

    Raises:
        ConfigError: if the configuration is not valid.
        CheckpointError: if the folder holds a run and `resume` is not asked for, or files of others, or if another
            process writes there.
        ParameterError: if the environment announces several processes.
    """
    refuse_distributed()
    plan, place = RunSpec(check(config)), RunFolder(folder)
    return _run(plan, place, resume=resume, progress=progress)


def _run(plan: RunSpec, place: RunFolder, *, resume: bool, progress: bool) -> Results:
    if not resume:
        _check_free(place)
    elif not place.begun:
        refuse_foreign(place.path)
    with locked(place.path), use_threads(plan.config["training"]["threads"]):  # from the data's first number on
        if not resume:
            _check_free(place)  # again: another process may have begun and ended a run meanwhile
        return _train(plan, place, resume=resume, progress=progress)


def _train(plan: RunSpec, place: RunFolder, *, resume: bool, progress: bool) -> Results:
    before = pretrain(plan, place, progress=progress)
    trainer = make_trainer(plan.config, plan.data, place.path, before=before, progress=progress)
    train, validation, test = _loaders(plan)
    trainer.fit(train, validation, resume=resume and place.last.exists())
    results = trainer.test(test)
    _report(place)
    return results


def _loaders(plan: RunSpec) -> tuple[Loaders, Loaders, Loaders]:
    training = plan.config["training"]
    return plan.data.loaders(training["batch_size"], drop_last=training["drop_last"])


def resume(folder: str | Path, *, progress: bool = True) -> Results:
    """Go on with the run in a folder.

    Raises:
        CheckpointError: if the folder is no run folder, or the run is finished or never began, or its configuration
            has changed, or if another process writes there.
        ParameterError: if the environment announces several processes.
    """
    refuse_distributed()
    place = RunFolder(folder)
    if StudyFolder(place.path).exists:
        raise CheckpointError(f"{place.path} is a study; the same `sparsemtl study` command goes on with it.")
    if not place.config.exists():
        raise CheckpointError(f"{place.path} is not a run folder: it has no config.yaml.")
    if place.finished:
        raise CheckpointError(f"the run in {place.path} is finished; there is nothing to resume.")
    if not place.begun:
        raise CheckpointError(
            f"{place.path} has no checkpoint to resume from. "
            f"Begin anew: `sparsemtl run {place.config} --out {place.path}`."
        )
    return run(check(read_yaml(place.config), where=str(place.config)), folder, resume=True, progress=progress)


def _check_free(place: RunFolder) -> None:
    if place.path.exists() and not place.path.is_dir():
        raise CheckpointError(f"{place.path} is a file; a run needs a folder of its own. Use another --out.")
    if place.finished:
        raise CheckpointError(f"{place.path} holds a finished run. Use another --out, or delete it.")
    if place.last.exists() or place.summary.exists():
        with suppress(OSError), locked(place.path):  # raises if that run has not stopped yet
            pass
        raise CheckpointError(
            f"{place.path} holds a run that stopped. Go on with `sparsemtl resume {place.path}`, "
            "use another --out, or delete it."
        )
    if StudyFolder(place.path).exists:
        raise CheckpointError(f"{place.path} is a study; a run needs a folder of its own. Use another --out.")
    refuse_foreign(place.path)


def load_data(config: Mapping[str, Any]) -> TaskData:
    """The data set of a complete configuration, with the tasks that it trains, see `RunSpec.data`."""
    return RunSpec(config).data


def pretrain(plan: RunSpec, place: RunFolder, *, progress: bool = True) -> Pretrained | None:
    """Make the run before a run, or go on with it, if the configuration asks for one and it is not finished.

    Args:
        plan: the plan of the run itself.
        place: its folder.
        progress: show a live bar.

    Raises:
        CheckpointError: if the folder of the run before holds one of another configuration.
        SparseMTLError: whatever `dry_run` raises, or the run before, named as its.
    """
    if plan.before is None:
        return None
    earlier = pretraining_folder(place, plan.before.config)
    if earlier.config.exists() and (wrong := next(differences(earlier.read_config(), plan.before.config), None)):
        raise CheckpointError(
            f"{earlier.path} holds a run of another configuration: {wrong}. Use another --out, or delete that folder."
        )
    if not earlier.finished:
        dry_run(plan, place)
        with locked(place.path), named_pretraining():
            place.write_config(plan.config)  # so that a run killed in its pretraining can be resumed
            _run(plan.before, earlier, resume=True, progress=progress)
    return Pretrained(earlier.model, plan.before)


def dry_run(plan: RunSpec, place: RunFolder) -> Trainer:
    """Set up all of a run, and of the run before it, but train and write nothing.

    So a mistake comes up before pretraining that would come up only after it.

    Args:
        plan: the run's plan.
        place: its folder, for messages.

    Returns:
        the run's trainer as it would begin, but that nothing was trained before.

    Raises:
        SparseMTLError: whatever is raised when the run begins; what the run before raises is named as its.
    """
    before, data = None, plan.data
    if plan.before is not None:
        earlier = pretraining_folder(place, plan.before.config)
        with named_pretraining():
            before = Untrained(earlier.model, plan.before, dry_run(plan.before, earlier).model)
    trainer = make_trainer(plan.config, data, None, before=before, progress=False)
    train, *_ = _loaders(plan)
    trainer.set_up(train)
    return trainer


def make_trainer(
    config: Mapping[str, Any],
    data: TaskData,
    folder: Path | None,
    *,
    before: Earlier | None = None,
    progress: bool = True,
) -> Trainer:
    """Model and trainer of a complete configuration; seeds the generators, so that the weights follow the seed.

    Raises:
        ConfigError: if the configuration asks for what cannot be made, or would lose the weights that it starts from.
    """
    _check_start_is_kept(config)
    seed_everything(config["seed"])
    with _memory_errors():
        network = _encoder(config, data, before)
        model = _model(config, data, network, before)
    balancing = dict(config["balancing"])
    training = config["training"]
    optimizer = dict(config["optimizer"])
    scheduler = dict(config["scheduler"] or {})
    return Trainer(
        model,
        sharing=make_sharing(config),
        balancing=BALANCERS.build(balancing.pop("name"), **balancing),
        optimizer=partial(OPTIMIZERS.build, optimizer.pop("name"), **optimizer),
        scheduler=_scheduler(scheduler, training["epochs"]) if scheduler else None,
        seed=config["seed"],
        folder=folder,
        name=config["name"],
        config=config,
        notes=data.notes,
        progress=progress,
        **{key: training[key] for key in TRAINER_KEYS},
    )


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Say of a network that memory does not hold what to make smaller."""
    try:
        yield
    except MemoryError:
        problem = "memory is used up"
    except RuntimeError as error:
        if isinstance(error, SparseMTLError) or not _NO_MEMORY.search(str(error)):
            raise
        problem = str(error).split("\n")[0]
    else:
        return
    raise ConfigError(
        f"the network does not fit into memory: {problem}. Make the widths of `encoder` and `architecture` smaller."
    )


_NO_MEMORY = re.compile(r"allocate memory|out of memory|calculation overflowed|[Ii]nvalid size|too large")


def _encoder(config: Mapping[str, Any], data: TaskData, before: Earlier | None) -> nn.Module:
    """The encoder, behind the data's stem if they have one, with the weights that it starts from."""
    section = dict(config["encoder"])
    stem = data.stem() if data.stem is not None else None
    shape = data.input_shape if stem is None else (width_of(stem),)
    encoder = ENCODERS.build(section.pop("name"), shape, **section)
    whole = encoder if stem is None else Stemmed(stem, encoder)
    if config["pretrained"] is not None:
        load_torchvision(whole, config["pretrained"])
    if before is not None:
        before.start(whole)
    return Frozen(whole) if config["freeze"] else whole


def _model(config: Mapping[str, Any], data: TaskData, encoder: nn.Module, before: Earlier | None) -> MultiTaskModel:
    """The architecture; one that takes `labels` gets those of the training data, one that takes `source` what the
    encoder was trained for."""
    section = dict(config["architecture"])
    name = section.pop("name")
    asked = inspect.signature(ARCHITECTURES[name]).parameters
    heads = _heads(config["heads"], data, encoder)
    given: list[Any] = [data.labels()] if "labels" in asked else []
    given += [_source(before, encoder)] if "source" in asked else []
    return ARCHITECTURES.build(name, encoder, list(data.tasks), heads, *given, **section)


def _check_start_is_kept(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError if the architecture would draw weights anew that the encoder starts from."""
    starts = next((key for key in ("pretraining", "pretrained") if config[key] is not None), None)
    if starts is not None and config["architecture"].get("fresh"):
        raise ConfigError(
            f"architecture.fresh: expected false beside `{starts}`, got true: all copies of the encoder but one would "
            "be drawn anew, and lose the weights that it starts from."
        )


def _source(before: Earlier | None, encoder: nn.Module) -> Source | None:
    """What the encoder was trained for, if that is known."""
    if before is None:
        return None
    data, sections = before.plan.data, before.plan.config["heads"]
    heads = {task.name: task.head(width_of(encoder), stride_of(encoder)) for task in data.tasks}
    return before.source({**heads, **_heads(sections, data, encoder)})


def make_sharing(config: Mapping[str, Any]) -> Sharing:
    """The sharing method of a complete configuration.

    Raises:
        ConfigError: if its warm-up lasts as long as the training.
    """
    section, epochs = dict(config["sharing"]), config["training"]["epochs"]
    name = section.pop("name")
    sharing = SHARING.build(name, **section)
    if not sharing.is_selectable(epochs - 1):
        raise ConfigError(
            f"sharing {name!r} would still be warming up after {epochs} epochs. "
            "Raise `training.epochs` or shorten its warm-up."
        )
    return sharing


def _heads(sections: Mapping[str, Any], data: TaskData, encoder: nn.Module) -> dict[str, nn.Module]:
    """The heads that a configuration asks for, by task.

    Raises:
        ConfigError: if there is no such head, or it knows no such parameter.
    """
    heads = {}
    for task in data.tasks:
        if task.name in sections:
            section = sections[task.name]
            parameters = {"name": section} if isinstance(section, str) else dict(section)
            if "name" not in parameters:
                raise ConfigError(f"heads.{task.name}: expected the `name` of one of {', '.join(HEADS)}.")
            name = parameters.pop("name")
            heads[task.name] = HEADS.build(name, width_of(encoder), task.outputs, stride_of(encoder), **parameters)
    return heads


def _scheduler(section: dict[str, Any], epochs: int) -> Any:
    name = section.pop("name")
    return lambda optimizer: SCHEDULERS.build(name, optimizer, epochs, **section)


def _report(place: RunFolder) -> None:
    """Draw the report where its libraries are installed; a run does not fail for want of a picture."""
    from sparsemtl.errors import MissingExtraError
    from sparsemtl.report import write_report

    try:
        write_report(place.path)
    except MissingExtraError as error:
        print(f"no report was drawn: {error}")
