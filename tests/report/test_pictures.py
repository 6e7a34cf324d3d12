from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from sparsemtl.report.pictures import LIMIT, Answer, galleries

DIGIT = {"kind": "Classification", "classes": ["zero", "one", "two"]}
SHAPES = {"kind": "MultiLabel", "classes": ["round", "tall"]}
INK = {"kind": "Regression", "classes": None}


def answers_of(about, target, prediction):
    samples = {
        "all": {
            "x": torch.zeros(len(target), 1, 2, 2),
            "tasks": {"t": {"target": target, "prediction": prediction}},
        }
    }
    (gallery,) = galleries(samples, {"t": about})
    return [sample.answers[0] for sample in gallery.samples]


def picture_of(x):
    return galleries({"all": {"x": x, "tasks": {}}}, {})[0].samples[0].picture


def pixels_of(picture):
    data = str(picture).split("base64,")[1].split('"')[0]
    return imread(io.BytesIO(base64.b64decode(data)), format="png")


def test_classes_are_right_wrong_or_without_a_label():
    assert answers_of(DIGIT, torch.tensor([1, 2, -100, 255]), torch.tensor([1, 0, 2, 1])) == [
        Answer("t", "one", "", "right"),
        Answer("t", "zero", "two", "wrong"),
        Answer("t", "two", "", "none"),
        Answer("t", "one", "", "none"),
    ]
    assert answers_of(DIGIT, torch.tensor([math.nan]), torch.tensor([1]))[0].verdict == "none"


def test_classes_without_names_are_numbers():
    about = {"kind": "Classification", "classes": None}
    assert answers_of(about, torch.tensor([7]), torch.tensor([3])) == [Answer("t", "3", "7", "wrong")]


def test_labels_count_as_right_where_they_are_known():
    target = torch.tensor([[1.0, 0.0], [1.0, math.nan], [1.0, 0.0], [math.nan, math.nan]])
    prediction = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    assert answers_of(SHAPES, target, prediction) == [
        Answer("t", "round", "", "right"),
        Answer("t", "round, tall", "", "right"),
        Answer("t", "tall", "round", "wrong"),
        Answer("t", "none", "", "none"),
    ]


def test_values_stand_beside_the_true_ones():
    assert answers_of(INK, torch.tensor([0.5]), torch.tensor([0.25])) == [Answer("t", "0.2500", "0.5000", "none")]
    long = answers_of(INK, torch.ones(1, 5), torch.zeros(1, 5))[0]
    assert long.said == "0.000, 0.000, 0.000, …"


def test_grey_images_keep_their_pixels_up_to_their_range():
    x = torch.arange(6.0).view(1, 1, 2, 3) * 3 - 7
    grey = pixels_of(picture_of(x))
    assert grey.shape[:2] == (2, 3)
    assert np.allclose(grey[..., 0], (x[0, 0].numpy() + 7) / 15, atol=1 / 255)


def test_three_channels_are_colours():
    x = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 1
    assert np.allclose(pixels_of(picture_of(x))[..., :3], x[0].permute(1, 2, 0).numpy(), atol=1 / 255)


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels_are_averaged(channels):
    assert pixels_of(picture_of(torch.rand(1, channels, 4, 4))).shape[:2] == (4, 4)


def test_short_vectors_are_bars_and_long_ones_are_not_drawn():
    assert str(picture_of(torch.rand(1, 8))).count("M") == 8
    assert picture_of(torch.rand(1, 100)) == ""


def test_constant_and_unknown_inputs_are_drawn():
    assert pixels_of(picture_of(torch.full((1, 1, 2, 2), math.nan))).shape[:2] == (2, 2)


def test_a_gallery_is_bounded_and_says_how_many_there_were():
    (gallery,) = galleries({"all": {"x": torch.rand(40, 4), "tasks": {}}}, {})
    assert (len(gallery.samples), gallery.total) == (LIMIT, 40)


def test_a_group_without_samples_is_left_out():
    assert galleries({"digit": {"x": torch.zeros(0, 4), "tasks": {}}}, {}) == []
