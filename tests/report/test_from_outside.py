"""A sharing method, an architecture and a balancer from outside show all that they measure, without an edit of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reading import Page
from torch import nn

import sparsemtl as sm
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.balancing import BALANCERS, Balancer
from sparsemtl.networks.declarations import Figure, SummaryTable
from sparsemtl.networks.task_networks import TaskNetwork, TaskNetworks
from sparsemtl.report.run_page import run_page
from sparsemtl.runs.run import run
from sparsemtl.sharing import SHARING


class TideSharing(sm.Sharing):
    """Every task uses every weight, and the moon is watched."""

    figures = (
        Figure("height", "Height of the tide", "metres", higher_is_better=True),
        Figure("phase", "Phase of the moon", "fraction of the month", per_task=False),
    )

    def start(self, model):
        return TaskNetworks({task: TaskNetwork() for task in model.tasks})

    def metrics(self, model, networks):
        self.height = getattr(self, "height", 0.0) + 1.5
        for i, task in enumerate(model.tasks):
            yield task, "height", self.height + i
        yield "", "phase", 0.25

    def tables(self, model, networks):
        rows = [(task, i, 0.5 * i) for i, task in enumerate(model.tasks)]
        return (SummaryTable("Harbours", ("task", "ships", "full"), rows, fractions=("full",)),)


class LighthouseModel(sm.SharedBottom):
    """A shared bottom with a light."""

    figures = (Figure("beam", "Length of the beam", "miles"),)

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        self.beam = getattr(self, "beam", 10.0) + 1
        yield next(iter(self.tasks)), "beam", self.beam

    def tables(self) -> tuple[SummaryTable, ...]:
        return (SummaryTable("Lamps", ("lamp", "watts"), [("upper", 1200)], "All of them."),)


class Ballast(Balancer):
    """Weights that grow."""

    figures = (*Balancer.figures, Figure("load", "Load", "tonnes"), Figure("draught", "Draught", per_task=False))

    def __init__(self) -> None:
        self.epoch = 0

    def weights(self, losses, present=None):
        return torch.ones_like(losses) * (1 + self.epoch)

    def end_epoch(self) -> None:
        self.epoch += 1

    def metrics(self) -> Iterator[tuple[int | None, str, float]]:
        yield 0, "load", float(self.epoch)
        yield None, "draught", 2.0 * self.epoch


def lighthouse(encoder: nn.Module, tasks, heads=None) -> LighthouseModel:
    return LighthouseModel(encoder, tasks, heads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside") / "run"
    added = ((SHARING, "tide", TideSharing), (ARCHITECTURES, "lighthouse", lighthouse), (BALANCERS, "ballast", Ballast))
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, member in added:
            patch.setitem(registry._members, name, member)
        config = {
            "data": {"name": "two-regressions", "train_size": 200, "validation_size": 50, "test_size": 50},
            "encoder": {"name": "mlp", "hidden": [4]},
            "architecture": "lighthouse",
            "sharing": "tide",
            "balancing": "ballast",
            "training": {"epochs": 3, "measure_cost": False},
        }
        run(config, folder, progress=False)
    return folder


def test_all_figures_and_tables_stand_in_the_report_of_the_folder_alone(folder: Path) -> None:
    html = run_page(folder)
    page = Page(html)
    sections = ["Architecture: lighthouse", "Sharing method: tide", "Balancing: ballast"]
    assert [title for title in page.sections if title in sections] == sections
    labels = set(re.findall(r'aria-label="([^"]* over epochs[^"]*)"', html))
    assert {
        "Height of the tide over epochs",
        "Length of the beam over epochs",
        "Load over epochs",
        "Loss weights over epochs",
        "Draught over epochs, all tasks together",
    } <= labels
    assert "Phase of the moon 0.2500" in page.text
    for words in ("metres ↑", "miles", "tonnes", "Harbours", "ships", "Lamps", "upper 1,200", "All of them."):
        assert words in page.text


def test_figures_are_logged_as_those_of_their_part(folder: Path) -> None:
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    splits: dict[str, set[str]] = {}
    for _, _, split, _, name, _ in lines:
        splits.setdefault(split, set()).add(name)
    assert splits["sharing"] == {"height", "phase"}
    assert splits["architecture"] == {"beam"}
    assert splits["balancing"] == {"weight", "load", "draught"}


def test_declarations_are_part_of_the_summary(folder: Path) -> None:
    declared = json.loads((folder / "summary.json").read_text())["declarations"]
    assert [figure["name"] for figure in declared["sharing"]["figures"]] == ["height", "phase"]
    assert [table["title"] for table in declared["architecture"]["tables"]] == ["Lamps"]
