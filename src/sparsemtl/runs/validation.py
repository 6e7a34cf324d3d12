"""Validation of one configuration against the schema; messages name the place, the line and the nearest name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.registry.checking import BEYOND_LIMIT, EXPLAINED, advice_on
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.runs.auto_options import AUTO, AutoOptions, check_rungs, spelled_out
from sparsemtl.runs.changes import with_name
from sparsemtl.runs.schema import SECTIONS, Keys, in_yaml_words, model_of, run_keys, schema_model, training_keys
from sparsemtl.runs.teacher_options import TEACHER, TeacherOptions, with_teacher_options
from sparsemtl.storage import comparison
from sparsemtl.storage.comparison import plain, shown
from sparsemtl.tasks.options import check_options
from sparsemtl.training.settings import FREE

_Place = tuple[str, ...]
"""Place of a value: ("sharing", "keep")."""
_Issue = Mapping[str, Any]
"""Error of pydantic's."""


def validate(
    config: Mapping[str, Any], *, where: str = "the configuration", origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Check a configuration without its `pretraining`, and fill in every default; arguments as for `config.check`."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where}: expected a mapping of sections, got {shown(config)}.{_advice_on_paths(config)}")
    given = {key: with_name(key, value) for key, value in with_teacher_options(spelled_out(plain(config))).items()}
    try:
        checked = _checked(given)
    except ValidationError as error:
        raise _invalid(where, (_explain(*found, given, origins or {}) for found in _by_place(error, given))) from None
    complete: dict[str, Any] = checked.model_dump(mode="json")
    if wrong := list(_wrong_options(complete["task_options"], origins or {})):
        raise _invalid(where, wrong)
    if complete[AUTO] is not None:
        check_rungs(complete[AUTO]["rungs"])
    return complete


def _advice_on_paths(config: object) -> str:
    """Return advice if the configuration is a path; "" otherwise."""
    return " `sparsemtl.runs.config_file.read_config` reads a file." if isinstance(config, (str, Path)) else ""


def _checked(given: Mapping[str, Any]) -> BaseModel:
    """Return a valid configuration; the model with all members explains what is wrong with any other."""
    text = json.dumps(given)
    with suppress(ConfigError, ValidationError):
        return model_of({section: _name(section, given) for section in SECTIONS}).model_validate_json(text)
    return schema_model().model_validate_json(text)


def _name(section: str, given: Mapping[str, Any]) -> str | None:
    """Return the name of a section's member: the default one if the section is left out."""
    name = given[section].get("name") if isinstance(given.get(section), Mapping) else SECTIONS[section][1]
    return name if isinstance(name, str) else None


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two configurations: "training.epochs is 2 there and 3 here".

    Keys on which no result depends, such as `data.workers`, may differ.

    Args:
        before: a configuration that was complete when it was written; keys that are new since then have their default.
        after: a complete one.
    """
    return comparison.differences(completed(before), after, FREE)


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that was complete when it was written, with the defaults of keys that are new since then.

    What is not valid any more stays as it stands.
    """
    try:
        return validate(config)
    except ConfigError:
        given = plain(config)
    filled = {**_defaults(run_keys()), **given}
    for name, section in given.items():
        if name == "training" and isinstance(section, Mapping):
            filled[name] = {**_defaults(training_keys()), **section}
        elif name in SECTIONS and isinstance(section, Mapping) and section.get("name") in SECTIONS[name][0]:
            filled[name] = {**_defaults(SECTIONS[name][0].parameters(section["name"])), **section}
    return filled


def _defaults(keys: Keys) -> dict[str, Any]:
    return {name: plain(key.default) for name, key in keys.items() if not key.required}


def data_section(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `data`, with the run's seed in place of a seed that is null."""
    section = dict(complete["data"])
    return section | {"seed": complete["seed"]} if section.get("seed", 0) is None else section


def _invalid(where: str, problems: Iterable[str]) -> ConfigError:
    return ConfigError("\n".join([f"{where} is not valid:", *(f"  {line}" for line in dict.fromkeys(problems))]))


def _wrong_options(task_options: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a line per task with an option that no kind of task has; other mistakes are found with the data set."""
    for task, options in task_options.items():
        if problem := check_options(options):
            place = f"task_options.{task}"
            near = (origin for key, origin in origins.items() if f"{key}.".startswith(f"{place}."))
            origin = next((f" ({found})" for found in near), "")
            yield f"{place}{origin}: {problem}"


def _by_place(error: ValidationError, config: Mapping[str, Any]) -> Iterable[tuple[_Place, list[_Issue]]]:
    """Return the issues of an error by place. A union has one issue per alternative."""
    found: dict[_Place, list[_Issue]] = {}
    for issue in error.errors():
        found.setdefault(_place(issue, config), []).append(issue)
    return found.items()


def _explain(place: _Place, issues: Sequence[_Issue], config: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return the message about one place, such as `sharing.keep (line 4): expected a float in (0, 1], got 2`."""
    name = ".".join(place)
    near = [name, place[0], *(inner for inner in origins if inner.startswith(f"{name}."))]
    origin = next((f" ({origins[key]})" for key in near if key in origins), "")
    return f"{name}{origin}: {_problem(issues, place, config)}"


def _place(issue: _Issue, config: Mapping[str, Any]) -> _Place:
    """Return section and key of an issue, without the member of a union and the parts of a value that pydantic adds."""
    section, *rest = map(str, issue["loc"])
    if section in SECTIONS and rest and rest[0] == with_name(section, config[section]).get("name"):
        del rest[0]
    return (section, *rest[:1]) if section in (*SECTIONS, "training", AUTO, TEACHER) else (section,)


def _problem(issues: Sequence[_Issue], place: _Place, config: Mapping[str, Any]) -> str:
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
    parameter = _keys_beside(place, config)[key]
    expected = in_yaml_words(parameter.kind)
    if kind == "missing":
        return f"this key is required: {expected}."
    found = config[section][key] if len(place) > 1 else config[key]
    if not _TYPE_OR_RANGE.fullmatch(kind):  # only pydantic has a message for this kind of annotation
        message: str = issues[0]["msg"]
        text = f"{message[:1].lower()}{message[1:]}"
        return text if kind == EXPLAINED else f"{text}, got {shown(found)}."
    return f"expected {expected}, got {shown(found)}.{advice_on(issues, parameter.hint)}"


_TYPE_OR_RANGE = re.compile(
    r"\w+_(type|parsing|from_float)|(greater|less)_than\w*|too_short|literal_error|is_instance_of|finite_number|"
    + BEYOND_LIMIT
)


def _unknown_key(place: _Place, config: Mapping[str, Any]) -> str:
    section, key = place[0], place[-1]
    known = _keys_beside(place, config)
    if len(place) == 1:
        return unknown_name("key", key, [*known, "training", *SECTIONS])
    if section not in SECTIONS:
        return unknown_name("key", key, known)
    registry = SECTIONS[section][0]
    owners = [name for name in registry if key in registry.parameters(name)]
    hint = f" It is a parameter of {', '.join(owners)}." if owners else ""
    return f"{unknown_name(config[section]['name'] + ' parameter', key, known)}{hint}"


_OPTIONS = {AUTO: AutoOptions, TEACHER: TeacherOptions}
"""Keys of a run that have options -> these."""


def _keys_beside(place: _Place, config: Mapping[str, Any]) -> Keys:
    if len(place) == 1:
        return run_keys()
    if place[0] == "training":
        return training_keys()
    if place[0] in _OPTIONS:
        return parameters_of(_OPTIONS[place[0]])
    return SECTIONS[place[0]][0].parameters(config[place[0]]["name"])
