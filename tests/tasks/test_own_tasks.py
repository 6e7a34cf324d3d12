"""Losses, metrics, targets and likelihoods of the user's own, against slow obvious references."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import each
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, Poisson
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCohenKappa
from torchmetrics.regression import MeanSquaredError

import sparsemtl as sm
from sparsemtl.errors import ConfigError, LabelError, LikelihoodWarning, ParameterError
from sparsemtl.runs.config import check
from sparsemtl.runs.spec import RunSpec
from sparsemtl.tasks import METRICS, function_metric

NAN = float("nan")
N = 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_and_gradient(task: sm.Task, output: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    output = output.clone().requires_grad_()
    loss = task.loss(output, label)
    return loss.detach(), torch.autograd.grad(loss, output)[0]


# ---- losses ------------------------------------------------------------------------------------------------------

CLASS = torch.tensor([0, 2, -100, 1, 2, -100, 0, 1])
VALUES = randn(N, 2, seed=1).masked_fill(torch.tensor([[False, True], *[[False] * 2] * 6, [True, True]]), NAN)
MAP = torch.tensor([[[0, 1], [255, 2]], [[255, 255], [1, 0]]])
DEPTH = torch.tensor([[[[1.0, 0], [2, 3]]], [[[0.0, 1], [0, 4]]]], dtype=torch.float64)
TOKENS = torch.tensor([[0, 1, -100], [2, -100, -100]])
UNREDUCED: dict[str, tuple[Callable[..., sm.Task], Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]] = {
    "per sample": (
        lambda **o: sm.Classification("t", 3, **o),
        randn(N, 3),
        CLASS,
        lambda z, y: F.cross_entropy(z, y, reduction="none"),
    ),
    "a column": (
        lambda **o: sm.Classification("t", 3, **o),
        randn(N, 3),
        CLASS,
        lambda z, y: F.cross_entropy(z, y, reduction="none")[:, None],
    ),
    "per value": (
        lambda **o: sm.Regression("t", 2, **o),
        randn(N, 2),
        VALUES,
        lambda z, y: F.mse_loss(z, y, reduction="none"),
    ),
    "per answer": (
        lambda **o: sm.MultiLabel("t", 2, **o),
        randn(N, 2),
        (VALUES > 0).double().masked_fill(VALUES.isnan(), NAN),
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none"),
    ),
    "per pixel": (
        lambda **o: sm.Segmentation("t", 3, **o),
        randn(2, 3, 2, 2),
        MAP,
        lambda z, y: F.cross_entropy(z, y, reduction="none", ignore_index=255),
    ),
    "per depth": (
        lambda **o: sm.Depth("t", **o),
        randn(2, 1, 2, 2),
        DEPTH,
        lambda z, y: F.l1_loss(z, y, reduction="none"),
    ),
    "per token": (
        lambda **o: sm.TokenClassification("t", 3, **o),
        randn(2, 3, 3),
        TOKENS,
        lambda z, y: F.cross_entropy(z.transpose(1, 2), y, reduction="none"),
    ),
}


@pytest.mark.parametrize("case", UNREDUCED)
def test_a_loss_without_reduction_is_the_kinds_own(case: str) -> None:
    make, output, label, unreduced = UNREDUCED[case]
    criterion = {"criterion": "mse"} if case == "per value" else {}
    expected = loss_and_gradient(make(**criterion), output, label)
    found = loss_and_gradient(make(loss=unreduced), output, label)
    torch.testing.assert_close(found, expected)


def test_a_loss_of_several_is_their_weighted_sum() -> None:
    losses = {"ce": F.cross_entropy, "norm": lambda z, y: z.square().mean()}
    task = sm.Classification("t", 3, loss=losses, loss_weights={"norm": 0.25})
    output, known = randn(N, 3), CLASS != -100
    found = task.checked_losses(output, CLASS)
    ce, norm = F.cross_entropy(output, CLASS), output[known].square().mean()
    torch.testing.assert_close(found, {"loss": ce + 0.25 * norm, "loss_ce": ce, "loss_norm": norm})
    assert task.loss_names == ("loss", "loss_ce", "loss_norm")
    nothing = task.checked_losses(output, torch.full_like(CLASS, -100))
    assert all(float(loss) == 0 for loss in nothing.values())
    assert nothing.keys() == found.keys()


class Ordinal(nn.Module):
    """Cumulative logits with learned thresholds (McCullagh 1980) of one score."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.linspace(-1, 1, classes - 1))
        self.register_buffer("weight", torch.arange(1.0, classes + 1))

    def probabilities(self, output: Tensor) -> Tensor:
        above = (output - self.thresholds).sigmoid()
        ends = torch.ones_like(output)
        return (torch.cat([ends, above], 1) - torch.cat([above, 0 * ends], 1)).clamp(min=1e-6)

    def forward(self, output: Tensor, label: Tensor) -> Tensor:
        return F.nll_loss(self.probabilities(output).log(), label, self.weight)


