"""Tasks without a label in a batch: they disturb nobody, and nothing that is their own moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
import torchjd.aggregation as aggregation
from loops import each
from members import made_balancer
from test_balancers import CPU, FIXED, NAMES, batch_of, case, engine_of, model_of, module_of
from torch import Tensor, nn
from torchjd.scalarization import DWA

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS, as_balancer, solved
from sparsemtl.balancing.task_states import PerTask, per_task_attributes
from sparsemtl.training.checkpoints.structure import check_state
from sparsemtl.training.steps.step import TrainingStep

Make = Callable[[Sequence[int]], Any]


def chosen(values: list[float], tasks: Sequence[int]) -> Tensor:
    return torch.tensor([values[task] for task in tasks], dtype=torch.float64)


PREFERRED = [1.0, 3.0, 2.0]
LEFT_OUT: dict[str, Make] = {
    **{
        name: lambda tasks, name=name: module_of(attached(name, len(tasks)))
        for name in NAMES
        if made_balancer(name, 2).combines_gradients and name not in FIXED
    },
    "aligned-mtl, preferred": lambda tasks: aggregation.AlignedMTL(chosen(PREFERRED, tasks)),
    "config, preferred": lambda tasks: aggregation.ConFIG(chosen(PREFERRED, tasks)),
    "nash-mtl, kept": lambda tasks: solved.nash_mtl(1.0, 3),
    "graddrop, leaking": lambda tasks: aggregation.GradDrop(leak=chosen([0.2, 0.9, 0.5], tasks)),
    "excess": lambda tasks: aggregation.ExcessMTL(),
    "excess, after a warm-up": lambda tasks: aggregation.ExcessMTL(robust_step_size=0.1, n_warmup_steps=2),
    "pcd": lambda tasks: aggregation.PCD(),
    "pcd, a tolerance each": lambda tasks: aggregation.PCD(tau=chosen([0.0, 0.3, 0.1], tasks[1:])),
    "cr-mogm": lambda tasks: aggregation.WeightedAggregator(
        aggregation.CRMOGMWeighting(aggregation.MGDAWeighting() << gramian, initial_weights=chosen(PREFERRED, tasks))
    ),
    "modo": lambda tasks: aggregation.GramianWeightedAggregator(aggregation.MoDoWeighting()),
    "sdmgrad": lambda tasks: aggregation.GramianWeightedAggregator(aggregation.SDMGradWeighting(lr=0.1)),
    "sdmgrad, preferred": lambda tasks: aggregation.GramianWeightedAggregator(
        aggregation.SDMGradWeighting(lr=0.1, pref_vector=chosen(PREFERRED, tasks))
    ),
}
ZERO_ROWS: dict[str, Make] = {
    "mean": lambda tasks: aggregation.Mean(),
    "sum": lambda tasks: aggregation.Sum(),
    "constant": lambda tasks: aggregation.Constant(chosen(PREFERRED, tasks)),
    "trimmed mean": lambda tasks: aggregation.TrimmedMean(1),
    "krum": lambda tasks: aggregation.Krum(0),
    "a user's own": lambda tasks: FirstCountsTwice(),
}
AGGREGATORS = {**LEFT_OUT, **ZERO_ROWS}
REMEMBERING = ["gradvac", "excess", "excess, after a warm-up", "pcd", "cr-mogm", "modo", "sdmgrad"]
RANDOM = ["pcgrad", "gradvac", "graddrop", "random-gradients", "graddrop, leaking"]
#: The first task is what the others are secondary to.
ORDERED = ["pcd", "pcd, a tolerance each", "a user's own"]


def gramian(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T


class FirstCountsTwice(aggregation.Aggregator):
    """Reads tasks by their places, as the library cannot know."""

    def forward(self, matrix: Tensor, /) -> Tensor:
        return 2 * matrix[0] + matrix[2]


def attached(name: str, count: int) -> Any:
    balancer = made_balancer(name, count)
    balancer.attach(count, CPU)
    return balancer


def balancer_of(name: str, tasks: Sequence[int] = (0, 1, 2)) -> Any:
    balancer = as_balancer(AGGREGATORS[name](tasks))
    balancer.attach(len(tasks), CPU)
    return balancer


def matrices(steps: int = 6) -> Tensor:
    """(steps, 3, 7), some with tasks that disagree."""
    return torch.randn(steps, 3, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def combined(balancer: Any, rows: Tensor, present: Tensor | None = None) -> Tensor:
    torch.manual_seed(5)
    return balancer.aggregate(rows, present)


def test_a_task_that_never_has_a_label_might_as_well_not_exist() -> None:
    for name, missing in ((one, place) for one in LEFT_OUT for place in range(one in ORDERED, 3)):
        with case(name, missing):
            rest = [task for task in range(3) if task != missing]
            whole, smaller = balancer_of(name), balancer_of(name, rest)
            present = torch.arange(3) != missing
            for rows in matrices():
                expected = combined(smaller, rows[rest])
                torch.testing.assert_close(combined(whole, rows, present), expected, rtol=1e-5, atol=1e-7)


def test_who_reads_rows_by_their_places_or_number_gets_a_row_of_zeros() -> None:
    for name, missing in product(ZERO_ROWS, range(3)):
        with case(name, missing):
            present = torch.arange(3) != missing
            for rows in matrices():
                balancer, plain = balancer_of(name), AGGREGATORS[name](range(3))
                expected = plain(rows * present[:, None])
                assert torch.equal(combined(balancer, rows, present), expected)


def memories(balancer: Any) -> dict[tuple[str, str], tuple[Tensor, PerTask]]:
    """What an aggregator remembers of tasks."""
    return {
        (path, name): (getattr(part, name).clone(), rule)
        for path, part in balancer.module.named_modules()
        for name, rule in per_task_attributes().get(type(part), {}).items()
        if isinstance(getattr(part, name), Tensor)
    }


def test_what_is_remembered_of_an_absent_task_stays_bit_for_bit() -> None:
    for name, missing in product(REMEMBERING, range(3)):
        with case(name, missing):
            balancer = balancer_of(name)
            steps = matrices()
            for rows in steps[:4]:
                combined(balancer, rows)
            before = memories(balancer)
            assert before
            combined(balancer, steps[4], torch.arange(3) != missing)
            changed = False
            for key, (value, rule) in memories(balancer).items():
                old = before[key][0]
                for axis in rule.axes:
                    if not rule.secondary:
                        assert torch.equal(value.select(axis, missing), old.select(axis, missing)), key
                changed = changed or not torch.equal(value, old)
            assert changed
            after = memories(balancer)
            combined(balancer, steps[5])
            assert any(not torch.equal(value, after[key][0]) for key, (value, _) in memories(balancer).items())


def test_the_order_of_tasks_does_not_matter() -> None:
    for name in [name for name in AGGREGATORS if name not in [*RANDOM, *ORDERED, "krum"]]:
        with case(name):
            order = [2, 0, 1]
            patterns = torch.tensor(
                [[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.bool
            )
            one, other = balancer_of(name), balancer_of(name, order)
            for rows, present in zip(matrices(), patterns, strict=True):
                expected = combined(one, rows, present)
                torch.testing.assert_close(combined(other, rows[order], present[order]), expected, rtol=1e-5, atol=1e-7)


def test_tasks_may_come_and_go_in_any_pattern() -> None:
    """From the first step on, so that some are first seen when others are known."""
    for name in AGGREGATORS:
        with case(name):
            patterns = [pattern for pattern in product([True, False], repeat=3) if any(pattern)]
            for start in range(len(patterns)):
                balancer = balancer_of(name)
                before = repr(balancer.state_dict())
                for step, rows in enumerate(matrices(7)):
                    found = combined(balancer, rows, torch.tensor(patterns[(start + step) % len(patterns)]))
                    assert bool(found.isfinite().all())
                if repr(balancer.state_dict()) == before:
                    break  # without a memory, the order is nothing to it


def test_a_failure_leaves_the_memory_as_it_was() -> None:
    for name in REMEMBERING:
        with case(name):
            balancer = balancer_of(name)
            for rows in matrices(3):
                combined(balancer, rows)
            before = repr(balancer.state_dict())

            def fail(*_: Any) -> None:
                raise ZeroDivisionError

            handle = balancer.module.register_forward_pre_hook(fail)
            with pytest.raises(ZeroDivisionError):
                combined(balancer, matrices()[4], torch.tensor([True, False, True]))
            handle.remove()
            assert repr(balancer.state_dict()) == before


def test_memory_with_gaps_survives_a_checkpoint() -> None:
    for name in REMEMBERING:
        with case(name):
            one, other = balancer_of(name), balancer_of(name)
            present = torch.tensor([True, False, True])
            steps = matrices()
            for rows in steps[:3]:
                combined(one, rows, present)
            other.load_state_dict(copy.deepcopy(one.state_dict()))
            for rows, flags in zip(steps[3:], (present, torch.ones(3, dtype=torch.bool), ~present), strict=True):
                assert torch.equal(combined(one, rows, flags), combined(other, rows, flags))


def test_without_the_first_task_pcd_has_nothing_to_follow() -> None:
    balancer = balancer_of("pcd")
    rows = matrices()
    combined(balancer, rows[0])
    assert not combined(balancer, rows[1], torch.tensor([False, True, True])).any()


def test_nash_bargains_among_those_who_are_there() -> None:
    pytest.importorskip("cvxpy")
    pytest.importorskip("ecos")
    whole, smaller = (as_balancer(aggregation.NashMTL(count)) for count in (3, 2))
    whole.attach(3, CPU)
    smaller.attach(2, CPU)
    present = torch.tensor([True, False, True])
    for rows in matrices().float():
        torch.testing.assert_close(
            whole.aggregate(rows, present), smaller.aggregate(rows[present]), rtol=1e-3, atol=1e-4
        )
    assert bool(whole.aggregate(matrices()[0].float()).isfinite().all())
    other = as_balancer(aggregation.NashMTL(3))
    other.attach(3, CPU)
    other.load_state_dict(whole.state_dict())
    again = matrices()[1].float()
    torch.testing.assert_close(other.aggregate(again), whole.aggregate(again), rtol=1e-3, atol=1e-4)


# In training


def adam_engine(model: sm.MultiTaskModel, balancer: Any) -> TrainingStep:
    """An engine whose optimizer moves what has no gradient."""
    sharing = sm.DenseSharing()
    balancer.attach(len(model.tasks), CPU)
    optimizer = torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=0.05, weight_decay=0.1)
    networks = sharing.start(model)
    return TrainingStep(model, optimizer, networks, sharing=sharing, balancing=balancer, update="joint")


def own_values(engine: TrainingStep) -> list[Tensor]:
    """What is learned of the tasks, (T,) each, with the optimizer's memory of it."""
    module = module_of(engine.balancer)
    inner = getattr(module, "_optimizer", None)
    found = []
    for p in module.parameters():
        states = [o.state.get(p, {}) for o in (engine.optimizer, inner) if o is not None]
        found += [p, *[v for state in states for v in state.values() if isinstance(v, Tensor) and v.shape == p.shape]]
    return [tensor.detach().clone() for tensor in found]


