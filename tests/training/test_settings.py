"""Settings of a resumed run: keys that its version did not have yet have their defaults; everything else must agree."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.errors import CheckpointError
from sparsemtl.runs.config import check
from sparsemtl.runs.pretraining import pretraining_config, unfinished_pretraining
from sparsemtl.runs.run import resume, run
from sparsemtl.runs.validation import completed
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.text_files import write_json
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.training.settings import RunSettings


def settings(changes: dict[str, Any] | None = None, **options: Any) -> RunSettings:
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    options = {"execution": "masked", "clip_norm": None, **options}
    return RunSettings.of(check(changes or {}), adam, options, completed)


def without(tree: dict[str, Any], place: str) -> dict[str, Any]:
    *path, last = place.split(".")
    tree = inner = deepcopy(tree)
    for key in path:
        inner = inner[key]
    del inner[last]
    return tree


KEYS: list[tuple[str, dict[str, Any], str]] = [
    ("config.teacher", {"teacher": "runs/large"}, r'teacher is null there, .*, and \{"run": "runs/large"'),
    (
        "config.training.execution",
        {"training": {"execution": "sliced"}},
        r'execution is "masked" there, the default of',
    ),
    (
        "config.encoder.widths",
        {"encoder": {"name": "cnn", "widths": [3]}},
        r"widths is .* there, .* and \[3\] here",
    ),
    ("config.sharing", {"sharing": "random"}, r'sharing.name is "dense" there, .* and "random" here'),
]


@pytest.mark.parametrize(("place", "changed", "message"), KEYS)
def test_a_key_that_the_run_did_not_have_has_its_default(place: str, changed: dict[str, Any], message: str) -> None:
    began = without(dict(settings().values), place)
    settings().check(began, "here")
    for version in (began["version"], "0.2.0"):  # also of a version that is not this one
        with pytest.raises(CheckpointError, match=message):
            settings(changed).check({**began, "version": version}, "here")


def test_options_and_groups_of_the_optimizer_do_too() -> None:
    now = settings()
    now.check(without(dict(now.values), "options.execution"), "here")
    now.check(without(dict(now.values), "optimizer.0.amsgrad"), "here")
    with pytest.raises(CheckpointError, match=r'execution is "masked" there, the default of a key .* "sliced" here'):
        settings(execution="sliced").check(without(dict(now.values), "options.execution"), "here")


def test_a_key_that_there_is_no_more_is_named_and_no_other() -> None:
    began = without(dict(settings().values), "config.teacher")
    began["config"]["training"]["momentum"] = 0.9
    with pytest.raises(CheckpointError, match=r"training\.momentum is 0.9 there and missing here"):
        settings().check(began, "here")


def test_a_run_that_an_earlier_version_began_goes_on_to_the_same_end(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny, tmp_path / "whole", progress=False)
    train_epoch = sm.Trainer._train_epoch

    def stopping(self: Any, *given: Any) -> None:
        if self.position.epoch == 1:
            raise KeyboardInterrupt
        train_epoch(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(sm.Trainer, "_train_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, tmp_path / "old", progress=False)
    old = RunFolder(tmp_path / "old")
    state = old.load(old.last)
    for place in ("config.teacher", "config.training.execution", "options.execution"):
        state["settings"] = without(state["settings"], place)
    old.save(old.last, state)
    old.write_config(without(without(old.read_config(), "teacher"), "training.execution"))
    resume(old.path, progress=False)
    for name in ("model.safetensors", "networks.safetensors"):
        assert (old.path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_study_finds_the_pretraining_of_an_earlier_version(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    write_json(study.about, {"name": "s"})
    complete = check({"data": "two-regressions", "encoder": "mlp", "pretraining": {"tasks": ["task1"]}})
    wanted = pretraining_config(complete)
    assert wanted is not None
    (own,) = unfinished_pretraining([(study.run("a_seed-0"), complete)])
    for name, config in [("seed-0-other", {**wanted, "seed": 1}), ("seed-0-before", without(wanted, "teacher"))]:
        folder = study.pretraining / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert own.parent == study.pretraining
    assert list(unfinished_pretraining([(study.run("a_seed-0"), complete)])) == [study.pretraining / "seed-0-before"]
