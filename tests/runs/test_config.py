"""Configurations: complete after a check, refused in words, changed without surprises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each

from sparsemtl.errors import ConfigError
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.registry.plugins import with_plugins
from sparsemtl.runs.changes import merge, nested, override
from sparsemtl.runs.config import check, origins_of
from sparsemtl.runs.pretraining import pretraining_config
from sparsemtl.runs.schema import SECTIONS, run_keys, training_keys
from sparsemtl.runs.validation import data_section, differences
from sparsemtl.storage.yaml_text import read_yaml

ROOT = Path(__file__).parents[2]
MEMBERS = [
    (section, name)
    for section, (registry, _) in SECTIONS.items()
    for name in registry
    if not any(parameter.required for parameter in parameters_of(registry[name]).values())
]
few = settings(max_examples=50, deadline=None)


def test_nothing_at_all_is_a_configuration_of_defaults() -> None:
    complete = check({})
    assert set(complete) == {*run_keys(), *SECTIONS, "training"}
    assert {section: complete[section] and complete[section]["name"] for section in SECTIONS} == {
        section: default for section, (_, default) in SECTIONS.items()
    }
    assert complete["training"] == {key: parameter.default for key, parameter in training_keys().items()}


@each(("section", "name"), MEMBERS)
def test_a_bare_name_stands_for_the_constructors_defaults(section: str, name: str) -> None:
    defaults = {key: parameter.default for key, parameter in SECTIONS[section][0].parameters(name).items()}
    complete = check({section: name})
    assert complete == check({section: {"name": name}})
    assert complete[section] == plain({"name": name, **defaults})


@each(("section", "name"), MEMBERS)
def test_a_checked_configuration_survives_its_file_and_another_check(section: str, name: str) -> None:
    complete = check({section: name, "optimizer": {"lr": 1e-17}, "weights": {"digit": 2}})
    assert yaml.safe_load(yaml.safe_dump(complete)) == complete
    assert check(complete) == complete


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_a_section_without_its_name_is_the_defaults() -> None:
    assert check({"optimizer": {"lr": 0.5}})["optimizer"] == {**check({"optimizer": "adam"})["optimizer"], "lr": 0.5}


@each("path", sorted((ROOT / "examples").glob("*.yaml")))
def test_the_examples_are_valid(path: Path) -> None:
    content = with_plugins(read_yaml(path), path.parent)
    check(content.get("base", content), where=str(path))


def test_values_made_in_python_are_taken_like_those_of_a_file(tmp_path: Path) -> None:
    import numpy as np

    made = {"encoder": {"name": "mlp", "hidden": (4, 8)}, "optimizer": {"lr": np.float32(0.5)}, "seed": np.int64(3)}
    complete = check({**made, "data": {"root": tmp_path}})
    assert complete["encoder"]["hidden"] == [4, 8]
    assert type(complete["optimizer"]["lr"]) is float
    assert type(complete["seed"]) is int
    assert complete["data"]["root"] == str(tmp_path)


WRONG = [
    ({"sharin": "fisher"}, "sharin: unknown key 'sharin'. Did you mean 'sharing'? Known: architecture, auto, balanc"),
    ({"sharing": "fishr"}, "sharing: unknown sharing method 'fishr'. Did you mean 'fisher'? Known: "),
    ({"sharing": {"name": "fishr", "keep": 3}}, "sharing: unknown sharing method 'fishr'. Did you mean 'fisher'?"),
    ({"sharing": {"name": 3}}, "sharing: unknown sharing method 3. Known: "),
    ({"sharing": 3}, "sharing: expected a name, or a mapping of `name` and parameters, got 3."),
    ({"sharing": None}, "sharing: expected a name, or a mapping of `name` and parameters, got null."),
    ({"scheduler": {"floor": 0.1}}, "scheduler: expected the `name` of one of constant, cosine, "),
    ({"sharing": {"name": "fisher", "kep": 0.3}}, "sharing.kep: unknown fisher parameter 'kep'. Did you mean 'keep'?"),
    ({"sharing": {"keep": 0.3}}, "sharing.keep: unknown dense parameter 'keep'. "),
    ({"sharing": {"keep": 0.3}}, " It is a parameter of random, fisher"),
    (
        {"sharing": {"name": "fisher", "keep": 1.5}},
        "sharing.keep: expected a float in (0, 1] or a mapping to floats in (0, 1], got 1.5.",
    ),
    ({"sharing": {"name": "fisher", "estimator": "x"}}, "sharing.estimator: expected one of 'fs', 'efs', "),
    ({"encoder": {"name": "mlp", "hidden": [8, -1]}}, "a non-empty sequence of ints in [1, inf), got [8, -1]."),
    ({"encoder": {"name": "mlp", "hidden": "88"}}, 'hidden: expected a non-empty sequence of ints in [1, inf), got "'),
    ({"balancing": "constant"}, "balancing.weights: this key is required: a list of floats."),
    ({"data": {"root": 3}}, "data.root: expected a string or Path or null, got 3."),
    ({"optimizer": {"lr": float("nan")}}, "expected a float in (0, inf), got NaN. Numbers are finite."),
    ({"optimizer": {"lr": float("inf")}}, "expected a float in (0, inf), got Infinity. Numbers are finite."),
    ({"optimizer": {"name": "adam", "lr": float("nan")}}, "optimizer.lr: expected a float in (0, inf), got NaN."),
    ({"optimizer": {"name": "adam", "lr": float("inf")}}, "optimizer.lr: expected a float in (0, inf), got Infinity."),
    ({"training": 3}, "training: expected a mapping of batch_size, drop_last, epochs, "),
    ({"training": None}, "training: expected a mapping of batch_size, drop_last, epochs, "),
    ({"training": {"epoch": 3}}, "training.epoch: unknown key 'epoch'. Did you mean 'epochs'? Known: accelerator, "),
    ({"seed": 2**70}, "seed: expected an int in [0, inf), got 1180591620717411303424. Such numbers are below 2^63."),
    ({"encoder": {"name": "mlp", "hidden": [8, 2**31]}}, "got [8, 2147483648]. Such numbers are below 2^31."),
    ({"weights": {"digit": float("inf")}}, "weights: expected a mapping to floats in [0, inf), got"),
    ({"training": {"epochs": 0}}, "training.epochs: expected an int in [1, inf), got 0."),
    ({"training": {"patience": 0}}, "training.patience: expected an int in [1, inf) or null, got 0."),
    ({"training": {"monitor": "test"}}, "training.monitor: expected one of 'score', 'loss', got \"test\"."),
    ({"seed": {"x": 3}}, 'seed: expected an int in [0, inf), got {"x": 3}.'),
    ({"tasks": "digit"}, 'tasks: expected a list of strings or null, got "digit".'),
    ({"weights": {"digit": -1}}, 'weights: expected a mapping to floats in [0, inf), got {"digit": -1}.'),
    ({"freeze": "yes"}, 'freeze: expected a bool, got "yes".'),
    ({"pretraining": True}, "pretraining: expected a mapping or null, got true."),
    ({1: 2}, "1: unknown key '1'. Known: "),
]  # fmt: skip


@each(("config", "message"), WRONG)
def test_a_mistake_is_said_with_its_place_and_what_was_expected(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config, where="my.yaml")
    first, *rest = str(caught.value).splitlines()
    assert first == "my.yaml is not valid:"
    assert len(rest) == 1
    assert message in rest[0]


@each(
    ("key", "value"),
    [
        ("training.epochs", "2"),
        ("training.epochs", 2.0),
        ("training.epochs", True),
        ("training.tensorboard", 1),
        ("training.tensorboard", "yes"),
        ("optimizer.lr", "1e-3"),
        ("optimizer.lr", True),
        ("name", 3),
        ("seed", False),
    ],
)
def test_nothing_is_converted_into_another_type(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}: expected an? "):
        check(nested([(key, value)]))


def test_all_mistakes_are_said_at_once_and_each_once() -> None:
    config = {"seed": -1, "data": {"root": 3}, "training": {"epochs": 0, "epoch": 1}, "sharing": "fishr"}
    with pytest.raises(ConfigError) as caught:
        check(config)
    places = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(places) == ["data.root", "seed", "sharing", "training.epoch", "training.epochs"]


@each("config", [None, 3, "digits", ["data"]])
def test_what_is_no_mapping_is_no_configuration(config: Any) -> None:
    with pytest.raises(ConfigError, match="expected a mapping of sections, got"):
        check(config)


def test_a_path_in_place_of_a_configuration_is_told_how_to_be_read() -> None:
    with pytest.raises(ConfigError, match="read_config` reads a file"):
        check("run.yaml")  # type: ignore[arg-type]


def test_a_mistake_is_said_with_its_line_or_as_made_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# mine\nseed: -1\nsharing:\n  name: fisher\n  keep: 2\n  bn: x\ntraining: {epochs: 0}\n")
    changes = ["sharing.bn=y", "training={epochs: -3}", "weights.digit=-1"]
    with pytest.raises(ConfigError) as caught:
        check(override(read_yaml(path), changes), where="x.yaml", origins=origins_of(path, changes))
    assert {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]} == {
        "seed (line 2)",
        "sharing.keep (line 5)",
        "sharing.bn (command line)",
        "training.epochs (command line)",
        "weights (command line)",
    }


def test_a_place_that_was_overridden_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("sharing:\n  name: fisher\n  keep: 0.2\nsharing_: 3\n")
    assert origins_of(path, ["sharing={keep: 2}"]) == {"sharing": "command line", "sharing_": "line 4"}


SHARINGS = st.sampled_from(
    ["dense", "random", {"name": "random", "keep": 0.5}, {"name": "random", "seed": 3}, {"name": "fisher", "keep": 0.1}]
)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "sharing": SHARINGS,
        "optimizer": st.sampled_from(["sgd", {"lr": 0.1}, {"name": "sgd", "momentum": 0.5}, {"weight_decay": 0.1}]),
        "weights": st.dictionaries(st.sampled_from(["digit", "name"]), st.floats(0, 1)),
        "seed": st.integers(0, 9),
        "scheduler": st.sampled_from([None, "cosine", {"name": "step", "every": 2}]),
    },
)


@few
@given(CONFIGS)
def test_no_change_changes_nothing(config: dict[str, Any]) -> None:
    assert merge(config, {}) == config
    assert check(merge(config, config)) == check(config)


@few
@given(CONFIGS, CONFIGS)
def test_a_change_made_twice_is_a_change_made_once_and_spoils_neither_side(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    before = repr((base, changes))
    once = merge(base, changes)
    assert check(merge(once, changes)) == check(once)
    assert repr((base, changes)) == before


@few
@given(CONFIGS, CONFIGS)
def test_after_a_change_its_values_hold_and_all_others_stay(base: dict[str, Any], changes: dict[str, Any]) -> None:
    merged, changed = check(merge(base, changes)), check(changes)
    for key in changed:
        if key not in changes:
            assert merged[key] == check(base)[key]
        elif key in SECTIONS and changed[key] != check({})[key]:
            stated = changes[key] if isinstance(changes[key], dict) else {"name": changes[key]}
            assert stated.items() <= merged[key].items()


def test_a_section_that_gets_another_name_starts_afresh() -> None:
    fisher = {"sharing": {"name": "fisher", "keep": 0.7, "samples": 10}}
    assert merge(fisher, {"sharing": "random"}) == {"sharing": {"name": "random"}}
    assert merge(fisher, {"sharing": {"name": "random", "keep": 0.1}}) == {"sharing": {"name": "random", "keep": 0.1}}


def test_a_section_that_keeps_its_name_keeps_its_parameters() -> None:
    fisher = {"sharing": {"name": "fisher", "keep": 0.7, "samples": 10}}
    expected = {"sharing": {"name": "fisher", "keep": 0.1, "samples": 10}}
    assert merge(fisher, {"sharing": {"keep": 0.1}}) == expected
    assert merge(fisher, {"sharing": {"name": "fisher", "keep": 0.1}}) == expected


def test_the_default_of_a_section_is_its_name_also_where_nobody_says_so() -> None:
    adam = merge({"optimizer": {"lr": 0.1}}, {"optimizer": {"name": "adam", "eps": 0.5}})
    assert adam == {"optimizer": {"lr": 0.1, "name": "adam", "eps": 0.5}}
    assert merge({"optimizer": {"lr": 0.1}}, {"optimizer": "sgd"}) == {"optimizer": {"name": "sgd"}}


@each("wrong", [3, None, ["fisher"]])
def test_a_change_replaces_what_is_no_section_at_all(wrong: Any) -> None:
    assert merge({"sharing": wrong}, {"sharing": "random"}) == {"sharing": {"name": "random"}}
    assert merge({"sharing": "random"}, {"sharing": wrong}) == {"sharing": wrong}


def test_a_name_given_to_a_section_that_lacked_it_keeps_its_parameters() -> None:
    assert merge({"scheduler": {"floor": 0.1}}, {"scheduler": "cosine"}) == {
        "scheduler": {"name": "cosine", "floor": 0.1}
    }


ASSIGNMENTS = [
    "sharing.keep=0.4",
    "sharing=random",
    "sharing.seed=7",
    "optimizer.lr=1e-2",
    "encoder={name: mlp, hidden: [4]}",
]


@few
@given(st.permutations(ASSIGNMENTS))
def test_the_order_of_overrides_does_not_matter(order: list[str]) -> None:
    complete = check(override({"sharing": {"name": "fisher", "keep": 0.1}, "encoder": {"widths": [3]}}, order))
    assert complete == check(
        {
            "sharing": {"name": "random", "keep": 0.4, "seed": 7},
            "optimizer": {"name": "adam", "lr": 0.01},
            "encoder": {"name": "mlp", "hidden": [4]},
        }
    )


def test_of_two_overrides_of_one_key_the_later_one_holds() -> None:
    assert override({}, ["seed=1", "seed=2"]) == {"seed": 2}
    assert override({}, ["sharing=random", "sharing=fisher"]) == {"sharing": {"name": "fisher"}}


@each(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("", None),
        ("'2'", "2"),
        ("[1, [2]]", [1, [2]]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("a=b", "a=b"),
    ],
)
def test_the_value_of_an_override_is_yaml(text: str, value: Any) -> None:
    assert override({}, [f"training.x={text}"]) == {"training": {"x": value}}


@each(
    ("text", "message"),
    [
        ("sharing.keep", r"expected an override of the form section\.key=value, got 'sharing\.keep'\."),
        ("=3", "expected `section` or `section.key`, got ''"),
        ("data..seed=3", r"got 'data\.\.seed'"),
        ("data.=3", r"got 'data\.'"),
        ("weights={digit:", r"the override 'weights=\{digit:', line 1, column 8: not valid YAML .* in quotes"),
    ],
)
def test_an_override_that_reads_otherwise_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override({}, [text])


@few
@given(CONFIGS, CONFIGS)
def test_configurations_differ_exactly_where_differences_says_so(one: dict[str, Any], other: dict[str, Any]) -> None:
    there, here = check(one), check(other)
    assert (list(differences(there, here)) == []) == (there == here)
    assert len(list(differences(there, here))) == len(list(differences(here, there)))


def test_a_difference_is_said_with_both_values() -> None:
    there, here = check({"sharing": {"name": "random", "keep": 0.5}}), check({"seed": 3})
    assert [text for text in differences(there, here) if "keep" in text or "seed" in text or "name" in text] == [
        "seed is 0 there and 3 here",
        'sharing.name is "random" there and "dense" here',
        "sharing.keep is 0.5 there and missing here",
        "sharing.seed is null there and missing here",
    ]


def without(config: dict[str, Any], place: str) -> dict[str, Any]:
    section, _, key = place.partition(".")
    inner = {name: value for name, value in config[section].items() if name != key} if key else None
    return {name: inner if name == section else value for name, value in config.items() if key or name != section}


@each(
    ("place", "changed"),
    [
        ("freeze", True),
        ("pretraining", {"seed": 1}),
        ("scheduler", {"name": "cosine"}),
        ("training.precision", "64-true"),
        ("encoder.widths", [3]),
        ("heads", {"digit": {"name": "mlp", "widths": [3]}}),
    ],
)
def test_a_key_that_there_was_not_yet_stands_at_its_default(place: str, changed: Any) -> None:
    now = check({})
    assert list(differences(without(now, place), now)) == []
    other = check(nested([(place, changed)]))
    assert list(differences(without(other, place), other)) == list(differences(now, other)) != []


def test_a_key_that_there_is_no_more_is_a_difference() -> None:
    now = check({})
    assert list(differences({**now, "freezes": False}, now)) == ["freezes is false there and missing here"]


OWN = {
    "name": st.just("mine"),
    "label": st.just("this method"),
    "architecture": st.sampled_from(["mmoe", "single-task"]),
    "sharing": SHARINGS,
    "balancing": st.sampled_from(["sum", "pcgrad"]),
    "freeze": st.booleans(),
}
"""What a run has for itself."""
COMMON = {
    "optimizer": st.sampled_from(["sgd", {"lr": 0.1}, {"name": "sgd", "momentum": 0.5}]),
    "training": st.fixed_dictionaries({}, optional={"epochs": st.integers(1, 9), "batch_size": st.integers(1, 9)}),
    "seed": st.integers(0, 9),
    "data": st.sampled_from(["mnist", {"missing": 0.5}]),
    "encoder": st.just({"name": "mlp", "hidden": [3]}),
}
"""What the run before it takes over."""


@few
@given(st.fixed_dictionaries({}, optional=OWN), st.fixed_dictionaries({}, optional=COMMON), CONFIGS)
def test_the_run_before_is_what_is_common_with_the_changes_of_pretraining(
    own: dict[str, Any], common: dict[str, Any], changes: dict[str, Any]
) -> None:
    complete = check({**own, **common, "pretraining": changes})
    taken = check(common) | {"data": data_section(check(common))}  # the draws of the run, whatever the other's seed
    assert pretraining_config(complete) == check(merge(taken, {"tasks": ["auxiliary"], **changes}))
    assert {**complete, "pretraining": None} == check({**own, **common})


def test_a_run_has_none_before_it_unless_it_says_so() -> None:
    assert pretraining_config(check({})) is None
    assert pretraining_config(check({"pretraining": {}})) == check({"tasks": ["auxiliary"], "data": {"seed": 0}})


@each("tasks", [None, ["digit"], ["digit", "slant"]])
def test_the_run_before_trains_the_tasks_that_pretraining_names(tasks: list[str] | None) -> None:
    before = pretraining_config(check({"tasks": ["parity"], "pretraining": {"tasks": tasks}}))
    assert before is not None
    assert before["tasks"] == tasks


@each(
    ("changes", "message"),
    [
        ({"training": {"epochs": 0}}, "training.epochs (line 4): expected an int in [1, inf), got 0."),
        ({"optimizer": {"amsgrad": True}}, "optimizer.amsgrad (line 4): unknown sgd parameter 'amsgrad'. "),
        ({"balancing": "constant"}, "balancing.weights (line 3): this key is required: a list of floats."),
        ({"sharin": "fisher"}, "sharin (line 3): unknown key 'sharin'. Did you mean 'sharing'?"),
        ({"pretraining": 3}, "pretraining (line 3): expected a mapping or null, got 3."),
    ],
)
def test_a_mistake_in_pretraining_is_said_with_its_place_there(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"optimizer": "sgd", "pretraining": changes, "training": {"epochs": 5}}))
    with pytest.raises(ConfigError) as caught:
        check(read_yaml(path), where="x.yaml", origins=origins_of(path, []))
    first, mistake = str(caught.value).splitlines()
    assert first == "`pretraining` in x.yaml is not valid:"
    assert mistake.startswith(f"  {message}")


def test_a_mistake_in_the_pretraining_of_a_pretraining_says_that_too() -> None:
    with pytest.raises(ConfigError, match=r"^`pretraining` in `pretraining` in my\.yaml is not valid:\n  seed: "):
        check({"pretraining": {"pretraining": {"seed": -1}}}, where="my.yaml")


def test_a_mistake_made_in_pretraining_is_not_blamed_on_the_line_of_the_runs_own_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("pretraining: {}\ntraining:\n  epochs: 5\n")
    changes = ["pretraining.training.epochs=0"]
    with pytest.raises(ConfigError, match=r"\n  training\.epochs \(command line\): expected an int"):
        check(override(read_yaml(path), changes), origins=origins_of(path, changes))


def test_how_long_a_sharing_method_takes_is_not_taken_over_by_pretraining() -> None:
    training = {"epochs": 9, "choose_after": 8, "choose_per_task": True, "batch_size": 7}
    before = pretraining_config(check({"training": training, "pretraining": {"training": {"epochs": 2}}}))
    assert before is not None
    assert [before["training"][key] for key in training] == [2, 0, None, 7]


def test_in_pretraining_a_section_that_gets_another_name_starts_afresh() -> None:
    base = {"pretraining": {"optimizer": {"name": "adam", "lr": 0.1, "amsgrad": True}, "training": {"epochs": 3}}}
    changed = merge(base, {"pretraining": {"optimizer": "sgd"}})
    assert changed == {"pretraining": {"optimizer": {"name": "sgd"}, "training": {"epochs": 3}}}


@each("named", ["adam", {"name": "adam"}])
def test_in_pretraining_a_section_keeps_its_name_when_a_parameter_changes(named: Any) -> None:
    base = {"optimizer": "sgd", "pretraining": {"optimizer": named}}
    expected = {"name": "adam", "lr": 0.5}
    assert merge(base, {"pretraining": {"optimizer": {"lr": 0.5}}})["pretraining"]["optimizer"] == expected
    assert override(base, ["pretraining.optimizer.lr=0.5"])["pretraining"]["optimizer"] == expected


def test_in_pretraining_a_section_without_a_name_is_that_of_the_run_itself() -> None:
    base = {"optimizer": "sgd", "pretraining": {"optimizer": {"lr": 0.1}}}
    before = pretraining_config(check(merge(base, {"pretraining": {"optimizer": {"momentum": 0.5}}})))
    assert before is not None
    assert before["optimizer"] == check({"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.5}})["optimizer"]


@few
@given(st.permutations(["pretraining.optimizer=sgd", "pretraining.optimizer.lr=0.5", "pretraining.training.epochs=3"]))
def test_the_order_of_overrides_of_pretraining_does_not_matter(order: list[str]) -> None:
    assert override({"pretraining": {"optimizer": {"amsgrad": True, "name": "adam"}}}, order) == {
        "pretraining": {"optimizer": {"name": "sgd", "lr": 0.5}, "training": {"epochs": 3}}
    }


def test_pretraining_can_be_taken_away() -> None:
    assert override({"pretraining": {"seed": 3}}, ["pretraining=null"]) == {"pretraining": None}


def test_an_old_name_is_refused_with_the_new_one_and_the_change_of_its_value() -> None:
    old = {
        ("fisher", "semantics"): "'mask_applies_to' since version 0.2, with the values 'weights' and 'gradients'",
        ("random", "target_density"): "'target_sparsity' since version 0.2, which is 1 - target_density",
        ("random", "resample_every"): "'update_every' since version 0.2",
        ("pbfs", "every"): "'update_every_steps' since version 0.2",
        ("l1", "start"): "'warmup' since version 0.2",
        ("group-lasso", "groups"): "'granularity' since version 0.2",
    }
    for (method, name), message in old.items():
        with pytest.raises(ConfigError, match=f"sharing.{name}: unknown {method} parameter {name!r}: it is {message}"):
            check({"sharing": {"name": method, name: 1}})
