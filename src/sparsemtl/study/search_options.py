"""Section `search` of a study: the keys whose values Optuna chooses, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

from typing_extensions import Doc

from sparsemtl.errors import ConfigError, ParameterError, unknown_name
from sparsemtl.registry.checking import check_value
from sparsemtl.registry.parameters import Count, Default, Natural, parameters_of

DELTA_M = "delta_m"
"""Objective: mean change of the tasks' primary metrics on validation data."""
COSTS = {"macs": "macs", "weights": "weights", "latency": "milliseconds"}
"""Objective -> metric of the cost of a run's compacted networks in `results.csv`; lower is better."""
_DIGITS = 4
"""Significant digits of a value that is drawn from a range, so that tables and folders can show it."""


class _SearchKeys(TypedDict, total=False):
    """Keys of the section `search` of a study."""

    keys: Annotated[
        dict[str, list[Any] | dict[str, Any]],
        Default({}),
        Doc(
            "Key, as in optimizer.lr -> a list of choices, or a range `{low, high}` with `log: true` or `step`; whole "
            "numbers give whole numbers. Every method searches them; a method's own `search` adds keys."
        ),
    ]
    trials: Annotated[Count, Default(20), Doc("Settings to try per method and value of the grid.")]
    objective: Annotated[
        str | list[str],
        Default(DELTA_M),
        Doc(
            "Figure to improve, mean over seeds: `delta_m` (mean change of the primary metrics on validation data "
            "against the baseline, or a method's first setting), `task.metric` (as in digit.accuracy, validation), "
            "`macs`, `weights` or `latency`. Several give a Pareto front."
        ),
    ]
    sampler: Annotated[Literal["tpe", "random"], Default("tpe"), Doc("Optuna's sampler.")]
    pruner: Annotated[
        Literal["none", "median", "hyperband"],
        Default("none"),
        Doc(
            "Optuna's pruner. It stops a setting in its first seed if its objective per epoch is behind earlier "
            "settings; the other seeds are then not run. It needs one objective, of validation data."
        ),
    ]
    at_once: Annotated[
        Count,
        Default(4),
        Doc(
            "Settings per method that are chosen before their results are known, and can run side by side. It is part "
            "of the search: results do not depend on --jobs or the engine."
        ),
    ]
    seed: Annotated[Natural, Default(0), Doc("Seed of the sampler.")]


SEARCH_KEYS = parameters_of(_SearchKeys)
"""Keys of the section `search`, with type, default and meaning."""


@dataclass(frozen=True)
class Range:
    """Range of a key.

    Attributes:
        low: smallest value.
        high: largest value.
        log: draw on a logarithmic scale.
        step: distance of values; None for any value, or 1 between whole numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """True if values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def value(self, drawn: Any) -> Any:
        """Return the value of the configuration for a drawn number: of a few significant digits."""
        return int(drawn) if self.whole else min(max(float(f"{drawn:.{_DIGITS}g}"), self.low), self.high)

    @property
    def corners(self) -> tuple[Any, Any]:
        """The smallest and the largest value."""
        return self.value(self.low), self.value(self.high)


@dataclass(frozen=True)
class Choices:
    """Choices of a key, which may be of any type.

    Attributes:
        values: the choices.
    """

    values: tuple[Any, ...]

    @property
    def names(self) -> tuple[Any, ...]:
        """Names that Optuna records: the values if all are plain, else their JSON."""
        plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in self.values)
        return self.values if plain else tuple(json.dumps(value, sort_keys=True) for value in self.values)

    def value(self, drawn: Any) -> Any:
        """Return the choice of a recorded name."""
        return self.values[self.names.index(drawn)]

    @property
    def corners(self) -> tuple[Any, Any]:
        """The first and the last choice."""
        return self.values[0], self.values[-1]


Space = Mapping[str, Range | Choices]
"""Key -> its values."""


@dataclass(frozen=True)
class Search:
    """Checked section `search`; attributes as the keys of the section.

    Attributes:
        space: key -> values, of all methods.
        trials: settings per method and value of the grid.
        objectives: names of the objectives.
        sampler: name of the sampler.
        pruner: name of the pruner.
        at_once: settings that are chosen at once.
        seed: seed of the sampler.
    """

    space: Space
    trials: int
    objectives: tuple[str, ...]
    sampler: str
    pruner: str
    at_once: int
    seed: int


