"""What goes wrong in a user's model, loss or loader is raised in words: task, batch, module, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torchmetrics
from loops import each
from states import state_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_toys import WIDTH, loader, own_loaders, quiet, shared, table

import sparsemtl as sm
from sparsemtl.data.base import BatchLoader
from sparsemtl.errors import ForwardError, LabelError, ParameterError, SparseMTLError
from sparsemtl.training.heads import materialize_heads


def collated(samples: list[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    x, a, b = (torch.stack(column) for column in zip(*samples, strict=True))
    return x, {"a": a, "b": b}


def torch_loader(count: int, **options: Any) -> DataLoader[Any]:
    x, targets = table(count)
    return DataLoader(
        TensorDataset(x, targets["a"], targets["b"]), batch_size=8, shuffle=True, collate_fn=collated, **options
    )


ENDING_WITH_ONE: dict[str, Callable[[], Any]] = {
    "ours": lambda: loader(17),
    "torch's": lambda: torch_loader(17),
    "a task's own": lambda: own_loaders({"a": 8, "b": 9}),
}


@pytest.mark.parametrize("make", ENDING_WITH_ONE.values(), ids=ENDING_WITH_ONE)
def test_a_last_batch_of_one_sample_is_found_before_the_first_step(make: Callable[[], Any]) -> None:
    model = shared(norm=True)
    before = state_of(model)
    with pytest.raises(
        ForwardError, match=r"last batch of an epoch.*task.*'encoder\.1' \(BatchNorm1d\).*drop_last"
    ) as e:
        quiet(model, epochs=1).fit(make(), loader(8))
    assert isinstance(e.value.__cause__, ValueError)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("train", [loader(17, drop_last=True), torch_loader(17, drop_last=True)])
def test_dropping_it_trains(train: Any) -> None:
    assert quiet(shared(norm=True), epochs=1).fit(train, loader(8)).position.step == 2


def test_without_batch_norm_a_batch_of_one_is_as_good_as_any() -> None:
    assert quiet(shared(), epochs=1).fit(loader(17), loader(8)).position.step == 3


class TimeFirst(BatchLoader):
    """Sequences of four steps, (4, samples, width)."""

    def __init__(self, count: int) -> None:
        super().__init__(count, batch_size=8, shuffle=True, drop_last=False, generator=None)
        self.x = torch.randn(4, count, WIDTH)

    def __iter__(self) -> Iterator[Any]:
        return ((self.x[:, rows], {"b": rows.float()}) for rows in self.order())


@pytest.mark.parametrize(("count", "fits"), [(16, True), (17, False)])
def test_the_last_sample_is_found_on_whatever_axis_samples_are(count: int, fits: bool) -> None:
    """A norm over a sequence's first state: one row of a batch, and one for each sample."""

    class First(nn.Module):
        out_features = WIDTH

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x[0])

    trainer = quiet(sm.SharedBottom(First(), [sm.Regression("b")]), epochs=1)
    with nullcontext() if fits else pytest.raises(ForwardError, match="the last batch of an epoch"):
        trainer.fit(TimeFirst(count), TimeFirst(8))
    assert fits == (trainer.position.step > 0)


