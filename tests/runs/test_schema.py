"""Three opinions about a value must agree: the configuration's, the constructor's and the editor's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import pytest
from loops import each
from pydantic import TypeAdapter, ValidationError
from typing_extensions import Doc

from sparsemtl.errors import ConfigError
from sparsemtl.registry.checking import fits
from sparsemtl.registry.parameters import Count, parameters_of, validated
from sparsemtl.runs.config import check
from sparsemtl.runs.schema import SECTIONS, TRAINER_KEYS, json_schema, run_keys, schema_model, training_keys
from sparsemtl.sharing import SHARING, DenseSharing

VALUES = [None, True, 0, 1, -1, 0.0, 0.5, 1.0, 1.5, -0.5, "1", "shared", [], {}]
MEMBERS = [(section, name) for section, (registry, _) in SECTIONS.items() for name in registry]
HELD: list[Any] = [[1], [0], ["a"], {"a": 1}, {"a": -1}]
"""Containers with something in them."""


@pytest.fixture(scope="module")
def sections() -> dict[str, TypeAdapter[Any]]:
    """Section -> what checks it."""
    fields = schema_model().model_fields
    return {section: TypeAdapter(fields[section].rebuild_annotation()) for section in (*SECTIONS, "training")}


@pytest.fixture(scope="module")
def editor() -> dict[str, Any]:
    return json_schema()


def accepts(section: TypeAdapter[Any], value: Any) -> bool:
    try:
        section.validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def complete_member(section: str, name: str) -> dict[str, Any]:
    """A section with something for every required parameter."""
    keys = parameters_of(SECTIONS[section][0][name])
    return {"name": name, **{key: something(parameter.hint) for key, parameter in keys.items() if parameter.required}}


def something(hint: Any) -> Any:
    """A value that fits an annotation."""
    return next(
        value for value in ([1.0, 2.0], "a", {}, 1) if accepts(TypeAdapter(hint, config={"strict": True}), value)
    )


@each(("section", "name"), MEMBERS)
def test_a_configuration_takes_what_the_constructor_takes(sections: Any, section: str, name: str) -> None:
    given = complete_member(section, name)
    for key, parameter in parameters_of(SECTIONS[section][0][name]).items():
        if (section, key) == ("data", "seed"):
            parameter = replace(parameter, hint=parameter.hint | None)  # null is the seed of the run
        for value in [*VALUES, *HELD] if "Callable" not in parameter.kind else VALUES:
            accepted, passes = accepts(sections[section], {**given, key: value}), fits(value, parameter.hint)
            if "type[" in str(parameter.hint) or "Criterion" in str(parameter.hint):
                # classes, and objects of classes: the constructor's own check refuses the rest
                assert passes or not accepted, (parameter, value)
            else:
                assert accepted == passes, (parameter, value)


@each("value", VALUES)
def test_training_takes_what_the_trainer_takes(sections: Any, value: Any) -> None:
    for key, parameter in training_keys().items():
        assert accepts(sections["training"], {key: value}) == fits(value, parameter.hint), key


@each(("section", "name"), MEMBERS)
def test_the_editor_agrees_about_every_parameter(
    sections: Any, editor: dict[str, Any], section: str, name: str
) -> None:
    given, described = complete_member(section, name), editor["$defs"][f"{section}_{name}"]["properties"]
    for key in [*parameters_of(SECTIONS[section][0][name]), "unknown"]:
        if key in described and key not in given and not first_of_its_kind(section, name, key, described[key]):
            continue
        for value in [*VALUES, *HELD]:
            tried = {**given, key: value}
            assert valid(editor, {section: tried}, editor) == accepts(sections[section], tried), tried


KINDS: dict[tuple[str, str], tuple[str, str, str]] = {}
"""Annotation and what the editor knows of it, apart from its meaning -> the first parameter that has both."""


def first_of_its_kind(section: str, name: str, key: str, described: dict[str, Any]) -> bool:
    """Whether no parameter before this one has the same annotation and rules; most are those of many members."""
    rules = {word: rule for word, rule in described.items() if word not in ("description", "title", "default")}
    kind = (str(parameters_of(SECTIONS[section][0][name])[key].hint), json.dumps(rules, sort_keys=True))
    return KINDS.setdefault(kind, (section, name, key)) == (section, name, key)


@each("value", [*VALUES, ["a"], [1], {"a": 1}, {"a": -1}, {"epochs": 2}, {"epoch": 2}])
def test_the_editor_agrees_about_the_first_level(editor: dict[str, Any], value: Any) -> None:
    for key in (*run_keys(), "training", "unknown", *SECTIONS):
        if (key, value) != ("plugins", ["a"]):  # there is no such plugin, which only a run can find out
            assert valid(editor, {key: value}, editor) == passes({key: value}), (key, value)


@each("value", [*VALUES, ["a"], {"a": 1}, {"epochs": 2}, {"epoch": 2}, {"name": "x"}])
def test_the_editor_agrees_about_the_first_level_of_pretraining(editor: dict[str, Any], value: Any) -> None:
    taken_over = [section for section, (_, default) in SECTIONS.items() if default is not None]
    for key in (*run_keys(), "training", "unknown", *taken_over):
        config = {"pretraining": {key: value}}
        nameless = key in SECTIONS and isinstance(value, dict) and value and "name" not in value
        if not nameless and (key, value) != ("plugins", ["a"]):
            assert valid(editor, config, editor) == passes(config), config


def test_the_editor_takes_a_parameter_of_the_runs_own_section_in_pretraining(editor: dict[str, Any]) -> None:
    config = {"optimizer": "sgd", "pretraining": {"optimizer": {"momentum": 0.5}}}
    assert passes(config)
    assert valid(editor, config, editor)


@each(("section", "name"), MEMBERS)
def test_the_editor_takes_a_bare_name_and_the_default_without_its_name(
    editor: dict[str, Any], section: str, name: str
) -> None:
    bare, without = {section: name}, {section: {k: v for k, v in complete_member(section, name).items() if k != "name"}}
    assert valid(editor, bare, editor) or not passes(bare)
    if name == SECTIONS[section][1]:
        assert valid(editor, without, editor)
        assert passes(without)


def passes(config: dict[str, Any]) -> bool:
    try:
        check(config)
    except ConfigError:
        return False
    return True


def test_the_editor_is_told_what_every_parameter_of_a_documented_class_means(editor: dict[str, Any]) -> None:
    fisher = editor["$defs"]["sharing_fisher"]["properties"]
    assert fisher["keep"]["description"].startswith("Fraction of the maskable weights")
    assert fisher["scope"]["description"].startswith("Rank the weights of all layers")  # from the common options
    resnet = editor["$defs"]["encoder_resnet18"]["properties"]
    assert resnet["width"]["description"].startswith("Channels of the first stage")  # from the common options
    assert editor["$defs"]["training"]["properties"]["patience"]["description"]
    assert all(editor["properties"][key]["description"] for key in run_keys())


def test_training_has_every_key_that_the_trainer_is_given() -> None:
    assert set(training_keys()) == {"batch_size", "drop_last", "callbacks", *TRAINER_KEYS}


def valid(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    return all(_holds(word, rule, schema, value, root) for word, rule in schema.items())


def _holds(word: str, rule: Any, schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match word:
        case "$ref":
            kind, name = rule.removeprefix("#/").split("/")
            return valid(root[kind][name], value, root)
        case "not":
            return not valid(rule, value, root)
        case "anyOf":
            return any(valid(one, value, root) for one in rule)
        case "oneOf":
            return sum(valid(one, value, root) for one in rule) == 1
        case "enum":
            return any(value == one and type(value) is type(one) for one in rule)
        case "const":
            return bool(value == rule)
        case "type":
            return rule in types_of(value)
        case "minimum":
            return not number or value >= rule
        case "maximum":
            return not number or value <= rule
        case "exclusiveMinimum":
            return not number or value > rule
        case "exclusiveMaximum":
            return not number or value < rule
        case "minItems":
            return not isinstance(value, list) or len(value) >= rule
        case "items":
            return not isinstance(value, list) or all(valid(rule, item, root) for item in value)
        case "required":
            return not isinstance(value, dict) or set(rule) <= set(value)
        case "properties":
            return not isinstance(value, dict) or all(valid(rule[k], v, root) for k, v in value.items() if k in rule)
        case "additionalProperties":
            others = set(value) - set(schema.get("properties", {})) if isinstance(value, dict) else set()
            return not others if rule is False else rule is True or all(valid(rule, value[k], root) for k in others)
        case "$schema" | "$defs" | "title" | "description" | "default" | "discriminator" | "format":
            return True
    raise NotImplementedError(word)


def types_of(value: Any) -> Iterator[str]:
    if value is None:
        yield "null"
    elif isinstance(value, bool):
        yield "boolean"
    elif isinstance(value, (int, float)):
        yield from ("integer", "number") if isinstance(value, int) else ("number",)
    else:
        yield {str: "string", list: "array", dict: "object"}[type(value)]


def test_a_member_in_place_of_another_is_checked_by_its_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    class First(DenseSharing):
        @validated
        def __init__(self, *, one: Annotated[Count, Doc("A number.")] = 1) -> None:
            super().__init__()

    class Second(DenseSharing):
        @validated
        def __init__(self, *, two: Annotated[Count, Doc("A number.")] = 2) -> None:
            super().__init__()

    monkeypatch.setattr(SHARING, "_members", dict(SHARING))
    for member, expected in ((First, {"one": 1}), (Second, {"two": 2}), (First, {"one": 1})):
        SHARING["mine"] = member
        assert check({"sharing": "mine"})["sharing"] == {"name": "mine", **expected}
        assert json_schema()["$defs"]["sharing_mine"]["properties"].keys() == {"name", *expected}
