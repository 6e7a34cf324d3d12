from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from sparsemtl.report.maps import COLOURS, MAPS, UNKNOWN, class_colour
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


def gallery_of(kind, classes, target, prediction):
    samples = {"all": {"x": torch.rand(1, 3, 2, 2), "tasks": {"t": {"target": target, "prediction": prediction}}}}
    (gallery,) = galleries(samples, {"t": {"kind": kind, "classes": classes}})
    (answer,) = gallery.samples[0].maps
    return gallery, pixels_of(answer.truth), pixels_of(answer.said)


def test_the_classes_of_any_data_set_have_colours_of_their_own():
    colours = [class_colour(index) for index in range(COLOURS)]
    assert len(set(colours)) == COLOURS
    unknown = torch.full((3,), UNKNOWN)
    forty = torch.tensor([to_rgb(colour) for colour in colours[:40]])
    assert torch.pdist(forty).min() > 0.09, "40 classes can be told apart"
    assert (forty - unknown).norm(dim=1).min() > 0.15
    target = torch.arange(40).view(5, 8)
    truth, said = MAPS["Segmentation"](target, target.flip(0), 40)
    assert len(truth.flatten(1).T.unique(dim=0)) == 40
    assert torch.equal(said.flip(1), truth)


def test_label_maps_have_a_colour_a_class_and_grey_for_the_unknown():
    target = torch.tensor([[[0, 1], [255, 0]]])
    gallery, truth, said = gallery_of("Segmentation", ["wall", "floor"], target, torch.tensor([[[0, 1], [1, 1]]]))
    assert [name for name, _ in gallery.legends["t"]] == ["wall", "floor"]
    assert np.array_equal(truth[0], said[0])
    assert np.array_equal(truth[1, 1], truth[0, 0])
    assert not np.array_equal(truth[0, 0], truth[0, 1])
    assert len(set(truth[1, 0, :3].tolist())) == 1


def test_depth_is_drawn_over_the_true_range_and_grey_where_it_is_unknown():
    _, truth, said = gallery_of(
        "Depth", None, torch.tensor([[[[1.0, 3.0], [0.0, 2.0]]]]), torch.tensor([[[[1.0, 9.0], [2.0, -1.0]]]])
    )
    assert np.array_equal(truth[0], said[0])  # beyond the range is its end
    assert np.array_equal(truth[1, 1], said[1, 0])
    assert np.array_equal(said[1, 1], truth[0, 0])
    assert len(set(truth[1, 0, :3].tolist())) == 1


def test_normals_are_red_green_and_blue():
    up = torch.zeros(1, 3, 2, 2)
    up[:, 1, 0] = 1
    _, truth, said = gallery_of("Normals", None, up, up)
    assert truth[0, 0, :3].tolist() == pytest.approx([0.5, 1.0, 0.5], abs=0.01)
    assert np.array_equal(said[0], truth[0])
    assert not np.array_equal(said[1], truth[1])
