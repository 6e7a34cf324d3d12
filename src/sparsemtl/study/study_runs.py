"""Runs of a study: their configurations, and their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsemtl.runs.changes import merge, nested
from sparsemtl.runs.config import check
from sparsemtl.study.search_options import Arm


@dataclass(frozen=True)
class StudyRun:
    """Run of a study.

    Attributes:
        name: name of the run and of its folder.
        method: name of the method.
        seed: seed of the run.
        values: key of the grid -> value.
        config: complete configuration.
    """

    name: str
    method: str
    seed: int
    values: Mapping[str, Any]
    config: Mapping[str, Any]


def trial_runs(arm: Arm, values: Mapping[str, Any], seeds: Sequence[int]) -> list[StudyRun]:
    """Return the runs of a method with values of the searched keys, one per seed.

    Args:
        arm: the method, at a value of the grid.
        values: searched key -> value.
        seeds: the seeds.

    Raises:
        ConfigError: if the configuration is wrong; it names the method and the values.
    """
    chosen = {**arm.values, **values}
    settings = "".join(f", {key}={value_text(value)}" for key, value in chosen.items())
    config = {**merge(arm.config, nested(chosen.items())), "label": arm.method}
    complete = check(config, where=arm.where + settings)
    return [
        StudyRun(_run_name(arm.method, chosen, seed), arm.method, seed, chosen, {**complete, "seed": seed})
        for seed in seeds
    ]


def corner_runs(arm: Arm, seed: int = 0) -> list[StudyRun]:
    """Return the run with all smallest or first values of the searched keys, and that with the largest or last ones.

    Raises:
        ConfigError: as `trial_runs`.
    """
    corners = {key: values.corners for key, values in arm.space.items()}
    return [run for end in (0, 1) for run in trial_runs(arm, {key: ends[end] for key, ends in corners.items()}, [seed])]


def value_text(value: Any) -> str:
    """Return the text of a value of the grid in tables: `{name: fisher, keep: 0.3}` is "fisher (keep 0.3)"."""
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
    """Return a name of letters, digits, `.`, `_`, `+` and `-`, which is valid in every file system."""
    return re.sub(r"[^\w.+-]+", " ", text).strip().replace(" ", "-")
