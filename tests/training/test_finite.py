"""No step on a gradient that is not finite, and no checkpoint of weights that are not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from states import assert_same, state_of
from torch import Tensor, nn
from training_toys import encoder, loader, quiet, shared, table

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import NonFiniteError, SelectionError, TrainingError
from sparsemtl.storage.text_files import read_json
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.finite import check_gradient, check_weights
from sparsemtl.training.steps.optimizer_steps import MAX_SKIPPED
from sparsemtl.training.steps.step import TrainingStep

SGD = partial(torch.optim.SGD, lr=0.05)
CPU = torch.device("cpu")


def held_out() -> TensorLoader:
    return loader(20, seed=2, batch_size=20, shuffle=False)


class Treacherous(torch.autograd.Function):
    """The identity, whose gradient becomes a value from a call on."""

    value, after, calls = math.nan, 0, 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Treacherous.calls += 1
        return gradient if Treacherous.calls <= Treacherous.after else torch.full_like(gradient, Treacherous.value)


def treacherous(value: float = math.nan, *, after: int = 0) -> sm.SharedBottom:
    """A model whose losses stay finite and whose gradients of task "b" do not, after so many batches."""

    class Head(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Treacherous.apply(super().forward(x))  # type: ignore[no-any-return, no-untyped-call]

    Treacherous.value, Treacherous.after, Treacherous.calls = value, after, 0
    network = encoder()
    return sm.SharedBottom(network, shared().tasks.values(), {"a": nn.Linear(5, 3), "b": Head(5, 1)})  # type: ignore[arg-type]


# Gradients


def parameters(**gradients: list[float]) -> dict[str, nn.Parameter]:
    found = {}
    for name, values in gradients.items():
        found[name] = nn.Parameter(torch.zeros(len(values)))
        found[name].grad = torch.tensor(values)
    return found


@each("bad", [math.nan, math.inf, -math.inf])
@each("place", range(3))
def test_one_entry_is_enough_and_its_parameter_is_named(bad: float, place: int) -> None:
    entries = [1.0, 2.0, 3.0]
    entries[place] = bad
    with pytest.raises(
        NonFiniteError, match="gradient of tasks 'a', 'b' is NaN or infinite at step 7, in parameter 'w'"
    ):
        check_gradient(parameters(v=[1.0], w=entries, u=[0.0]), ("a", "b"), "step 7")


def test_finite_gradients_pass_sparse_ones_and_missing_ones_too() -> None:
    check_gradient({}, ("a",))
    check_gradient({"w": nn.Parameter(torch.zeros(2))}, ("a",))
    check_gradient(parameters(w=[1e18, -1e18], v=[0.0]), ("a",))
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    check_gradient(dict(embedding.named_parameters()), ("a",))
    with torch.no_grad():
        embedding.weight.grad = embedding.weight.grad * math.inf  # type: ignore[operator]
    with pytest.raises(NonFiniteError, match="parameter 'weight'"):
        check_gradient(dict(embedding.named_parameters()), ("a",))


def test_a_norm_that_overflows_is_no_gradient_that_is_not_finite_but_cannot_be_clipped() -> None:
    check_gradient(parameters(w=[3e38, 3e38]), ("a",))
    trainer = quiet(treacherous(3e37), clip_norm=1.0, epochs=1)
    with pytest.raises(NonFiniteError, match="so large at epoch 1, batch 1, step 1 that its norm overflows and cannot"):
        trainer.fit(loader(), held_out())


@each("update", ["joint", "average", "alternate"])
@each("balancing", ["mean", "pcgrad", "mgda"])
@each("clip", [None, 1.0])
@each("value", [math.nan, math.inf])
def test_a_step_on_such_a_gradient_is_not_taken(update: Any, balancing: str, clip: float | None, value: float) -> None:
    if update == "alternate" and balancing != "mean":
        return
    model = treacherous(value, after=5 if update != "alternate" else 2)
    sharing = sm.DenseSharing(update=update)
    trainer = quiet(model, sharing=sharing, balancing=balancing, clip_norm=clip, optimizer=SGD, epochs=3)
    with pytest.raises(NonFiniteError, match=r"gradient of tasks? .*'b'.*at epoch \d+, batch \d+, step \d+"):
        trainer.fit(loader(), held_out())
    assert all(bool(tensor.isfinite().all()) for tensor in state_of(model).values())
    assert issubclass(NonFiniteError, TrainingError)  # so that a study leaves the run out and goes on


def test_the_checkpoint_before_stays_and_goes_on(tmp_path: Path) -> None:
    trainer = quiet(treacherous(after=7), folder=tmp_path, optimizer=SGD, epochs=2, checkpoint_every=1)
    with pytest.raises(NonFiniteError):
        trainer.fit(loader(), held_out())
    kept = state_of(trainer.model)
    Treacherous.after = 10**6
    again = quiet(treacherous(after=10**6), folder=tmp_path, optimizer=SGD, epochs=2, checkpoint_every=1)
    again.set_up(loader())
    whole = again.folder.load(tmp_path / "checkpoints" / "last.safetensors")["model"]  # type: ignore[union-attr]
    assert_same({name: whole[name] for name in kept}, kept)
    again.fit(loader(), held_out(), resume=True)
    assert all(bool(tensor.isfinite().all()) for tensor in state_of(again.model).values())


# Weights


class Exploding(torch.optim.SGD):
    """An optimizer whose step of a given number makes a weight infinite, though its gradient is not."""

    def __init__(self, groups: Any, *, at: int) -> None:
        super().__init__(groups, lr=0.01)
        self.at, self.steps = at, 0

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.steps += 1
        if self.steps == self.at:
            self.param_groups[0]["params"][0].data[0, 0] = math.inf


@pytest.mark.parametrize("at", [10, 15])  # the last step of the last epoch, and the last but one epoch's
def test_a_run_never_ends_well_with_weights_that_are_not_finite(at: int, tmp_path: Path) -> None:
    trainer = quiet(shared(), folder=tmp_path, optimizer=partial(Exploding, at=at), epochs=3)
    with pytest.raises(NonFiniteError, match=rf"parameter 'encoder.0.weight': NaN or infinite after step {at}; .*last"):
        trainer.fit(loader(), held_out())
    assert read_json(tmp_path / "summary.json")["status"] == "failed"
    for file in (tmp_path / "checkpoints").iterdir():
        assert all(bool(t.isfinite().all()) for t in trainer.folder.load(file)["model"].values())  # type: ignore[union-attr]


def test_a_checkpoint_within_an_epoch_is_not_replaced_either(tmp_path: Path) -> None:
    trainer = quiet(shared(), folder=tmp_path, optimizer=partial(Exploding, at=3), epochs=1, checkpoint_every=1)
    with pytest.raises(NonFiniteError, match="after step 3"):
        trainer.fit(loader(), held_out())
    state = trainer.folder.load(trainer.folder.last)  # type: ignore[union-attr]
    assert state["progress"]["step"] == 2
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


def test_the_names_of_a_few_are_enough() -> None:
    wrong = {f"w{i}": nn.Parameter(torch.full((1,), math.nan)) for i in range(5)}
    with pytest.raises(NonFiniteError, match="parameters 'w0', 'w1', 'w2' and 2 others: NaN or infinite now"):
        check_weights(wrong, "now")


# Half precision


class Scaler:
    """A gradient scaler that leaves out steps whose gradient is not finite."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if all(bool(g.isfinite().all()) for g in grads):
            self.optimizer.step()


