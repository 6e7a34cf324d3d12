"""A torchvision that does not fit torch is named, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sparsemtl as sm
from sparsemtl.errors import SparseMTLError
try:
    print(list(sm.Classification("t", 3).metrics())[0])
except SparseMTLError as error:
    print(type(error).__name__, error)
"""
BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"


def measured(folder: Path, *, torchvision: str | None) -> str:
    """What a process prints that measures with an installed torchvision of this content."""
    if torchvision is not None:
        (folder / "torchvision").mkdir()
        (folder / "torchvision" / "__init__.py").write_text(torchvision)
        (folder / "torchvision-0.1.2.dist-info").mkdir()
        about = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.2\n"
        (folder / "torchvision-0.1.2.dist-info" / "METADATA").write_text(about)
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_torchvision_for_another_torch_is_named_with_the_remedy(tmp_path: Path) -> None:
    said = measured(tmp_path, torchvision=BROKEN)
    assert said.startswith("DependencyError torchmetrics cannot be imported: operator torchvision::nms does not exist")
    assert "The installed torchvision 0.1.2 does not fit torch" in said
    assert "pip uninstall torchvision" in said


@pytest.mark.parametrize("broken", ["raise ImportError('undefined symbol')", "import torchvision.absent"])
def test_sparsemtl_itself_is_imported_without_torchvision(tmp_path: Path, broken: str) -> None:
    assert "pip uninstall torchvision" in measured(tmp_path, torchvision=broken)
