"""`gradients: gramian` makes the update of all rows, to rounding, in the memory of one row."""

from __future__ import annotations

import math
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from loops import each
from members import required_parameters
from policies import Started
from test_balancers import CPU, GRADIENT_BALANCERS, batch_of, case, engine_of, model_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchjd.aggregation import GramianWeightedAggregator

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS, Balancer, GradientBalancer
from sparsemtl.errors import NonFiniteError, ParameterError
from sparsemtl.sharing.sharing import Update
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.gradient_rows import chunks_of
from sparsemtl.training.steps.step import TrainingStep


def made(name: str, **options: Any) -> Balancer:
    return BALANCERS.build(name, **required_parameters(name, 3), **options)


def reads_inner_products(name: str) -> bool:
    balancer: Any = made(name)
    balancer.attach(3, CPU)
    return isinstance(balancer.module, GramianWeightedAggregator)


BY_GRAMIAN = [name for name in GRADIENT_BALANCERS if reads_inner_products(name)]
OTHERS = [name for name in GRADIENT_BALANCERS if name not in BY_GRAMIAN]
SETTINGS: list[tuple[Update, sm.Sharing, str]] = [
    ("joint", sm.DenseSharing(), "all"),
    ("average", sm.RandomSharing(keep=0.5), "overlap"),
    ("joint", sm.RandomSharing(keep=0.5, mask_applies_to="gradients"), "overlap"),
]


def gradients_of(name: str, gradients: str, update: Update, sharing: sm.Sharing, scope: str) -> list[Tensor]:
    """Gradients of all weights after steps that accumulate, and with labels missing."""
    model = model_of("abc")
    engine = engine_of(model, made(name, gradients=gradients, scope=scope), update, sharing)
    Started.of(engine).begin_epoch(0, ())
    torch.manual_seed(1)
    found = []
    for batches in ([batch_of("abc"), batch_of("abc", 1, missing="b")], [batch_of("abc", 2, missing="c")]):
        engine.step(batches)
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return found


@each("name", BY_GRAMIAN)
def test_the_update_is_that_of_the_rows(name: str) -> None:
    for update, sharing, scope in SETTINGS:
        with case(update, sharing, scope):
            rows = gradients_of(name, "weights", update, sharing, scope)
            for expected, found in zip(rows, gradients_of(name, "gramian", update, sharing, scope), strict=True):
                torch.testing.assert_close(
                    found, expected, rtol=1e-12, atol=1e-12 * max(1, float(expected.abs().max()))
                )


def test_a_weight_that_no_loss_depends_on_has_a_gradient_of_zero_as_with_rows() -> None:
    for names in ("a", "ab"):
        grads = []
        for gradients in ("weights", "gramian"):
            torch.manual_seed(0)
            encoder = nn.Sequential(nn.Linear(4, 6))
            encoder.register_module("unused", nn.Linear(40, 40))
            encoder.forward = lambda x, encoder=encoder: encoder[0](x)  # type: ignore[method-assign]
            kinds = {"a": sm.Classification("a", 3), "b": sm.Regression("b")}
            model = sm.SharedBottom(encoder, [kinds[name] for name in names]).double()
            engine_of(model, BALANCERS.build("mgda", gradients=gradients)).step([batch_of(names)])
            grads.append([p.grad for p in model.parameters()])
        for rows, gramian in zip(*grads, strict=True):
            torch.testing.assert_close(gramian, rows, rtol=1e-12, atol=1e-14)


@each("name", OTHERS)
def test_aggregators_that_read_more_are_refused_before_training(name: str) -> None:
    with pytest.raises(ParameterError, match=r"`gradients: gramian` chooses weights .* Use `gradients: weights`"):
        engine_of(model_of("abc"), made(name, gradients="gramian"))


