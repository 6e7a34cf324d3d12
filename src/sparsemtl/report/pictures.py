"""Test samples with the tasks' predictions: images as PNG inside the page, vectors as small bars."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from markupsafe import Markup
from matplotlib.image import imsave
from torch import Tensor

from sparsemtl.report.maps import MAPS, class_colour
from sparsemtl.report.words import number

LIMIT = 24
"""Largest number of samples that are shown of a group."""
_LIMIT_OF_MAPS = 6
"""The same of a group with maps, of which every sample takes a row."""
_WIDEST = 64
"""Largest number of features of a vector that is drawn."""

_Verdict = Literal["right", "wrong", "none"]


@dataclass(frozen=True)
class Answer:
    """Prediction of one task for one sample.

    Attributes:
        task: name of the task.
        said: the prediction.
        truth: the label if it differs from the prediction, and always for regression; else "".
        verdict: `none` if there is no label, or no right and wrong.
    """

    task: str
    said: str
    truth: str
    verdict: _Verdict


@dataclass(frozen=True)
class _MapAnswer:
    """Label map and predicted map of one task, as `img` elements."""

    task: str
    truth: Markup
    said: Markup


@dataclass(frozen=True)
class _SampleView:
    """One input as a picture (an `img` or `svg` element, or ""), and the tasks' predictions for it."""

    picture: Markup
    answers: Sequence[Answer]
    maps: Sequence[_MapAnswer] = ()


@dataclass(frozen=True)
class _Gallery:
    """Samples of one loader.

    Attributes:
        group: "all", or the task that the loader belongs to.
        samples: the first samples.
        total: number of samples that the run kept.
        legends: task -> (class, colour) of its label maps.
    """

    group: str
    samples: Sequence[_SampleView]
    total: int
    legends: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)


def galleries(samples: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> list[_Gallery]:
    """Return a run's samples as pictures and predictions.

    Args:
        samples: group -> {"x": (n, C, H, W) or (n, F), "tasks": {task: {"target", "prediction"}}}.
        tasks: task -> its entry in the summary, with its kind and the names of its classes.
    """
    return [_gallery(group, content, tasks) for group, content in samples.items() if len(content["x"])]


def _gallery(group: str, content: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> _Gallery:
    total = len(content["x"])
    kinds = {task: tasks.get(task, {}).get("kind", "") for task in content["tasks"]}
    mapped = [task for task, kind in kinds.items() if kind in MAPS]
    pictures = _pictures(content["x"][: _LIMIT_OF_MAPS if mapped else LIMIT].detach().float())
    shown = [
        _SampleView(
            picture,
            [
                _answer(task, tasks.get(task, {}), given["target"][i], given["prediction"][i])
                for task, given in content["tasks"].items()
                if task not in mapped
            ],
            [_map_answer(task, tasks[task], content["tasks"][task], i) for task in mapped],
        )
        for i, picture in enumerate(pictures)
    ]
    legends = {task: _legend(tasks[task].get("classes")) for task in mapped}
    return _Gallery(group, shown, total, {task: legend for task, legend in legends.items() if legend})


def _map_answer(task: str, about: Mapping[str, Any], given: Mapping[str, Tensor], i: int) -> _MapAnswer:
    classes = len(about.get("classes") or ())
    truth, said = MAPS[about["kind"]](given["target"][i], given["prediction"][i], classes)
    return _MapAnswer(task, _image(truth.clamp(0, 1)), _image(said.clamp(0, 1)))


def _legend(names: Sequence[str] | None) -> list[tuple[str, str]]:
    return [(str(name), class_colour(i)) for i, name in enumerate(names or ())]


def _pictures(x: Tensor) -> list[Markup]:
    x = x.nan_to_num()
    low, high = x.amin(), x.amax()
    scaled = (x - low) / (high - low).clamp(min=1e-12)
    if x.ndim == 4:
        return [_image(sample) for sample in scaled]
    if x.ndim == 2 and x.shape[1] <= _WIDEST:
        return [_bars(sample) for sample in scaled]
    return [Markup("")] * len(x)


def _image(pixels: Tensor) -> Markup:
    """Return a PNG of (C, H, W) in [0, 1]: three channels are colours, any other number is averaged to grey."""
    file = io.BytesIO()
    if len(pixels) == 3:
        imsave(file, pixels.permute(1, 2, 0).numpy(), format="png")
    else:
        imsave(file, pixels.mean(0).numpy(), format="png", cmap="gray", vmin=0, vmax=1)
    text = base64.b64encode(file.getvalue()).decode()
    return Markup('<img alt="" src="data:image/png;base64,{}">').format(text)


def _bars(values: Tensor) -> Markup:
    """Draw one bar per feature, values in [0, 1]."""
    path = "".join(f"M{i + 0.5} 24v{-(1 + 22 * value):.1f}" for i, value in enumerate(values.tolist()))
    return Markup('<svg viewBox="0 0 {} 24" preserveAspectRatio="none" class="bars"><path d="{}"/></svg>').format(
        len(values), path
    )


def _answer(task: str, about: Mapping[str, Any], target: Tensor, prediction: Tensor) -> Answer:
    names = about.get("classes")
    match about.get("kind"):
        case "Classification":
            return _class_answer(task, names, target, prediction)
        case "MultiLabel":
            return _label_answer(task, names, target, prediction)
    return Answer(task, _values(prediction), _values(target), "none")


def _class_answer(task: str, names: Sequence[str] | None, target: Tensor, prediction: Tensor) -> Answer:
    said, truth = int(prediction), float(target)
    if not 0 <= truth < (len(names) if names else math.inf):  # NaN, or an ignore index
        return Answer(task, _name(names, said), "", "none")
    if said == truth:
        return Answer(task, _name(names, said), "", "right")
    return Answer(task, _name(names, said), _name(names, int(truth)), "wrong")


def _label_answer(task: str, names: Sequence[str] | None, target: Tensor, prediction: Tensor) -> Answer:
    """Return the predicted labels; if some are wrong, the true labels beside them."""
    target, prediction = target.flatten().float(), prediction.flatten().float()
    known = ~target.isnan()
    if not bool(known.any()):
        return Answer(task, _yes(names, prediction), "", "none")
    right = torch.equal(target[known], prediction[known])
    truth = "" if right else _yes(names, torch.where(known, target, 0.0))
    return Answer(task, _yes(names, prediction), truth, "right" if right else "wrong")


def _yes(names: Sequence[str] | None, labels: Tensor) -> str:
    return ", ".join(_name(names, int(i)) for i in labels.nonzero().flatten()) or "none"


def _name(names: Sequence[str] | None, index: int) -> str:
    return str(names[index]) if names and 0 <= index < len(names) else str(index)


def _values(tensor: Tensor) -> str:
    values = tensor.detach().flatten().float().tolist()
    text = ", ".join(number(value) for value in values[:3])
    return text + (", …" if len(values) > 3 else "")
