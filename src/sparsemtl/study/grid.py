"""Study files: methods, seeds and grids, expanded to configurations of single runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypedDict

from typing_extensions import Doc

from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.registry.parameters import Default, Natural, parameters_of
from sparsemtl.registry.plugins import absolute_code, with_plugins
from sparsemtl.runs.changes import assignment, merge, override
from sparsemtl.runs.schema import SECTIONS
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.study.search_options import Arm, Search, read_search, read_space
from sparsemtl.study.study_runs import StudyRun, corner_runs, trial_runs


class _StudyKeys(TypedDict, total=False):
    """Keys of a study file."""

    name: Annotated[str | None, Default(None), Doc("Name of the study; by default that of the file.")]
    base: Annotated[
        str | dict[str, Any], Default({}), Doc("Configuration common to all runs: keys and sections, or a run's file.")
    ]
    methods: Annotated[
        dict[str, dict[str, Any] | None],
        Doc(
            "Method -> its changes of `base`, among them a `grid`, a `tune` and a `search` (key -> values) of its own."
        ),
    ]
    seeds: Annotated[list[Natural], Default([0, 1, 2]), Doc("Seeds that every method runs with.")]
    grid: Annotated[
        dict[str, list[Any]], Default({}), Doc("Key, as in sharing.keep -> values that every method runs with.")
    ]
    tune: Annotated[
        dict[str, list[Any]],
        Default({}),
        Doc(
            "Key, as in optimizer.lr -> values that every method runs with, of which tables show the one that is best "
            "on validation data, mean over seeds, for each value of `grid`."
        ),
    ]
    search: Annotated[
        dict[str, Any] | None,
        Default(None),
        Doc(
            "Search of values by Optuna, per method and value of `grid`: `keys` (key -> choices or range), `trials`, "
            "`objective`, `sampler`, `pruner`, `at_once`, `seed`; `sparsemtl list search`. Tables show the values that "
            "are best on validation data."
        ),
    ]
    baseline: Annotated[
        str | None, Default(None), Doc("Method that gains are measured against; by default `stl`, if there is one.")
    ]
    notes: Annotated[str | list[str], Default([]), Doc("Remarks printed beside the figures.")]


KEYS = parameters_of(_StudyKeys)
"""Keys of a study file, with type, default and meaning."""
_OWN = {"seed": "the study's `seeds` set it", "label": "it is the method's name"}
"""Key of a run that a method cannot set -> the reason."""
_GRIDS = ("grid", "tune")
"""Keys of a study, and of a method, that map keys of a run to lists of values."""
_SEARCH = "search"
"""Key of a study, and of a method, for values that Optuna chooses."""


@dataclass(frozen=True)
class Study:
    """Checked study.

    Attributes:
        name: name of the study.
        methods: names of the methods, in the order of the rows of the tables.
        baseline: method that gains are measured against, or None.
        notes: notes below the tables.
        tune: keys whose values validation chooses.
        runs: all runs whose values are known.
        source: content of the study file, with overrides applied.
        search: the section `search`, or None.
        arms: methods at values of the grid whose other values are searched.
        seeds: seeds of the runs.
    """

    name: str
    methods: tuple[str, ...]
    baseline: str | None
    notes: tuple[str, ...]
    tune: tuple[str, ...]
    runs: tuple[StudyRun, ...]
    source: Mapping[str, Any]
    search: Search | None = None
    arms: tuple[Arm, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def grid(self) -> tuple[str, ...]:
        """Keys of all grids in order of appearance, then those of `tune` and `search`."""
        keys = dict.fromkeys(key for run in self.runs for key in run.values)
        keys |= dict.fromkeys(key for arm in self.arms for key in (*arm.values, *arm.space))
        return tuple(sorted(keys, key=self.tune.__contains__))


def read_study(path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> Study:
    """Read a study file; see `KEYS`. A path in `base` is relative to the file.

    Args:
        path: the file.
        overrides: changes of the base (`section.key=value`) and of the study (`name`, `seeds`, `baseline`,
            `grid.section.key`, `tune.section.key`, `search.trials`, `search.keys.section.key`).
        plugins: plugins to load beside those of the base.

    Raises:
        ConfigError: if a part of it is not valid; it names the key.
    """
    path = Path(path)
    source, rest = _changed(read_yaml(path), overrides, path)
    _check_keys(source, path)
    base = source.get("base") or {}
    home = (path.parent / base).parent if isinstance(base, str) else path.parent
    base = read_yaml(path.parent / base) if isinstance(base, str) else base
    base = _mapping(base, f"{path}: `base`", "a configuration, or the path of one")
    base = override(with_plugins(base, home, plugins), rest)
    methods = _methods(source, path)
    baseline = source.get("baseline", "stl" if "stl" in methods else None)
    if baseline is not None and baseline not in methods:
        raise ConfigError(f"{path}: baseline: {unknown_name('method', baseline, methods)}")
    given = {kind: absolute_code(source.get(kind) or {}, path.parent) for kind in _GRIDS}
    grids = {kind: _values_by_key(given, kind, str(path)) for kind in _GRIDS}
    search, seeds = read_search(absolute_code(source.get(_SEARCH), path.parent), str(path)), _seeds(source, path)
    points = list(_points(base, methods, grids, search, path))
    runs = tuple(run for arm in points if not arm.space for run in trial_runs(arm, {}, seeds))
    corners = [corner_runs(arm)[0] for arm in points if arm.space]  # raises the mistakes of a search
    _refuse_duplicates((*runs, *corners), path)
    return Study(
        name=_text(source.get("name", path.stem), f"{path}: `name`"),
        methods=tuple(methods),
        baseline=baseline,
        notes=_notes(source, path),
        tune=_tuned(source, methods, points, path),
        runs=runs,
        source={**source, "base": base},
        search=search,
        arms=tuple(arm for arm in points if arm.space),
        seeds=tuple(seeds),
    )


def _changed(source: dict[str, Any], overrides: Sequence[str], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the study with its own overrides applied, and the overrides of its base."""
    changed, rest = dict(source), []
    for text in overrides:
        key, value = assignment(text)
        first, _, inner = key.partition(".")
        if first == _SEARCH and inner:
            section = dict(changed.get(_SEARCH) or {})
            option, _, searched = inner.partition(".")
            section[option] = {**(section.get(option) or {}), searched: value} if searched else value
            changed[_SEARCH] = section
        elif first in _GRIDS and inner:
            changed[first] = {**(changed.get(first) or {}), inner: value}
        elif key in ("name", "seeds", "baseline"):
            changed[key] = value
        elif first in KEYS:
            raise ConfigError(f"`{first}` of a study is changed in the file, {path}, not by an override: {text!r}.")
        elif first in _OWN:
            raise ConfigError(f"the override {text!r} has no effect in a study: {_OWN[first]}.")
        else:
            rest.append(text)
    return changed, rest


