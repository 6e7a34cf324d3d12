"""Cost of what a run trained: multiply-adds, weights and milliseconds of the compacted networks and of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.compaction import compact
from sparsemtl.compaction.cost import latency, macs_by_layer, parameter_count
from sparsemtl.errors import SparseMTLError
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.batches import Group, Loaders, as_group, groups_for, per_task, preserve_loader_state

BATCH_SIZE = 16
"""Samples of the batch that is timed, at most: a loader may give fewer."""
PASSES = 20
"""Timed passes, at most."""
SECONDS = 0.3
"""Time for the timed passes of a network, at most; where one pass takes longer, one is timed."""


@dataclass(frozen=True)
class Cost:
    """Cost of the outputs of some tasks.

    Attributes:
        macs: multiply-adds of convolutions and linear layers for one sample.
        encoder_macs: the same without the heads, which are the modules under `heads`.
        weights: number of parameters.
        milliseconds: median time of one batch.
    """

    macs: int
    encoder_macs: int
    weights: int
    milliseconds: float


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one network, before and after compaction.

    Attributes:
        tasks: the tasks whose outputs it computes in one pass.
        uncompacted: cost of the network as it was trained.
        compacted: cost after `sm.compact`; equal to `uncompacted` where compaction fails.
        failure: why compaction failed, "" if it did not.
    """

    tasks: tuple[str, ...]
    uncompacted: Cost
    compacted: Cost
    failure: str


