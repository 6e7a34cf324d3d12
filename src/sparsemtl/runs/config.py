"""Configurations: YAML checked against a schema that is built from the registries.

Every axis is a section `{name: ..., parameters}`, or just the name. What may stand in a section follows from the
constructor of the class named there, so a class put in a registry is configurable at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparsemtl.data.images.classified.image_folders import AUXILIARY
from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.registry.checking import BEYOND_LIMIT, limit_of
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.runs.schema import SECTIONS, Keys, in_yaml_words, run_keys, schema_model, training_keys
from sparsemtl.storage import comparison
from sparsemtl.storage.comparison import plain, shown
from sparsemtl.storage.yaml_text import line_numbers, parse_yaml
from sparsemtl.tasks.options import check_options

Place = tuple[str, ...]
"""Where a value stands: ("sharing", "keep")."""


def check(
    config: Mapping[str, Any], *, where: str = "the configuration", origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Check a configuration and fill in every default.

    Args:
        config: sections as read from YAML; one that does not say its `name` has the default one.
        where: what it is, for messages: the file's name.
        origins: dotted place -> where that was written, for messages; see `origins_of`.

    Returns:
        the complete configuration, as plain values.

    Raises:
        ConfigError: naming each wrong place, what was expected there and the nearest valid name.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where}: expected a mapping of sections, got {shown(config)}.")
    given = {key: _with_name(key, value) for key, value in plain(config).items()}
    try:
        checked = schema_model().model_validate_json(json.dumps(given))
    except ValidationError as error:
        wrong = dict.fromkeys(
            _explain(place, issues, given, origins or {}) for place, issues in _by_place(error, given)
        )
        raise ConfigError("\n".join([f"{where} is not valid:", *(f"  {line}" for line in wrong)])) from None
    complete: dict[str, Any] = checked.model_dump(mode="json")
    if unknown := list(_wrong_options(complete["task_options"], origins or {})):
        raise ConfigError("\n".join([f"{where} is not valid:", *(f"  {line}" for line in unknown)]))
    pretraining_config(complete, where=where, origins=origins)
    return complete


def _wrong_options(task_options: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for every task with an option that no kind of task has; the rest shows with the data set."""
    for task, options in task_options.items():
        if problem := check_options(options):
            place = f"task_options.{task}"
            near = (origin for key, origin in origins.items() if f"{key}.".startswith(f"{place}."))
            origin = next((f" ({found})" for found in near), "")
            yield f"{place}{origin}: {problem}"


