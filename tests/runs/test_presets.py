"""Presets: the settings of published methods, below what stands beside them and over what they change."""

from __future__ import annotations

from pathlib import Path

import pytest
from loops import each

from sparsemtl.errors import ConfigError
from sparsemtl.runs.changes import merge, override
from sparsemtl.runs.config import check
from sparsemtl.runs.presets import PRESETS
from sparsemtl.runs.pretraining import pretraining_config
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.study.grid import read_study


@each("name", PRESETS)
def test_a_preset_is_the_content_of_its_file(name: str) -> None:
    complete = check({"preset": name})
    assert complete == check(read_yaml(PRESETS[name]))
    assert complete["preset"] is None  # the settings stand in its place
    assert complete == check(complete)


def test_what_stands_beside_a_preset_changes_it_key_by_key() -> None:
    complete = check({"preset": "damtl", "sharing": {"init": "ones"}, "optimizer": {"name": "adam"}})
    assert complete["sharing"]["init"] == "ones"
    assert (complete["sharing"]["name"], complete["sharing"]["lambda"]) == ("soft-masks", 0.9)
    assert complete["optimizer"] == check({})["optimizer"]  # another member starts from its own defaults


def test_a_preset_among_changes_wins_over_what_it_changes() -> None:
    base = {"sharing": {"name": "fisher", "keep": 0.9}, "optimizer": {"name": "sgd", "lr": 1.0}, "seed": 3}
    plain = {key: value for key, value in check({"preset": "pbfs"}).items() if key != "seed"}
    for changed in (merge(base, {"preset": "pbfs"}), override(base, ["preset=pbfs"])):
        assert check(changed) == {**plain, "seed": 3}
    assert check(override(base, ["preset=pbfs", "optimizer.lr=0.5"]))["optimizer"]["lr"] == 0.5


def test_a_change_without_a_name_is_of_the_presets_member() -> None:
    base = {"preset": "fsmtl", "sharing": {"keep": 0.5}}
    for changed in (override(base, ["sharing.warmup=3"]), merge(base, {"sharing": {"warmup": 3}})):
        found = check(changed)["sharing"]
        assert (found["name"], found["keep"], found["warmup"]) == ("fisher", 0.5, 3)


def test_a_base_with_a_preset_is_below_the_changes_of_a_method(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "base: {preset: less-is-more, seed: 0}\nseeds: [0]\n"
        "methods: {own: {}, other: {preset: fsmtl}, none: {sharing: dense}}\n"
    )
    found = {run.method: run.config for run in read_study(file).runs}
    assert [found[name]["sharing"]["name"] for name in ("own", "other", "none")] == ["group-lasso", "fisher", "dense"]
    assert {found[name]["balancing"]["name"] for name in found} == {"uncertainty"}
    assert found["other"]["optimizer"] == check({"preset": "fsmtl"})["optimizer"]


def test_a_pretraining_run_has_a_preset_of_its_own() -> None:
    own = pretraining_config(check({"preset": "damtl"}))
    assert own is not None
    assert (own["optimizer"]["name"], own["sharing"]["name"]) == ("adam", "dense")
    other = pretraining_config(check({"preset": "damtl", "pretraining": {"preset": "fsmtl"}}))
    assert other is not None
    assert other["sharing"]["name"] == "fisher"


def test_a_preset_among_changes_of_pretraining_wins_there_too() -> None:
    base = {"preset": "damtl", "pretraining": {"optimizer": {"name": "sgd", "lr": 1.0}}}
    own = pretraining_config(check(merge(base, {"pretraining": {"preset": "fsmtl"}})))
    assert own is not None
    assert (own["optimizer"]["name"], own["optimizer"]["lr"]) == ("adam", 0.0001)


@each("wrong", ["dmtl", 3, ["damtl"], {"name": "damtl"}])
def test_an_unknown_preset_is_named_with_the_known_ones(wrong: object) -> None:
    for config in ({"preset": wrong}, merge({}, {"preset": wrong})):
        with pytest.raises(ConfigError, match=r"preset: expected one of 'fsmtl', 'pbfs', 'damtl', 'less-is-more'"):
            check(config)