@dataclass(frozen=True)
class RunCost:
    """Cost of all tasks of a run.

    Attributes:
        batch_size: samples of the batch that was timed.
        threads: threads of torch while it was timed.
        device: device on which it was timed.
        networks: the networks that together compute every task once.
        uncompacted: their sum. Weights that several networks share count once.
        compacted: the same after compaction.
    """

    batch_size: int
    threads: int
    device: str
    networks: tuple[NetworkCost, ...]
    uncompacted: Cost
    compacted: Cost

    def record(self) -> dict[str, Any]:
        """Return the cost as plain mappings and lists, for `summary.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Example:
    """A batch to measure on.

    Attributes:
        x: input of the network.
        size: number of samples.
    """

    x: Any
    size: int


def measure_costs(model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders) -> RunCost | None:
    """Compact every task's network and measure it beside the uncompacted one.

    Where one network serves all tasks and they read the same input, it is measured once, for all of them. Otherwise
    each task has a pass of its own, and the sum is what all tasks cost. Apart from the milliseconds the result does
    not depend on the machine. Neither the model nor the state of a random generator changes.

    Args:
        model: the model.
        networks: the tasks' networks.
        loaders: evaluation data; the first batch is measured on.

    Returns:
        the cost, or None if a loader gives no batch.
    """
    examples = _examples(loaders, model)
    if not examples:
        return None
    together = _together(model, networks)
    groups = list(examples) if together else [(task,) for tasks in examples for task in tasks]
    example_of = {task: example for tasks, example in examples.items() for task in tasks}
    measured = tuple(_network_cost(networks.network(model, tasks[0]), tasks, example_of[tasks[0]]) for tasks in groups)
    weights = (
        _shared_weights(model, networks, next(iter(examples.values()))) if together and len(measured) > 1 else None
    )
    return RunCost(
        batch_size=max(example.size for example in examples.values()),
        threads=torch.get_num_threads(),
        device=str(next(model.parameters()).device),
        networks=measured,
        uncompacted=_sum([network.uncompacted for network in measured], weights and weights[0]),
        compacted=_sum([network.compacted for network in measured], weights and weights[1]),
    )


def _examples(loaders: Loaders, model: MultiTaskModel) -> dict[tuple[str, ...], Example]:
    """Tasks that read the same input -> the first batch of it; empty if a loader gives none."""
    with preserve_loader_state(loaders), torch.random.fork_rng(devices=[]):
        if per_task(loaders):
            found = [next(groups_for(loaders, task), None) for task in model.tasks.values()]
        else:
            batch = next(iter(loaders), None)
            found = [None if batch is None else as_group(batch, model.tasks)]
    return {} if None in found else {group.tasks: _example(group, model) for group in found if group is not None}


def _example(group: Group, model: MultiTaskModel) -> Example:
    """The first samples of a batch, where the model is, in its precision.

    Only a tensor with a row per sample can be cut; other inputs stay whole.
    """
    x, size = group.x, len(next(iter(group.targets.values())))
    if isinstance(x, Tensor) and len(x) == size:
        x, size = x[:BATCH_SIZE], min(size, BATCH_SIZE)
    return Example(Group(x, {}, group.tasks).to(*placement(model)).x, size)


def _network_cost(network: Any, tasks: tuple[str, ...], example: Example) -> NetworkCost:
    plain = _Outputs(network, tasks)
    small, failure = _compacted(network, tasks, example)
    modules = [plain] if small is None else [plain, small]
    times = _milliseconds(modules, example.x)
    uncompacted = _cost(plain, example, _weights(network, tasks), times[0])
    compacted = uncompacted if small is None else _cost(small, example, parameter_count(small), times[1])
    return NetworkCost(tasks, uncompacted, compacted, failure)


def _compacted(network: Any, tasks: tuple[str, ...], example: Example) -> tuple[nn.Module | None, str]:
    """The compacted network, or None and the reason. No error here may cost a run its results."""
    try:
        if len(tasks) == 1:
            return compact(network, example_inputs=(example.x,), task=tasks[0]), ""
        return compact(network, example_inputs=(example.x,), tasks=tasks), ""
    except SparseMTLError as error:
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _cost(module: nn.Module, example: Example, weights: int, milliseconds: float) -> Cost:
    layers = macs_by_layer(module, example.x)
    whole = sum(layers.values())
    heads = sum(count for name, count in layers.items() if name.startswith(("heads.", "network.heads.")))
    return Cost(round(whole / example.size), round((whole - heads) / example.size), weights, milliseconds)


def _milliseconds(modules: Sequence[nn.Module], x: Any) -> list[float]:
    """Median time of every module, timed in turns: other work on the machine meets all of them."""
    once = [latency(module, x, warmup=1, repeats=1) for module in modules]
    passes = min(PASSES, int(1000 * SECONDS / max(sum(once), 1e-6)))
    if passes < 2:
        return once
    rounds = [[latency(module, x, warmup=0, repeats=1) for module in modules] for _ in range(passes)]
    return [median(times) for times in zip(*rounds, strict=True)]


def _weights(network: Any, tasks: Sequence[str]) -> int:
    """Number of parameters that one of the tasks uses."""
    users, wanted = network.parameter_tasks(), frozenset(tasks)
    return sum(p.numel() for name, p in network.named_parameters() if users.get(name, wanted) & wanted)


def _together(model: MultiTaskModel, networks: TaskNetworks) -> bool:
    """Return True if one forward pass computes all tasks at a lower cost than one pass per task."""
    return networks.one_network and any(len(tasks) > 1 for tasks in model.parameter_tasks().values())


def _shared_weights(model: MultiTaskModel, networks: TaskNetworks, example: Example) -> tuple[int, int]:
    """Parameters of the one network of all tasks, uncompacted and compacted."""
    tasks = tuple(model.tasks)
    network = networks.network(model, tasks[0])
    small, _ = _compacted(network, tasks, example)
    whole = _weights(network, tasks)
    return whole, whole if small is None else parameter_count(small)


def _sum(costs: Sequence[Cost], weights: int | None) -> Cost:
    return Cost(
        macs=sum(cost.macs for cost in costs),
        encoder_macs=sum(cost.encoder_macs for cost in costs),
        weights=sum(cost.weights for cost in costs) if weights is None else weights,
        milliseconds=sum(cost.milliseconds for cost in costs),
    )


class _Outputs(nn.Module):
    """A network that computes only some tasks' outputs."""

    def __init__(self, network: nn.Module, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks

    def forward(self, x: Any) -> Mapping[str, Tensor]:
        outputs: Mapping[str, Tensor] = self.network(x, tasks=self.tasks)
        return outputs