def _check_keys(source: Mapping[str, Any], path: Path) -> None:
    for key in source:
        if key in SECTIONS or key == "training":
            raise ConfigError(
                f"{path}: `{key}` belongs under `base` in a study. A single run is started with `sparsemtl run {path}`."
            )
        if key not in KEYS:
            raise ConfigError(f"{path}: {unknown_name('key', key, KEYS)}")


def _methods(source: Mapping[str, Any], path: Path) -> dict[str, Mapping[str, Any]]:
    """Return method -> its changes of the base, with its own grid."""
    expected = "names mapped to changes of the base, such as {fisher: {sharing: fisher}}"
    methods = _mapping(source.get("methods"), f"{path}: `methods`", expected)
    if not methods:
        raise ConfigError(f"{path}: `methods` is empty; expected {expected}.")
    return {
        _text(name, f"{path}: the method's name"): _mapping(
            absolute_code(changes or {}, path.parent),
            f"{path}: method {name!r}",
            "changes of the base, such as {sharing: fisher}",
        )
        for name, changes in methods.items()
    }


def _seeds(source: Mapping[str, Any], path: Path) -> list[int]:
    seeds = source.get("seeds", [0, 1, 2])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)):
        raise ConfigError(f"{path}: `seeds` must be a list of whole numbers such as [0, 1, 2], got {seeds!r}.")
    return seeds