def ordinal_task(loss: nn.Module, **options: Any) -> sm.Task:
    def distribution(z: Tensor) -> Distribution:
        return Categorical(probs=loss.probabilities(z).to(z))

    return sm.CustomTask("grade", 1, loss=loss, likelihood=distribution, **options)


x = torch.randn(N, 4, generator=torch.Generator().manual_seed(3))
LABELS = {"grade": torch.tensor([0, 1, 2, 2, 1, 0, 2, 1]), "size": x.sum(1)}


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU())


class Whole(nn.Module):
    """A model of the user's own with heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.grade, self.size = encoder(), nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"grade": self.grade(features), "size": self.size(features)}


ARCHITECTURES: dict[str, Callable[[list[sm.Task]], sm.MultiTaskModel]] = {
    "shared bottom": lambda tasks: sm.SharedBottom(encoder(), tasks),
    "single task": lambda tasks: sm.SingleTask(encoder(), tasks),
    "experts": lambda tasks: sm.MMoE(encoder(), tasks),
    "streams": lambda tasks: sm.CrossStitch(encoder(), tasks),
    "similar kernels": lambda tasks: sm.MTAL(encoder(), tasks, warmup=0),
    "the user's own": lambda tasks: sm.from_model(
        Whole(), tasks, shared="body", heads={"grade": "grade", "size": "size"}
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_a_losss_parameters_to_its_task(architecture: str) -> None:
    model = ARCHITECTURES[architecture]([ordinal_task(Ordinal(3)), sm.Regression("size")])
    model(x)
    name = "task_losses.grade.thresholds"
    assert name in dict(model.named_parameters())
    assert model.parameter_tasks()[name] == {"grade"}
    assert model.parameter_tasks().keys() == dict(model.named_parameters()).keys()
    assert name in model.task_parameters("grade")
    assert not {name for name in model.task_parameters("size") if name.startswith("task_losses")}
    assert name not in {**model.shared_parameters(), **model.unmasked_parameters(), **model.replicated_parameters()}


@pytest.mark.parametrize("architecture", ["shared bottom", "single task"])
def test_a_losss_parameters_are_trained_and_saved_with_the_model(architecture: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    loss = Ordinal(3)
    before = loss.thresholds.detach().clone()
    model = ARCHITECTURES[architecture]([ordinal_task(loss), sm.Regression("size")])
    sharing = sm.FisherSharing(keep=0.5, warmup=0) if architecture == "shared bottom" else None
    options = {} if sharing is None else {"sharing": sharing}
    trainer = sm.Trainer(model, epochs=2, progress=False, folder=tmp_path / "run", seed=0, **options)
    with pytest.warns(LikelihoodWarning) if sharing else _nothing():  # of the regression
        trainer.fit([(x, LABELS)], [(x, LABELS)])
    moved = model.task_losses["grade"].thresholds
    assert moved is loss.thresholds
    assert not torch.equal(moved, before)
    assert model.parameter_tasks()["task_losses.grade.thresholds"] == {"grade"}
    assert "task_losses.grade" in model.task_modules("grade")
    assert model.parameter_tasks().keys() == dict(model.named_parameters()).keys()
    other = ARCHITECTURES[architecture]([ordinal_task(Ordinal(3)), sm.Regression("size")])
    other(x)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.tasks["grade"].loss(x[:, :1], LABELS), model.tasks["grade"].loss(x[:, :1], LABELS))
    copied = copy.deepcopy(model).double()  # buffers and parameters follow, and the copy's task has them
    assert copied.tasks["grade"].loss(x[:, :1].double(), LABELS).dtype == torch.float64
    assert copied.task_losses["grade"].thresholds is not moved


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_several_losses_hold_their_modules_by_name() -> None:
    loss = nn.ModuleDict({"ordinal": Ordinal(3), "zero": nn.Identity()})
    task = sm.CustomTask("grade", 1, loss={"ordinal": loss["ordinal"], "norm": lambda z, y: z.square().mean()})
    model = ARCHITECTURES["shared bottom"]([task])
    assert {name for name, _ in model.task_losses.named_parameters()} == {"grade.ordinal.thresholds"}
    assert not hasattr(ARCHITECTURES["shared bottom"]([sm.Regression("t", loss=nn.MSELoss())]), "task_losses")


def test_training_logs_each_loss(tmp_path: Any) -> None:
    torch.manual_seed(0)
    losses = {"squared": nn.MSELoss(), "absolute": nn.L1Loss()}
    tasks = [sm.Regression("size", loss=losses, loss_weights={"absolute": 0.5})]
    trainer = sm.Trainer(ARCHITECTURES["shared bottom"](tasks), epochs=2, progress=False, folder=tmp_path / "run")
    trainer.fit([(x, LABELS)], [(x, LABELS)])
    history = sm.load_run(tmp_path / "run", model=trainer.model).history
    for split in ("train", "validation"):
        rows = history[(history.split == split) & (history.epoch == 2)].set_index("metric").value
        assert rows["loss"] == pytest.approx(rows["loss_squared"] + 0.5 * rows["loss_absolute"], rel=1e-5)
    found = trainer.test([(x, LABELS)])["size"]
    assert found["loss"] == pytest.approx(found["loss_squared"] + 0.5 * found["loss_absolute"])


# ---- several targets ---------------------------------------------------------------------------------------------


def test_several_targets_are_joined() -> None:
    task = sm.Regression("box", 3, target=["width", "corner"])
    width, corner = randn(N), randn(N, 2)
    expected = torch.cat([width[:, None], corner], 1)
    assert torch.equal(task.labels({"width": width, "corner": corner, "other": width}), expected)
    assert torch.equal(task.labels({"box": {"width": width, "corner": corner}}), expected)
    assert torch.equal(task.labels({"box": expected}), expected)
    assert torch.equal(task.labels(expected), expected)
    with pytest.raises(LabelError, match=r"task 'box': the batch has no target 'corner', only \['width'\]"):
        task.labels({"width": width})
    with pytest.raises(LabelError, match=r"cannot be joined along axis 1; .* {'width': \(7,\), 'corner': \(8, 2\)}"):
        task.labels({"width": width[:7], "corner": corner})


# ---- metrics -----------------------------------------------------------------------------------------------------


def auc(output: Tensor, label: Tensor) -> float:
    return float(roc_auc_score(label.numpy(), output[:, 1].numpy()))


def measured(task: sm.Task, output: Tensor, label: Tensor) -> dict[str, float]:
    metrics = task.metrics()
    for rows in torch.arange(len(output)).split(3):
        task.update(metrics, output[rows], label[rows])
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_a_function_reads_all_known_labels_at_once() -> None:
    output, label = randn(N, 2), torch.tensor([0, 1, 1, -100, 0, 1, 0, 1])
    metrics = {"auc": auc, "accuracy": "accuracy"}
    task = sm.Classification("t", 2, metrics=metrics, higher_is_better={"auc": True})
    known = label != -100
    found = measured(task, output, label)
    assert found["auc"] == pytest.approx(auc(output[known], label[known]))
    assert found["accuracy"] == pytest.approx(float((output.argmax(1) == label)[known].double().mean()))
    assert list(found) == ["auc", "accuracy"]


ROWS = {
    "samples with all values": ("per value", lambda z, y: (z[1:-1], y[1:-1])),
    "samples with all answers": ("per answer", lambda z, y: (z[1:-1], y[1:-1])),
    "pixels": ("per pixel", lambda z, y: (z.permute(0, 2, 3, 1)[y != 255], y[y != 255])),
    "depths": ("per depth", lambda z, y: (z[y > 0], y[y > 0])),
    "tokens": ("per token", lambda z, y: (z[y >= 0], y[y >= 0])),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_function_reads_rows_of_known_labels(case: str) -> None:
    kind, expected = ROWS[case]
    make, output, label, _ = UNREDUCED[kind]
    seen: list[Tensor] = []

    def function(z: Tensor, y: Tensor) -> float:
        seen.extend([z, y])
        return 0.0

    measured(make(metrics={"own": function}, higher_is_better={"own": False}), output, label)
    rows, labels = expected(output, label)
    assert torch.equal(seen[0].squeeze(1) if case == "depths" else seen[0], rows.float())
    assert torch.equal(seen[1], labels)


def test_a_configuration_names_metrics_of_plugins(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def far(output: Tensor, label: Tensor) -> Tensor:
        return ((output.argmax(1) - label).abs() > 1).double().mean()

    members = {"far": function_metric(far, higher_is_better=False), "kappa": lambda: MulticlassCohenKappa(10)}
    monkeypatch.setattr(METRICS, "_members", members)
    options = {"task_options": {"digit": {"metrics": ["accuracy", "far", "kappa"]}}, "primary": {"digit": "far"}}
    task = next(task for task in RunSpec(check({**tiny, **options})).data.tasks if task.name == "digit")
    label, output = torch.arange(10), randn(10, 10)
    label[3] = -100
    found = measured(task, output, label)
    assert list(found) == ["far", "accuracy", "kappa"]
    assert found["far"] == pytest.approx(float(far(output[label >= 0], label[label >= 0])))
    assert task.has_given_metrics
    assert not task.joins_batches
    with pytest.raises(ConfigError, match=r"unknown metric 'fra'\. Did you mean 'far'"):
        RunSpec(check({**tiny, "task_options": {"digit": {"metrics": ["fra"]}}})).data  # noqa: B018


def test_the_direction_decides_which_epoch_is_best() -> None:
    class Mute(MeanSquaredError):
        higher_is_better = None

    task = sm.Regression("size", metrics={"own": Mute()}, higher_is_better={"own": False})
    assert task.metrics()["own"].higher_is_better is False
    trained = {}
    for higher in (True, False):
        torch.manual_seed(0)
        values = iter([1.0, 3.0, 2.0, 0.0]).__next__  # the last one is of the selected epoch
        task = sm.Regression("size", metrics={"own": lambda z, y, f=values: f()}, higher_is_better={"own": higher})
        trainer = sm.Trainer(ARCHITECTURES["shared bottom"]([task]), epochs=3, progress=False, seed=0)
        trainer.fit([(x, LABELS)], [(x, LABELS)])
        trained[higher] = trainer.selection.best_epoch("size")
    assert trained == {True: 2, False: 1}


# ---- likelihoods -------------------------------------------------------------------------------------------------


def scored(task: sm.Task, estimator: str, label: Tensor = LABELS["grade"], **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = sm.SharedBottom(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), [task], {"grade": nn.Linear(3, task.outputs)})
    return sm.fisher_information(model.double(), [(x, {"grade": label})], "grade", estimator, **options)


@pytest.mark.parametrize("estimator", ["fs", "efs", "true", "sample", "batch"])
def test_a_categorical_of_the_users_own_has_the_kinds_fisher_information(estimator: str) -> None:
    own = sm.Classification("grade", 3, likelihood=lambda z: Categorical(logits=z))
    label = LABELS["grade"].index_fill(0, torch.tensor([2]), -100)
    found, expected = (scored(t, estimator, label) for t in (own, sm.Classification("grade", 3)))
    if estimator == "sample":  # drawn by other numbers
        assert all(bool((score >= 0).all()) and bool(score.any()) for score in found.values())
    else:
        torch.testing.assert_close(found, expected)


def test_drawn_labels_follow_the_distribution_and_leave_the_global_generator() -> None:
    task = sm.CustomTask("grade", 3, loss=F.cross_entropy, likelihood=lambda z: Categorical(logits=z))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    output = randn(1, 3).expand(20_000, 3)
    drawn = task.likelihood.sample(output, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    frequencies = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(frequencies.double(), output[0].softmax(0), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("distribution", "label"),
    [
        (lambda z: Poisson(z.squeeze(1).exp()), torch.tensor([0.0, 3, 1, NAN, 2, 1, 0, 4])),
        (lambda z: Normal(z, 0.5), torch.tensor([0.0, 3, 1, NAN, 2, 1, 0, 4])),
    ],
)
def test_the_score_of_a_distribution_is_its_gradient_sample_by_sample(
    distribution: Callable[[Tensor], Distribution], label: Tensor
) -> None:
    task = sm.Regression("grade", likelihood=distribution)
    output = randn(N, 1).requires_grad_()
    found = task.likelihood.score(output, task.labels(label))
    for n in range(N):
        if label[n].isnan():
            assert not found[n].any()
        else:
            log_prob = distribution(output[n : n + 1]).log_prob(label[n].double())
            torch.testing.assert_close(found[n], torch.autograd.grad(log_prob.sum(), output)[0][n])


def test_a_continuous_distribution_has_no_slope_at_its_mode() -> None:
    task = sm.Regression("grade", likelihood=lambda z: Normal(z, 1.0))
    with pytest.warns(LikelihoodWarning, match="using 'sample'"):
        scores = scored(task, "fs", LABELS["size"])
    assert any(bool(score.any()) for score in scores.values())
    bits = sm.MultiLabel("grade", 2, likelihood=lambda z: Bernoulli(logits=z))
    with pytest.warns(LikelihoodWarning, match="using 'sample'"):
        scored(bits, "efs", (x[:, :2] > 0).double())


def test_the_gradient_of_a_mean_loss_is_the_empirical_fisher_information() -> None:
    label = LABELS["grade"].index_fill(0, torch.tensor([1, 6]), -100)
    expected = scored(sm.Classification("grade", 3), "true", label)
    own = sm.Classification("grade", 3, likelihood="loss")
    torch.testing.assert_close(scored(own, "true", label), expected)
    custom = sm.CustomTask("grade", 3, loss=F.cross_entropy, ignore_index=-100)
    torch.testing.assert_close(scored(custom, "true", label), expected)
    torch.testing.assert_close(scored(custom, "true", label, samples=3), scored(own, "true", label, samples=3))
    torch.testing.assert_close(scored(custom, "batch", label), scored(sm.Classification("grade", 3), "batch", label))
    for estimator in ("fs", "efs", "sample"):
        with pytest.warns(LikelihoodWarning, match="using estimator='true'"):
            torch.testing.assert_close(scored(custom, estimator, label), expected)


def test_the_gradient_of_a_loss_over_pixels_is_the_empirical_fisher_information() -> None:
    output, label = UNREDUCED["per depth"][1:3]
    task = sm.Depth("t", criterion="mse", likelihood="loss")
    known = (label > 0).double()
    torch.testing.assert_close(task.likelihood.score(output, label), -2 * (output - label) * known)


def hinge(output: Tensor, label: Tensor) -> Tensor:
    """Mean over pairs of max(0, 1 - the right gap)."""
    gaps, sign = output - output.T, (label[:, None] - label[None]).sign()
    return torch.relu(1 - sign * gaps)[sign != 0].mean()


def contrastive(output: Tensor, label: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020)."""
    unit = F.normalize(output, dim=1)
    logits = (unit @ unit.T / 0.5).fill_diagonal_(-1e9)
    same = (label[:, None] == label[None]).double().fill_diagonal_(0)
    return -(logits.log_softmax(1) * same).sum() / same.sum()


