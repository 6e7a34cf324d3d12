"""Tasks measure without the parts of torchmetrics that need other libraries; what breaks those is named."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import sparsemtl as sm
from sparsemtl.errors import DependencyError
from sparsemtl.tasks.metrics import torchmetrics_import

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"


@contextmanager
def not_imported() -> Iterator[None]:
    """No module of torchmetrics is imported yet inside the context."""
    before = {name: sys.modules.pop(name) for name in imported()}
    try:
        yield
    finally:
        for name in imported():
            del sys.modules[name]
        sys.modules.update(before)


@contextmanager
def installed(folder: Path, content: str) -> Iterator[None]:
    """A torchvision of this content is found, and torchmetrics not imported yet, inside the context."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(content)
    (folder / "torchvision-0.1.2.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.2\n"
    (folder / "torchvision-0.1.2.dist-info" / "METADATA").write_text(about)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        with not_imported():
            yield
    finally:
        sys.path.remove(str(folder))


def imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in ("torchmetrics", "torchvision")]


@pytest.mark.skipif(version("torchmetrics").startswith("1.3."), reason="torchmetrics 1.3 imports no torchvision")
@pytest.mark.parametrize("broken", [BROKEN, "raise ImportError('undefined symbol')", "import torchvision.absent"])
def test_a_torchvision_for_another_torch_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    monkeypatch.setattr(torchmetrics_import, "_put_off", lambda package, **_: importlib.import_module("absent"))
    with installed(tmp_path, broken), pytest.raises(DependencyError) as error:
        sm.Classification("t", 3).metrics()
    said = str(error.value)
    assert said.startswith("torchmetrics cannot be imported: ")
    assert broken is not BROKEN or "operator torchvision::nms does not exist" in said
    assert "The installed torchvision 0.1.2 does not fit torch" in said
    assert "pip uninstall torchvision" in said


def test_tasks_measure_beside_such_a_torchvision(tmp_path: Path) -> None:
    with installed(tmp_path, BROKEN):
        assert next(iter(sm.Classification("t", 3).metrics())) == "accuracy"
        assert "torchvision" not in sys.modules
        assert not [name for name in imported() if name.split(".")[-1] in ("text", "audio", "image")]


def test_all_of_torchmetrics_is_there_when_it_is_asked_for() -> None:
    with not_imported():
        metric = sm.Classification("t", 3).metrics()["f1_macro"]
        import torchmetrics

        assert torchmetrics.__version__ == version("torchmetrics")
        assert "torchmetrics.text" not in sys.modules
        assert "MetricCollection" in torchmetrics.__all__
        assert isinstance(metric, torchmetrics.Metric)
        assert isinstance(metric, torchmetrics.classification.MulticlassF1Score)
        from torchmetrics import SumMetric, functional

        assert float(SumMetric()(torch.tensor([1.0, 2.0]))) == 3
        assert functional.pairwise_manhattan_distance(torch.eye(2)).tolist() == [[0, 2], [2, 0]]
        assert torchmetrics.text.BLEUScore().n_gram == 4
        assert type(pickle.loads(pickle.dumps(metric))) is type(metric)
        with pytest.raises(AttributeError, match="module 'torchmetrics' has no attribute 'absent'"):
            torchmetrics.absent  # noqa: B018
