"""Small networks out of a trained model: pruned to budgets while they learn from it, compacted and measured.

1. The budgets are taken from the largest to the smallest. Each stage starts from the weights of the one before.
2. A stage is a training with `PruningSharing`. On request the dense network's outputs are soft targets (`Teacher`).
3. Validation data select the epoch of every stage, and, where a budget is the largest loss of a task, the last stage.
4. Each stage's networks are compacted, verified and timed: one network for all tasks, a tree, or one per task,
   whichever needs the fewest multiply-adds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Annotated, Any, TypedDict

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from typing_extensions import Doc, Unpack

from sparsemtl.compaction import parameter_count, plan
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.pipeline import CompactedModule
from sparsemtl.compaction.timing.measure import times_of
from sparsemtl.compaction.units import Cost
from sparsemtl.errors import MaskWarning, ParameterError
from sparsemtl.networks.model import MultiTaskModel, first_group, placement
from sparsemtl.networks.task_networks import dense_networks
from sparsemtl.registry.parameters import Count, Default, NonNegative, validated
from sparsemtl.sharing import PruningSharing, Sharing
from sparsemtl.sharing.pruning import fraction_left
from sparsemtl.sharing.sharing import StepWeights
from sparsemtl.tasks.batches import Loaders, preserve_loader_state
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.trained import Trained
from sparsemtl.training.processes.launch import refuse_several
from sparsemtl.training.shrinking.budget import Budget, budget_of
from sparsemtl.training.shrinking.result import ShrinkResult, ShrunkNetwork
from sparsemtl.training.steps.teacher import HasNetworks, Teacher
from sparsemtl.training.trainer import Trainer

Stage = Callable[[Trained, str, Mapping[str, Any], int], Trained]
"""Trains the networks of a stage: the networks before it, its name, options of `PruningSharing`, epochs -> networks."""
PER_READER, STRENGTH, TEACHER_WEIGHT = True, 5e-5, 0.0
"""Defaults of a shrink, compared in `benchmarks/results/shrink.md`."""
_STEP, _STEPS = 0.6, 5
"""Factor between the stages of a budget that is a loss, and their largest number."""
_PROBES = 6
"""Networks that are timed to find the multiply-adds that take some milliseconds."""
_REPEATS = 20


@dataclass(frozen=True)
class ShrinkData:
    """Data of a shrink.

    Attributes:
        train: training data, as for `Trainer.fit`.
        validation: data that choose.
        test: data that only report; None for none.
        example: a batch that the model reads, for compaction and times.
    """

    train: Loaders
    validation: Loaders
    test: Loaders | None
    example: Any


class ShrinkOptions(TypedDict, total=False):
    """Further options of `shrink`."""

    example_inputs: Annotated[
        Any, Default(None), Doc("A batch that the model reads; by default the first training batch.")
    ]
    teacher_weight: Annotated[
        NonNegative,
        Default(TEACHER_WEIGHT),
        Doc("Factor of the distance from the model's outputs; 0 learns from labels alone."),
    ]
    per_reader: Annotated[
        bool,
        Default(PER_READER),
        Doc("Remove a channel from one layer that reads it at a time, see `PruningSharing`: for residual networks."),
    ]
    lambda_: Annotated[
        NonNegative, Default(STRENGTH), Doc("Strength of the group lasso while training, see `PruningSharing`.")
    ]


@validated
def shrink(
    model: nn.Module | HasNetworks,
    train: Loaders,
    validation: Loaders,
    *,
    budget: float | Sequence[float] | Mapping[str, Any] = 0.3,
    epochs: Count = 10,
    trainer: Callable[..., Trainer] | None = None,
    test: Loaders | None = None,
    **options: Unpack[ShrinkOptions],
) -> ShrinkResult:
    """Return small networks of a trained model, with what they cost and how good they are.

    Channels, attention heads and neurons are removed from the shared modules and from the heads, those first that every
    task can spare for their cost (`PruningSharing`), while the weights train on. On request the model's outputs are
    soft targets (`Teacher`). The small networks are plain modules, verified against the pruned model.

    Args:
        model: the trained model, which is not changed. One of your own with its heads is made such by `sm.from_model`.
            A `Trainer` or a loaded run is taken with its networks, which must be one network for all tasks.
        train: training data, as for `Trainer.fit`.
        validation: data that select epochs.
        budget: what to reach, one number or several of one kind. A number or `{"macs": 0.3}`: fraction of the
            multiply-adds that the model needs without its zero channels, in (0, 1); `{"weights": 0.3}`: of the weights
            of its convolutions and linear layers; `{"milliseconds": 2.0}`: time of the example batch on this machine,
            in torch; `{"max_drop": 0.01}`: the smallest network of up to five stages that loses no more of the primary
            metric of any task on the validation data, as a fraction of the model's, or
            `{"max_drop": {task: fraction}}`.
        epochs: epochs per budget; of `max_drop`, of all stages together.
        trainer: function that returns a trainer, called as `trainer(model, sharing=..., teacher=..., epochs=...)`; by
            default `sm.Trainer` with Adam and a learning rate that falls by a cosine. Pass the optimizer, balancer and
            learning rate that the model was trained with: `partial(sm.Trainer, optimizer=..., balancing=...)`.
        test: data that only report.
        options: `example_inputs`, a batch that the model reads, by default the first training batch; `teacher_weight`,
            the factor of the distance from the model's outputs, 0 for none; `per_reader`, whether a channel is removed
            from one layer that reads it at a time, or from all at once; `lambda_`, the strength of a group lasso that
            gathers in few channels what the tasks need, 0 for none; see `PruningSharing` for both.

    Raises:
        ParameterError: if a budget is out of range, the tasks have networks of their own, or several processes are
            announced.
        CompactionError: if no graph can hold what the model does.

    Examples:
        >>> small = sm.shrink(model, train, validation, budget=[0.5, 0.3])   # doctest: +SKIP
        >>> print(small)                                                     # doctest: +SKIP
        >>> torch.save(small.smallest.network, "small.pt")                       # doctest: +SKIP
    """
    dense = _dense(model)
    weight = options["teacher_weight"]
    teacher = Teacher(dense, weight=weight) if weight else None

    def stage(before: Trained, _: str, pruning: Mapping[str, Any], count: int) -> Trained:
        sharing = PruningSharing(**pruning)
        made = (trainer or _default_trainer)(deepcopy(before.model), sharing=sharing, teacher=teacher, epochs=count)
        refuse_several(made.options, "sm.shrink")
        made.fit(train, validation)
        return Trained(made.model, made.networks, made.model)

    example = options["example_inputs"]
    if example is None:
        with preserve_loader_state(train):
            example = first_group(dense.model, train).x
    data = ShrinkData(train, validation, test, example)
    own = {"per_reader": options["per_reader"], "lambda_": options["lambda_"]}
    return shrink_in_stages(stage, dense, data, budget=budget_of(budget, dense.tasks), epochs=epochs, pruning=own)


def _default_trainer(model: MultiTaskModel, *, sharing: Sharing, teacher: Teacher | None, epochs: int) -> Trainer:
    """Return a trainer whose learning rate falls by a cosine."""
    falling = partial(CosineAnnealingLR, T_max=epochs)
    return Trainer(
        model,
        sharing=sharing,
        teacher=teacher,
        epochs=epochs,
        scheduler=falling,
        progress=False,
        measure_cost=False,
    )


def _dense(model: nn.Module | HasNetworks) -> Trained:
    """Return a model with its networks.

    Raises:
        ParameterError: if there is none, or its tasks have networks of their own.
    """
    if not isinstance(model, (MultiTaskModel, HasNetworks)):
        raise ParameterError(
            f"shrink: `model` must be a MultiTaskModel, got {type(model).__name__}. Make one of a model of your own "
            "with `sm.from_model(model, tasks, shared=..., heads=...)`."
        )
    own = model if isinstance(model, MultiTaskModel) else model.model
    networks = dense_networks(own, own.tasks) if isinstance(model, MultiTaskModel) else model.networks
    if not networks.one_network:
        raise ParameterError(
            "shrink: the tasks have networks of their own (masks, or statistics of their own); expected one network "
            "for all tasks. `sm.plan(model, networks)` makes these small as they are."
        )
    return Trained(own, networks, own)


def shrink_in_stages(
    stage: Stage, dense: Trained, data: ShrinkData, *, budget: Budget, epochs: int, pruning: Mapping[str, Any]
) -> ShrinkResult:
    """Return the networks of all stages; see `shrink`.

    Args:
        stage: trains the networks of a stage.
        dense: the model and its networks.
        data: the data.
        budget: the budgets.
        epochs: epochs per budget; of `max_drop`, of all stages.
        pruning: further options of `PruningSharing`.
    """
    measured = _Measured(data)
    result = ShrinkResult(measured.network("dense", None, dense), (), budget)
    before = dense
    of: Cost = "weights" if budget.kind == "weights" else "macs"
    whole = fraction_left(dense.model, data.example, of, per_reader=pruning["per_reader"])
    for value, fraction, count in _stages(budget, dense, data, epochs, whole):
        name = budget.name(value)
        before = stage(before, name, {of: fraction, **pruning, "reach_at": reach_at(count)}, count)
        point = measured.network(name, value, before)
        result = replace(result, points=(*result.points, point))
        if budget.max_drop and not result.holds(point):
            break
    return result.timed(measured.milliseconds([result.dense, *result.points]))


def reach_at(epochs: int) -> int:
    """Return the number of epochs by which a stage reaches its budget; those that are left recover."""
    return max(1, ceil(epochs / 2) - 1)


def _stages(
    budget: Budget, dense: Trained, data: ShrinkData, epochs: int, whole: float
) -> Iterator[tuple[float, float, int]]:
    """Yield the number of a stage's budget, the fraction for `PruningSharing`, and epochs.

    Args:
        whole: what the model has of the multiply-adds or weights that it would have without zeros; `PruningSharing`
            counts from there.
    """
    if budget.max_drop:
        for step in range(1, _STEPS + 1):
            yield _STEP**step, whole * _STEP**step, max(2, ceil(epochs / _STEPS))
        return
    for value in budget.values:
        yield value, _fraction_of(value, dense, data) if budget.kind == "milliseconds" else whole * value, epochs


def _fraction_of(milliseconds: float, dense: Trained, data: ShrinkData) -> float:
    """Return the fraction of the multiply-adds whose network takes some milliseconds, by pruned but untrained ones.

    Raises:
        ParameterError: if no network is so fast.
    """
    low, high, found = 0.01, 1.0, None
    for _ in range(_PROBES):
        macs = math.sqrt(low * high)
        if (time := _time_at(macs, dense, data)) <= milliseconds:
            low = found = macs
        else:
            high = macs
    if found is None:
        raise ParameterError(
            f"milliseconds: expected a time that a network with {macs:.2g} of the multiply-adds can keep to, got "
            f"{milliseconds:g}; it takes {time:.3g} ms on this machine, for the example batch."
        )
    return found


def _time_at(macs: float, dense: Trained, data: ShrinkData) -> float:
    """Return the milliseconds of a network with a fraction of the multiply-adds."""
    model = deepcopy(dense.model)
    sharing, networks = PruningSharing(macs=macs), dense_networks(model, model.tasks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskWarning)  # fewer multiply-adds than there can be: the time says so
        sharing.begin_epoch(0, model, networks, data.train)
    sharing.after_step(model, networks, torch.optim.SGD(model.parameters()), StepWeights())
    network = plan(model, networks, example_inputs=data.example).network
    return times_of({"small": network}, Inputs((data.example,)), "eager", repeats=_REPEATS)["small"].median


@dataclass(frozen=True)
class _Measured:
    """Networks of stages, compacted and evaluated.

    Attributes:
        data: the data.
    """

    data: ShrinkData

    def network(self, name: str, value: float | None, trained: Trained) -> ShrunkNetwork:
        """Return the cheapest compacted form of a model's networks, with its cost and its quality."""
        found = plan(trained.model, trained.networks, example_inputs=self.data.example).best
        return ShrunkNetwork(
            name=name,
            budget=value,
            network=found.network,
            form=found.name,
            model=trained.model,
            networks=trained.networks,
            macs=found.macs,
            parameters=parameter_count(found.network),
            difference=max(each.report.verification.float32 or 0.0 for each in _compacted(found.network)),
            validation=self._results(trained, self.data.validation),
            test=None if self.data.test is None else self._results(trained, self.data.test),
        )

    def _results(self, trained: Trained, loaders: Loaders) -> Results:
        return evaluate(trained, loaders, placement(trained.model)[0])

    def milliseconds(self, networks: Sequence[ShrunkNetwork]) -> dict[str, float]:
        """Return name -> median milliseconds of the example batch; the networks take turns."""
        modules = {each.name: each.network for each in networks}
        times = times_of(modules, Inputs((self.data.example,)), "eager", repeats=_REPEATS)
        return {name: time.median for name, time in times.items()}


def _compacted(network: torch.nn.Module) -> Iterator[CompactedModule]:
    """Yield the compacted modules of which a network is made."""
    return (module for module in network.modules() if isinstance(module, CompactedModule))