def test_trying_a_batch_of_one_disturbs_nothing() -> None:
    """A norm over positions takes one sample; the run is that of the same data in a list."""

    class Positions(nn.Module):
        out_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)
            self.linear = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.norm(x[:, None]).squeeze(1))

    ends = []
    for plain in (False, True):
        torch.manual_seed(0)
        model = sm.SharedBottom(Positions(), [sm.Regression("b")])
        data: Any = loader(17, shuffle=False)
        quiet(model, epochs=1).fit(list(data) if plain else data, loader(8))
        ends.append(state_of(model))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_where_no_length_tells_the_batch_is_named_when_it_comes() -> None:
    train = [*loader(16), table(1)]
    with pytest.raises(
        ForwardError, match=r"^epoch 1, batch 3, step 3: tasks 'a', 'b': module 'encoder\.1'.*drop_last"
    ):
        quiet(shared(norm=True), epochs=1).fit(train, loader(8))


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "width": (lambda x: x[:, 1:], r"module 'encoder\.0' \(Linear\) on an input of shape \(8, 5\).*another width"),
    "dtype": (lambda x: x.double(), r"module 'encoder\.0' \(Linear\).*float64.*computes in float32.*x\.float\(\)"),
    "integers": (lambda x: x.long(), r"module 'encoder\.0' \(Linear\).*int64.*computes in float32"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_inputs_of_a_wrong_kind_are_named(change: Callable[[Tensor], Tensor], message: str) -> None:
    wrong = [(change(x), targets) for x, targets in loader(8)]
    good = loader(8)
    model = shared()
    places: list[tuple[str, Callable[[], Any]]] = [
        (r"^epoch 1, batch 1, step 1: tasks 'a', 'b': ", lambda: quiet(model, epochs=1).fit(wrong, good)),
        (r"^evaluation, batch 1: tasks 'a', 'b': ", lambda: quiet(model, epochs=1).fit(good, wrong)),
        (r"^tasks 'a', 'b': ", lambda: model(wrong[0][0])),
        (r"^task 'b': ", lambda: model(wrong[0][0], tasks=["b"])),
        (r"^tasks 'a', 'b': ", lambda: quiet(shared(), epochs=1).fit(good, good).predict(wrong[0][0])),
    ]
    for place, call in places:
        with pytest.raises(ForwardError, match=f"{place}.*{message}") as error:
            call()
        assert type(error.value.__cause__) is RuntimeError


def test_a_criterion_names_inputs_of_a_wrong_width_too() -> None:
    wrong = [(x[:, 1:], targets) for x, targets in loader(8)]
    with pytest.raises(ForwardError, match=WRONG["width"][1]) as error:
        sm.fisher_masks(shared(), wrong, keep=0.5, estimator="efs")
    assert type(error.value.__cause__) is RuntimeError


def test_an_error_of_the_model_s_own_is_kept_as_the_cause() -> None:
    class Picky(nn.Module):
        out_features = 3

        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("pixels")

    with pytest.raises(ForwardError, match=r"task 'b': module 'encoder' \(Picky\).*'pixels' is missing") as error:
        sm.SharedBottom(Picky(), [sm.Regression("b")])(torch.ones(2, 3))
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, ZeroDivisionError, KeyboardInterrupt, LabelError])
def test_what_others_read_by_its_class_stays_as_it_is(kind: type[BaseException]) -> None:
    class Failing(nn.Module):
        out_features = 3

        def forward(self, x: Tensor) -> Tensor:
            raise kind("as it is")

    with pytest.raises(kind, match=r"^as it is$"):
        sm.SharedBottom(Failing(), [sm.Regression("b")])(torch.ones(2, 3))


def test_an_error_in_a_loss_names_the_task_and_the_shapes() -> None:
    model = sm.SharedBottom(nn.Linear(WIDTH, 5), [sm.Regression("b", loss=nn.NLLLoss())])
    materialize_heads(model, loader())
    x, targets = table(8)
    with pytest.raises(
        ForwardError, match=r"task 'b': its loss failed on outputs of shape .* and labels of shape"
    ) as error:
        model.tasks["b"].loss(model(x)["b"], targets["b"])
    assert isinstance(error.value.__cause__, RuntimeError)


def lazy() -> sm.SharedBottom:
    return sm.SharedBottom(nn.Sequential(nn.Linear(WIDTH, 4)), [sm.Classification("a", 3), sm.Regression("b")])


@pytest.mark.parametrize("model", [shared, lazy])
@pytest.mark.parametrize("train", [[], {"a": [], "b": []}], ids=["one", "a task"])
def test_an_empty_training_loader_is_named(model: Callable[[], sm.SharedBottom], train: Any) -> None:
    with pytest.raises(LabelError, match=r"gave no batch|is empty"):
        quiet(model(), epochs=1).fit(train, loader())


def test_an_empty_validation_loader_is_named() -> None:
    with pytest.raises(LabelError, match="the validation loader gave no batch"):
        quiet(shared(), epochs=1).fit(loader(), [])


def test_an_iterator_as_validation_loader_is_named_in_the_second_epoch() -> None:
    with pytest.raises(LabelError, match="not an iterator"):
        quiet(shared(), epochs=2).fit(loader(), iter(list(loader())))


def test_a_loader_that_tells_a_length_and_gives_nothing_is_named() -> None:
    class Liar:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(LabelError, match="loader of task 'a' gave no batch"):
        quiet(shared(), epochs=1).fit({"a": Liar(), "b": Liar()}, loader())


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "compiled": (lambda: torch.compile(shared()), "got OptimizedModule. It wraps a SharedBottom: pass that itself"),
    "parallel": (lambda: nn.DataParallel(shared()), "got DataParallel. It wraps a SharedBottom: pass that itself"),
    "an encoder": (lambda: nn.Linear(2, 3), r"got Linear.*sm\.SharedBottom\(encoder, tasks\)"),
    "a class": (lambda: sm.SharedBottom, "got the class SharedBottom"),
    "nothing": (lambda: None, "got NoneType"),
}