@pytest.mark.parametrize(("loss", "outputs"), [(hinge, 1), (contrastive, 3)])
def test_a_loss_over_pairs_trains_and_is_refused_by_estimators_that_need_samples(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: int
) -> None:
    task = sm.CustomTask("grade", outputs, loss=loss)
    for estimator in ("fs", "efs", "sample"):
        with pytest.raises(ParameterError, match=r"depends on pairs .* estimator='true' takes each sample's"):
            scored(task, estimator)
    assert any(bool(score.any()) for score in scored(task, "true").values())
    batch = scored(task, "batch")
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    model = sm.SharedBottom(encoder, [task], {"grade": nn.Linear(3, outputs)}).double()
    gradient = torch.autograd.grad(task.loss(model(x.double())["grade"], LABELS["grade"]), encoder[0].weight)[0]
    torch.testing.assert_close(batch["encoder.0.weight"], gradient.square())
    sharing = sm.FisherSharing(keep=0.5, estimator="true", warmup=0)
    torch.manual_seed(0)
    trained = ARCHITECTURES["shared bottom"]([task, sm.Classification("size", 3)])
    targets = {"grade": LABELS["grade"], "size": LABELS["grade"]}
    trainer = sm.Trainer(trained, sharing=sharing, epochs=3, progress=False, seed=0)
    trainer.fit([(x, targets)], [(x, targets)])
    assert trainer.validation["grade"]["batch_loss"] == pytest.approx(trainer.validation["grade"]["loss"])


