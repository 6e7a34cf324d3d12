"""`advise`: its rules on made-up facts, valid configurations of all suggestions, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sparsemtl as sm
from sparsemtl.cli.main import app
from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.runs.advice import TaskFacts, advice_of
from sparsemtl.runs.config import check
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml
from sparsemtl.training.choosing.affinity import TaskAffinity

CONFIG: dict[str, Any] = {
    "data": {"name": "clustered-regressions", "tasks": 3, "train_size": 60, "validation_size": 30, "test_size": 30},
    "encoder": {"name": "mlp", "hidden": [8, 6]},
    "sharing": "fisher",
    "training": {"epochs": 2, "batch_size": 16, "accelerator": "cpu"},
}
GROUPS = [["a", "c"], ["b"]]


def facts(rows: int = 100, weights: int = 1664, groups: Any = GROUPS, **changes: Any) -> TaskFacts:
    names = sorted(task for group in groups for task in group)
    together = {frozenset((a, b)) for group in groups for a in group for b in group}
    overlap = [[float(a == b) or (0.3 if {a, b} in together else 0.05) for b in names] for a in names]
    affinity = TaskAffinity(tuple(names), 0.1, overlap, overlap, overlap, dict.fromkeys(names, 1.0))
    config = check({**CONFIG, "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.0}})
    given: dict[str, Any] = {"affinity": affinity if len(names) > 1 else None, "scales": "", "vectors": True}
    given |= {"config": config, "rows": dict.fromkeys(names, rows), "weights": weights, "epochs": 5, "seconds": 1.0}
    return TaskFacts(**{**given, **changes})


def titles(found: TaskFacts) -> list[str]:
    return [one.title for one in advice_of(found).suggestions]


SMALL = "Only if you want a smaller network: prune it while it trains"


def test_rules_follow_the_experiments() -> None:
    decay, auto, masks = "More weight decay", "Let validation choose per task", "Masks of task-specific weights"
    encoders, apart = "One encoder per group of tasks", "Networks of their own"
    related, unrelated = [["a", "b", "c"]], [["a"], ["b"], ["c"]]
    assert titles(facts(1600, groups=related)) == ["Keep the plain shared network", SMALL]
    assert titles(facts(100, groups=related)) == [decay, auto, SMALL]
    assert titles(facts(100)) == [decay, auto, masks, encoders, SMALL]
    assert titles(facts(1600, groups=unrelated)) == [decay, auto, masks, apart, SMALL]
    assert titles(facts(1600, scales="losses differ."))[0] == "Weigh the losses"
    assert titles(facts(1600, groups=[["a"]])) == [SMALL]
    decayed = check({**CONFIG, "optimizer": {"name": "adamw", "weight_decay": 0.3}})
    assert titles(facts(100, groups=related, config=decayed)) == [auto, SMALL]


def test_small_networks_keep_more_and_thin_evidence_is_called_thin() -> None:
    def found(**changes: Any) -> dict[str, Any]:
        return {one.title: one for one in advice_of(facts(**changes)).suggestions}

    masks = "Masks of task-specific weights"
    assert found()[masks].changes["sharing"]["keep"] == 0.1
    assert found(weights=224)[masks].changes["sharing"]["keep"] == 0.3
    assert found(rows=1600)[masks].changes["sharing"]["keep"] == 0.3
    assert found()[masks].evidence == "fair"
    assert found(vectors=False)[masks].evidence == "thin"
    assert any("224 shared weights" in text for text in advice_of(facts(weights=224)).cautions)
    assert any("nothing is shared" in text for text in advice_of(facts(groups=[["a"]])).cautions)


def test_every_suggestion_is_a_valid_configuration() -> None:
    names = [["task0", "task2"], ["task1"]]
    for optimizer in ("adam", "adamw", "sgd"):
        for sharing in ("auto", "random"):
            config = check({**CONFIG, "optimizer": optimizer, "sharing": sharing, "name": "mine"})
            advice = advice_of(facts(groups=names, config=config, scales="losses differ."))
            for number, one in enumerate(advice.suggestions):
                made = check(advice.config(number))
                assert (made["auto"] is not None) == (one.title == "Let validation choose per task")
                assert made["name"] is None
                assert check(read_yaml_text({**CONFIG, **one.changes}))["encoder"] == made["encoder"]


def read_yaml_text(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as its YAML says it."""
    return json.loads(json.dumps(config))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(CONFIG))
    return path


def test_the_command_prints_json_and_writes_the_first_suggestion(file: Path, tmp_path: Path) -> None:
    written = tmp_path / "first.yaml"
    command = ["advise", str(file), "--json", "--write", str(written), "--epochs", "1"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    record = json.loads(result.stdout)
    assert record["measured"]["rows"] == dict.fromkeys(("task0", "task1", "task2"), 60)
    assert record["measured"]["weights"] == 20 * 8 + 8 * 6
    assert record["measured"]["epochs"] == 1
    assert len(record["measured"]["affinity"]["overlap"]) == 3
    first = record["suggestions"][0]
    own = read_yaml(written)
    assert own["data"] == CONFIG["data"]
    assert all(own[key].items() >= value.items() for key, value in first["changes"].items())
    check(own)
    assert "trains the plain shared network for 1 epochs" in result.stderr
    with pytest.raises(ConfigError, match=r"first.yaml exists already"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_command_prints_reasons_and_lines_to_paste(file: Path) -> None:
    result = CliRunner().invoke(app, ["advise", str(file), "-q", "sharing=auto"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for words in (
        "training samples",
        "0.05 by chance",
        "1. ",
        SMALL,
        "    sharing:\n      name: pruning",
        "caution",
    ):
        assert words in result.output, words
    assert "epoch" not in result.stderr
    assert [path.name for path in file.parent.iterdir()] == ["run.yaml"]


def test_one_task_and_pretrained_configurations_have_advice() -> None:
    alone = sm.advise({**CONFIG, "tasks": ["task1"], "pretraining": {"tasks": ["task0"]}}, epochs=1, progress=False)
    assert alone.facts.affinity is None
    assert list(alone.facts.rows) == ["task1"]
    assert alone.suggestions[-1].title == SMALL
    assert "training samples" in str(alone)


def test_mistakes_are_named(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match="expected an encoder with trained weights that tasks share"):
        sm.advise({**CONFIG, "freeze": True}, progress=False)
    with pytest.raises(ParameterError, match="`epochs` must be at least 1, got 0"):
        sm.advise(CONFIG, epochs=0)
    study = tmp_path / "study.yaml"
    study.write_text(dump_yaml({"base": CONFIG, "methods": {"a": {}}}))
    with pytest.raises(ConfigError, match="is a study"):
        CliRunner().invoke(app, ["advise", str(study)], catch_exceptions=False)