def test_an_aggregator_of_the_users_own_works_too() -> None:
    from torchjd.aggregation import PCGrad

    steps = []
    for from_gramian in (False, True):
        model = model_of("abc")
        torch.manual_seed(0)
        engine_of(model, GradientBalancer(lambda tasks: PCGrad(), from_gramian=from_gramian)).step([batch_of("abc")])
        steps.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*steps, rtol=1e-12, atol=1e-14)


def test_a_balancer_that_reads_rows_has_no_weights_for_a_gramian() -> None:
    with pytest.raises(NotImplementedError, match="reads more of the gradients than their inner products"):
        BALANCERS.build("mean").gradient_weights(torch.eye(2))


def test_a_gradient_that_is_not_finite_names_its_task() -> None:
    model = model_of("abc")
    engine = engine_of(model, made("mgda", gradients="gramian"))
    (group,) = batch_of("abc")
    engine.step([[group]])
    model.heads["b"].register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * torch.inf,))
    with pytest.raises(NonFiniteError, match="gradient of task 'b' with respect to the shared weights"):
        engine.step([[group]])


@pytest.mark.parametrize(("sizes", "count"), [([5, 1, 12, 0, 3], 4), ([3], 5), ([7, 7], 1), ([2, 2, 2], 3)])
def test_chunks_hold_every_entry_once_in_order(sizes: list[int], count: int) -> None:
    chunks = chunks_of(sizes, count)
    assert len(chunks) <= count
    lengths = [sum(stop - start for _, start, stop in chunk) for chunk in chunks]
    assert max(lengths) == lengths[0] == -(-sum(sizes) // count)
    entries = [(index, entry) for chunk in chunks for index, start, stop in chunk for entry in range(start, stop)]
    assert entries == [(index, entry) for index, size in enumerate(sizes) for entry in range(size)]


@pytest.mark.parametrize("gradients", ["weights", "gramian"])
def test_a_gradient_scaler_scales_nothing_that_an_aggregator_reads(gradients: str) -> None:
    """Nash-MTL's update does not depend on the size of the gradients: scaled ones would make it small by the scale."""
    found = []
    for scale in (1.0, 2.0**10, math.inf):
        model = model_of("abc")
        balancer = made("nash-mtl", gradients=gradients)
        balancer.attach(3, CPU)
        backend = Backend(model, partial(scaled_backward, scale), None, CPU, True, lambda scale=scale: scale)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        networks = sm.DenseSharing().start(model)
        TrainingStep(model, optimizer, networks, balancing=balancer, backend=backend).step([batch_of("abc")])
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / scale)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
    assert not bool(found[2].isfinite().any())  # the scaler sees it, and leaves the step out


def scaled_backward(scale: float, loss: Tensor, *, gradient: Tensor | None = None, **options: Any) -> None:
    (loss * scale).backward(gradient, **options)


class LiveBytes(TorchDispatchMode):
    """Largest number of bytes of tensors made inside the context that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes()
            self._known[key] = weakref.finalize(storage, self._free, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def peak(balancing: Balancer, tasks: int) -> float:
    """Largest memory of a step, over that of one gradient of the shared weights."""
    torch.manual_seed(0)
    encoder = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    model = sm.SharedBottom(encoder, [sm.Regression(f"t{i}") for i in range(tasks)])
    x = torch.randn(2, 64)
    group = Group(x, {name: torch.randn(2) for name in model.tasks}, tuple(model.tasks))
    model(x)
    engine = engine_of(model, balancing)
    engine.step([[group]])
    engine.optimizer.zero_grad()
    with LiveBytes() as live:
        engine.step([[group]])
    return live.peak / (4 * sum(p.numel() for p in model.shared_parameters().values()))


def test_the_memory_is_that_of_one_row_whatever_the_number_of_tasks() -> None:
    plain = peak(BALANCERS.build("mean"), 8)
    assert peak(BALANCERS.build("mgda"), 8) - plain > 7.9
    for tasks in (2, 8):
        assert peak(BALANCERS.build("mgda", gradients="gramian"), tasks) - plain < 1.1
