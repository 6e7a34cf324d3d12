"""The schema of configurations, built from the registries whenever it is asked for."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import ENCODERS
from sparsemtl.balancing import BALANCERS
from sparsemtl.data import DATASETS
from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
from sparsemtl.registry.parameters import Count, Natural, NonNegative, configurable, documented
from sparsemtl.registry.registry import Registry
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
"""Section -> its registry and the member taken by default (None: none is)."""

TRAINER_KEYS = (
    "epochs",
    "accumulate",
    "clip_norm",
    "mix",
    "monitor",
    "choose_after",
    "patience",
    "restart_every",
    "norm_batches",
    "accelerator",
    "precision",
    "threads",
    "checkpoint_every",
    "tensorboard",
    "measure_cost",
)
"""What the section `training` hands to the trainer."""

Keys = dict[str, tuple[Any, Any, str | None]]
"""Key -> annotation, default (`...`: it is required) and what it means."""

_RUN: Keys = {
    "name": (str | None, None, "The run's name; the folder's by default."),
    "label": (str | None, None, "What tables call the method."),
    "seed": (Natural, 0, "Seeds weights, data order and masks."),
    "tasks": (list[str] | None, None, "Tasks of the data set to train; all by default."),
    "weights": (dict[str, NonNegative], {}, "Task -> factor of its loss."),
    "pretrained": (
        str | None,
        None,
        "File of weights that the encoder starts from: torchvision's state dict, or the model of an earlier run.",
    ),
    "freeze": (bool, False, "Keep the encoder as it starts, so that only heads learn (a linear probe)."),
    "pretraining": (
        dict[str, Any] | None,
        None,
        "What to change in this configuration to make a run before it, from whose encoder this one starts: a shared "
        "bottom that trains the task `auxiliary`, unless it says otherwise. Tasks that it trains on the same data set "
        "are left out here.",
    ),
    "task_options": (
        dict[str, dict[str, Any]],
        {},
        "Task -> options of its kind, in place of the data set's: criterion, scale, label_smoothing, class_weights, "
        "metrics (names, the primary one first). `sparsemtl list tasks` shows what each kind has.",
    ),
    "primary": (dict[str, str], {}, "Task -> the metric by which it is judged; by default the first of its kind's."),
    "heads": (
        dict[str, str | dict[str, Any]],
        {},
        "Task -> its head, a name or a mapping of `name` and parameters; by default what suits the kind of task.",
    ),
}
_LOADERS: Keys = {
    "batch_size": (Count, 64, "Samples a batch; of every task, where each has its own data."),
    "drop_last": (bool, False, "Leave out a last training batch that is not full."),
}
_THREADS: Keys = {
    "threads": (
        Count,
        1,
        "Threads within an operation on the CPU, whatever else runs there: figures are the same bit for bit only with "
        "the same number. More make large networks faster.",
    ),
}
"""A trainer made in Python leaves torch's number as it is; a configuration says it, so that it decides the figures."""
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def run_keys() -> Keys:
    """The keys of a configuration that are no section."""
    return dict(_RUN)


def training_keys() -> Keys:
    """The keys of the section `training`."""
    trainer = member_keys(Trainer)
    return {**_LOADERS, **{key: _writable(*trainer[key]) for key in TRAINER_KEYS}, **_THREADS}


def _writable(hint: Any, default: Any, about: str | None) -> tuple[Any, Any, str | None]:
    """A key without the functions that only Python can give: `Literal["a"] | Callable[...]` is `Literal["a"]`."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = Union[tuple(option for option in get_args(hint) if get_origin(option) is not Callable)]  # noqa: UP007
    return hint, default, about


def member_keys(member: Callable[..., Any]) -> Keys:
    """What a configuration may set of a registered class or function."""
    about = documented(member)
    return {
        name: (hint, ... if spec.default is inspect.Parameter.empty else spec.default, about.get(name))
        for name, spec, hint in configurable(member)
    }


def in_yaml_words(words: str) -> str:
    """What `parameters.describe` says of an annotation, for people who write YAML."""
    return re.sub(r"\bNone\b", "null", words)


def schema_model() -> type[BaseModel]:
    """The pydantic model of a run's configuration, with everything that is registered now."""
    registered = [(s, name, member) for s, (registry, _) in SECTIONS.items() for name, member in registry.items()]
    return _schema_model(tuple(registered))


@functools.lru_cache(maxsize=1)
def _schema_model(registered: tuple[tuple[str, str, Callable[..., Any]], ...]) -> type[BaseModel]:
    """Built anew when a registry has changed: a study checks many configurations."""
    fields = _fields(run_keys())
    fields["training"] = (_model("training", training_keys(), "Epochs, batches, device."), _default({}))
    for section, (registry, default) in SECTIONS.items():
        about = f"The {registry.kind}: its name, or a mapping of its `name` and parameters."
        kind = _section_type(section, registry)
        if default is None:
            fields[section] = (kind | None, Field(None, description=about))
        else:
            fields[section] = (kind, _default({"name": default}, about))
    model: type[BaseModel] = create_model("RunConfig", __config__=_STRICT, **fields)
    return model


def json_schema() -> dict[str, Any]:
    """The JSON schema of configuration files, by which editors complete and check them."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema_model().model_json_schema()}
    for section, (registry, default) in SECTIONS.items():
        place = schema["properties"][section]
        mapping = {key: place.pop(key) for key in ("anyOf", "oneOf", "discriminator", "$ref") if key in place}
        place["anyOf"] = [{"enum": list(registry)}, mapping]
        if default is not None:
            schema["$defs"][f"{section}_{default}"]["required"].remove("name")
    schema["properties"]["pretraining"]["anyOf"] = [_changes(schema["properties"]), {"type": "null"}]
    return schema


def _changes(keys: Iterable[str]) -> dict[str, Any]:
    """What may change in `pretraining`: every key, but not to freeze what is to be trained; a section without a name is
    that of the run itself."""
    places: dict[str, Any] = {key: {"$ref": f"#/properties/{key}"} for key in keys} | {
        "freeze": {"type": "boolean", "const": False}
    }
    nameless = {"type": "object", "not": {"required": ["name"]}}
    places |= {section: {"anyOf": [places[section], nameless]} for section in SECTIONS}
    return {"type": "object", "properties": places, "additionalProperties": False}


def _section_type(section: str, registry: Registry[Any]) -> Any:
    members = tuple(
        _model(
            f"{section}_{name}",
            {"name": (Literal[name], ..., None), **member_keys(registry[name])},
            registry.summary(name),
        )
        for name in registry
    )
    return members[0] if len(members) == 1 else Annotated[Union[members], Field(discriminator="name")]  # noqa: UP007


def _model(title: str, keys: Keys, about: str) -> type[BaseModel]:
    model: type[BaseModel] = create_model(title, __config__=_STRICT, __doc__=about, **_fields(keys))
    return model


def _fields(keys: Keys) -> dict[str, Any]:
    return {key: (hint, Field(default, description=about)) for key, (hint, default, about) in keys.items()}


def _default(value: Any, about: str | None = None) -> Any:
    return Field(default_factory=lambda: value, validate_default=True, description=about)