@dataclass(frozen=True)
class Arm:
    """Method, at a value of the grid, whose settings are searched.

    Attributes:
        method: name of the method.
        values: key of the grid -> value.
        space: key -> values to search.
        config: configuration without the searched keys.
        where: name of the arm in messages.
    """

    method: str
    values: Mapping[str, Any]
    space: Space
    config: Mapping[str, Any] = field(repr=False)
    where: str = ""

    @property
    def label(self) -> str:
        """Name of the arm in tables."""
        return ", ".join([self.method, *(f"{key.rpartition('.')[2]} {value}" for key, value in self.values.items())])


def read_search(section: Any, where: str) -> Search | None:
    """Check the section `search` of a study; None without.

    Args:
        section: content of the section.
        where: name of the file in messages.

    Raises:
        ConfigError: if a key or a value is wrong; it names the key.
    """
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: `search` must be a mapping such as {{keys: {{}}, trials: 20}}, got {section!r}.")
    for key in section:
        if key not in SEARCH_KEYS:
            hint = " A searched key of the configuration stands under `search.keys`." if "." in str(key) else ""
            raise ConfigError(f"{where}: {unknown_name('key of `search`', str(key), SEARCH_KEYS)}{hint}")
    given = {key: _checked(key, section.get(key, entry.default), where) for key, entry in SEARCH_KEYS.items()}
    objectives = (given["objective"],) if isinstance(given["objective"], str) else tuple(given["objective"])
    if not objectives or len(set(objectives)) < len(objectives):
        raise ConfigError(f"{where}: search.objective: expected different names, got {list(objectives)}.")
    _check_pruner(given["pruner"], objectives, where)
    return Search(
        read_space(given["keys"], f"{where}: search.keys"),
        given["trials"],
        objectives,
        given["sampler"],
        given["pruner"],
        given["at_once"],
        given["seed"],
    )


def _checked(key: str, value: Any, where: str) -> Any:
    try:
        check_value(f"{where}: search.{key}", value, SEARCH_KEYS[key].hint)
    except ParameterError as error:
        raise ConfigError(str(error)) from None
    return value


def _check_pruner(pruner: str, objectives: Sequence[str], where: str) -> None:
    if pruner == "none":
        return
    if len(objectives) > 1:
        raise ConfigError(f"{where}: search.pruner: expected none beside several objectives, got {pruner!r}.")
    if objectives[0] in COSTS:
        raise ConfigError(
            f"{where}: search.pruner: expected none for {objectives[0]!r}, known only at the end of a run, got "
            f"{pruner!r}."
        )


def read_space(keys: Any, where: str) -> Space:
    """Check keys and their values.

    Raises:
        ConfigError: if values are neither choices nor a range; it names the key.
    """
    if not isinstance(keys, Mapping):
        raise ConfigError(f"{where}: expected keys mapped to choices or ranges, got {keys!r}.")
    return {str(key): _values(value, f"{where}.{key}") for key, value in keys.items()}


def _values(value: Any, where: str) -> Range | Choices:
    if isinstance(value, list) and value:
        return Choices(tuple(value))
    if not (isinstance(value, Mapping) and {"low", "high"} <= set(value) <= {"low", "high", "log", "step"}):
        raise ConfigError(
            f"{where}: expected a list of choices, or {{low: 0.001, high: 0.1}} with `log: true` or `step: 0.1`, got "
            f"{value!r}."
        )
    low, high, log, step = value["low"], value["high"], value.get("log"), value.get("step")
    numbers = [number for number in (low, high, step) if number is not None]
    if not all(type(number) in (int, float) for number in numbers) or not isinstance(log, (bool, type(None))):
        raise ConfigError(f"{where}: low, high and step must be numbers and log true or false, got {dict(value)!r}.")
    if not low < high:
        raise ConfigError(f"{where}: low must be below high, got {low} and {high}.")
    if log and (low <= 0 or step is not None):
        raise ConfigError(f"{where}: a logarithmic range needs low above 0 and no step, got {dict(value)!r}.")
    if step is not None and not 0 < step <= high - low:
        raise ConfigError(f"{where}: step must be above 0 and at most high - low, got {step}.")
    return Range(low, high, bool(log), step)