@each("name", ["uncertainty", "imtl-l", "famo"])
@each("missing", ["a", "b", "ac"])
def test_what_is_learned_of_an_absent_task_stays_bit_for_bit(name: str, missing: str) -> None:
    engine = adam_engine(model_of("abc"), made_balancer(name, 3))
    for seed in range(3):
        engine.step([batch_of("abc", seed)])
    before = own_values(engine)
    assert len(before) == 3
    engine.step([batch_of("abc", 3, missing=missing)])
    absent = torch.tensor([task in missing for task in "abc"])
    for old, new in zip(before, own_values(engine), strict=True):
        assert torch.equal(new[absent], old[absent])
        assert bool((new != old)[~absent].all()) or (name == "famo" and missing == "ac")


@pytest.mark.parametrize("name", ["uncertainty", "imtl-l", "famo"])
def test_a_task_absent_from_the_first_step_on_starts_where_all_start(name: str) -> None:
    engine = adam_engine(model_of("abc"), made_balancer(name, 3))
    start = [p.detach().clone() for p in module_of(engine.balancer).parameters()]
    for seed in range(3):
        engine.step([batch_of("abc", seed, missing="b")])
    for p, old in zip(module_of(engine.balancer).parameters(), start, strict=True):
        assert p[1] == old[1]
        assert bool((p != old)[[0, 2]].all())


