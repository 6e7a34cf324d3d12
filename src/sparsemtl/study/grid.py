"""A study file: methods, seeds and grids, unfolded into configurations of single runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypedDict

from typing_extensions import Doc

from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.registry.parameters import Default, Natural, parameters_of
from sparsemtl.runs.config import assignment, check, merge, override, together
from sparsemtl.runs.schema import SECTIONS
from sparsemtl.storage.yaml_text import read_yaml


class StudyKeys(TypedDict, total=False):
    """Keys of a study's file."""

    name: Annotated[str | None, Default(None), Doc("Name of the study; by default that of the file.")]
    base: Annotated[
        str | dict[str, Any], Default({}), Doc("Configuration common to all runs: keys and sections, or a run's file.")
    ]
    methods: Annotated[
        dict[str, dict[str, Any] | None], Doc("Method -> its changes of `base`, among them a `grid` of its own.")
    ]
    seeds: Annotated[list[Natural], Default([0, 1, 2]), Doc("Seeds that every method runs with.")]
    grid: Annotated[
        dict[str, list[Any]], Default({}), Doc("Key, as in sharing.keep -> values that every method runs with.")
    ]
    baseline: Annotated[
        str | None, Default(None), Doc("Method that gains are measured against; by default `stl`, if there is one.")
    ]
    notes: Annotated[str | list[str], Default([]), Doc("Remarks printed beside the figures.")]


KEYS = parameters_of(StudyKeys)
"""The keys of a study's file."""
OWN = {"seed": "the study's `seeds` say it", "label": "it is the method's name"}
"""Keys of a run that a method cannot set, and why."""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        name: names the run's folder.
        method: the study's name of the method.
        seed: the seed.
        values: grid key -> value.
        config: the complete configuration.
    """

    name: str
    method: str
    seed: int
    values: Mapping[str, Any]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        name: its name.
        methods: method names, in the order of the tables' rows.
        baseline: the method that gains are measured against, or None.
        notes: what must be said beside the figures.
        runs: all runs.
        source: the study as it was read, to be recorded.
    """

    name: str
    methods: tuple[str, ...]
    baseline: str | None
    notes: tuple[str, ...]
    runs: tuple[StudyRun, ...]
    source: Mapping[str, Any]

    @property
    def grid(self) -> tuple[str, ...]:
        """All grid keys, in order of appearance."""
        return tuple(dict.fromkeys(key for run in self.runs for key in run.values))


