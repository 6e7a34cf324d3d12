"""Configurations: YAML checked against a schema that is built from the registries.

Every axis is a section `{name: ..., parameters}`, or just the name. What may stand in a section follows from the
constructor of the class named there, so a class put in a registry is configurable at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import ENCODERS
from sparsemtl.balancing import BALANCERS
from sparsemtl.data import DATASETS
from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
from sparsemtl.parameters import Count, NonNegative, configurable
from sparsemtl.registry import Registry
from sparsemtl.sharing import SHARING
from sparsemtl.training.trainer import Trainer

SECTIONS: dict[str, tuple[Registry[Any], str | None]] = {
    "data": (DATASETS, "digits"),
    "encoder": (ENCODERS, "cnn"),
    "architecture": (ARCHITECTURES, "shared-bottom"),
    "sharing": (SHARING, "dense"),
    "balancing": (BALANCERS, "mean"),
    "optimizer": (OPTIMIZERS, "adam"),
    "scheduler": (SCHEDULERS, None),
}
"""Section -> its registry and the member taken by default (None: the section may be left out)."""

TRAINER_KEYS = (
    "epochs",
    "accumulate",
    "clip_norm",
    "mix",
    "monitor",
    "patience",
    "accelerator",
    "precision",
    "checkpoint_every",
    "tensorboard",
)
STRICT = ConfigDict(extra="forbid", strict=False, arbitrary_types_allowed=True)


def schema_model() -> type[BaseModel]:
    """The pydantic model of a run's configuration, with everything that is registered now."""
    fields: dict[str, Any] = {
        "name": (str | None, Field(None, description="The run's name; the folder's by default.")),
        "label": (str | None, Field(None, description="What tables call the method.")),
        "seed": (int, Field(0, ge=0, description="Seeds weights, data order and masks.")),
        "tasks": (list[str] | None, Field(None, description="Tasks of the data set to train; all by default.")),
        "weights": (dict[str, NonNegative], Field({}, description="Task -> factor of its loss.")),
        "training": (_training_model(), Field(default_factory=dict, validate_default=True)),
    }
    for section, (registry, default) in SECTIONS.items():
        kind = _section_type(section, registry)
        if default is None:
            fields[section] = (kind | None, None)
        else:
            fields[section] = (kind, Field(default_factory=lambda name=default: {"name": name}, validate_default=True))
    model: type[BaseModel] = create_model("RunConfig", __config__=STRICT, **fields)
    return model


def _section_type(section: str, registry: Registry[Any]) -> Any:
    members = tuple(_member_model(section, name, registry[name], registry.summary(name)) for name in registry)
    return members[0] if len(members) == 1 else Annotated[Union[members], Field(discriminator="name")]  # noqa: UP007


def _member_model(section: str, name: str, member: Any, summary: str) -> type[BaseModel]:
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    for parameter, spec, hint in configurable(member):
        default = ... if spec.default is inspect.Parameter.empty else spec.default
        fields[parameter] = (hint, default)
    model: type[BaseModel] = create_model(f"{section}_{name}", __config__=STRICT, __doc__=summary, **fields)
    return model


def _training_model() -> type[BaseModel]:
    fields: dict[str, Any] = {"batch_size": (Count, 64)}
    for parameter, spec, hint in configurable(Trainer):
        if parameter in TRAINER_KEYS:
            fields[parameter] = (hint, spec.default)
    model: type[BaseModel] = create_model("training", __config__=STRICT, **fields)
    return model


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: naming file, line and column if it is no YAML, or if it is no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(content).__name__}.")
    return content


def check(config: Mapping[str, Any], *, where: str = "configuration") -> dict[str, Any]:
    """Check a configuration and fill in every default.

    Args:
        config: sections as read from YAML.
        where: the file's name, for messages.

    Returns:
        the complete configuration, as plain values.

    Raises:
        ConfigError: naming each wrong place, what was expected there and the nearest valid name.
    """
    named = {key: _named(value) if key in SECTIONS else value for key, value in config.items()}
    model = schema_model()
    try:
        checked = model.model_validate(named)
    except ValidationError as error:
        lines = [_explain(issue, named, model) for issue in error.errors()]
        raise ConfigError("\n".join([f"{where} is not valid:", *(f"  {line}" for line in lines)])) from None
    complete: dict[str, Any] = checked.model_dump(mode="python")
    return complete


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Put changes over a configuration. A section whose name changes starts afresh."""
    merged = deepcopy(dict(base))
    for key, value in changes.items():
        before, after = _named(merged.get(key)), _named(value) if key in SECTIONS else value
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            renamed = "name" in after and after["name"] != before.get("name")
            merged[key] = dict(after) if renamed else merge(before, after)
        else:
            merged[key] = after
    return merged


def override(config: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments, values read as YAML.

    Raises:
        ConfigError: if an assignment has no `=`.
    """
    result = dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"an override reads section.key=value, got {assignment!r}.")
        result = merge(result, nested(path, yaml.safe_load(text)))
    return result


def nested(path: str, value: Any) -> dict[str, Any]:
    """`a.b`, v -> {a: {b: v}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _explain(issue: Mapping[str, Any], config: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One wrong place in words."""
    path = [str(part) for part in issue["loc"]]
    section = path[0]
    in_section = section in SECTIONS and isinstance(config.get(section), Mapping)
    if in_section and len(path) > 1 and path[1] == config[section].get("name"):
        del path[1]  # pydantic names the member that it tried
    place = ".".join(path)
    if issue["type"] == "extra_forbidden":
        return f"{place}: {unknown_name('key', path[-1], _known_keys(path, config, model))}"
    if issue["type"] in ("union_tag_invalid", "literal_error") and in_section and len(path) <= 2:
        registry = SECTIONS[section][0]
        return f"{section}: {unknown_name(registry.kind, str(config[section].get('name')), registry)}"
    if issue["type"] == "union_tag_not_found":
        return f"{place}: expected a name, or a mapping with `name`, got {config[section]!r}."
    if issue["type"] == "missing":
        return f"{place}: this key is required."
    return f"{place}: {_lower(issue['msg'])}, got {issue['input']!r}."


def _known_keys(path: Sequence[str], config: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    if len(path) == 1:
        return list(model.model_fields)
    if path[0] in SECTIONS:
        member = SECTIONS[path[0]][0][config[path[0]]["name"]]
        return [name for name, _, _ in configurable(member)]
    return list(_training_model().model_fields)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
