"""Tasks with a map for an answer: unknown pixels add exactly nothing, metrics equal a slow count over all pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from loops import each
from sklearn.metrics import jaccard_score
from torch import Tensor, nn

from sparsemtl import Classification, Depth, Normals, Segmentation, SharedBottom
from sparsemtl.errors import LabelError, LikelihoodWarning, ParameterError
from sparsemtl.tasks import DenseTask
from sparsemtl.tasks.likelihoods import PixelDirection, PixelGaussian, PositionCategorical

SAMPLES, HEIGHT, WIDTH, CLASSES = 5, 4, 6, 3


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def segmentation_labels() -> Tensor:
    labels = torch.randint(CLASSES, (SAMPLES, HEIGHT, WIDTH), generator=generator())
    labels[1, :2] = 255
    return labels


def depth_labels() -> Tensor:
    depth = torch.rand(SAMPLES, HEIGHT, WIDTH, generator=generator(), dtype=torch.float64) + 0.5
    depth[1, :2] = 0
    return depth


def normal_labels() -> Tensor:
    normals = F.normalize(torch.randn(SAMPLES, 3, HEIGHT, WIDTH, generator=generator(), dtype=torch.float64), dim=1)
    normals[1, :, :2] = 0
    return normals


def without_zeros(labels: Tensor) -> Tensor:
    """Return labels with NaN in the place of zeros, in one of three numbers of a normal."""
    labels[1, :1, :2] = math.nan
    return labels


KINDS: dict[str, tuple[DenseTask, Callable[[], Tensor], float]] = {
    "segmentation": (Segmentation("t", CLASSES), segmentation_labels, 255),
    "smoothed segmentation": (Segmentation("t", CLASSES, label_smoothing=0.1), segmentation_labels, 255),
    "weighted segmentation": (Segmentation("t", CLASSES, class_weights=[1, 0.5, 3]), segmentation_labels, 255),
    "depth": (Depth("t"), depth_labels, 0),
    "scaled depth": (Depth("t", scale="image"), depth_labels, 0),
    "depth with NaN": (Depth("t", scale="image"), lambda: without_zeros(depth_labels()), math.nan),
    "squared depth": (Depth("t", criterion="mse"), depth_labels, 0),
    "normals": (Normals("t"), normal_labels, 0),
    "normals with NaN": (Normals("t"), lambda: without_zeros(normal_labels()), math.nan),
}
each_kind = each("kind", KINDS)


def outputs(task: DenseTask) -> Tensor:
    shape = (SAMPLES, task.outputs, HEIGHT, WIDTH)
    return torch.randn(shape, generator=generator(), dtype=torch.float64, requires_grad=True)


@each_kind
def test_what_the_network_says_at_unknown_pixels_changes_nothing(kind: str) -> None:
    task, labels, _ = KINDS[kind]
    output, target = outputs(task), labels()
    known = task.known(task.labels(target)).unsqueeze(1)
    other = torch.where(known, output.detach(), 1e3).requires_grad_()
    first, second = task.loss(output, target), task.loss(other, target)
    first.backward()
    second.backward()
    assert torch.equal(first, second)
    assert torch.equal(output.grad, other.grad)
    assert not bool(output.grad[~known.expand_as(output)].any())
    assert bool(output.grad.any())


@each_kind
def test_a_map_without_a_known_pixel_is_a_sample_without_a_label(kind: str) -> None:
    task, labels, unknown = KINDS[kind]
    output, target = outputs(task), labels()
    target[2] = unknown
    rest = torch.tensor([0, 1, 3, 4])
    assert task.labelled(task.labels(target)).tolist() == [True, True, False, True, True]
    assert torch.allclose(task.loss(output, target), task.loss(output[rest], target[rest]), rtol=1e-13)
    target[:] = unknown
    loss = task.loss(output, target)
    loss.backward()
    assert loss == 0
    assert not bool(output.grad.any())


@each_kind
def test_metrics_do_not_depend_on_how_a_split_is_batched(kind: str) -> None:
    task, labels, _ = KINDS[kind]
    output, target = outputs(task).detach(), labels()
    whole, parts = task.metrics(), task.metrics()
    task.update(whole, output, target)
    for rows in ([0], [1, 2], [3, 4]):
        task.update(parts, output[rows], target[rows])
    for name in whole:
        assert float(whole[name].compute()) == pytest.approx(float(parts[name].compute()), rel=1e-6), name


def values(task: DenseTask, output: Tensor, target: Tensor) -> dict[str, float]:
    metrics = task.metrics()
    task.update(metrics, output, target)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_segmentation_metrics_equal_a_count_pixel_by_pixel() -> None:
    task, target = Segmentation("t", CLASSES + 1), segmentation_labels()  # the last class occurs nowhere
    output = torch.randn(SAMPLES, CLASSES + 1, HEIGHT, WIDTH, generator=generator())
    output[:, CLASSES] = -10
    pairs = [
        (n, said, true)
        for n in range(SAMPLES)
        for said, true in zip(output[n].argmax(0).flatten().tolist(), target[n].flatten().tolist(), strict=True)
        if true != 255
    ]
    ious = [
        sum(said == true == c for _, said, true in pairs) / sum(c in (said, true) for _, said, true in pairs)
        for c in range(CLASSES)
    ]
    found = values(task, output, target)
    assert found["miou"] == pytest.approx(sum(ious) / CLASSES)
    assert found["pixel_accuracy"] == pytest.approx(sum(said == true for _, said, true in pairs) / len(pairs))
    images = []
    for n in range(SAMPLES):
        own = [(said, true) for m, said, true in pairs if m == n]
        hits = sum(said == true for said, true in own)
        wrong = sum((said == c) != (true == c) for said, true in own for c in range(CLASSES))
        images.append(hits / (hits + wrong))
    assert found["iou_less_is_more"] == pytest.approx(sum(images) / SAMPLES)


def test_depth_metrics_equal_a_sum_over_known_pixels() -> None:
    task, target = Depth("t"), depth_labels()
    output = outputs(task).detach()
    off = [
        (float(output[n, 0, i, j] - target[n, i, j]), float(target[n, i, j]), float(target[n].max()))
        for n in range(SAMPLES)
        for i in range(HEIGHT)
        for j in range(WIDTH)
        if target[n, i, j] > 0
    ]
    found = values(task, output, target)
    assert found["abs_err"] == pytest.approx(sum(abs(e) for e, _, _ in off) / len(off))
    assert found["rel_err"] == pytest.approx(sum(abs(e) / d for e, d, _ in off) / len(off))
    assert found["rmse"] == pytest.approx(math.sqrt(sum(e * e for e, _, _ in off) / len(off)))
    assert found["mae_less_is_more"] == pytest.approx(sum(abs(e) / m for e, _, m in off) / len(off))


def test_angles_between_normals_are_the_angles() -> None:
    angles = torch.tensor([0.0, 10.0, 20.0, 25.0, 90.0, 180.0])
    radians = angles.deg2rad()
    output = torch.stack([radians.sin(), torch.zeros(6), radians.cos()]).view(1, 3, 1, 6) * 7  # length does not count
    target = torch.zeros(1, 3, 1, 6)
    target[:, 2] = 1
    found = values(Normals("t"), output, target)
    assert found["mean_angle"] == pytest.approx(float(angles.mean()), abs=0.05)
    assert found["cosine"] == pytest.approx(float(radians.cos().mean()), abs=1e-6)
    assert [found[f"within_{a}"] for a in (11, 22, 30)] == pytest.approx([2 / 6, 3 / 6, 4 / 6])
    assert float(Normals("t").loss(output, target)) == pytest.approx(1 - float(radians.cos().mean()), abs=1e-6)


def test_the_segmentation_loss_is_torchs_mean_over_known_pixels() -> None:
    output, target = outputs(Segmentation("t", CLASSES)), segmentation_labels()
    expected = F.cross_entropy(output, target, ignore_index=255)
    assert torch.allclose(Segmentation("t", CLASSES).loss(output, target), expected, rtol=1e-12)


WRONG: dict[str, tuple[DenseTask, Callable[[], Tensor], str]] = {
    "a class too many": (
        Segmentation("rooms", 3),
        lambda: torch.full((1, 2, 2), 3),
        r"task 'rooms': label 3 is not one of the classes 0 \.\. 2.*ignore_index=255",
    ),
    "classes as floats": (
        Segmentation("rooms", 3),
        lambda: torch.zeros(1, 2, 2),
        r"task 'rooms': expected whole numbers of shape \(batch, height, width\), got torch.float32",
    ),
    "infinite depth": (
        Depth("far"),
        lambda: torch.tensor([[[1.0, float("inf")]]]),
        r"task 'far': 1 of 2 depths in the batch are infinite.*unknown depth carries 0 or NaN",
    ),
    "depth without rows": (Depth("far"), lambda: torch.ones(2, 3), r"task 'far': expected depth of shape"),
    "a normal too long": (
        Normals("up"),
        lambda: torch.full((1, 3, 1, 1), 2.0),
        r"task 'up': a normal has length 3\.46; expected 1, or zeros or NaN",
    ),
    "normals with two numbers": (Normals("up"), lambda: torch.ones(1, 2, 1, 1), r"expected normals of shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_label_is_named_with_what_is_expected(case: str) -> None:
    task, labels, message = WRONG[case]
    with pytest.raises(LabelError, match=message):
        task.labels(labels())


def test_outputs_and_labels_of_different_sizes_are_both_named() -> None:
    task = Segmentation("rooms", CLASSES)
    with pytest.raises(LabelError, match="'rooms': outputs of 2x3 pixels, labels of 4x6"):
        task.loss(torch.zeros(SAMPLES, CLASSES, 2, 3), segmentation_labels())


def test_outputs_of_other_channels_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"'far': its head must give maps of shape \(batch, 1, height, width\)"):
        Depth("far").loss(torch.zeros(SAMPLES, 2, HEIGHT, WIDTH), depth_labels())


def test_the_ignore_index_is_no_class() -> None:
    with pytest.raises(ParameterError, match="ignore_index=2 is one of the classes"):
        Segmentation("rooms", 3, ignore_index=2)


class Strided(nn.Conv2d):
    """An encoder that tells its channels and stride."""

    def __init__(self) -> None:
        super().__init__(3, 8, kernel_size=3, stride=2, padding=1)
        self.out_features = 8
        self.stride = 2  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=2, padding=1)


def test_default_heads_bring_maps_up_to_the_inputs_size() -> None:
    model = SharedBottom(Strided(), [Segmentation("rooms", CLASSES), Depth("far"), Normals("up")])
    shapes = {task: tuple(output.shape) for task, output in model(torch.rand(2, 3, 8, 12)).items()}
    assert shapes == {"rooms": (2, CLASSES, 8, 12), "far": (2, 1, 8, 12), "up": (2, 3, 8, 12)}


def test_an_encoder_that_does_not_tell_its_stride_is_told_what_to_tell() -> None:
    with pytest.raises(ParameterError, match=r"task 'far' predicts maps.*`stride`.*heads=\{'far': module\}"):
        SharedBottom(nn.Linear(4, 8), [Depth("far")])


def test_a_maps_log_probability_is_the_sum_over_its_known_pixels() -> None:
    output, target = outputs(Segmentation("t", CLASSES)).detach(), segmentation_labels()
    found = PositionCategorical(255).log_prob(output, target)
    slow = [
        sum(
            float(output[n, :, i, j].log_softmax(0)[int(target[n, i, j])])
            for i in range(HEIGHT)
            for j in range(WIDTH)
            if target[n, i, j] != 255
        )
        for n in range(SAMPLES)
    ]
    assert found.tolist() == pytest.approx(slow)


def test_drawn_classes_have_the_softmaxs_frequencies() -> None:
    output = torch.log(torch.tensor([0.2, 0.3, 0.5])).view(1, 3, 1, 1).expand(1, 3, 100, 100)
    drawn = PositionCategorical(255).sample(output, generator())
    assert drawn.shape == (1, 100, 100)
    assert (torch.bincount(drawn.flatten()) / 1e4).tolist() == pytest.approx([0.2, 0.3, 0.5], abs=0.02)


def test_the_score_of_drawn_depth_is_unit_noise_even_where_a_drawn_depth_is_negative() -> None:
    score = PixelGaussian().sampled_score(torch.zeros(1, 1, 100, 100), generator())
    assert float(score.mean()) == pytest.approx(0, abs=0.04)
    assert float(score.var()) == pytest.approx(1, abs=0.04)


def test_drawn_directions_are_von_mises_fishers() -> None:
    axis = torch.tensor([2.0, -1.0, 0.5])
    output = axis.view(1, 3, 1, 1).expand(1, 3, 200, 200)
    drawn = PixelDirection().sample(output, generator())
    assert torch.allclose(drawn.norm(dim=1), torch.ones(1, 200, 200), atol=1e-5)
    mean = drawn.mean((0, 2, 3))
    resultant = 1 / math.tanh(1) - 1  # of concentration one
    assert torch.allclose(mean, resultant * F.normalize(axis, dim=0), atol=0.01)
    assert float(PixelDirection().score(output, drawn).mean((0, 2, 3)).abs().max()) < 0.01  # scores average to zero


@each_kind
def test_the_score_at_the_predicted_map_is_zero_where_the_likelihood_says_so(kind: str) -> None:
    task, _, _ = KINDS[kind]
    output = outputs(task).detach().abs()
    score = task.likelihood.score(output, task.likelihood.mode(output))
    assert bool((score.abs() > 1e-9).any()) == task.likelihood.informative_mode


@pytest.mark.parametrize(("estimator", "warned"), [("fs", {"far", "up"}), ("efs", {"rooms", "far", "up"})])
def test_estimators_that_maps_cannot_have_are_replaced_by_draws(estimator: str, warned: set[str]) -> None:
    from sparsemtl.criteria import Fisher

    torch.manual_seed(0)
    model = SharedBottom(Strided(), [Segmentation("rooms", CLASSES), Depth("far"), Normals("up")])
    targets = {"rooms": segmentation_labels(), "far": depth_labels().float(), "up": normal_labels().float()}
    data = [(torch.rand(SAMPLES, 3, HEIGHT, WIDTH), targets)]
    tasks = list(model.tasks.values())
    with pytest.warns(LikelihoodWarning) as warnings:
        found = Fisher(estimator=estimator).scores(model, data, tasks)  # type: ignore[arg-type]
    assert {name for name in model.tasks if any(f"'{name}'" in str(w.message) for w in warnings)} == warned
    drawn = Fisher(estimator="sample").scores(model, data, tasks)
    for task in warned:
        for name, scores in found[task].items():
            assert torch.equal(scores, drawn[task][name])
            assert bool(scores.any())


# Options


def test_the_iou_of_one_category_leaves_out_all_else() -> None:
    """Against scikit-learn's Jaccard index of the category; a prediction without it gets 0."""
    task = Segmentation("car", ["other", "car"], background=0)
    target = (torch.rand(SAMPLES, HEIGHT, WIDTH, generator=generator()) < 0.3).long()
    target[0, 0] = 255
    output = outputs(task).detach()
    known = target != 255
    for logits in (output, torch.stack([torch.ones_like(output[:, 0]), torch.zeros_like(output[:, 0])], 1)):
        metrics = task.metrics()
        for part, labels in zip(logits.split(2), target.split(2), strict=True):
            task.update(metrics, part, labels)
        expected = jaccard_score(target[known], logits.argmax(1)[known])
        assert float(metrics["miou"].compute()) == pytest.approx(expected, abs=1e-6)
    assert expected == 0
    with pytest.raises(ParameterError, match=r"`background` must be one of the classes 0 \.\. 1, got 2"):
        Segmentation("car", 2, background=2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("task", [Classification, Segmentation])
def test_weighted_classes_are_torchs_weighted_mean(task: type[Classification | Segmentation], smoothing: float) -> None:
    weights = [0.5, 2.0, 0.0]
    made = task("t", CLASSES, class_weights=weights, label_smoothing=smoothing, ignore_index=255)
    output = outputs(Segmentation("t", CLASSES))
    target = segmentation_labels()
    if task is Classification:
        output, target = output.movedim(1, -1).flatten(0, 2), target.flatten()
    expected = F.cross_entropy(
        output, target, output.new_tensor(weights), ignore_index=255, label_smoothing=smoothing, reduction="mean"
    )
    torch.testing.assert_close(made.loss(output, target), expected)
    nothing = made.loss(output, torch.full_like(target, 255))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, output)[0].any()


