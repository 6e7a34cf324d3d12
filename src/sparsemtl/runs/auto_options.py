"""Options of `sharing: auto`, and the candidates that it has by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from annotated_types import Interval
from typing_extensions import Doc

from sparsemtl.balancing import BALANCERS
from sparsemtl.data import TaskData
from sparsemtl.errors import ConfigError
from sparsemtl.registry.parameters import Default, Fraction
from sparsemtl.training.choosing.halving import RUNGS, SURVIVORS

AUTO = "auto"
"""Name of the sharing, and the key of a complete configuration that holds its options."""
GROUPS = "groups"
"""Name of the candidate with one encoder per group of tasks."""
Inside = Annotated[float, Interval(gt=0, lt=1)]
"""Fraction in (0, 1)."""
ROWS = 400
"""Training rows that are assumed where the data are not known, as where a configuration is checked."""
_FEWEST_ROWS = 100


class AutoOptions(TypedDict, total=False):
    """Options of `sharing: auto`."""

    candidates: Annotated[
        dict[str, dict[str, Any]] | None,
        Default(None),
        Doc(
            "Candidate -> its changes of this configuration, from the simplest network to the most complex one; at "
            "least one with `sharing: dense`. By default the dense network of this configuration; and with weight "
            "decay by the number of training rows: a dense network, task-specific Fisher masks at keep 0.3 and 0.1, "
            "and single-task networks."
        ),
    ]
    more: Annotated[
        dict[str, dict[str, Any]],
        Default({}),
        Doc("Further candidates beside the default ones, likewise. Each adds about 0.8 trainings to the cost."),
    ]
    groups: Annotated[
        bool,
        Default(False),
        Doc(
            "Add the candidate `groups`, one dense encoder per group of tasks. Groups are found by the overlap of "
            "masks at keep 0.1 in the first dense shared-bottom candidate after the first rung."
        ),
    ]
    rungs: Annotated[
        list[Inside],
        Default(list(RUNGS)),
        Doc("Shares of the epochs, rising, after which candidates are dropped."),
    ]
    survivors: Annotated[
        Fraction,
        Default(SURVIVORS),
        Doc(
            "Fraction of the candidates that each rung leaves, in (0, 1], but two at least: a dense one, and those "
            "that together leave the tasks the best networks."
        ),
    ]
    choose: Annotated[
        Inside | None,
        Default(None),
        Doc(
            "Fraction of the validation rows that choose the networks; the others select the epochs. By default all "
            "rows do both, which was better where it was compared (100 rows)."
        ),
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


def candidates_of(config: Mapping[str, Any], rows: int = ROWS) -> dict[str, dict[str, Any]]:
    """Return candidate -> changes of a complete configuration; see `default_candidates` for `rows`."""
    options = config[AUTO]
    given = default_candidates(config, rows) if options["candidates"] is None else options["candidates"]
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
    return bool(config[AUTO]["groups"])


def default_candidates(config: Mapping[str, Any], rows: int = ROWS) -> dict[str, dict[str, Any]]:
    """Return the default candidates of a complete configuration.

    Weight decay is inversely proportional to the training rows: with 100, 400 and 1,600 rows of `benchmarks/pays`, the
    best value fell about as fast. The more weights a task trains, the larger it is.

    Args:
        config: the configuration.
        rows: training rows per task; fewer than 100 count as 100.
    """

    def optimizer(decay: float, rate: float = 1.0) -> dict[str, Any]:
        return {"optimizer": decayed(config, decay / max(rows, _FEWEST_ROWS), rate=rate)}

    def specific(keep: float) -> dict[str, Any]:
        return {"sharing": {"name": "fisher", "criterion": "specific", "keep": keep, "freeze_masks": 0.33}}

    apart = {"architecture": "single-task", "start_from": None}  # weights of a shared network do not fit
    return {
        "dense": {},
        "dense, decay": {**_dense_in_turns(config), **optimizer(100, rate=0.3)},
        "specific 0.3": {**specific(0.3), **optimizer(100)},
        "specific 0.1": {**specific(0.1), **optimizer(30)},
        "single-task, decay": {**apart, **optimizer(300)},
    }


def _dense_in_turns(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes for a dense network in which every task has a step of its own, unless the balancer combines them.

    The shared weights then take as many steps as those of masks, and a smaller learning rate suits them.
    """
    section = dict(config["balancing"])
    balancer = BALANCERS.build(section.pop("name"), **section)
    return {"sharing": {"name": "dense", "update": "alternate" if balancer.takes_turns else "average"}}


def decayed(config: Mapping[str, Any], decay: float, *, rate: float = 1.0) -> dict[str, Any]:
    """Return the changes of the optimizer of a complete configuration that give it weight decay.

    Args:
        config: the configuration. Adam becomes AdamW, because decay inside Adam's gradient hardly regularises. SGD,
            whose steps are not normalised, gets a thousandth of the decay.
        decay: weight decay of AdamW.
        rate: factor of the learning rate.
    """
    optimizer = config["optimizer"]
    if optimizer["name"] == "sgd":
        return {"lr": rate * optimizer["lr"], "weight_decay": decay / 1000}
    return {**optimizer, "name": "adamw", "lr": rate * optimizer["lr"], "weight_decay": decay}


def training_rows(data: TaskData) -> int:
    """Return the number of training rows per task, the mean where tasks have data of their own."""
    part = data.train
    return round(sum(map(len, part.values())) / len(part)) if isinstance(part, Mapping) else len(part)
