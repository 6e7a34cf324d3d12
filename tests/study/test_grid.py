"""A study file unfolds into one complete configuration a run, and a mistake in it is said before anything runs."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each

from sparsemtl.data.base import Split
from sparsemtl.errors import ConfigError
from sparsemtl.runs.config import check
from sparsemtl.runs.run import dry_run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.runs.validation import data_section
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.study.grid import Study, read_study
from sparsemtl.study.study_runs import value_text

ROOT = Path(__file__).parent.parent.parent
few = settings(max_examples=25, deadline=None)


def study_of(folder: Path, source: Any, *overrides: str) -> Study:
    path = folder / "s.yaml"
    path.write_text(source if isinstance(source, str) else dump_yaml(source), encoding="utf-8")
    return read_study(path, overrides)


def configs(study: Study) -> dict[str, Any]:
    return {run.name: run.config for run in study.runs}


def test_a_study_is_its_methods_times_their_grids_times_the_seeds(tmp_path: Path) -> None:
    grid = {"optimizer.lr": [0.1, 0.01], "encoder.widths": [[2], [4, 8], [3]]}
    source = {
        "base": {"encoder": "cnn", "training": {"epochs": 2}},
        "methods": {
            "stl": {"architecture": "single-task"},
            "random": {"sharing": "random", "grid": {"sharing.keep": [0.2, 0.4], "optimizer.lr": [0.5]}},
        },
        "grid": grid,
        "seeds": [3, 5],
    }
    expected = []
    for lr, widths, seed in product([0.1, 0.01], grid["encoder.widths"], [3, 5]):
        expected.append(one(lr, widths, seed, label="stl", architecture="single-task"))
    for lr, widths, keep, seed in product([0.5], grid["encoder.widths"], [0.2, 0.4], [3, 5]):
        expected.append(one(lr, widths, seed, label="random", sharing={"name": "random", "keep": keep}))
    study = study_of(tmp_path, source)
    assert [run.config for run in study.runs] == expected
    assert len({run.name for run in study.runs}) == len(expected)
    assert study.grid == ("optimizer.lr", "encoder.widths", "sharing.keep")
    assert (study.name, study.methods, study.baseline, study.notes) == ("s", ("stl", "random"), "stl", ())


def one(lr: float, widths: Any, seed: int, **changes: Any) -> dict[str, Any]:
    encoder = {"name": "cnn", "widths": widths}
    return check({"encoder": encoder, "optimizer": {"lr": lr}, "training": {"epochs": 2}, "seed": seed, **changes})


def test_tuned_keys_multiply_the_grid_and_are_named(tmp_path: Path) -> None:
    source = {
        "methods": {
            "stl": {"architecture": "single-task"},
            "decay": {"tune": {"optimizer.weight_decay": [0.0, 0.1]}},
            "random": {"sharing": "random", "grid": {"sharing.keep": [0.2, 0.4]}, "tune": {"optimizer.lr": [0.5]}},
        },
        "seeds": [3],
    }
    study = study_of(tmp_path, source, "tune.optimizer.lr=[0.1, 0.01]")
    assert study.tune == ("optimizer.lr", "optimizer.weight_decay")
    assert study.grid == ("sharing.keep", "optimizer.lr", "optimizer.weight_decay")
    values = {method: [run.values for run in study.runs if run.method == method] for method in study.methods}
    assert values["stl"] == [{"optimizer.lr": lr} for lr in (0.1, 0.01)]
    assert values["decay"] == [
        {"optimizer.lr": lr, "optimizer.weight_decay": decay} for lr in (0.1, 0.01) for decay in (0.0, 0.1)
    ]
    assert values["random"] == [{"sharing.keep": keep, "optimizer.lr": 0.5} for keep in (0.2, 0.4)]
    for run in study.runs:
        assert run.config["optimizer"]["lr"] == run.values["optimizer.lr"]


def test_every_seed_of_a_study_has_its_own_split_unless_the_data_s_seed_is_given(tmp_path: Path) -> None:
    def splits(*changes: str) -> list[Any]:
        study = study_of(tmp_path, {"base": {"data": "digits"}, "methods": {"a": {}}, "seeds": [3, 5]}, *changes)
        return [data_section(run.config)["seed"] for run in study.runs]

    assert splits() == [3, 5]
    assert splits("data.seed=null") == [3, 5]
    assert splits("data.seed=0") == [0, 0]
    assert splits("data=celebamask-hq") == [3, 5]
    study = study_of(tmp_path, {"base": {"data": "celeba"}, "methods": {"a": {}}})  # an official split
    assert all("seed" not in data_section(run.config) for run in study.runs)


def test_every_run_says_its_method_seed_and_values(tmp_path: Path) -> None:
    methods = {"a": {"sharing": "random", "grid": {"sharing.keep": [0.5]}}, "b": None}
    first, second = study_of(tmp_path, {"methods": methods, "seeds": [7]}).runs
    assert (first.method, first.seed, first.values) == ("a", 7, {"sharing.keep": 0.5})
    assert (second.method, second.seed, second.values) == ("b", 7, {})
    assert (first.name, second.name) == ("a_keep-0.5_seed-7", "b_seed-7")


def test_the_order_of_a_grids_keys_does_not_change_its_runs(tmp_path: Path) -> None:
    one_way = {"sharing.keep": [0.3, 0.5], "sharing": ["random"], "sharing.scope": ["layer"]}
    other_way = dict(reversed(one_way.items()))
    runs = [
        study_of(tmp_path, {"methods": {"a": {}}, "grid": grid, "seeds": [0]}).runs for grid in (one_way, other_way)
    ]
    assert [run.config for run in runs[0]] == [run.config for run in runs[1]]
    assert [run.config["sharing"]["keep"] for run in runs[0]] == [0.3, 0.5]


def test_a_section_may_be_a_key_of_the_grid(tmp_path: Path) -> None:
    sharings = ["dense", {"name": "random", "keep": 0.7}]
    study = study_of(tmp_path, {"methods": {"a": {}}, "grid": {"sharing": sharings}, "seeds": [0]})
    assert [run.config["sharing"] for run in study.runs] == [check({"sharing": s})["sharing"] for s in sharings]
    assert [run.name for run in study.runs] == ["a_sharing-dense_seed-0", "a_sharing-random-keep-0.7_seed-0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3, "0.3"),
        ([8, 8], "[8, 8]"),
        (None, "None"),
        ({"name": "random"}, "random"),
        ({"name": "random", "keep": 0.7, "seed": 1}, "random (keep 0.7, seed 1)"),
        ({"keep": 0.7}, "(keep 0.7)"),
    ],
)
def test_a_value_is_shown_as_a_person_would_say_it(value: Any, text: str) -> None:
    assert value_text(value) == text


def test_a_base_in_a_file_of_its_own_is_found_beside_the_study(tmp_path: Path) -> None:
    base = {"encoder": {"name": "mlp", "hidden": [4]}, "optimizer": {"lr": 0.1}}
    (tmp_path / "base.yaml").write_text(dump_yaml(base))
    methods = {"a": {}, "b": {"optimizer": {"lr": 0.2}}}
    inline, beside = (study_of(tmp_path, {"base": b, "methods": methods}) for b in (base, "base.yaml"))
    assert configs(inline) == configs(beside)


def test_what_a_study_records_of_itself_is_the_same_study(tmp_path: Path) -> None:
    changes = ["training.epochs=3", "seeds=[4]", "grid.optimizer.lr=[0.1]"]
    (tmp_path / "base.yaml").write_text("encoder: {name: mlp, hidden: [4]}")
    study = study_of(tmp_path, {"base": "base.yaml", "methods": {"a": {}, "stl": {}}}, *changes)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert configs(study_of(elsewhere, dict(study.source))) == configs(study)


def test_overrides_change_the_base_or_the_study(tmp_path: Path) -> None:
    methods, grid = {"a": {}, "b": {}}, {"encoder.widths": [[2], [4]]}
    study = study_of(
        tmp_path,
        {"base": {"optimizer": {"lr": 0.1}}, "methods": methods, "grid": grid},
        "training.epochs=3",
        "optimizer.lr=1e-2",
        "seeds=[5]",
        "baseline=b",
        "name=mine",
        "grid.encoder.widths=[[8]]",
        "grid.optimizer.eps=[1e-3, 1e-4]",
    )
    assert (study.name, study.baseline, len(study.runs)) == ("mine", "b", 4)
    for run in study.runs:
        assert (run.seed, run.config["training"]["epochs"], run.config["optimizer"]["lr"]) == (5, 3, 0.01)
        assert run.config["encoder"]["widths"] == [8]
    assert [run.config["optimizer"]["eps"] for run in study.runs] == [1e-3, 1e-4] * 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "the override 'seed=3' has no effect in a study: the study's `seeds` set it"),
        ("label=x", "the override 'label=x' has no effect in a study: it is the method's name"),
        ("methods.a.seed=3", "`methods` of a study is changed in the file, .*, not by an override"),
        ("notes=x", "`notes` of a study is changed in the file"),
        ("seeds=3", r"`seeds` must be a list of whole numbers such as \[0, 1, 2\], got 3"),
        ("baseline=c", "baseline: unknown method 'c'. Known: a"),
        (
            "training.epoch=3",
            r"method 'a' is not valid:\n  training\.epoch: unknown key 'epoch'. Did you mean 'epochs'",
        ),
        ("training", "expected an override of the form section.key=value"),
    ],
)
def test_an_override_without_effect_or_sense_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_of(tmp_path, {"methods": {"a": {}}}, override)


WRONG = [
    ("method: {a: {}}", "unknown key 'method'. Did you mean 'methods'? Known: base, "),
    ("data: digits", "`data` belongs under `base` in a study. A single run is started with `sparsemtl run "),
    ("training: {epochs: 3}", "`training` belongs under `base` in a study."),
    ("base: none.yaml\nmethods: {a: {}}", "none.yaml does not exist."),
    ("base: 3\nmethods: {a: {}}", "`base` must be a configuration, or the path of one, got 3."),
    ("base: {dat: x}\nmethods: {a: {}}", "method 'a' is not valid:\n  dat: unknown key 'dat'. Did you mean 'data'?"),
    (
        "name: x",
        "`methods` must be names mapped to changes of the base, such as {fisher: {sharing: fisher}}, got None.",
    ),
    ("methods: {}", "`methods` is empty; expected names mapped to changes"),
    ("methods: [a]", "`methods` must be names mapped to changes"),
    ("methods: {a: fisher}", "method 'a' must be changes of the base, such as {sharing: fisher}, got 'fisher'."),
    ("methods: {a: {sharing: fishr}}", "method 'a' is not valid:\n  sharing: unknown sharing method 'fishr'."),
    ("methods: {1: {}}", "the method's name must be text, got 1. Put it in quotes."),
    ("methods: {a: {seed: 3}}", "method 'a': `seed` cannot be set here: the study's `seeds` set it."),
    ("methods: {a: {label: x}}", "method 'a': `label` cannot be set here: it is the method's name."),
    ("methods: {a: {}}\ngrid: {seed: [1]}", "method 'a': `seed` cannot be set here: the study's `seeds` set it."),
    ("methods: {a: {grid: 3}}", "method 'a': `grid` must be a mapping of keys to lists of values, got 3."),
    ("methods: {a: {}}\ngrid: [a]", "`grid` must be a mapping of keys to lists of values, got ['a']."),
    (
        "methods: {a: {}}\ngrid: {optimizer.lr: 3}",
        "method 'a': the grid's `optimizer.lr` must be a list of values, got 3.",
    ),
    ("methods: {a: {}}\ngrid: {optimizer.lr: []}", "the grid's `optimizer.lr` must be a list of values, got []."),
    ("methods: {a: {}}\ntune: 3", "`tune` must be a mapping of keys to lists of values, got 3."),
    ("methods: {a: {tune: {optimizer.lr: []}}}", "the tune's `optimizer.lr` must be a list of values, got []."),
    ("methods: {a: {}}\ntune: {seed: [1]}", "method 'a': `seed` cannot be set here: the study's `seeds` set it."),
    (
        "methods: {a: {grid: {optimizer.lr: [1.0]}}, b: {}}\ntune: {optimizer.lr: [0.1]}",
        "`optimizer.lr` is in a `grid`, whose values all have rows, and in a `tune`, of whose values one is chosen.",
    ),
    ("methods: {a: {}}\ngrid: {shring: [dense]}", "method 'a', shring=dense is not valid:\n  shring: unknown key"),
    ("methods: {a: {}}\ngrid: {sharing: [dense, fishr]}", "method 'a', sharing=fishr is not valid:"),
    ("methods: {a: {}}\ngrid: {sharing.keep: [0.3]}", "  sharing.keep: unknown dense parameter 'keep'."),
    ("methods: {a: {}}\ngrid: {optimizer..lr: [1]}", "expected `section` or `section.key`, got 'optimizer..lr'."),
    ("methods: {a: {}}\nseeds: 3", "`seeds` must be a list of whole numbers such as [0, 1, 2], got 3."),
    ("methods: {a: {}}\nseeds: []", "`seeds` must be a list of whole numbers"),
    ("methods: {a: {}}\nseeds: [true]", "`seeds` must be a list of whole numbers"),
    ("methods: {a: {}}\nseeds: [-1]", "`seeds` must be a list of whole numbers"),
    ("methods: {a: {}}\nseeds: [0.5]", "`seeds` must be a list of whole numbers"),
    ("methods: {a: {}}\nseeds: [0, 0]", "more than one run would be called 'a_seed-0'."),
    ("methods: {a/b: {}, a b: {}}", "more than one run would be called 'a-b_seed-0'."),
    ("methods: {FS: {}, fs: {}}", "more than one run would be called 'FS_seed-0'."),
    ("methods: {a: {}}\ngrid: {optimizer.lr: [0.1, 1e-1]}", "more than one run would be called 'a_lr-0.1_seed-0'."),
    ("methods: {a: {}}\nbaseline: b", "baseline: unknown method 'b'. Known: a."),
    ("methods: {a: {}}\nname: 3", "`name` must be text, got 3. Put it in quotes."),
    ("methods: {a: {}}\nnotes: 3", "`notes` must be a list of texts, got 3."),
    ("methods: {a: {}}\nnotes: [3]", "a note must be text, got 3."),
]


@each(("text", "message"), WRONG)
def test_a_mistake_is_said_with_the_file_and_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        study_of(tmp_path, text)
    assert message in str(caught.value)


def test_one_note_needs_no_list(tmp_path: Path) -> None:
    assert study_of(tmp_path, {"methods": {"a": {}}, "notes": "only one"}).notes == ("only one",)


@few
@given(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=8), st.text(' -/:_.Aé"', max_size=5))
def test_every_run_has_a_name_that_a_file_system_takes(tmp_path_factory: Any, method: str, value: str) -> None:
    grid = {"data.root": [value]}
    (run,) = study_of(tmp_path_factory.mktemp("s"), {"methods": {method: {"grid": grid}}, "seeds": [0]}).runs
    assert re.fullmatch(r"[\w.+-]*_root-[\w.+-]*_seed-0", run.name)


def test_a_sign_is_part_of_a_runs_name(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"methods": {"a": {}}, "grid": {"data.root": ["-0.5", "0.5", "1e-05"]}, "seeds": [0]})
    assert list(configs(study)) == ["a_root--0.5_seed-0", "a_root-0.5_seed-0", "a_root-1e-05_seed-0"]


def test_keys_that_end_alike_are_named_in_full(tmp_path: Path) -> None:
    grid = {"optimizer.lr": [0.1], "balancing.lr": [0.2], "sharing.keep": [0.3]}
    (run,) = study_of(
        tmp_path, {"methods": {"a": {"balancing": "famo", "sharing": "random"}}, "grid": grid, "seeds": [0]}
    ).runs
    assert run.name == "a_optimizer.lr-0.1_balancing.lr-0.2_keep-0.3_seed-0"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*study*.yaml")), ids=lambda path: path.name)
def test_the_examples_unfold(path: Path) -> None:
    study = read_study(path)
    assert study.baseline in study.methods
    assert len(study.runs) % len({run.seed for run in study.runs}) == 0


def test_the_demo_can_be_set_up_and_gives_every_seed_images_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEMTL_DATA", str(tmp_path))
    small = ["data.train_size=8", "data.validation_size=2", "data.test_size=2", "data.height=24", "data.width=24"]
    study = read_study(ROOT / "examples" / "rooms-study.yaml", small)
    assert len(set(study.methods)) == 3
    assert {run.seed for run in study.runs} == {0, 1, 2}
    assert all(run.config["optimizer"] == study.runs[0].config["optimizer"] for run in study.runs)
    plans = {run.method: RunSpec(run.config) for run in study.runs if run.seed == 0}
    for plan in plans.values():
        dry_run(plan, RunFolder(tmp_path / "run"))
    other = next(RunSpec(run.config) for run in study.runs if run.seed == 1)
    dense, narrow, elsewhere = (images_of(plan) for plan in (plans["dense"], plans["narrow"], other))
    assert torch.equal(dense, narrow)
    assert not torch.equal(dense, elsewhere)


def images_of(plan: RunSpec) -> torch.Tensor:
    split = plan.data.train
    assert isinstance(split, Split)
    return split.x