@pytest.mark.parametrize(("make", "message"), MODELS.values(), ids=MODELS)
def test_a_trainer_takes_multi_task_models_only(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"`model` must be a MultiTaskModel, {message}"):
        sm.Trainer(make())


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "an optimizer": (
        {"optimizer": torch.optim.SGD([torch.ones(1)])},
        "would not be trained: no group of the SGD holds it",
    ),
    "a number": ({"optimizer": 0.1}, "`optimizer` must be a function that makes one, got 0.1"),
    "a sharing class": ({"sharing": sm.FisherSharing}, "`sharing` must be .* got the class FisherSharing"),
    "a sharing name": ({"sharing": "fisher"}, "`sharing` must be a sharing method"),
    "a scheduler": (
        {"scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)]), 1)},
        "`scheduler` must be a function that makes one, got the StepLR itself",
    ),
    "a schedule per epoch that is to step per step": (
        {"scheduler": sm.optim.Schedule("cosine"), "scheduler_every": "step"},
        r"Schedule\('cosine', per_step=True, \.\.\.\)",
    ),
}


@pytest.mark.parametrize(("options", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_what_a_trainer_cannot_use_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        quiet(**options)


def test_an_optimizer_that_was_not_made_is_named() -> None:
    with pytest.raises(ParameterError, match="`optimizer` returned None, expected a torch optimizer"):
        quiet(optimizer=lambda parameters: None).fit(loader(), loader())


LOSSES: dict[str, tuple[Callable[[], Any], str]] = {
    "a loss class": (lambda: sm.Regression("b", loss=nn.MSELoss), r"`loss` is the class MSELoss; pass an instance"),
    "a tuple": (lambda: sm.Regression("b", loss=(nn.MSELoss(),)), "`loss` must be a function .* got tuple"),
    "a metric class": (
        lambda: sm.Regression("b", metrics={"mse": torchmetrics.MeanSquaredError}),
        "metric 'mse' is the class MeanSquaredError; pass an instance",
    ),
    "no metric": (
        lambda: sm.Regression("b", metrics={"mse": 3}),
        "metric 'mse' must be a torchmetrics metric, got int",
    ),
}


@pytest.mark.parametrize(("make", "message"), LOSSES.values(), ids=LOSSES)
def test_losses_and_metrics_are_instances(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"task 'b': {message}"):
        make()


def test_metrics_are_names_or_metrics() -> None:
    with pytest.raises(
        ParameterError, match=r"'metrics' parameter of Regression must be a mapping or a sequence of str"
    ):
        sm.Regression("b", metrics=(1,))  # type: ignore[arg-type]


def test_all_of_them_are_ours() -> None:
    assert issubclass(ForwardError, SparseMTLError)
    assert issubclass(ForwardError, RuntimeError)


# Loss weightings where tasks would take turns


@each("balancing", ["mean", "uncertainty", "dwa", "mgda", "famo"])
@each("own", [False, True])
def test_a_frozen_encoder_trains_its_heads_under_any_balancer(balancing: str, own: bool) -> None:
    model = shared()
    model.encoder.requires_grad_(False)
    before = state_of(model)
    data = own_loaders({"a": 16, "b": 16}) if own else loader()
    trainer = quiet(model, balancing=balancing, epochs=1).fit(data, data)
    after = state_of(model)
    assert all(torch.equal(after[name], tensor) == name.startswith("encoder") for name, tensor in before.items())
    assert trainer.step.update != "alternate" or trainer.balancer.constant


@pytest.mark.parametrize(
    "sharing", [lambda: sm.FisherSharing(keep=0.5, estimator="efs"), lambda: sm.RandomSharing(keep=0.5)]
)
def test_networks_of_the_tasks_own_take_a_loss_weighting(sharing: Callable[[], sm.Sharing]) -> None:
    trainer = quiet(shared(), sharing=sharing(), balancing="uncertainty", epochs=2).fit(loader(), loader())
    assert trainer.step.update == "average"


def test_turns_that_were_asked_for_are_still_refused() -> None:
    with pytest.raises(ParameterError, match="update='alternate' takes a step for one task at a time"):
        quiet(sharing=sm.DenseSharing(update="alternate"), balancing="uncertainty").fit(loader(), loader())
