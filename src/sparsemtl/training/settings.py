"""Settings of a run, kept in its checkpoints: a run resumes under the same settings only."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from sparsemtl._version import __version__
from sparsemtl.errors import CheckpointError
from sparsemtl.storage.comparison import leaves, plain, shown

_FREE = (
    "config.name",
    "config.label",
    "config.data.root",
    "config.data.workers",
    "config.data.memory",
    "config.data.cache",
    "config.training.accelerator",
    "config.training.devices",
    "config.training.strategy",
    "config.training.num_nodes",
    "config.training.process_timeout",
    "config.training.checkpoint_every",
    "config.training.tensorboard",
    "config.training.callbacks",
    "config.training.threads",
)
"""Settings that no weight depends on (threads: they are restored): they may change while a run is stopped."""
_LENGTH = ("config.training.epochs", "config.training.patience")
"""Settings that say when a run ends. They may change where no schedule is stretched over the epochs."""


def run_settings(config: Mapping[str, Any], optimizer: Optimizer, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that is known of a run's settings, as plain values.

    Args:
        config: the run's configuration, or its description.
        optimizer: before its first step.
        options: further settings by name.
    """
    groups = [
        {name: value for name, value in group.items() if name != "params" and _is_plain(value)}
        for group in optimizer.state_dict()["param_groups"]
    ]
    return {
        "version": __version__,
        "config": plain(config),
        "options": plain(options),
        "optimizer": {str(number): plain(group) for number, group in enumerate(groups)},
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def check_settings(found: Any, settings: Mapping[str, Any], where: str) -> None:
    """Raise if a run would resume under other settings than it started with.

    Args:
        found: the settings in the checkpoint.
        settings: settings of the run that resumes.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: naming the first setting that differs.
    """
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{where} does not say with which settings its run was begun.")
    for place, there, here in _differences(found, settings):
        raise CheckpointError(
            f"{where} is of a run that was begun with other settings: {place} is {there} there and {here} here. "
            "Go on with the settings that it was begun with, or begin a new run in another folder."
        )


def _differences(found: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    free: Collection[str] = _FREE
    config = settings["config"]
    if config.get("scheduler") is None:
        free = (*_FREE, *_LENGTH)
    there, here = dict(leaves(plain(found))), dict(leaves(settings))
    same_version = found.get("version") == settings["version"]
    for place in dict.fromkeys([*here, *there]):
        if place in free or place == "version" or (place not in there and not same_version):
            continue  # a version that knew a setting not yet had its default
        if place not in there or place not in here or there[place] != here[place]:
            name = place.removeprefix("config.").removeprefix("options.")
            yield name, _shown(there, place), _shown(here, place)


def _shown(values: Mapping[str, Any], place: str) -> str:
    return shown(values[place]) if place in values else "missing"