def read_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file: `base` (a configuration, or the path of one beside the file), `methods` (name -> changes,
    with an optional `grid` of its own), `seeds`, `grid` (key -> values, for all methods), `baseline`.

    Args:
        path: the file.
        overrides: `section.key=value` changes the base, and `seeds=...`, `baseline=...`, `grid.section.key=...` the
            study.

    Raises:
        ConfigError: naming the place, if anything in it is not valid.
    """
    path = Path(path)
    source, rest = _changed(read_yaml(path), overrides, path)
    _check_keys(source, path)
    base = source.get("base") or {}
    base = read_yaml(path.parent / base) if isinstance(base, str) else base
    base = override(_mapping(base, f"{path}: `base`", "a configuration, or the path of one"), rest)
    methods = _methods(source, path)
    baseline = source.get("baseline", "stl" if "stl" in methods else None)
    if baseline is not None and baseline not in methods:
        raise ConfigError(f"{path}: baseline: {unknown_name('method', baseline, methods)}")
    grid = _mapping(source.get("grid") or {}, f"{path}: `grid`", "a mapping of keys to lists of values")
    runs = tuple(_unfold(base, methods, grid, _seeds(source, path), path))
    _refuse_twins(runs, path)
    return Study(
        name=_text(source.get("name", path.stem), f"{path}: `name`"),
        methods=tuple(methods),
        baseline=baseline,
        notes=_notes(source, path),
        runs=runs,
        source={**source, "base": base},
    )


def _changed(source: dict[str, Any], overrides: Sequence[str], path: Path) -> tuple[dict[str, Any], list[str]]:
    """The study with its own overrides applied, and the overrides of its base."""
    changed, rest = dict(source), []
    for text in overrides:
        key, value = assignment(text)
        first, _, inner = key.partition(".")
        if first == "grid" and inner:
            changed["grid"] = {**(changed.get("grid") or {}), inner: value}
        elif key in ("name", "seeds", "baseline"):
            changed[key] = value
        elif first in KEYS:
            raise ConfigError(f"`{first}` of a study is changed in the file, {path}, not by an override: {text!r}.")
        elif first in OWN:
            raise ConfigError(f"the override {text!r} has no effect in a study: {OWN[first]}.")
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
    """Method -> its changes of the base, with its own grid."""
    expected = "names mapped to changes of the base, such as {fisher: {sharing: fisher}}"
    methods = _mapping(source.get("methods"), f"{path}: `methods`", expected)
    if not methods:
        raise ConfigError(f"{path}: `methods` is empty; expected {expected}.")
    return {
        _text(name, f"{path}: the method's name"): _mapping(
            changes or {}, f"{path}: method {name!r}", "changes of the base, such as {sharing: fisher}"
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


def _unfold(
    base: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
    common: Mapping[str, Any],
    seeds: Sequence[int],
    path: Path,
) -> Iterator[StudyRun]:
    for method, changes in methods.items():
        where = f"{path}, method {method!r}"
        own = _mapping(changes.get("grid") or {}, f"{where}: `grid`", "a mapping of keys to lists of values")
        grid = {**common, **own}
        config = merge(base, {key: value for key, value in changes.items() if key != "grid"})
        _check_grid(grid, where)
        _refuse_own((*changes, *grid), where)
        for point in product(*grid.values()):
            values = dict(zip(grid, point, strict=True))
            settings = "".join(f", {key}={value_text(value)}" for key, value in values.items())
            complete = check({**merge(config, together(values.items())), "label": method}, where=where + settings)
            for seed in seeds:
                yield StudyRun(_run_name(method, values, seed), method, seed, values, {**complete, "seed": seed})


def _check_grid(grid: Mapping[str, Any], where: str) -> None:
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: the grid's `{key}` must be a list of values, got {values!r}.")


def _refuse_own(keys: Sequence[str], where: str) -> None:
    for key in keys:
        if key in OWN:
            raise ConfigError(f"{where}: `{key}` cannot be set here: {OWN[key]}.")


def _refuse_twins(runs: Sequence[StudyRun], path: Path) -> None:
    """Two runs in one folder would be one, also where upper and lower case are the same to the file system."""
    counts = Counter(run.name.casefold() for run in runs)
    for run in runs:
        if counts[run.name.casefold()] > 1:
            raise ConfigError(
                f"{path}: more than one run would be called {run.name!r}. Name every method, value and seed once; "
                "names that differ only in signs or in upper and lower case count as one."
            )


def value_text(value: Any) -> str:
    """A value of the grid as tables show it: `{name: fisher, keep: 0.3}` is "fisher (keep 0.3)"."""
    if not isinstance(value, Mapping):
        return str(value)
    inner = ", ".join(f"{key} {value_text(item)}" for key, item in value.items() if key != "name")
    return f"{value.get('name', '')} ({inner})".strip() if inner else str(value.get("name", ""))


def _run_name(method: str, values: Mapping[str, Any], seed: int) -> str:
    last = [key.rpartition(".")[2] for key in values]
    words = [short if last.count(short) == 1 else key for short, key in zip(last, values, strict=True)]
    settings = [(word, value_text(value)) for word, value in zip(words, values.values(), strict=True)]
    parts = [(method,), *settings, ("seed", str(seed))]
    return "_".join("-".join(_slug(text) for text in part) for part in parts)


def _slug(text: str) -> str:
    """Letters, digits, `.`, `_`, `+` and `-`: a name that every file system takes."""
    return re.sub(r"[^\w.+-]+", " ", text).strip().replace(" ", "-")
