"""A study file: methods, seeds and grids, unfolded into configurations of single runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sparsemtl.config import check, merge, nested, override, read_yaml
from sparsemtl.errors import ConfigError, unknown_name

KEYS = ("name", "base", "methods", "seeds", "grid", "baseline", "notes")


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


def read_study(path: str | Path, overrides: list[str] | None = None) -> Study:
    """Read a study file: `base` (a configuration, or the path of one beside the file), `methods` (name -> changes,
    with an optional `grid` of its own), `seeds`, `grid` (key -> values, for all methods), `baseline`.

    Raises:
        ConfigError: naming the place, if anything in it is not valid.
    """
    path = Path(path)
    source = read_yaml(path)
    for key in source:
        if key not in KEYS:
            raise ConfigError(f"{path}: {unknown_name('key', key, KEYS)}")
    base = source.get("base", {})
    base = read_yaml(path.parent / base) if isinstance(base, str) else base
    base = override(base, overrides or [])
    methods = source.get("methods") or {}
    if not isinstance(methods, Mapping) or not methods:
        raise ConfigError(f"{path}: `methods` must map names to changes of the base configuration.")
    baseline = source.get("baseline", next((name for name in methods if name == "stl"), None))
    if baseline is not None and baseline not in methods:
        raise ConfigError(f"{path}: baseline: {unknown_name('method', baseline, methods)}")
    seeds = source.get("seeds", [0, 1, 2])
    if not isinstance(seeds, list) or not all(isinstance(s, int) and s >= 0 for s in seeds) or not seeds:
        raise ConfigError(f"{path}: `seeds` must be a list of whole numbers, got {seeds!r}.")
    runs = tuple(_unfold(base, methods, source.get("grid") or {}, seeds, path))
    recorded = {**source, "base": base}
    return Study(
        source.get("name", path.stem), tuple(methods), baseline, tuple(source.get("notes", ())), runs, recorded
    )


def _unfold(
    base: Mapping[str, Any], methods: Mapping[str, Any], common: Mapping[str, Any], seeds: list[int], path: Path
) -> Iterator[StudyRun]:
    for method, changes in methods.items():
        own = dict(changes or {})
        grid = {**common, **own.pop("grid", {})}
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{path}: the grid of {method!r}: `{key}` must be a list of values, got {values!r}.")
        for point in product(*grid.values()):
            values = dict(zip(grid, point, strict=True))
            config = merge(base, own)
            for key, value in values.items():
                config = merge(config, nested(key, value))
            for seed in seeds:
                complete = check({**config, "seed": seed, "label": method}, where=f"{path}, method {method!r}")
                yield StudyRun(_run_name(method, values, seed), method, seed, values, complete)


def _run_name(method: str, values: Mapping[str, Any], seed: int) -> str:
    settings = [f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in values.items()]
    return "_".join([method, *settings, f"seed-{seed}"]).replace("/", "-").replace(" ", "")
