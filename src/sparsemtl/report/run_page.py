"""Report of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sparsemtl.report.charts import Chart, line_chart
from sparsemtl.report.declared import TITLES, section
from sparsemtl.report.mask_view import MaskView, mask_view, masks_of
from sparsemtl.report.page import render
from sparsemtl.report.pictures import galleries
from sparsemtl.report.run_cost import cost_view
from sparsemtl.report.words import arrow, duration, percent, plural, scores
from sparsemtl.storage.run_folder import RunFolder, RunRecord
from sparsemtl.views.plots import Line


@dataclass(frozen=True)
class _Result:
    """Row of the table of results: one metric of one task.

    Attributes:
        metric: name of the metric.
        higher: higher is better; None if the summary does not say.
        primary: it is the task's primary metric.
        validation: value on validation data at the task's best epoch; None if it was not measured.
        test: the same on test data.
    """

    metric: str
    higher: bool | None
    primary: bool
    validation: float | None
    test: float | None


def run_page(path: Path) -> str:
    """Return the report of a run as a page of HTML.

    Raises:
        CheckpointError: if `summary.json` is missing, or a file of the run is damaged.
    """
    run = RunFolder(path).read()
    colours = {task: i for i, task in enumerate(run.tasks)}
    masks = masks_of(run)
    view = mask_view(masks) if masks else None
    return render(
        "run.html",
        run=run,
        title=run.summary.get("name") or path.resolve().name,
        colours=colours,
        kept=dict(zip(view.tasks, view.counts, strict=True)) if view else {},
        environment=_environment(run),
        lead=_lead(run),
        selection=_selection(run),
        cost=cost_view(run.summary),
        sharing_lead=_sharing_lead(view) if view else "",
        facts=list(_facts(run, view)),
        results={task: _results(about) for task, about in run.tasks.items()},
        curves=_learning_curves(run, colours),
        view=view,
        parts={part: section(run, part, colours) for part in TITLES},
        galleries=galleries(run.folder.read_samples(), run.tasks),
    )


def _results(about: Mapping[str, Any]) -> list[_Result]:
    directions = about.get("directions", {})
    validation, test = about.get("validation", {}), about.get("test", {})
    primary = about.get("primary")
    names = list(dict.fromkeys([primary, *validation, *test]))
    return [
        _Result(name, directions.get(name), name == primary, validation.get(name), test.get(name))
        for name in names
        if name is not None
    ]


def _lead(run: RunRecord) -> str:
    """Return the result in one sentence, on test data if the run was tested."""
    split = "test" if any(_primary(about, "test") is not None for about in run.tasks.values()) else "validation"
    values = [
        (task, about["primary"], value)
        for task, about in run.tasks.items()
        if (value := _primary(about, split)) is not None
    ]
    return f"On {split} data: {scores(values)}." if values else "No task has been evaluated."


def _selection(run: RunRecord) -> str:
    """Return the rule of model selection, its references and its undefined metrics; "" if the summary has none."""
    about = run.summary.get("selection", {})
    if not about.get("rule"):
        return ""
    parts = [f"Selected by the {about['rule']}."]
    if references := about.get("references"):
        named = (f"{t} {r['metric']} {r['value']:.4g} (epoch {r['epoch']})" for t, r in references.items())
        parts.append(f"References R: {', '.join(named)}.")
    for gap in about.get("undefined", ()):
        epochs = ", ".join(map(str, gap["epochs"]))
        parts.append(f"Undefined, and left out: {gap['metric']} of {gap['task']} in epoch {epochs}.")
    return " ".join(parts)


def _sharing_lead(view: MaskView) -> str:
    low, high = min(view.whole.densities), max(view.whole.densities)
    part = percent(low) if percent(low) == percent(high) else f"{percent(low)} to {percent(high)}"
    first = f"Each task uses {part} of the {view.whole.size:,} weights that tasks may share"
    if view.overlap is None or view.by_chance is None:
        return f"{first}."
    return (
        f"{first}. Two tasks have on average {percent(view.overlap)} of the weights that either uses in "
        f"common; drawn at random, it would be {percent(view.by_chance)}."
    )


def _primary(about: Mapping[str, Any], split: str) -> float | None:
    value: float | None = about.get(split, {}).get(about["primary"])
    return value


def _facts(run: RunRecord, view: MaskView | None) -> Iterator[tuple[str, str]]:
    """Yield name and value of the facts at the head of the page."""
    summary = run.summary
    axes = summary.get("axes", {})
    for axis in ("data", "encoder", "architecture", "sharing", "balancing"):
        if axes.get(axis):
            yield axis, str(axes[axis])
    if summary.get("parameters", {}).get("total"):
        yield "parameters", f"{summary['parameters']['total']:,}"
    if view:
        yield "weights per task", percent(sum(view.whole.densities) / len(view.tasks))
    if summary.get("epochs") is not None:
        yield "epochs", str(summary["epochs"])
    if summary.get("seconds") is not None:
        yield "time", duration(summary["seconds"])
    speed = run.curve("run", "", "samples_per_second")
    if len(speed):
        yield "speed", f"{plural(round(median(speed.values())), 'sample')}/s"
    if summary.get("seed") is not None:
        yield "seed", str(summary["seed"])


def _environment(run: RunRecord) -> str:
    """Return versions and machine in one line."""
    about = run.environment
    parts = [f"{name} {version}" for name, version in about.get("versions", {}).items() if version]
    machine = ("device", "processor", "threads", "platform")
    parts += [f"{name} {about[name]}" for name in machine if about.get(name) is not None]
    return ", ".join(parts)


def _learning_curves(run: RunRecord, colours: Mapping[str, int]) -> dict[str, list[Chart]]:
    """Return heading -> one chart per task."""
    parts = {
        "Primary metrics": {task: about["primary"] for task, about in run.tasks.items()},
        "Loss": {task: "loss" for task, about in run.tasks.items() if about["primary"] != "loss"},
    }
    charts = {
        heading: [chart for task, metric in part.items() if (chart := _curve(run, task, metric, colours[task]))]
        for heading, part in parts.items()
    }
    return {heading: drawn for heading, drawn in charts.items() if drawn}


def _curve(run: RunRecord, task: str, metric: str, colour: int) -> Chart | None:
    about = run.tasks[task]
    train, validation = (run.curve(split, task, metric) for split in ("train", "validation"))
    lines = [
        Line(list(curve), list(curve.values()), colour, dashed=curve is train)
        for curve in (train, validation)
        if len(curve)
    ]
    if not lines:
        return None
    epoch = about.get("best_epoch")
    best = [(e, value, colour) for e, value in validation.items() if e == epoch]
    higher = about.get("directions", {}).get(metric, False if metric == "loss" else None)
    svg = line_chart(lines, marks=best, label=f"{metric} of {task} over epochs")
    return Chart(task, f"{metric}{arrow(higher)}", svg, colour)
