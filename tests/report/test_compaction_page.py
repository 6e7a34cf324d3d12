"""The page of a compaction holds its figures, escapes its texts and loads nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reading import Page
from torch import nn

import sparsemtl as sm
from sparsemtl.compaction import ActivationMemory, CompactionReport, LayerReport, Verification
from sparsemtl.report.compaction_page import compaction_page

EVIL = "<script>alert(1)</script>"


def small() -> sm.compaction.CompactedModule:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Softmax(1))
    with torch.no_grad():
        layers[3].weight[:, 5:] = 0
    return sm.compact(layers.eval(), example_inputs=torch.rand(2, 3, 8, 8))


def test_a_page_shows_every_layer_and_why_it_is_not_smaller(tmp_path: Path) -> None:
    report = small().report
    path = sm.report.write_compaction_report(report, tmp_path / "digit.html", title="digit")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "digit" in text
    assert "Its outputs are the same up to rounding." in text
    assert "8 → 5" in text
    assert "1 BatchNorm2d, part of the layers before them" in text
    assert report.layer("3").why.replace("`", "") in text
    assert f"{report.macs[1]:,}"[:2] in text


def test_texts_are_escaped_and_what_was_not_verified_is_said() -> None:
    layers = (
        LayerReport(EVIL, EVIL, (2, 1), (2, 1), EVIL),
        LayerReport("gone", "Linear", (2, 0), (2, 0), removed=True),
    )
    page = compaction_page(CompactionReport(layers, (4, 2), None, Verification(reason=EVIL)), title=EVIL)
    assert "<script>alert" not in page
    assert "It was not compared with the model." in page
    assert "Nothing was verified" in page


@pytest.mark.parametrize("equal", [True, False])
def test_outputs_that_differ_are_said_to_differ(equal: bool) -> None:
    found = Verification(1.0, None, "inputs", outputs={"a": {"float64": 1.0}}, equal=equal)
    memory = (ActivationMemory(2_345_678, 3_000_000), ActivationMemory(100, 200))
    page = compaction_page(CompactionReport((), (4, 2), (8, 4), found, memory=memory))
    assert ("The outputs are not equal." in page) != equal
    assert "100\N{NO-BREAK SPACE}B" in page
    assert "2,346\N{NO-BREAK SPACE}kB" in page
