"""The schema of configurations, built from the registries at every call."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypedDict, Union, get_args, get_origin

from pydantic import BaseModel, Field, create_model
from typing_extensions import Doc

from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import ENCODERS
from sparsemtl.balancing import BALANCERS
from sparsemtl.data import DATASETS
from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
from sparsemtl.registry.checking import STRICT, checkable
from sparsemtl.registry.parameters import Count, Default, Natural, NonNegative, Parameter, parameters_of
from sparsemtl.registry.registry import Registry
from sparsemtl.runs.auto_options import AUTO, AutoOptions
from sparsemtl.runs.presets import Preset
from sparsemtl.runs.teacher_options import TEACHER, TeacherOptions
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
    "choose_per_task",
    "patience",
    "restart_every",
    "norm_batches",
    "execution",
    "compile",
    "accelerator",
    "devices",
    "strategy",
    "num_nodes",
    "process_timeout",
    "precision",
    "threads",
    "checkpoint_every",
    "tensorboard",
    "measure_cost",
)
"""What the section `training` hands to the trainer."""

Keys = dict[str, Parameter]
"""Parameters by key."""


class RunKeys(TypedDict, total=False):
    """Keys of a configuration that are no section."""

    name: Annotated[str | None, Default(None), Doc("Name of the run; by default that of its folder.")]
    label: Annotated[str | None, Default(None), Doc("Name of the method in tables.")]
    seed: Annotated[Natural, Default(0), Doc("Seed of weights, data order and masks.")]
    plugins: Annotated[
        list[str],
        Default([]),
        Doc(
            "Files that end with .py, relative to the configuration's file, and modules that add members to the "
            "registries when they are imported."
        ),
    ]
    preset: Annotated[
        Preset | None,
        Default(None),
        Doc(
            "Published method whose settings, as its paper prints them, this configuration starts from: what stands "
            "beside it changes them, and `{sharing: {keep: 0.1}}` one of them."
        ),
    ]
    tasks: Annotated[list[str] | None, Default(None), Doc("Tasks of the data set to train; all by default.")]
    weights: Annotated[dict[str, NonNegative], Default({}), Doc("Task -> factor of its loss.")]
    pretrained: Annotated[
        str | None,
        Default(None),
        Doc("File of the encoder's initial weights: torchvision's state dict, or the model of an earlier run."),
    ]
    start_from: Annotated[
        str | None,
        Default(None),
        Doc(
            "Folder of a finished run with the same encoder, heads and architecture, whose weights this run starts "
            "from, those of the heads included."
        ),
    ]
    teacher: Annotated[
        dict[str, Any] | None,
        Default(None),
        Doc(
            "Folder of a finished run whose outputs are soft targets beside the labels (distillation); or a mapping of "
            "`run`, `weight` (factor, 1) and `temperature` (divisor of the logits of classes, 2)."
        ),
    ]
    freeze: Annotated[
        bool,
        Default(False),
        Doc("Keep the encoder's initial weights, so that only heads are trained (a linear probe)."),
    ]
    pretraining: Annotated[
        dict[str, Any] | None,
        Default(None),
        Doc(
            "Changes of this configuration that make its pretraining run, whose encoder this run starts from: by "
            "default a shared bottom trained on the task `auxiliary`. This run leaves out tasks that the other run "
            "trains on the same data set."
        ),
    ]
    auto: Annotated[
        dict[str, Any] | None,
        Default(None),
        Doc(
            "Options of `sharing: auto`, which chooses the network of each task among candidates by validation: "
            "`candidates` (name -> changes of this configuration, the simplest network first), `more` (candidates "
            "beside the default ones), `groups`, `rungs`, `survivors`, `choose`. Written as "
            "`sharing: {name: auto, rungs: [0.1, 0.3]}`."
        ),
    ]
    task_options: Annotated[
        dict[str, dict[str, Any]],
        Default({}),
        Doc(
            "Task -> options of its kind, in place of the data set's: criterion, scale, label_smoothing, "
            "class_weights, metrics (names, the primary one first). Losses, likelihoods and metrics of your own are "
            "named, `loss: losses.py:ordinal`. `sparsemtl list tasks` lists the options per kind."
        ),
    ]
    primary: Annotated[
        dict[str, str],
        Default({}),
        Doc("Task -> metric that models are selected by; by default the first of its kind."),
    ]
    heads: Annotated[
        dict[str, str | dict[str, Any]],
        Default({}),
        Doc("Task -> its head, a name or a mapping of `name` and parameters; by default the head of its kind of task."),
    ]


class LoaderKeys(TypedDict, total=False):
    """Keys of the section `training` that loaders take."""

    batch_size: Annotated[Count, Default(64), Doc("Samples per batch; per task, where each task has its own data.")]
    drop_last: Annotated[bool, Default(False), Doc("Leave out a last training batch that is not full.")]


class ThreadKeys(TypedDict, total=False):
    """Key of the section `training` whose default is not the trainer's.

    A trainer made in Python leaves PyTorch's number as it is; the figures of a configuration depend on its number.
    """

    threads: Annotated[
        Count,
        Default(1),
        Doc(
            "Threads per operation on the CPU, whatever else runs there: figures are the same bit for bit only with "
            "the same number. More threads make large networks faster."
        ),
    ]


class CallbackKeys(TypedDict, total=False):
    """Key of the section `training` that names callbacks."""

    callbacks: Annotated[
        list[str],
        Default([]),
        Doc("Names of callbacks to call at the events of the run, such as `wandb`; see `sparsemtl list callbacks`."),
    ]


def run_keys() -> Keys:
    """Return the keys of a configuration that are no section."""
    return parameters_of(RunKeys)


def training_keys() -> Keys:
    """Return the keys of the section `training`."""
    trainer = parameters_of(Trainer)
    given = {key: _in_yaml(trainer[key]) for key in TRAINER_KEYS}
    return parameters_of(LoaderKeys) | given | parameters_of(ThreadKeys) | parameters_of(CallbackKeys)


def _in_yaml(key: Parameter) -> Parameter:
    """Return a parameter without the functions that only Python can give."""
    if get_origin(key.hint) not in (Union, types.UnionType):
        return key
    options = tuple(option for option in get_args(key.hint) if get_origin(option) is not Callable)
    return replace(key, hint=Union[options])  # noqa: UP007


def in_yaml_words(words: str) -> str:
    """Return the words of `describe` with the names of YAML."""
    return re.sub(r"\bNone\b", "null", words)


def schema_model() -> type[BaseModel]:
    """Return the pydantic model of a run's configuration, with everything that is registered now."""
    return _schema_model(
        tuple(
            (section, (name, *registry.aliases(name)), member)
            for section, (registry, _) in SECTIONS.items()
            for name, member in registry.items()
        )
    )


