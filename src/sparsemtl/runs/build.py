"""From a complete configuration to its trainer, with its sharing method and its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sparsemtl.balancing import BALANCERS
from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, ConfigError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import seed_everything
from sparsemtl.optim import OPTIMIZERS, Schedule
from sparsemtl.runs.loaded import load_run
from sparsemtl.runs.models import make_model
from sparsemtl.runs.pretraining import PretrainedNetwork
from sparsemtl.runs.schema import TRAINER_KEYS
from sparsemtl.runs.validation import completed
from sparsemtl.sharing import SHARING, Sharing
from sparsemtl.storage.files import read_tensors
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training import Trainer
from sparsemtl.training.callbacks import CALLBACKS
from sparsemtl.training.steps.teacher import Teacher


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
            architecture would lose the weights that the encoder starts from, or `start_from` or `teacher` is no
            finished run.
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
    trainer = Trainer(
        model,
        sharing=make_sharing(config),
        balancing=BALANCERS.build(balancing.pop("name"), **balancing),
        parameter_groups=optimizer.pop("parameter_groups"),
        layer_decay=optimizer.pop("layer_decay"),
        optimizer=partial(OPTIMIZERS.build, optimizer.pop("name"), **optimizer),
        scheduler=Schedule(**config["scheduler"]) if config["scheduler"] else None,
        seed=config["seed"],
        folder=folder,
        name=config["name"],
        config=config,
        notes=data.notes,
        progress=progress,
        teacher=_teacher(config),
        callbacks=[CALLBACKS.build(name) for name in training["callbacks"]],
        **{key: training[key] for key in TRAINER_KEYS},
    )
    trainer.complete_config = completed
    return trainer


def _teacher(config: Mapping[str, Any]) -> Teacher | None:
    """Load the teacher of a configuration.

    Raises:
        ConfigError: if its folder holds no trained run.
    """
    if config["teacher"] is None:
        return None
    options = dict(config["teacher"])
    folder = options.pop("run")
    try:
        return Teacher(load_run(folder), **options)
    except CheckpointError as error:
        raise ConfigError(f"teacher: expected the folder of a finished run, got {folder!r}: {error}") from None


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