def scaled_engine(model: sm.SharedBottom, balancing: str, sharing: sm.sharing.Sharing | None = None) -> TrainingStep:
    sharing = sm.DenseSharing() if sharing is None else sharing
    balancer = sm.balancing.as_balancer(balancing)
    balancer.attach(2, CPU)
    optimizer: Any = Scaler(torch.optim.SGD(model.parameters(), lr=0.1))
    backend = Backend(model, lambda loss, **options: loss.backward(**options), None, CPU, scaled=True)
    networks = sharing.start(model)
    return TrainingStep(
        model, optimizer, networks, sharing=sharing, balancing=balancer, update="joint", backend=backend
    )


@pytest.mark.parametrize("balancing", ["mean", "pcgrad"])
def test_a_step_that_a_gradient_scaler_leaves_out_is_no_error_until_it_leaves_out_all(balancing: str) -> None:
    model = treacherous(math.inf)
    engine = scaled_engine(model, balancing)
    before = state_of(model)
    batch = [[Group(*table(8), ("a", "b"))]]
    for _ in range(MAX_SKIPPED - 1):
        engine.step(batch, "here")
    assert_same(state_of(model), before)
    with pytest.raises(NonFiniteError, match=f"in {MAX_SKIPPED} steps one after another, until here"):
        engine.step(batch, "here")
    Treacherous.after = Treacherous.calls + 1
    engine.step(batch, "here")  # one that is taken ends the row
    engine.step(batch, "here")


