from __future__ import annotations

import math
import re

import matplotlib as mpl
import pytest
from loops import each
from matplotlib.backends.backend_svg import FigureCanvasSVG
from reading import Page

from sparsemtl.report import charts, drawing
from sparsemtl.report.charts import gain_chart, line_chart
from sparsemtl.report.drawing import NEUTRAL
from sparsemtl.report.study_charts import _axis
from sparsemtl.report.ticks import PAD, estimated_room
from sparsemtl.views.plots import Axis, Gain, Line


def test_a_chart_is_one_svg_element_of_its_page():
    svg = line_chart([Line([1, 2, 3], [0.1, 0.2, 0.3], 0)], label="accuracy of <digit>")
    Page(svg)
    assert svg.startswith("<svg ")
    assert 'aria-label="accuracy of &lt;digit&gt;"' in svg
    assert "xmlns" not in svg
    assert "http" not in svg
    assert not re.search(r"#0[1-5]0[0-9a-f]{3}", svg)


def test_a_chart_is_the_one_that_savefig_draws(monkeypatch):
    def chart():
        return line_chart([Line([1, 2, 3], [0.1, 0.2, 0.3], 0), Line([1, 3], [10, 2000], 1)], label="a")

    class BySavefig:
        def __init__(self, figure):
            self.figure = FigureCanvasSVG(figure).figure  # text has the widths of SVG

        def print_svg(self, file, **options):
            self.figure.savefig(file, format="svg", **options)

    drawn = chart()
    monkeypatch.setattr(drawing, "FigureCanvasSVG", BySavefig)
    assert chart() == drawn


@pytest.mark.parametrize(("colour", "variable"), [(0, "--c0"), (3, "--c3"), (13, "--c3"), (NEUTRAL, "--ink")])
def test_every_task_has_its_colour_and_colours_begin_again(colour, variable):
    assert f"var({variable})" in line_chart([Line([1, 2], [0, 1], colour)], label="a")


def test_bands_are_drawn_only_where_there_is_a_deviation():
    with_band = line_chart([Line([1, 2], [0, 1], 0, deviation=[0.1, 0.1])], label="a")
    one_seed = line_chart([Line([1, 2], [0, 1], 0, deviation=[math.nan, math.nan])], label="a")
    assert "fill-opacity" in with_band or "opacity: 0.16" in with_band
    assert one_seed == line_chart([Line([1, 2], [0, 1], 0)], label="a")


def test_grid_values_are_labelled_as_they_are():
    svg = line_chart([Line([0.1, 0.25, 0.9], [1, 2, 3], 0)], label="a", axis=Axis("keep", ticks=[0.1, 0.25, 0.9]))
    assert {">0.1<", ">0.25<", ">0.9<", ">keep<"} <= set(re.findall(r">[^<\n]+<", svg))


def test_a_logarithmic_axis_and_levels_are_drawn():
    line, level = Line([1e-4, 1], [1, 2], 0), (1.5, 1)
    straight = line_chart([line], label="a", axis=Axis("lr"), levels=[level])
    logarithmic = line_chart([line], label="a", axis=Axis("lr", log=True), levels=[level])
    Page(logarithmic)
    assert logarithmic != straight
    assert logarithmic.count("var(--c1)") == 1
    assert "var(--c1)" not in line_chart([line], label="a", axis=Axis("lr", log=True))


@pytest.mark.parametrize(
    ("values", "log", "floor"),
    [
        ([0.1, 0.5, 0.9], False, None),
        ([0.0, 0.5, 1.0], False, None),
        ([1e-4, 1e-2], True, None),
        ([0.0, 1e-7, 1e-2], True, 1e-7),
        ([-1.0, 1e-7, 1e-2], False, None),
        ([0.0, 1e-2], False, None),
    ],
)
def test_a_key_over_decades_is_logarithmic_and_zero_has_a_place(values, log, floor):
    axis = _axis("lambda", values)
    assert (axis.log, axis.floor) == (log, floor)
    Page(line_chart([Line(values, values, 0)], label="a", axis=axis))


def test_gains_without_deviation_and_without_a_value_are_drawn():
    gains = [
        Gain("mtl", 0, -2.0, math.nan),
        Gain("fisher", 1, math.nan, math.nan),
        Gain("random", 2, 1.0, 0.5),
    ]
    svg = gain_chart(gains, label="gains")
    Page(svg)
    assert all(f">{gain.label}<" in svg for gain in gains)


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(mpl.rcParams)
    line_chart([Line([1, 2], [0, 1], 0)], label="a")
    assert dict(mpl.rcParams) == before


def test_the_same_chart_is_drawn_twice_alike_and_its_ids_differ_from_anothers():
    lines = [Line([1, 2], [0, 1], 0, dots=True)]
    first, again, other = (line_chart(lines, label=label) for label in ("a", "a", "b"))
    assert first == again
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, other)]
    assert all(ids)
    assert not ids[0] & ids[1]


CHARTS = {
    "fractions": lambda: line_chart([Line(list(range(1, 11)), [i / 10 for i in range(10)], 0)], label="a"),
    "many digits": lambda: line_chart([Line(list(range(1, 16)), [0.9971 + i / 1e5 for i in range(15)], 0)], label="a"),
    "large values": lambda: line_chart([Line([1, 2], [-1000, 25000], 0)], label="a"),
    "decades": lambda: line_chart([Line([1e-4, 1e-2], [1, 2], 0)], label="a", axis=Axis("lr", log=True)),
    "names": lambda: gain_chart([Gain("mtl", 0, -2, 0.3), Gain("random (0.3)", 1, 1, 0.3)], label="a"),
}


@each("name", CHARTS)
def test_texts_have_the_room_that_is_estimated_for_them(monkeypatch, name):
    rooms = []

    def both(axes):
        rooms[:] = [estimated_room(axes), drawing._measured_room(axes)]
        return rooms[0]

    monkeypatch.setattr(drawing, "estimated_room", both)
    CHARTS[name]()
    monkeypatch.undo()
    assert all(-PAD < one - other < 20 for one, other in zip(*rooms, strict=True)), rooms


@each("name", CHARTS)
def test_ticks_have_the_labels_of_matplotlib_at_their_places(monkeypatch, name):
    def drawn():
        svg = CHARTS[name]()
        texts = re.findall(r"<text[^>]*?translate\(([\d.]+) ([\d.]+)\)[^>]*>([^<]*)<", svg)
        return sorted((text, float(x), float(y)) for x, y, text in texts)

    ours = drawn()
    own = drawing._measured_room
    monkeypatch.setattr(charts, "draw", lambda *args, only_ticks, **options: drawing.draw(*args, **options))
    monkeypatch.setattr(drawing, "_measured_room", lambda axes: own(axes) and estimated_room(axes))
    theirs = drawn()
    monkeypatch.undo()
    assert [text for text, _, _ in ours] == [text for text, _, _ in theirs]
    assert all(math.dist(one[1:], other[1:]) < 6 for one, other in zip(ours, theirs, strict=True)), (ours, theirs)