def pretraining_config(
    complete: Mapping[str, Any], *, where: str = "the configuration", origins: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """The complete configuration of the run before a run, if it has `pretraining`.

    Args:
        complete: the run's own.
        where: what that is, for messages.
        origins: as for `check`.

    Raises:
        ConfigError: as `check`.
    """
    changes = complete["pretraining"]
    if changes is None:
        return None
    base = {key: value for key, value in complete.items() if key not in _NOT_BEFORE} | {"data": data_of(complete)}
    base["training"] = {key: value for key, value in complete["training"].items() if key not in _NOT_BEFORE_IN_TRAINING}
    inside = {inner: origin for place, origin in (origins or {}).items() if (inner := _inside(place))}
    before = check(merge(base, {"tasks": [AUXILIARY], **changes}), where=f"`pretraining` in {where}", origins=inside)
    if before["freeze"]:
        raise ConfigError(
            f"`pretraining` in {where}: freeze: expected false, as the run before is to train the encoder. To keep it "
            "as that leaves it, put `freeze: true` beside `pretraining`."
        )
    return before


def data_of(complete: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data` with the run's seed in the place of a seed that is null."""
    section = dict(complete["data"])
    return section | {"seed": complete["seed"]} if section.get("seed", 0) is None else section


_NOT_BEFORE = ("name", "label", "architecture", "sharing", "balancing", "freeze", "pretraining")
"""What a run has for itself, and the run before it does not take over."""
_NOT_BEFORE_IN_TRAINING = ("choose_after",)
"""Likewise in `training`: how long a method of sharing takes."""


def _inside(place: str) -> str:
    """A place in `pretraining` as it is called there, "" for any other."""
    section, _, inner = place.partition(".")
    return inner if section == "pretraining" else ""


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Put changes over a configuration, and those of its `pretraining` likewise over that.

    A section that gets another name starts afresh.
    """
    return _merged(base, changes, _with_name)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any], named: Callable[[str, Any], Any]) -> dict[str, Any]:
    merged = deepcopy(dict(base))
    for key, value in deepcopy(dict(changes)).items():
        before, after = merged.get(key), value
        if key in SECTIONS:
            before, after = named(key, before), _named(after)
            if _name_of(before) and _name_of(after) not in (None, _name_of(before)):
                before = None
        if key == "pretraining" and isinstance(before, Mapping) and isinstance(after, Mapping):
            # what a section without a name is there, the run's own section says
            merged[key] = _merged(before, after, lambda _, section: _named(section))
        else:
            merged[key] = _over(before, after)
    return merged


def override(config: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Apply assignments `section.key=value`, values read as YAML.

    Raises:
        ConfigError: if one reads otherwise.
    """
    return merge(config, together(map(assignment, texts)))


def assignment(text: str) -> tuple[str, Any]:
    """Dotted key and value of `section.key=value`.

    Raises:
        ConfigError: if there is no `=`, or the value is no YAML.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"an override reads section.key=value, got {text!r}.")
    try:
        return path, parse_yaml(value, f"the override {text!r}")
    except ConfigError as error:
        raise ConfigError(f"{error} A shell takes a value with spaces for one only in quotes.") from None


def together(assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """One mapping of changes out of dotted keys and values; a section's name does not wipe out what stands beside it.

    Raises:
        ConfigError: if a key has an empty part.
    """
    changes: dict[str, Any] = {}
    for path, value in assignments:
        section, *keys = path.split(".")
        if not all([section, *keys]):
            raise ConfigError(f"expected `section` or `section.key`, got {path!r}.")
        nested = _named(value) if path.removeprefix("pretraining.") in SECTIONS else value
        for key in reversed(keys):
            nested = {key: nested}
        changes[section] = _over(changes.get(section), nested)
    return changes


def _over(before: Any, after: Any) -> Any:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return {**before, **{key: _over(before.get(key), value) for key, value in after.items()}}
    return after


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _name_of(section: Any) -> Any:
    return section.get("name") if isinstance(section, Mapping) else None


def _with_name(key: str, value: Any) -> Any:
    """A section as a mapping with its name, as far as one is known."""
    if key not in SECTIONS:
        return value
    named, default = _named(value), SECTIONS[key][1]
    return {"name": default, **named} if default is not None and isinstance(named, Mapping) else named


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two configurations: "training.epochs is 2 there and 3 here".

    Args:
        before: one that was complete when it was written. A key that there was not yet stands at its default.
        after: a complete one.
    """
    return comparison.differences(_completed(before), after)


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with every default, or as it stands if it is not valid any more."""
    try:
        return check(config)
    except ConfigError:
        return config


def origins_of(path: str | Path, overrides: Sequence[str]) -> dict[str, str]:
    """Dotted place -> where it was written: in which line of the file, or on the command line."""
    changed = [text.partition("=")[0] for text in overrides]
    lines = {
        place: f"line {line}"
        for place, line in line_numbers(path).items()
        if not any(f"{place}.".startswith(f"{key}.") for key in changed)
    }
    return lines | dict.fromkeys(changed, "command line")


Issue = Mapping[str, Any]
"""Error of pydantic's."""


def _by_place(error: ValidationError, config: Mapping[str, Any]) -> Iterable[tuple[Place, list[Issue]]]:
    """Return the issues of an error by place. A union has one issue per alternative."""
    found: dict[Place, list[Issue]] = {}
    for issue in error.errors():
        found.setdefault(_place(issue, config), []).append(issue)
    return found.items()


def _explain(place: Place, issues: Sequence[Issue], config: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return the line of a wrong place: `sharing.keep (line 4): expected a float in (0, 1], got 2.`"""
    name = ".".join(place)
    near = [name, place[0], *(inner for inner in origins if inner.startswith(f"{name}."))]
    origin = next((f" ({origins[key]})" for key in near if key in origins), "")
    return f"{name}{origin}: {_problem(issues, place, config)}"


def _place(issue: Issue, config: Mapping[str, Any]) -> Place:
    """Section and key of an issue. Pydantic also names the member of a union that it tried, and parts of a value."""
    section, *rest = map(str, issue["loc"])
    if section in SECTIONS and rest and rest[0] == _with_name(section, config[section]).get("name"):
        del rest[0]
    return (section, *rest[:1]) if section in (*SECTIONS, "training") else (section,)


def _problem(issues: Sequence[Issue], place: Place, config: Mapping[str, Any]) -> str:
    section, key = place[0], place[-1]
    kind: str = issues[0]["type"]
    if kind == "extra_forbidden":
        return _unknown_key(place, config)
    if section in SECTIONS and (kind.startswith("union_tag") or key == "name"):
        registry, found = SECTIONS[section][0], config[section].get("name")
        if found is None:
            return f"expected the `name` of one of {', '.join(registry)}."
        return unknown_name(registry.kind, found, registry)
    if len(place) == 1 and section in SECTIONS:
        return f"expected a name, or a mapping of `name` and parameters, got {shown(config[section])}."
    if place == ("training",):
        return f"expected a mapping of {', '.join(training_keys())}, got {shown(config[section])}."
    expected = in_yaml_words(_keys_beside(place, config)[key].kind)
    if kind == "missing":
        return f"this key is required: {expected}."
    found = config[section][key] if len(place) > 1 else config[key]
    if not _TYPE_OR_RANGE.fullmatch(kind):  # an annotation that only pydantic can put into words
        message: str = issues[0]["msg"]
        return f"{message[:1].lower()}{message[1:]}, got {shown(found)}."
    return f"expected {expected}, got {shown(found)}.{limit_of(issues)}"


_TYPE_OR_RANGE = re.compile(
    r"\w+_(type|parsing|from_float)|(greater|less)_than\w*|literal_error|is_instance_of|finite_number|" + BEYOND_LIMIT
)


def _unknown_key(place: Place, config: Mapping[str, Any]) -> str:
    section, key = place[0], place[-1]
    known = _keys_beside(place, config)
    if len(place) == 1:
        return unknown_name("key", key, [*known, "training", *SECTIONS])
    if section not in SECTIONS:
        return unknown_name("key", key, known)
    registry = SECTIONS[section][0]
    owners = [name for name in registry if key in parameters_of(registry[name])]
    hint = f" It is a parameter of {', '.join(owners)}." if owners else ""
    return f"{unknown_name(config[section]['name'] + ' parameter', key, known)}{hint}"


def _keys_beside(place: Place, config: Mapping[str, Any]) -> Keys:
    if len(place) == 1:
        return run_keys()
    if place[0] == "training":
        return training_keys()
    return parameters_of(SECTIONS[place[0]][0][config[place[0]]["name"]])
