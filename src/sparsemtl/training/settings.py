"""Settings of a run, kept in its checkpoints: a run resumes under the same settings only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from sparsemtl._version import __version__
from sparsemtl.errors import CheckpointError
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.storage.comparison import MISSING, changes, plain, shown
from sparsemtl.tasks.processes import Processes
from sparsemtl.training.options import TrainingOptions

FREE = (
    "name",
    "label",
    "data.root",
    "data.workers",
    "data.memory",
    "data.cache",
    "training.accelerator",
    "training.strategy",
    "training.process_timeout",
    "training.checkpoint_every",
    "training.tensorboard",
    "training.callbacks",
    "training.threads",
)
"""Keys of a configuration on which no weight depends but by rounding: they may change while a run is stopped."""
_PROCESSES = ("training.devices", "training.num_nodes")
"""Keys that need not agree with a checkpoint, which has the number of processes."""
_LENGTH = ("training.epochs", "training.patience")
"""Keys that decide when a run ends. They may change where no schedule is stretched over the epochs."""

_RECORDED = (
    "seed",
    "accumulate",
    "clip_norm",
    "mix",
    "parameter_groups",
    "layer_decay",
    "restart_every",
    "execution",
    "compile",
    "precision",
    "norm_batches",
    "monitor",
    "choose_after",
    "choose_per_task",
)
"""Options that may not change when a run is resumed, since its figures depend on them."""


def recorded_options(options: TrainingOptions, processes: Processes, scheduler_every: str) -> dict[str, Any]:
    """Return the options of a run that may not change when it is resumed, by name.

    Args:
        options: options of the run.
        processes: processes that train together; their number is recorded if there are several.
        scheduler_every: when the scheduler steps, recorded if it is `step`.
    """
    recorded: dict[str, Any] = {name: options[name] for name in _RECORDED}  # type: ignore[literal-required]
    recorded |= {"processes": processes.count} if processes.several else {}
    return recorded | ({"scheduler_every": "step"} if scheduler_every == "step" else {})


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run, as plain values.

    Attributes:
        values: `version`, `config` (the configuration, or a description), `options` by name, and the groups of the
            optimizer before its first step by number.
        defaults: dotted key -> default, of keys that a run may lack which an earlier version began.
        complete: fills in the defaults of a configuration that an earlier version wrote.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        optimizer: Optimizer,
        options: Mapping[str, Any],
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> RunSettings:
        """Return all that is known of a run's settings.

        Args:
            config: the run's configuration, or its description.
            optimizer: before its first step.
            options: further settings by name.
            complete: fills in the defaults of a configuration that an earlier version wrote.
        """
        groups = [
            {name: value for name, value in group.items() if name != "params" and _is_plain(value)}
            for group in optimizer.state_dict()["param_groups"]
        ]
        values = {
            "version": __version__,
            "config": plain(config),
            "options": plain(options),
            "optimizer": {str(number): plain(group) for number, group in enumerate(groups)},
        }
        own = parameters_of(TrainingOptions)
        arguments = inspect.signature(type(optimizer)).parameters
        defaults = {f"options.{name}": own[name].default for name in options if name in own}
        for number, group in values["optimizer"].items():
            given = {name: arguments[name].default for name in group if name in arguments}
            defaults |= {f"optimizer.{number}.{name}": value for name, value in given.items()}
        return cls(values, plain(defaults), complete)

    def check(self, found: Any, where: str) -> None:
        """Raise if this run would resume under other settings than it started with.

        A key that the run's version had not yet has its default.

        Args:
            found: the settings in the checkpoint.
            where: the checkpoint, for messages.

        Raises:
            CheckpointError: naming the first setting that differs.
        """
        if not isinstance(found, Mapping) or not isinstance(found.get("config"), Mapping):
            raise CheckpointError(f"{where} does not say with which settings its run was begun.")
        began = plain(found)
        completed = {**began, "config": plain(self.complete(began["config"]))}
        length = () if self.values["config"].get("scheduler") is not None else _LENGTH
        free = {f"config.{key}" for key in (*FREE, *_PROCESSES, *length)}
        same_version = began.get("version") == __version__
        for place, there, here in changes(completed, self.values):
            before = self.defaults.get(place, MISSING) if there is MISSING else there
            unknown = before is MISSING and not same_version  # that version had its default, whatever it was
            if place == "version" or place in free or unknown or before == here:
                continue
            name = place.removeprefix("config.").removeprefix("options.")
            new = before is not MISSING and _lacks(began, place)
            default = ", the default of a key that it did not have yet," if new else ""
            raise CheckpointError(
                f"{where} is of a run that was begun with other settings: {name} is {shown(before)} there{default} "
                f"and {shown(here)} here. Go on with the settings that it was begun with, or begin a new run in "
                "another folder."
            )


def _lacks(tree: Mapping[str, Any], place: str) -> bool:
    """Return True if a nest of mappings has no value at a dotted key."""
    value: Any = tree
    for key in place.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return True
        value = value[key]
    return False


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