@pytest.mark.parametrize("name", ["sum", "uncertainty", "imtl-l"])
def test_the_others_train_as_if_an_absent_task_did_not_exist(name: str) -> None:
    model, smaller = model_of("abc"), model_of("ac")
    smaller.load_state_dict({key: value for key, value in model.state_dict().items() if key in smaller.state_dict()})
    engine, reference = adam_engine(model, made_balancer(name, 3)), adam_engine(smaller, made_balancer(name, 2))
    for seed in range(4):
        engine.step([batch_of("abc", seed, missing="b")])
        reference.step([batch_of("ac", seed)])
    for key, expected in smaller.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], expected, rtol=1e-9, atol=1e-12)
    for p, expected in zip(engine.balancer.parameters(), reference.balancer.parameters(), strict=True):
        torch.testing.assert_close(p[[0, 2]], expected)


def test_a_batch_without_a_task_adds_nothing_to_the_slope_of_its_scale() -> None:
    full, lacking = batch_of("abc"), batch_of("abc", 1, missing="b")
    slopes = []
    for window in ([full], [lacking, full]):
        engine = engine_of(model_of("abc"), made_balancer("uncertainty", 3))
        engine.step(window)
        (parameter,) = engine.balancer.parameters()
        slopes.append(parameter.grad.clone())
    torch.testing.assert_close(slopes[1][1], slopes[0][1] / 2)