def test_a_first_batch_of_one_sample_does_not_hide_that_a_loss_is_over_pairs() -> None:
    model = ARCHITECTURES["shared bottom"]([sm.CustomTask("grade", 3, loss=lambda z, y: z.square().sum(1).prod())])
    model(x)
    batches = [(x[:1], {"grade": LABELS["grade"][:1]}), (x, LABELS)]
    with pytest.raises(ParameterError, match="depends on pairs"):
        sm.fisher_information(model, batches, "grade", "fs")


@pytest.mark.parametrize(
    "loss",
    [
        nn.L1Loss(),
        lambda z, y: F.huber_loss(z, y),
        lambda z, y: torch.relu(1 - z * y.sign()).mean(),
        lambda z, y: ((z - y).square() * y.abs()).sum() / y.abs().sum(),
    ],
)
def test_a_mean_over_samples_is_not_taken_for_a_loss_over_pairs(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    task = sm.Regression("t", loss=loss, likelihood="loss")
    assert not task.loss_likelihood().couples_samples(randn(N, 1), randn(N, 1, seed=1))


def test_outputs_that_the_kinds_likelihood_cannot_read_are_refused() -> None:
    torch.manual_seed(0)
    task = sm.Classification("grade", 3, loss=lambda z, y: z.square().mean())  # cumulative logits, say
    model = sm.SharedBottom(nn.Linear(4, 3), [task], {"grade": nn.Linear(3, 2)})
    with pytest.raises(ParameterError, match=r"shape \(batch, 3\), got \(8, 2\). For outputs of another form"):
        sm.fisher_information(model, [(x, LABELS)], "grade", "fs")


# ---- what is wrong -----------------------------------------------------------------------------------------------


def number(output: Tensor, label: Tensor) -> float:
    return 0.0


def ragged(task: sm.Task) -> None:
    metrics = task.metrics()
    for width in (2, 3):
        task.update(metrics, randn(4, width), randn(4))
    metrics["own"].compute()


WRONG = {
    "a function without a direction": (
        lambda: sm.Regression("t", metrics={"own": number}),
        r"metric 'own' is a function; pass its direction, higher_is_better={'own': True}",
    ),
    "a direction of no metric": (
        lambda: sm.Regression("t", metrics={"own": number}, higher_is_better={"owm": True, "own": True}),
        "`higher_is_better`: unknown metric 'owm'. Did you mean 'own'",
    ),
    "a metric with the name of a loss": (
        lambda: sm.Regression("t", metrics={"loss": number}, higher_is_better={"loss": False}).metrics(),
        "metric 'loss' has the name of a loss",
    ),
    "a kind's metric that is none": (
        lambda: sm.Regression("t", metrics={"own": "mes"}).metrics(),
        "unknown metric 'mes'. Did you mean 'mse'",
    ),
    "no loss": (lambda: sm.CustomTask("t", 2), "a CustomTask needs `loss`"),
    "an empty mapping of losses": (lambda: sm.Regression("t", loss={}), "`loss` is an empty mapping"),
    "a named loss that is a class": (
        lambda: sm.Regression("t", loss={"mse": nn.MSELoss}),
        "loss 'mse' is the class MSELoss; pass an instance",
    ),
    "a loss's name": (lambda: sm.Regression("t", loss={"a.b": number}), "a loss's name has letters"),
    "a weight of no loss": (
        lambda: sm.Regression("t", loss={"mse": number}, loss_weights={"mes": 1.0}),
        "`loss_weights`: unknown loss 'mes'. Did you mean 'mse'",
    ),
    "weights without losses": (lambda: sm.Regression("t", loss_weights={"mse": 1.0}), "`loss_weights` needs `loss`"),
    "no target": (lambda: sm.Regression("t", target=[]), "`target` is an empty sequence"),
    "a likelihood's class": (lambda: sm.Regression("t", likelihood=Normal), "`likelihood` must be a function"),
    "a likelihood's name": (lambda: sm.Regression("t", likelihood="normal"), "`likelihood` must be a function"),
    "a likelihood that is none": (
        lambda: sm.Regression("t", likelihood=lambda z: z).likelihood.mode(torch.zeros(2, 1)),
        "must return a torch.distributions.Distribution, got Tensor",
    ),
    "a function that returns a vector": (
        lambda: measured(
            sm.Regression("t", metrics={"own": lambda z, y: z}, higher_is_better={"own": True}), randn(4, 1), randn(4)
        ),
        r"metric 'own': its function must return one number, got shape \(4, 1\)",
    ),
    "a function of maps of different sizes": (
        lambda: ragged(sm.CustomTask("t", 1, loss=number, metrics={"own": number}, higher_is_better={"own": True})),
        r"metric 'own': .* rows of different shapes \[\(2,\), \(3,\)\]\. Write a torchmetrics metric",
    ),
    "a loss that is asked for a probability": (
        lambda: sm.CustomTask("t", 1, loss=number).likelihood.mode(torch.zeros(2, 1)),
        "its loss is no distribution and has no most probable label",
    ),
}


@each("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(ParameterError, match=message):
        make()


def test_tasks_of_ones_own_are_pickled_and_made_anew() -> None:
    task = sm.CustomTask(
        "grade", 3, loss=hinge, target=["a", "b"], metrics={"own": number}, higher_is_better={"own": True}
    )
    for other in (pickle.loads(pickle.dumps(task)), copy.deepcopy(task), task.with_parameters(weight=2.0)):
        assert other.targets == ("a", "b")
        assert isinstance(other.metrics()["own"], Metric)
        assert other.likelihood.drawable is False
