from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemtl.errors import MissingExtraError
from sparsemtl.storage.metrics import METRIC_COLUMNS, MetricRow, read_metrics
from sparsemtl.training.loggers import CSVLogger, TensorBoardLogger


def rows(step: int, count: int = 3, split: str = "train") -> list[MetricRow]:
    return [MetricRow(step // 10 + 1, step, split, "a", f"m{i}", step + i / 7) for i in range(count)]


def logged(path: Path, steps: range) -> list[MetricRow]:
    """A file with rows of these steps."""
    logger = CSVLogger(path)
    for step in steps:
        logger.log(rows(step))
    return [row for step in steps for row in rows(step)]


def test_the_file_has_a_header_and_a_line_a_figure(tmp_path: Path) -> None:
    logged(tmp_path / "metrics.csv", range(1, 3))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == METRIC_COLUMNS
    assert lines[1] == ["1", "1", "train", "a", "m0", "1.0"]
    assert len(lines) == 1 + 6


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), max_size=8)
figures = st.builds(
    MetricRow, st.integers(0, 9), st.integers(0, 99), text, text, text, st.floats(allow_nan=False) | st.integers(-9, 9)
)


@settings(deadline=None)
@given(st.lists(figures, max_size=6))
def test_what_is_logged_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, expected: list[MetricRow]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.csv"
    CSVLogger(path).log(expected)
    assert read_metrics(path) == expected


def test_a_metrics_name_may_hold_a_comma_and_quotes(tmp_path: Path) -> None:
    row = MetricRow(1, 1, "validation", "a", 'top-1, "macro"', 0.5)
    CSVLogger(tmp_path / "metrics.csv").log([row])
    CSVLogger(tmp_path / "metrics.csv", resume_at=1).log([row])
    assert read_metrics(tmp_path / "metrics.csv") == [row, row]


def test_undefined_figures_are_read_back(tmp_path: Path) -> None:
    CSVLogger(tmp_path / "metrics.csv").log([MetricRow(1, 1, "test", "a", "r2", math.nan)])
    assert math.isnan(read_metrics(tmp_path / "metrics.csv")[0].value)


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    logged(tmp_path / "metrics.csv", range(5))
    CSVLogger(tmp_path / "metrics.csv")
    assert read_metrics(tmp_path / "metrics.csv") == []


@pytest.mark.parametrize("resume_at", [0, 1, 4, 9])
def test_resuming_drops_what_came_later(tmp_path: Path, resume_at: int) -> None:
    before = logged(tmp_path / "metrics.csv", range(1, 6))
    CSVLogger(tmp_path / "metrics.csv", resume_at=resume_at)
    assert read_metrics(tmp_path / "metrics.csv") == [row for row in before if row.step <= resume_at]


def test_resuming_drops_figures_of_a_test_which_comes_last(tmp_path: Path) -> None:
    before = logged(tmp_path / "metrics.csv", range(1, 3))
    CSVLogger(tmp_path / "metrics.csv", resume_at=2).log(rows(2, split="test"))
    CSVLogger(tmp_path / "metrics.csv", resume_at=2)
    assert read_metrics(tmp_path / "metrics.csv") == before


def test_a_resumed_file_goes_on(tmp_path: Path) -> None:
    before = logged(tmp_path / "metrics.csv", range(1, 4))
    CSVLogger(tmp_path / "metrics.csv", resume_at=2).log(rows(3))
    assert read_metrics(tmp_path / "metrics.csv") == before


def test_resuming_without_a_file_begins_one(tmp_path: Path) -> None:
    CSVLogger(tmp_path / "new" / "metrics.csv", resume_at=3).log(rows(4))
    assert read_metrics(tmp_path / "new" / "metrics.csv") == rows(4)


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    before = logged(path, range(1, 3))
    whole = path.read_bytes()
    CSVLogger(path, resume_at=2).log([MetricRow(1, 2, "train", "a", "loss", 0.123456789)])
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[: min(cut, len(line) - 1)])
    assert read_metrics(path) == before
    CSVLogger(path, resume_at=2).log(rows(3))
    assert read_metrics(path) == [*before, *rows(3)]


def test_a_half_written_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    before = logged(path, range(1, 5))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        CSVLogger(path, resume_at=2)
    assert read_metrics(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value), as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_a_curve_a_figure(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    for step in (1, 2):
        logger.log([MetricRow(1, step, "train", "a", "loss", step / 2), MetricRow(1, step, "run", "", "lr", 0.25)])
    logger.close()
    assert scalars(tmp_path) == {"a/train/loss": [(1, 0.5), (2, 1.0)], "run/lr": [(1, 0.25), (2, 0.25)]}


def test_tensorboard_forgets_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    first = TensorBoardLogger(tmp_path)
    for step in range(1, 6):
        first.log([MetricRow(1, step, "train", "a", "loss", float(step))])
    first.close()
    second = TensorBoardLogger(tmp_path, resume_at=3)
    for step in (4, 5, 6):
        second.log([MetricRow(1, step, "train", "a", "loss", -float(step))])
    second.close()
    assert scalars(tmp_path) == {"a/train/loss": [(1, 1), (2, 2), (3, 3), (4, -4), (5, -5), (6, -6)]}


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"needs 'tensorboard': pip install 'sparsemtl\[tensorboard\]'"):
        TensorBoardLogger(tmp_path)