@pytest.mark.parametrize("own", [True, False])
def test_dwa_averages_the_batches_in_which_a_task_has_a_label(own: bool) -> None:
    balancer = as_balancer(DWA(0.7)) if own else BALANCERS.build("dwa", temperature=0.7)
    balancer.attach(3, CPU)
    generator = torch.Generator().manual_seed(0)
    past: list[list[float]] = [[], [], []]
    for _ in range(7):
        seen: list[list[float]] = [[], [], []]
        ratios = [means[-1] / means[-2] if len(means) > 1 else 1.0 for means in past]
        expected = 3 * torch.softmax(torch.tensor(ratios) / 0.7, 0)
        for _ in range(4):
            losses = torch.rand(3, generator=generator) + 0.5
            present = torch.rand(3, generator=generator) < 0.4
            torch.testing.assert_close(balancer.weights(losses, present), expected)
            for task in present.nonzero().flatten().tolist():
                seen[task].append(float(losses[task]))
        balancer.end_epoch()
        for task, values in enumerate(seen):
            past[task] += [sum(values) / len(values)] if values else []
    assert max(map(len, past)) > min(map(len, past)) > 2
    state = balancer.state_dict()
    twin = as_balancer(DWA(0.7)) if own else BALANCERS.build("dwa", temperature=0.7)
    twin.attach(3, CPU)
    twin.load_state_dict(state)
    assert torch.equal(twin.weights(torch.ones(3)), balancer.weights(torch.ones(3)))


def test_an_absent_task_stops_no_training() -> None:
    for name in AGGREGATORS:
        with case(name):
            model = model_of("abc")
            engine = engine_of(model, as_balancer(AGGREGATORS[name](range(3))))
            for seed, missing in enumerate(["", "b", "a", "ac", "", "bc"]):
                before = {key: p.detach().clone() for key, p in model.named_parameters()}
                engine.step([batch_of("abc", seed, missing=missing)])
                for key, p in model.named_parameters():
                    assert bool(p.isfinite().all())
                    if key.split(".")[1] in missing:
                        assert torch.equal(p, before[key])


def test_a_user_s_aggregator_with_memory_of_its_own_keeps_its_rows() -> None:
    class Smoothed(aggregation.Aggregator):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3, 7, dtype=torch.float64))

        def forward(self, matrix: Tensor, /) -> Tensor:
            self.mean = 0.5 * self.mean + 0.5 * matrix
            return self.mean.sum(0)

    balancer = as_balancer(Smoothed())
    balancer.attach(3, CPU)
    rows = matrices()
    balancer.aggregate(rows[0])
    balancer.aggregate(rows[1], torch.tensor([True, False, True]))
    torch.testing.assert_close(balancer.module.mean[1], rows[0][1] / 4)
    assert isinstance(balancer.module, nn.Module)


def test_a_state_after_steps_is_taken_for_one_of_a_run_that_starts() -> None:
    """A checkpoint is refused whose parts have another form than the run's own before its first step."""
    for name in NAMES:
        with case(name):
            balancer = made_balancer(name, 3)
            engine = engine_of(model_of("abc"), balancer)
            for seed, missing in enumerate(["a", "", "c"]):
                engine.step([batch_of("abc", seed, missing=missing)])
            twin = made_balancer(name, 3)
            twin.attach(3, CPU)
            check_state(balancer.state_dict(), twin.state_dict(), "the balancer")
            twin.load_state_dict(balancer.state_dict())
            torch.manual_seed(0)
            expected = balancer.weights(torch.ones(3))
            torch.manual_seed(0)
            assert torch.equal(twin.weights(torch.ones(3)), expected)