def model_of(names: Mapping[str, str | None]) -> type[BaseModel]:
    """Return the same of configurations that name these members: it is made 20 times as fast.

    Args:
        names: section -> name of its member, or None for a section that is left out.

    Raises:
        ConfigError: if a name is unknown.
    """
    return _schema_model(
        tuple((section, (name,), SECTIONS[section][0][name]) for section, name in names.items() if name is not None)
    )


_Registered = tuple[str, tuple[str, ...], Callable[..., Any]]
"""Section, name and aliases, and the member."""


@functools.cache
def _common_fields() -> Mapping[str, Any]:
    """Return the fields that do not depend on registries."""
    fields = _fields(run_keys())
    options = _model("auto", parameters_of(AutoOptions), "Options of `sharing: auto`.")
    fields[AUTO] = (options | None, Field(None, description=run_keys()[AUTO].meaning))
    teacher = _model(TEACHER, parameters_of(TeacherOptions), "Run whose outputs are soft targets.")
    fields[TEACHER] = (teacher | None, Field(None, description=run_keys()[TEACHER].meaning))
    fields["training"] = (_model("training", training_keys(), "Epochs, batches, device."), _default({}))
    return fields


@functools.lru_cache(maxsize=32)
def _schema_model(registered: tuple[_Registered, ...]) -> type[BaseModel]:
    """Return the model from the cache unless a registry has changed: a study checks many configurations."""
    fields = dict(_common_fields())
    for section, (registry, default) in SECTIONS.items():
        about = f"The {registry.kind}: its name, or a mapping of its `name` and parameters."
        kind = _section_type([member for member in registered if member[0] == section])
        if default is None:
            fields[section] = (kind | None, Field(None, description=about))
        else:
            fields[section] = (kind, _default({"name": default}, about))
    model: type[BaseModel] = create_model("RunConfig", __config__=STRICT, **fields)
    return model


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of configuration files, by which editors complete and check them."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema_model().model_json_schema()}
    for section, (registry, default) in SECTIONS.items():
        place = schema["properties"][section]
        mapping = {key: place.pop(key) for key in ("anyOf", "oneOf", "discriminator", "$ref") if key in place}
        names = [label for name in registry for label in (name, *registry.aliases(name))]
        place["anyOf"] = [{"enum": names}, mapping]
        if section == "sharing":
            auto = {"properties": {"name": {"const": "auto"}}, "required": ["name"], "type": "object"}
            place["anyOf"] += [{"const": "auto"}, auto]
        if default is not None:
            schema["$defs"][f"{section}_{default}"]["required"].remove("name")
    schema["properties"][TEACHER]["anyOf"].append({"type": "string"})
    schema["properties"]["pretraining"]["anyOf"] = [_changes(schema["properties"]), {"type": "null"}]
    return schema


def _changes(keys: Iterable[str]) -> dict[str, Any]:
    """Return the schema of `pretraining`: every key but `freeze: true`; a section without a name is the run's own."""
    places: dict[str, Any] = {key: {"$ref": f"#/properties/{key}"} for key in keys} | {
        "freeze": {"type": "boolean", "const": False},
        AUTO: {"type": "null"},
    }
    nameless = {"type": "object", "not": {"required": ["name"]}}
    places |= {section: {"anyOf": [places[section], nameless]} for section in SECTIONS}
    return {"type": "object", "properties": places, "additionalProperties": False}


def _section_type(members: Sequence[_Registered]) -> Any:
    """Return the type of a section with one of these members."""
    models = tuple(_member_model(*member) for member in members)
    if len(models) < 2:
        return models[0] if models else type(None)
    return Annotated[Union[models], Field(discriminator="name")]  # noqa: UP007


@functools.lru_cache(maxsize=256)
def _member_model(section: str, names: tuple[str, ...], member: Callable[..., Any]) -> type[BaseModel]:
    """Return the model of a section with this member, from the cache unless the registry has another of its name."""
    registry = SECTIONS[section][0]
    keys = {"name": Parameter("name", Literal[names]), **registry.parameters(names[0])}
    return _model(f"{section}_{names[0]}", keys, registry.summary(names[0]))


def _model(title: str, keys: Keys, about: str) -> type[BaseModel]:
    model: type[BaseModel] = create_model(title, __config__=STRICT, __doc__=about, **_fields(keys))
    return model


def _fields(keys: Keys) -> dict[str, Any]:
    return {
        name: (checkable(key.hint), Field(key.default, description=key.meaning or None)) for name, key in keys.items()
    }


def _default(value: Any, about: str | None = None) -> Any:
    return Field(default_factory=lambda: value, validate_default=True, description=about)
