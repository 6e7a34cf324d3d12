"""The Python files of examples/ run, and do what their texts say; so does the configuration beside one of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sparsemtl as sm
from sparsemtl.backbones import ENCODERS
from sparsemtl.data import DATASETS, Split
from sparsemtl.registry.plugins import with_plugins
from sparsemtl.runs.changes import override
from sparsemtl.runs.config import check
from sparsemtl.runs.run import run
from sparsemtl.storage.yaml_text import read_yaml

EXAMPLES = Path(__file__).parent.parent / "examples"

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def unchanged_encoders() -> Iterator[None]:
    before = dict(ENCODERS._members)
    yield
    ENCODERS._members = before


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_three_text_tasks_on_one_bert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = load("text_tasks", monkeypatch).main(samples=96, epochs=2)
    assert trainer.masks is not None
    assert all(0 < trainer.masks.density(task) < 1 for task in ("intent", "sentiment", "tags"))
    *figures, sizes = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split(":")[0] for line in figures] == ["intent", "sentiment", "tags"]
    small, _, whole = sizes.removeprefix("intent alone: ").split()[:3]
    assert int(small) < int(whole)


def test_three_text_tasks_from_a_configuration_alone(tmp_path: Path) -> None:
    small = ["data.train_size=64", "data.validation_size=32", "data.test_size=32", "sharing.samples=32"]
    config = check(override(read_yaml(EXAMPLES / "text-tasks.yaml"), [*small, "training.epochs=2"]))
    results = run(config, tmp_path / "run", progress=False)
    assert list(results) == ["intent", "sentiment", "tags"]
    loaded = sm.load_run(tmp_path / "run")
    words = DATASETS.build("sentences", train_size=1, validation_size=1, test_size=4).test
    assert isinstance(words, Split)
    torch.testing.assert_close(loaded.compact("tags")(words.x), loaded.predict(words.x)["tags"])


def test_two_image_tasks_on_a_vit_as_a_script_and_as_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load("digits_vit", monkeypatch).main(epochs=2)
    small, _, whole = capsys.readouterr().out.splitlines()[-1].removeprefix("digit alone: ").split()[:3]
    assert int(small) < int(whole)
    content = with_plugins(read_yaml(EXAMPLES / "digits-vit.yaml"), EXAMPLES, ())
    config = check(override(content, ["training.epochs=2", "training.batch_size=256"]))
    assert config["encoder"] == {"name": "vit", "patch": 2, "width": 32, "layers": 2, "heads": 4}
    results = run(config, tmp_path / "run", progress=False)
    assert list(results) == ["digit", "slant"]
