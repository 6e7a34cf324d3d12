"""Cost of a run's networks before and after compaction: multiply-adds, weights and milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.compaction import compact
from sparsemtl.compaction.cost import latencies, macs_by_layer, parameter_count
from sparsemtl.errors import SparseMTLError
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.batches import Group, Loaders, as_group, groups_for, per_task, preserve_loader_state

BATCH_SIZE = 16
"""Largest number of samples in the timed batch; a loader may give fewer."""
_PASSES = 20
"""Largest number of timed forward passes."""
_SECONDS = 0.3
"""Time limit in seconds for the timed passes of a network; if one pass takes longer, only one is timed."""


@dataclass(frozen=True)
class Cost:
    """Cost of the outputs of some tasks.

    Attributes:
        macs: multiply-adds of convolutions, linear and recurrent layers for one sample.
        encoder_macs: the same without the heads, which are the modules under `heads`.
        weights: number of parameters.
        milliseconds: median time of one batch.
    """

    macs: int
    encoder_macs: int
    weights: int
    milliseconds: float


@dataclass(frozen=True)
class _NetworkCost:
    """Cost of one network, before and after compaction.

    Attributes:
        tasks: the tasks whose outputs the network computes in one forward pass.
        uncompacted: cost of the trained network.
        compacted: cost after `sm.compact`; equal to `uncompacted` if compaction fails.
        failure: reason why compaction failed; "" if it did not.
    """

    tasks: tuple[str, ...]
    uncompacted: Cost
    compacted: Cost
    failure: str


@dataclass(frozen=True)
class RunCost:
    """Cost of all tasks of a run.

    Attributes:
        batch_size: number of samples in the timed batch.
        threads: number of torch's threads during the timing.
        device: device of the timing.
        networks: the networks that together compute every task once.
        uncompacted: total cost of the networks; weights that several networks share count once.
        compacted: total cost after compaction.
    """

    batch_size: int
    threads: int
    device: str
    networks: tuple[_NetworkCost, ...]
    uncompacted: Cost
    compacted: Cost

    def record(self) -> dict[str, Any]:
        """Return the cost as plain mappings and lists, for `summary.json`."""
        return asdict(self)


@dataclass(frozen=True)
class _Example:
    """Batch for the measurement.

    Attributes:
        x: input of the network.
        size: number of samples.
    """

    x: Any
    size: int


def measure_costs(model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders) -> RunCost | None:
    """Compact every task's network, and return its cost before and after compaction.

    If one network serves all tasks and the tasks read the same input, the network is measured once, for all tasks.
    Otherwise each task has its own forward pass, and the cost of all tasks is the sum. Apart from the milliseconds, the
    result does not depend on the machine. Neither the model nor the state of a random generator changes.

    Args:
        model: the model.
        networks: the tasks' networks.
        loaders: evaluation data, of which the first batch is used.

    Returns:
        Cost, or None if a loader gives no batch.
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


def _examples(loaders: Loaders, model: MultiTaskModel) -> dict[tuple[str, ...], _Example]:
    """Return tasks that read the same input -> first batch of the input; empty if a loader gives no batch."""
    with preserve_loader_state(loaders), torch.random.fork_rng(devices=[]):
        if per_task(loaders):
            found = [next(groups_for(loaders, task), None) for task in model.tasks.values()]
        else:
            batch = next(iter(loaders), None)
            found = [None if batch is None else as_group(batch, model.tasks)]
    return {} if None in found else {group.tasks: _example(group, model) for group in found if group is not None}


def _example(group: Group, model: MultiTaskModel) -> _Example:
    """Return the first samples of a batch, on the device and in the precision of the model.

    Only a tensor with one row per sample can be cut; other inputs stay whole.
    """
    x, size = group.x, len(next(iter(group.targets.values())))
    if isinstance(x, Tensor) and len(x) == size:
        x, size = x[:BATCH_SIZE], min(size, BATCH_SIZE)
    return _Example(Group(x, {}, group.tasks).to(*placement(model)).x, size)


def _network_cost(network: Any, tasks: tuple[str, ...], example: _Example) -> _NetworkCost:
    plain = _Outputs(network, tasks)
    small, failure = _compacted(network, tasks, example)
    modules = [plain] if small is None else [plain, small]
    times = _milliseconds(modules, example.x)
    uncompacted = _cost(plain, example, _weights(network, tasks), times[0])
    compacted = uncompacted if small is None else _cost(small, example, parameter_count(small), times[1])
    return _NetworkCost(tasks, uncompacted, compacted, failure)


def _compacted(network: Any, tasks: tuple[str, ...], example: _Example) -> tuple[nn.Module | None, str]:
    """Return the compacted network and "", or None and the reason: no error here may cost a run its results."""
    try:
        if len(tasks) == 1:
            return compact(network, example_inputs=(example.x,), task=tasks[0]), ""
        return compact(network, example_inputs=(example.x,), tasks=tasks), ""
    except SparseMTLError as error:
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _cost(module: nn.Module, example: _Example, weights: int, milliseconds: float) -> Cost:
    layers = macs_by_layer(module, example.x)
    whole = sum(layers.values())
    heads = sum(count for name, count in layers.items() if name.startswith(("heads.", "network.heads.")))
    return Cost(round(whole / example.size), round((whole - heads) / example.size), weights, milliseconds)


def _milliseconds(modules: Sequence[nn.Module], x: Any) -> list[float]:
    """Return the median time of every module, timed in turns, so that other work on the machine slows all of them."""
    once = latencies(modules, x, warmup=1, repeats=1)
    passes = min(_PASSES, int(1000 * _SECONDS / max(sum(once), 1e-6)))
    return once if passes < 2 else latencies(modules, x, warmup=0, repeats=passes)


def _weights(network: Any, tasks: Sequence[str]) -> int:
    """Return the number of parameters that at least one of the tasks uses."""
    users, wanted = network.parameter_tasks(), frozenset(tasks)
    return sum(p.numel() for name, p in network.named_parameters() if users.get(name, wanted) & wanted)


def _together(model: MultiTaskModel, networks: TaskNetworks) -> bool:
    """Return True if one forward pass computes all tasks at a lower cost than one pass per task."""
    return networks.one_network and any(len(tasks) > 1 for tasks in model.parameter_tasks().values())


def _shared_weights(model: MultiTaskModel, networks: TaskNetworks, example: _Example) -> tuple[int, int]:
    """Return the number of parameters of the network of all tasks, uncompacted and compacted."""
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
    """Network that computes the outputs of some tasks only."""

    def __init__(self, network: nn.Module, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks

    def forward(self, x: Any) -> Mapping[str, Tensor]:
        outputs: Mapping[str, Tensor] = self.network(x, tasks=self.tasks)
        return outputs
