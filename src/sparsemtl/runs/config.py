"""Configurations: YAML checked against a schema that is built from the registries.

Every axis is a section `{name: ..., parameters}`, or just the name. The keys of a section are the parameters of the
class of that name, so that a registered class is configurable at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsemtl.errors import ConfigError
from sparsemtl.registry.plugins import load_plugins, plugins_of, with_absolute_code
from sparsemtl.runs.auto_options import AUTO, GROUPS, ROWS, candidates_of
from sparsemtl.runs.changes import merge, with_preset
from sparsemtl.runs.pretraining import pretraining_config
from sparsemtl.runs.validation import validate
from sparsemtl.storage.yaml_text import line_numbers


def check(
    config: Mapping[str, Any], *, where: str = "the configuration", origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Check a configuration and fill in every default.

    Args:
        config: sections as read from YAML; a section without `name` has the default member.
        where: name of the configuration in messages: its file.
        origins: dotted key -> line of the file, or command line, for messages; see `origins_of`.

    Returns:
        The complete configuration, as plain values.

    Raises:
        ConfigError: naming every wrong key, what was expected there and the nearest valid name; or a plugin that cannot
            be loaded.
    """
    if isinstance(config, Mapping):
        load_plugins(plugins_of(config))
        config = with_preset(config)
    complete = with_absolute_code(validate(config, where=where, origins=origins), Path())
    pretraining_config(complete, where=where, origins=origins)
    if complete[AUTO] is not None:
        candidate_configs(complete, where=where)
    return complete


def candidate_configs(
    complete: Mapping[str, Any], *, rows: int = ROWS, where: str = "the configuration"
) -> dict[str, dict[str, Any]]:
    """Return candidate -> its complete configuration, of a run with `sharing: auto`.

    Args:
        complete: complete configuration of the run.
        rows: training rows per task, for the default candidates.
        where: name of the configuration in messages.

    Raises:
        ConfigError: if a candidate is not valid, changes what all candidates have in common, or none is dense.
    """
    base = {key: value for key, value in complete.items() if key not in (AUTO, "name", "label")}
    base["training"] = {**base["training"], "measure_cost": False}
    configs = {}
    for name, changes in candidates_of(complete, rows).items():
        if common := [key for key in changes if key in _COMMON]:
            raise ConfigError(
                f"{where}, candidate {name!r}: `{common[0]}` cannot be changed, all candidates have the same: "
                f"{', '.join(_COMMON)}."
            )
        configs[name] = check({**merge(base, changes), "label": name}, where=f"{where}, candidate {name!r}")
    if not any(config["sharing"]["name"] == "dense" for config in configs.values()):
        raise ConfigError(
            f"{where}: expected a candidate with `sharing: dense`, which the others are compared with, found none "
            f"among {', '.join(configs)}."
        )
    return configs


def groups_base(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the candidate whose network is read to find groups of tasks: the first dense shared bottom, or None."""
    for name, own in configs.items():
        if own["sharing"]["name"] == "dense" and own["architecture"]["name"] == "shared-bottom" and not own["freeze"]:
            return name
    return None


def with_groups(
    configs: Mapping[str, dict[str, Any]], base: str, groups: Sequence[Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Return the candidates with one more before the first single-task one: one dense encoder per group of tasks.

    Args:
        configs: candidate -> its complete configuration.
        base: candidate whose configuration it has, but for the architecture.
        groups: names of the tasks of each group.
    """
    architecture = {"name": "task-groups", "groups": [list(group) for group in groups]}
    changes = {"architecture": architecture, "start_from": None, "label": GROUPS}
    names = list(configs)
    apart = (i for i, name in enumerate(names) if configs[name]["architecture"]["name"] == "single-task")
    names.insert(next(apart, len(names)), GROUPS)
    made = {**configs, GROUPS: check(merge(configs[base], changes), where=f"candidate {GROUPS!r}")}
    return {name: made[name] for name in names}


_COMMON = ("data", "tasks", "seed", "task_options", "primary", "plugins", "name", "label", AUTO)
"""Keys that candidates cannot change: their data, and what judges them."""


def origins_of(path: str | Path, overrides: Sequence[str]) -> dict[str, str]:
    """Return dotted key -> where it was written: a line of the file, or the command line."""
    changed = [text.partition("=")[0] for text in overrides]
    lines = {
        key: f"line {line}"
        for key, line in line_numbers(path).items()
        if not any(f"{key}.".startswith(f"{other}.") for other in changed)
    }
    return lines | dict.fromkeys(changed, "command line")
