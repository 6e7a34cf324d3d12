"""Changes of a configuration: merging one over another, and overrides `section.key=value`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from sparsemtl.errors import ConfigError
from sparsemtl.runs.presets import PRESET, PRESETS, preset_settings
from sparsemtl.runs.schema import SECTIONS
from sparsemtl.storage.yaml_text import parse_yaml

PRETRAINING = "pretraining"
"""Key that holds changes of the configuration itself."""


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes into a configuration; changes of `pretraining` are merged into the changes that stand there.

    A section that gets another name starts from that member's defaults. A `preset`, of the configuration or of
    the changes, stands for its settings, and what stands beside it changes these.
    """
    return _merged(with_preset(base), with_preset(changes), with_name)


def with_preset(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration, or changes of one, with the settings of its `preset` in place of that key.

    A preset that is unknown stays, for the check of the configuration to name its place.
    """
    name = changes.get(PRESET)
    if not isinstance(name, str) or name not in PRESETS:
        return changes
    return _merged(preset_settings(name), {key: value for key, value in changes.items() if key != PRESET}, with_name)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any], named: Callable[[str, Any], Any]) -> dict[str, Any]:
    merged = deepcopy(dict(base))
    for key, value in deepcopy(dict(changes)).items():
        before, after = merged.get(key), value
        if key in SECTIONS:
            before, after = named(key, before), _named(after)
            if _name_of(before) and _name_of(after) not in (None, _name_of(before)):
                before = None
        if key == PRETRAINING and isinstance(before, Mapping) and isinstance(after, Mapping):
            # a section without a name has the name of the run's own section there, not the default one
            merged[key] = _merged(with_preset(before), with_preset(after), lambda _, section: _named(section))
        else:
            merged[key] = _over(before, after)
    return merged


def override(config: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Apply assignments `section.key=value`, values read as YAML.

    Raises:
        ConfigError: if a text is no such assignment.
    """
    return merge(config, nested(map(assignment, texts)))


def assignment(text: str) -> tuple[str, Any]:
    """Split `section.key=value` into its dotted key and its value.

    Raises:
        ConfigError: if there is no `=`, or the value is no YAML.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"expected an override of the form section.key=value, got {text!r}.")
    try:
        return path, parse_yaml(value, f"the override {text!r}")
    except ConfigError as error:
        raise ConfigError(f"{error} In a shell, put a value with spaces in quotes.") from None


def nested(assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Collect dotted keys and values in one mapping of changes; a section's name keeps the keys beside it.

    Raises:
        ConfigError: if a key has an empty part.
    """
    changes: dict[str, Any] = {}
    for path, value in assignments:
        section, *keys = path.split(".")
        if not all([section, *keys]):
            raise ConfigError(f"expected `section` or `section.key`, got {path!r}.")
        inner = _named(value) if path.removeprefix(f"{PRETRAINING}.") in SECTIONS else value
        for key in reversed(keys):
            inner = {key: inner}
        changes[section] = _over(changes.get(section), inner)
    return changes


def with_name(key: str, value: Any) -> Any:
    """Return a section as a mapping with its name, or the default name; any other value as it is."""
    if key not in SECTIONS:
        return value
    section, default = _named(value), SECTIONS[key][1]
    return {"name": default, **section} if default is not None and isinstance(section, Mapping) else section


def _over(before: Any, after: Any) -> Any:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return {**before, **{key: _over(before.get(key), value) for key, value in after.items()}}
    return after


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _name_of(section: Any) -> Any:
    return section.get("name") if isinstance(section, Mapping) else None
