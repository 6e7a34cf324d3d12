"""Options of `sharing: auto`, and the candidates that it has by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Annotated, Any, TypedDict

from annotated_types import Interval
from typing_extensions import Doc

from sparsemtl.errors import ConfigError
from sparsemtl.registry.parameters import Default, Fraction
from sparsemtl.training.auto_share import RUNGS

AUTO = "auto"
"""Name of the sharing, and the key of a complete configuration that holds its options."""
GROUPS = "groups"
"""Name of the candidate with one encoder per group of tasks."""
Inside = Annotated[float, Interval(gt=0, lt=1)]
"""Fraction in (0, 1)."""
_DECAY = {"adam": 0.001, "sgd": 0.001}
"""Optimizer that adds weight decay to the gradient -> weight decay of a candidate; of others it is 0.3."""


class AutoOptions(TypedDict, total=False):
    """Options of `sharing: auto`."""

    candidates: Annotated[
        dict[str, dict[str, Any]] | None,
        Default(None),
        Doc(
            "Candidate -> its changes of this configuration, from the simplest network to the most complex one; at "
            "least one with `sharing: dense`. By default dense networks with and without weight decay, group lasso, "
            "Fisher and task-specific Fisher masks, and single-task networks."
        ),
    ]
    more: Annotated[
        dict[str, dict[str, Any]], Default({}), Doc("Further candidates beside the default ones, likewise.")
    ]
    groups: Annotated[
        bool | None,
        Default(None),
        Doc(
            "Add the candidate `groups`, one dense encoder per group of tasks. Groups are found by the overlap of "
            "masks at keep 0.1 in the first dense shared-bottom candidate after the first rung. By default with the "
            "default candidates only."
        ),
    ]
    rungs: Annotated[
        list[Inside],
        Default(list(RUNGS)),
        Doc("Shares of the epochs, rising, after which candidates are dropped."),
    ]
    survivors: Annotated[
        Fraction,
        Default(0.5),
        Doc(
            "Fraction of the candidates that each rung leaves, in (0, 1], but two at least: a dense one, and those "
            "that together leave the tasks the best networks."
        ),
    ]
    choose: Annotated[
        Inside,
        Default(0.5),
        Doc("Fraction of the validation rows that choose the networks; the others select the epochs."),
    ]


def spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the options of `sharing: auto` under the key `auto`, and with dense sharing."""
    section = config.get("sharing")
    name = section.get("name") if isinstance(section, Mapping) else section
    if name != AUTO:
        return dict(config)
    if config.get(AUTO) is not None:
        raise ConfigError("`sharing: auto` and the key `auto` say the same. Leave one of them out.")
    options = {key: value for key, value in section.items() if key != "name"} if isinstance(section, Mapping) else {}
    return {**config, "sharing": "dense", AUTO: options}


def check_rungs(rungs: Sequence[float]) -> None:
    """Raise a ConfigError unless the rungs rise."""
    if sorted(set(rungs)) != list(rungs):
        raise ConfigError(f"sharing auto: `rungs` must rise, got {list(rungs)}.")


def candidates_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return candidate -> changes of a complete configuration."""
    options = config[AUTO]
    given = default_candidates(config) if options["candidates"] is None else options["candidates"]
    if twice := sorted(set(given) & set(options["more"])):
        raise ConfigError(f"sharing auto: candidate {twice[0]!r} is in `more` and among the others. Rename one.")
    if adds_groups(config) and GROUPS in {**given, **options["more"]}:
        raise ConfigError(
            f"sharing auto: the candidate {GROUPS!r} is added by the option `groups`. Rename yours, or set "
            "`groups: false`."
        )
    return {**given, **options["more"]}


def adds_groups(config: Mapping[str, Any]) -> bool:
    """Return True if a complete configuration has the candidate with groups of tasks."""
    options = config[AUTO]
    return options["candidates"] is None if options["groups"] is None else options["groups"]


def default_candidates(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the default candidates of a complete configuration; masks have three times its learning rate."""
    optimizer = config["optimizer"]
    decay = {"optimizer": {"weight_decay": _DECAY.get(optimizer["name"], 0.3)}}
    faster = {"optimizer": {"lr": 3 * optimizer["lr"]}}
    lasso = {"name": "group-lasso", "linear": True, "target_sparsity": 0.5}
    reach_at = max(ceil(0.25 * config["training"]["epochs"]), 1)
    masks = {
        f"{criterion} {keep}": {"sharing": {"name": "fisher", "criterion": criterion, "keep": keep}, **faster}
        for criterion in ("fisher", "specific")
        for keep in (0.3, 0.1)
    }
    apart = {"architecture": "single-task", "start_from": None}  # weights of a shared network do not fit
    return {
        "dense": {},
        "dense, decay": decay,
        "group lasso": {"sharing": {**lasso, "reach_at": reach_at}},
        **masks,
        "single-task": apart,
        "single-task, decay": {**apart, **decay},
    }
