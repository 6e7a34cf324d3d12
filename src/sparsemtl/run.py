"""One run from a configuration: data, model and trainer made, trained, tested, reported."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sparsemtl.architectures import ARCHITECTURES, Source
from sparsemtl.backbones import ENCODERS, load_torchvision
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.balancing import BALANCERS
from sparsemtl.config import before_of, check, data_of, differences
from sparsemtl.data import DATASETS, TaskData
from sparsemtl.errors import CheckpointError, ConfigError, SparseMTLError, unknown_name
from sparsemtl.frozen import Frozen
from sparsemtl.heads import HEADS
from sparsemtl.models import MultiTaskModel, stride_of, width_of
from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
from sparsemtl.pretraining import Pretrained
from sparsemtl.randomness import seed_everything
from sparsemtl.schema import TRAINER_KEYS
from sparsemtl.sharing import SHARING, Sharing
from sparsemtl.training import Trainer
from sparsemtl.training.evaluation import Results
from sparsemtl.training.folder import RunFolder
from sparsemtl.yaml_text import read_yaml


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
        CheckpointError: if the folder holds a run and `resume` is not asked for.
    """
    complete = check(config)
    _check_start_is_kept(complete)
    place = RunFolder(folder)
    if not resume:
        _check_free(place)
    data = load_data(complete)
    before = pretrain(complete, place, progress=progress)
    trainer = make_trainer(complete, data, place.path, before=before, progress=progress)
    training = complete["training"]
    train, validation, test = data.loaders(training["batch_size"], drop_last=training["drop_last"])
    trainer.fit(train, validation, resume=resume and place.last.exists())
    results = trainer.test(test)
    _report(place)
    return results


def resume(folder: str | Path, *, progress: bool = True) -> Results:
    """Go on with the run in a folder.

    Raises:
        CheckpointError: if the folder is no run folder, or the run is finished or never began.
    """
    place = RunFolder(folder)
    if (place.path / "study.json").exists():
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
        raise CheckpointError(
            f"{place.path} holds a run that stopped. Go on with `sparsemtl resume {place.path}`, "
            "use another --out, or delete it."
        )


def load_data(config: Mapping[str, Any]) -> TaskData:
    """The data set of a complete configuration, with its tasks chosen, weighted and given their primary metrics.

    What a configuration says of tasks that it does not train is left alone: methods of a study may train fewer. Tasks
    that are for pretraining are not chosen by default.
    """
    section = data_of(config)
    data = DATASETS.build(section.pop("name"), **section)
    for key in ("tasks", "weights", "primary", "heads"):
        _check_tasks(key, config[key] or (), data)
    chosen = _trained_here(config, data) if config["tasks"] is None else config["tasks"]
    if chosen is not None:
        data = data.only(chosen)
    for task in data.tasks:
        task.weight = float(config["weights"].get(task.name, task.weight))
        task.primary = config["primary"].get(task.name)
    return data


def _trained_here(config: Mapping[str, Any], data: TaskData) -> list[str] | None:
    """The tasks that the run before does not train, if there is one and it leaves any."""
    before = before_of(config)
    if before is None:
        return None
    return [task.name for task in data.tasks if task.name not in (before["tasks"] or ())] or None


def pretrain(config: Mapping[str, Any], place: RunFolder, *, progress: bool = True) -> Pretrained | None:
    """Make the run before a run, or go on with it, if the configuration asks for one and it is not finished.

    Args:
        config: the complete configuration.
        place: the folder of the run itself.
        progress: show a live bar.

    Raises:
        CheckpointError: if the folder of the run before holds one of another configuration.
        SparseMTLError: whatever the run before raises, named as its.
    """
    before = before_of(config)
    if before is None:
        return None
    earlier = place.before(before)
    if earlier.config.exists() and (wrong := next(differences(earlier.read_config(), before), None)):
        raise CheckpointError(
            f"{earlier.path} holds a run of another configuration: {wrong}. Use another --out, or delete that folder."
        )
    make_sharing(config)  # a mistake there shall not come up only afterwards
    try:
        if not earlier.finished:
            place.write_config(config)  # so that a run killed in its pretraining can be resumed
            run(before, earlier.path, resume=True, progress=progress)
        return Pretrained(earlier.model, before, load_data(before))
    except SparseMTLError as error:
        error.args = (f"pretraining: {error}",)
        raise


def _check_tasks(key: str, names: Iterable[str], data: TaskData) -> None:
    known = [task.name for task in data.tasks]
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}: {unknown_name('task', name, known)}")


def make_trainer(
    config: Mapping[str, Any],
    data: TaskData,
    folder: Path | None,
    *,
    before: Pretrained | None = None,
    progress: bool = True,
) -> Trainer:
    """Model and trainer of a complete configuration; seeds the generators, so that the weights follow the seed."""
    seed_everything(config["seed"])
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


def _encoder(config: Mapping[str, Any], data: TaskData, before: Pretrained | None) -> nn.Module:
    """The encoder, behind the data's stem if they have one, with the weights that it starts from."""
    section = dict(config["encoder"])
    stem = data.stem() if data.stem is not None else None
    shape = data.input_shape if stem is None else (width_of(stem),)
    encoder = ENCODERS.build(section.pop("name"), shape, **section)
    if config["pretrained"] is not None:
        load_torchvision(encoder, config["pretrained"])
    whole = encoder if stem is None else Stemmed(stem, encoder)
    if before is not None:
        before.start(whole)
    return Frozen(whole) if config["freeze"] else whole


def _model(config: Mapping[str, Any], data: TaskData, encoder: nn.Module, before: Pretrained | None) -> MultiTaskModel:
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


def _source(before: Pretrained | None, encoder: nn.Module) -> Source | None:
    """What the encoder was trained for, if that is known."""
    if before is None:
        return None
    heads = {task.name: task.head(width_of(encoder), stride_of(encoder)) for task in before.data.tasks}
    return before.source({**heads, **_heads(before.config["heads"], before.data, encoder)})


def make_sharing(config: Mapping[str, Any]) -> Sharing:
    """The sharing method of a complete configuration.

    Raises:
        ConfigError: if its warm-up lasts as long as the training.
    """
    section, epochs = dict(config["sharing"]), config["training"]["epochs"]
    name = section.pop("name")
    sharing = SHARING.build(name, **section)
    if not sharing.settled(epochs - 1):
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