class Following(sm.DenseSharing):
    """Dense, with a count of the steps that it followed."""

    steps = 0

    def after_step(self, model: Any, networks: Any, optimizer: Any, weights: Any) -> None:
        self.steps += 1


def test_a_method_does_not_act_after_a_step_that_was_left_out() -> None:
    following = Following()
    engine = scaled_engine(treacherous(math.inf), "mean", following)
    batch = [[Group(*table(8), ("a", "b"))]]
    engine.step(batch, "here")
    assert following.steps == 0
    Treacherous.after = Treacherous.calls + 1
    engine.step(batch, "here")
    assert following.steps == 1


# Validation


def with_nan_row(count: int = 20) -> TensorLoader:
    x, targets = table(count, seed=2)
    x[3] = math.nan
    return TensorLoader(x, targets, batch_size=7)


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The texts of all warnings inside the context."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        texts += [str(one.message) for one in caught]


def test_a_row_of_nan_in_validation_is_named_and_ends_the_run() -> None:
    trainer = quiet(epochs=3)
    with recorded() as texts, pytest.raises(SelectionError, match=r"in epoch 1.*'accuracy' of task 'a' \(epoch 1\)"):
        trainer.fit(loader(), with_nan_row())
    assert any("1 of 20 samples of this split, the first of them sample 3" in text for text in texts)


def test_a_task_that_is_undefined_in_validation_leaves_the_choice_to_the_others() -> None:
    """A task without labels there is left out; the epoch kept is the best one of the other task."""
    x, targets = table(40, seed=2)
    validation = TensorLoader(x, {**targets, "a": torch.full((40,), -100)}, batch_size=40)
    trainer = quiet(epochs=5, optimizer=partial(torch.optim.Adam, lr=0.02))
    with recorded() as texts:
        trainer.fit(loader(120), validation)
    assert any("'accuracy' of task 'a' is undefined" in text for text in texts)
    only_b = quiet(shared(), epochs=5, optimizer=partial(torch.optim.Adam, lr=0.02), monitor=lambda r: r["b"]["r2"])
    only_b.fit(loader(120), TensorLoader(x, targets, batch_size=40))
    assert trainer.selection.best_epoch("a") == only_b.selection.best_epoch("a")


def test_logits_of_nan_are_no_class() -> None:
    trainer = quiet(epochs=1)
    trainer.fit(loader(), held_out())
    with recorded() as texts:
        results = trainer.test(with_nan_row())
    assert all(f"task {task!r}: the network computes NaN" in text for task, text in zip("ab", texts, strict=True))
    assert all(math.isnan(value) for value in results["a"].values())
    assert all(math.isnan(value) for value in results["b"].values())


def test_logits_of_minus_infinity_exclude_classes_and_are_predictions() -> None:
    class Excluding(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).index_fill(1, torch.tensor([2]), -math.inf)

    torch.manual_seed(0)
    model = sm.SharedBottom(encoder(), [shared("a").tasks["a"]], {"a": Excluding(5, 3)})
    x, targets = table(30)
    few = TensorLoader(x, {"a": targets["a"].clamp(max=1)}, batch_size=10)
    results = quiet(model, epochs=1).fit(few, TensorLoader(x[:9], {"a": targets["a"][:9].clamp(max=1)})).validation
    assert math.isfinite(results["a"]["accuracy"])