def _notes(source: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    notes = source.get("notes") or []
    notes = [notes] if isinstance(notes, str) else notes
    if not isinstance(notes, list):
        raise ConfigError(f"{path}: `notes` must be a list of texts, got {notes!r}.")
    return tuple(_text(note, f"{path}: a note") for note in notes)


def _mapping(value: Any, what: str, expected: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be {expected}, got {value!r}.")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be text, got {value!r}. Put it in quotes.")
    return value


def _values_by_key(source: Mapping[str, Any], kind: str, where: str) -> Mapping[str, Any]:
    """Return key -> its values of `grid` or `tune`, of a study or a method."""
    return _mapping(source.get(kind) or {}, f"{where}: `{kind}`", "a mapping of keys to lists of values")


def _points(
    base: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
    common: Mapping[str, Mapping[str, Any]],
    search: Search | None,
    path: Path,
) -> Iterator[Arm]:
    """Yield every method at every value of its grid, with the keys that are searched."""
    for method, changes in methods.items():
        where = f"{path}, method {method!r}"
        if changes.get(_SEARCH) is not None and search is None:
            raise ConfigError(f"{where}: `search` of a method needs a `search` of the study, such as {{trials: 20}}.")
        space = {
            **(search.space if search is not None else {}),
            **read_space(changes.get(_SEARCH) or {}, f"{where}: `{_SEARCH}`"),
        }
        grid, tune = ({**common[kind], **_values_by_key(changes, kind, where)} for kind in _GRIDS)
        config = merge(base, {key: value for key, value in changes.items() if key not in (*_GRIDS, _SEARCH)})
        _check_grids(grid, tune, where)
        _refuse_own((*changes, *grid, *tune, *space), where)
        axes = {**grid, **tune}
        if both := [key for key in space if key in axes]:
            raise ConfigError(f"{where}: `{both[0]}` is searched and has values in `grid` or `tune`. Keep one of them.")
        for point in product(*axes.values()):
            yield Arm(method, dict(zip(axes, point, strict=True)), space, config, where)


def _check_grids(grid: Mapping[str, Any], tune: Mapping[str, Any], where: str) -> None:
    for kind, axes in (("grid's", grid), ("tune's", tune)):
        for key, values in axes.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where}: the {kind} `{key}` must be a list of values, got {values!r}.")


def _tuned(
    study: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]], points: Sequence[Arm], path: Path
) -> tuple[str, ...]:
    """Return the keys of all `tune` and `search`; raise if one is also in a `grid`."""
    shown, tuned = (
        dict.fromkeys(key for source in (study, *methods.values()) for key in source.get(kind) or ()) for kind in _GRIDS
    )
    for key in tuned:
        if key in shown:
            raise ConfigError(
                f"{path}: `{key}` is in a `grid`, whose values all have rows, and in a `tune`, of whose values one is "
                "chosen. Keep one of them; a method without a choice has a list of one value."
            )
    searched = dict.fromkeys(key for arm in points for key in arm.space)
    if both := [key for key in searched if key in shown]:
        raise ConfigError(
            f"{path}: `{both[0]}` is in a `grid`, whose values all have rows, and in `search`, of whose values one is "
            "chosen. Keep one of them."
        )
    return tuple(tuned | searched)


def _refuse_own(keys: Sequence[str], where: str) -> None:
    for key in keys:
        if key in _OWN:
            raise ConfigError(f"{where}: `{key}` cannot be set here: {_OWN[key]}.")


def _refuse_duplicates(runs: Sequence[StudyRun], path: Path) -> None:
    """Raise if two runs would have one folder, also on a file system that ignores upper and lower case."""
    counts = Counter(run.name.casefold() for run in runs)
    for run in runs:
        if counts[run.name.casefold()] > 1:
            raise ConfigError(
                f"{path}: more than one run would be called {run.name!r}. Name every method, value and seed once; "
                "names that differ only in signs or in upper and lower case count as one."
            )
