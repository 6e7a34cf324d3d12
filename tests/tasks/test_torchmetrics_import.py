"""A torchvision that does not fit torch is named, with what to do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sparsemtl as sm
from sparsemtl.errors import DependencyError

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"


@contextmanager
def installed(folder: Path, content: str) -> Iterator[None]:
    """A torchvision of this content is found, and torchmetrics not imported yet, inside the context."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(content)
    (folder / "torchvision-0.1.2.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.2\n"
    (folder / "torchvision-0.1.2.dist-info" / "METADATA").write_text(about)
    before = {name: sys.modules.pop(name) for name in imported()}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in imported():
            del sys.modules[name]
        sys.modules.update(before)


def imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in ("torchmetrics", "torchvision")]


@pytest.mark.parametrize("broken", [BROKEN, "raise ImportError('undefined symbol')", "import torchvision.absent"])
def test_a_torchvision_for_another_torch_is_named_with_the_remedy(tmp_path: Path, broken: str) -> None:
    with installed(tmp_path, broken), pytest.raises(DependencyError) as error:
        sm.Classification("t", 3).metrics()
    said = str(error.value)
    assert said.startswith("torchmetrics cannot be imported: ")
    assert broken is not BROKEN or "operator torchvision::nms does not exist" in said
    assert "The installed torchvision 0.1.2 does not fit torch" in said
    assert "pip uninstall torchvision" in said