@pytest.mark.parametrize(
    "weights", [[1.0, 1.0], [1, -1, 1], [1, float("nan"), 1], [1, float("inf"), 1], [0, 0, 0], "abc"]
)
def test_class_weights_are_one_per_class(weights: object) -> None:
    for kind in (Classification, Segmentation):
        with pytest.raises(ParameterError, match="class_weights"):
            kind("t", 3, class_weights=weights)


def test_depth_over_the_largest_of_its_image() -> None:
    labels, output = depth_labels(), outputs(Depth("t"))
    largest = labels.flatten(1).amax(1).view(-1, 1, 1)
    scaled = Depth("t", criterion="mse", scale="image")
    torch.testing.assert_close(scaled.loss(output, labels), Depth("t", criterion="mse").loss(output, labels / largest))
    assert torch.equal(scaled.labels(scaled.labels(labels)), scaled.labels(labels))
    unknown = labels.clone()
    unknown[0] = 0
    assert scaled.labelled(scaled.labels(unknown)).tolist() == [False, *[True] * (SAMPLES - 1)]
    metrics = scaled.metrics()
    scaled.update(metrics, output.detach(), 7 * labels)
    known = labels > 0
    error = (output.detach()[:, 0] - labels / largest)[known].abs().mean()
    assert float(metrics["abs_err"].compute()) == pytest.approx(float(error), rel=1e-6)
