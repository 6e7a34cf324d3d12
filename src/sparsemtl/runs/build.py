"""From a complete configuration to its objects: encoder, heads, architecture, sharing method, trainer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sparsemtl.architectures import ARCHITECTURES
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
from sparsemtl.runs.pretraining import PretrainedNetwork
from sparsemtl.runs.schema import TRAINER_KEYS
from sparsemtl.sharing import SHARING, Sharing
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training import Trainer
from sparsemtl.training.callbacks import CALLBACKS


def make_trainer(
    config: Mapping[str, Any],
    data: TaskData,
    folder: Path | None,
    *,
    pretrained: PretrainedNetwork | None = None,
    progress: bool = True,
) -> Trainer:
    """Make the model and the trainer of a complete configuration; the generators are seeded first.

    Args:
        config: the configuration.
        data: its data, see `RunSpec.data`.
        folder: the run folder; None to write nothing.
        pretrained: network of the pretraining run, if the configuration has one.
        progress: show a live bar.

    Raises:
        ConfigError: if the network does not fit into memory, the warm-up is longer than the training, the
            architecture would lose the weights that the encoder starts from, or `start_from` is no finished run.
        CheckpointError: if the model of `start_from` is another one.
    """
    _check_start_is_kept(config)
    seed_everything(config["seed"])
    model = make_model(config, data, pretrained)
    if config["start_from"] is not None:
        _load_weights(model, RunFolder(config["start_from"]))
    balancing = dict(config["balancing"])
    training = config["training"]
    optimizer = dict(config["optimizer"])
    scheduler = dict(config["scheduler"] or {})
    return Trainer(
        model,
        sharing=make_sharing(config),
        balancing=BALANCERS.build(balancing.pop("name"), **balancing),
        parameter_groups=optimizer.pop("parameter_groups"),
        layer_decay=optimizer.pop("layer_decay"),
        optimizer=partial(OPTIMIZERS.build, optimizer.pop("name"), **optimizer),
        scheduler=_scheduler(scheduler, training["epochs"]) if scheduler else None,
        seed=config["seed"],
        folder=folder,
        name=config["name"],
        config=config,
        notes=data.notes,
        progress=progress,
        callbacks=[CALLBACKS.build(name) for name in training["callbacks"]],
        **{key: training[key] for key in TRAINER_KEYS},
    )


def make_model(
    config: Mapping[str, Any], data: TaskData, pretrained: PretrainedNetwork | None = None
) -> MultiTaskModel:
    """Make the model of a complete configuration from the present state of the generators.

    Args:
        config: the configuration.
        data: its data; the tasks, the shape of an input and the stem are read.
        pretrained: network of the pretraining run, if the configuration has one.

    Raises:
        ConfigError: if the network does not fit into memory.
    """
    with _memory_errors():
        return _model(config, data, _encoder(config, data, pretrained), pretrained)


def _load_weights(model: MultiTaskModel, run: RunFolder) -> None:
    """Load the weights of a run's selected epoch into a model.

    Raises:
        ConfigError: if the folder holds no trained run.
        CheckpointError: if its model is another one, or the file is damaged.
    """
    if not run.model.is_file():
        raise ConfigError(
            f"start_from: expected the folder of a finished run, got {str(run.path)!r}, which has no {run.model.name}."
        )
    tensors, _ = read_tensors(run.model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"start_from: {run.model} does not fit {type(model).__name__}. `encoder`, `heads`, `architecture` and "
            f"`tasks` must be those of {run.config}: {error}"
        ) from None


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise a ConfigError with advice if the memory for a network is used up."""
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


def _encoder(config: Mapping[str, Any], data: TaskData, pretrained: PretrainedNetwork | None) -> nn.Module:
    """Make the encoder with its initial weights, behind the stem of the data if they have one."""
    section = dict(config["encoder"])
    stem = data.stem() if data.stem is not None else None
    shape = data.input_shape if stem is None else (width_of(stem),)
    encoder = ENCODERS.build(section.pop("name"), shape, **section)
    whole = encoder if stem is None else Stemmed(stem, encoder)
    if config["pretrained"] is not None:
        load_torchvision(whole, config["pretrained"])
    if pretrained is not None:
        pretrained.load_encoder(whole)
    return Frozen(whole) if config["freeze"] else whole


def _model(
    config: Mapping[str, Any], data: TaskData, encoder: nn.Module, pretrained: PretrainedNetwork | None
) -> MultiTaskModel:
    """Make the architecture; its parameters `labels` and `source` are the training labels and the pretrained task."""
    section = dict(config["architecture"])
    name = section.pop("name")
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    heads = _heads(config["heads"], data, encoder)
    given: list[Any] = [data.labels()] if "labels" in parameters else []
    given += [pretrained and pretrained.source(encoder, _heads)] if "source" in parameters else []
    return ARCHITECTURES.build(name, encoder, list(data.tasks), heads, *given, **section)


def _check_start_is_kept(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError if the architecture would initialize weights again that the encoder starts from."""
    starts = next((key for key in ("pretraining", "pretrained") if config[key] is not None), None)
    if starts is not None and config["architecture"].get("fresh"):
        raise ConfigError(
            f"architecture.fresh: expected false beside `{starts}`, got true: all copies of the encoder but one would "
            "be initialized again, and lose the weights that the encoder starts from."
        )


def make_sharing(config: Mapping[str, Any]) -> Sharing:
    """Make the sharing method of a complete configuration.

    Raises:
        ConfigError: if its warm-up lasts as long as the training.
    """
    section, epochs = dict(config["sharing"]), config["training"]["epochs"]
    name = section.pop("name")
    sharing = SHARING.build(name, **section)
    if not sharing.is_selectable(epochs - 1):
        raise ConfigError(
            f"sharing {name!r} would still be warming up after {epochs} epochs. "
            f"Raise `training.epochs` to at least {sharing.first_selectable() + 1}, or shorten its warm-up."
        )
    return sharing


def _heads(sections: Mapping[str, Any], data: TaskData, encoder: nn.Module) -> dict[str, nn.Module]:
    """Make the heads of a section `heads`: task -> head, for the tasks that it names.

    Raises:
        ConfigError: if there is no such head, or no such parameter of it.
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
    return partial(_build_scheduler, section.pop("name"), epochs, section)


def _build_scheduler(name: str, epochs: int, parameters: Mapping[str, Any], optimizer: Any) -> Any:
    return SCHEDULERS.build(name, optimizer, epochs, **parameters)
