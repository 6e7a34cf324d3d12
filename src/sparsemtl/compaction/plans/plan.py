"""Plans: how the networks of several tasks are computed together, built in each way and compared by cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import fx, nn

from sparsemtl.compaction.compact import compact, with_weights
from sparsemtl.compaction.cost import macs_by_layer
from sparsemtl.compaction.files.exporting import Exported, export
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.pipeline import CompactedModule, compact_root, one_sample
from sparsemtl.compaction.plans.grouping import GroupCosts, cheapest_groups, nodes_before
from sparsemtl.compaction.plans.merging import Groups, Together
from sparsemtl.compaction.timing.measure import timings
from sparsemtl.compaction.timing.rounding import fastest
from sparsemtl.compaction.tracing.trace import Root, root_of
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks, dense_networks
from sparsemtl.views.tables import Table, Written

Cost = Literal["macs", "bytes", "milliseconds"]
"""What a plan makes small."""


@dataclass(frozen=True)
class Branch:
    """Layers that the same tasks compute.

    Attributes:
        tasks: the tasks.
        layers: number of convolutions, linear layers and layers of attention.
        macs: multiply-adds of these layers, of one sample.
    """

    tasks: tuple[str, ...]
    layers: int
    macs: int


@dataclass(frozen=True)
class PlanOption:
    """One way to compute all tasks.

    Attributes:
        name: `separate` is one network per task; `tree` computes once what several tasks compute from equal weights,
            from the input to the layer where they part; `one network` serves all tasks with one forward pass; `groups`
            is one such network per group of tasks.
        network: module in eval mode that maps a batch to a dict, task -> outputs.
        macs: multiply-adds of one sample, all tasks together.
        bytes: bytes of all weights and buffers.
        branches: layers by the tasks that compute them, those of most tasks first.
        milliseconds: median time of one forward pass of all tasks on the example; None if it was not measured.
    """

    name: str
    network: nn.Module
    macs: int
    bytes: int
    branches: tuple[Branch, ...]
    milliseconds: float | None = None


@dataclass(frozen=True)
class ServingPlan:
    """Ways to compute all tasks, and the cheapest one. It prints itself as a table and a tree.

    Attributes:
        tasks: the tasks.
        options: all ways that there are.
        by: the cost that the choice makes small.
        example: inputs of a forward pass, with a `Like` in the place of every tensor.
    """

    tasks: tuple[str, ...]
    options: tuple[PlanOption, ...]
    by: Cost
    example: Inputs

    @property
    def best(self) -> PlanOption:
        """Cheapest option; of equal ones that with fewer multiply-adds, then with fewer bytes."""
        return min(self.options, key=lambda option: (getattr(option, self.by), option.macs, option.bytes))

    @property
    def network(self) -> nn.Module:
        """Module of the cheapest option, which maps a batch to task -> outputs."""
        return self.best.network

    def export(self, path: str | Path, **options: Any) -> Exported:
        """Write the cheapest option to one file with an output per task; see `sm.export`.

        Args:
            path: the file; its suffix chooses the format.
            options: options of `sm.export`.
        """
        generator = torch.Generator().manual_seed(0)
        example = self.example.mapped(lambda like: like.drawn(generator))
        return export(self.network, path, **{"example_inputs": example, **options})

    def __str__(self) -> str:
        return "\n".join([self._table().text(), "", *_tree(self.best.branches, self.tasks)])

    def _repr_html_(self) -> str:
        """Return the options as a table, for notebooks."""
        return self._table().html()

    def _table(self) -> Table:
        head = ["option", "", "multiply-adds", "bytes", *(["ms"] if self.best.milliseconds is not None else [])]
        rows = [
            [
                option.name,
                "best" if option is self.best else "",
                Written(option.macs, f"{option.macs:,}"),
                Written(option.bytes, f"{option.bytes:,}"),
                *([] if (ms := option.milliseconds) is None else [Written(ms, f"{ms:.3f}")]),
            ]
            for option in self.options
        ]
        shared = len(self.options) > 1 or len(self.tasks) == 1
        notes = [] if shared else ["The tasks' networks agree in no layer behind the input: nothing can be shared."]
        return Table(head, rows, notes=notes)


def plan(
    model: MultiTaskModel,
    networks: TaskNetworks | None = None,
    *,
    tasks: Iterable[str] | None = None,
    example_inputs: Any = None,
    by: Cost = "macs",
    multiple_of: int | str = 1,
) -> ServingPlan:
    """Build the ways to compute all tasks, compact and verified, and compare their costs.

    There is one network per task. Where the networks of several tasks agree bit for bit from the input on, a tree
    computes the common layers once, for the channels that any of the tasks needs. Where all tasks compute with the same
    weights, one network serves them. Fewer multiply-adds may also be in networks that share nothing: each then has only
    the channels that its own task needs. Of three or more tasks, some may be cheaper together and others apart: groups
    are merged by predicted multiply-adds as long as that saves some, and are an option where they cost least.

    Args:
        model: the trained model. It is not changed; a tree takes the memory of several copies per task.
        networks: the tasks' networks, such as `trainer.networks`; by default all tasks share the model's weights.
        tasks: tasks to compute, all by default.
        example_inputs: a batch that the model reads, as for `sm.compact`.
        by: cost to make small: `macs` (multiply-adds), `bytes` (of weights and buffers), or `milliseconds`, measured on
            the example in torch with its present number of threads.
        multiple_of: see `sm.compact`.

    Raises:
        CompactionError: if a network cannot be compacted.
        ParameterError: if the arguments do not go together, or the model needs an example.

    Examples:
        >>> model = sm.SharedBottom(nn.Linear(4, 8), [sm.Regression("a"), sm.Regression("b")])
        >>> found = sm.plan(model)
        >>> print(found)
        option             multiply-adds  bytes
        separate                      80    392
        one network  best             48    232
        <BLANKLINE>
        input
        └─ a, b: 1 layer, 32 multiply-adds
           ├─ a: 1 layer, 8 multiply-adds
           └─ b: 1 layer, 8 multiply-adds
        >>> list(found.network(torch.ones(3, 4)))
        ['a', 'b']
    """
    if by not in get_args(Cost):
        raise ParameterError(f"`by` must be one of {', '.join(get_args(Cost))}, got {by!r}.")
    if not isinstance(model, MultiTaskModel):
        raise ParameterError(f"{type(model).__name__} has no tasks; a plan is made for a MultiTaskModel.")
    chosen = tuple(model.chosen(tasks))
    networks = networks or dense_networks(model, chosen)
    options: dict[str, Any] = {"example_inputs": example_inputs, "multiple_of": multiple_of}
    alone = {task: compact(model, networks, task=task, **options) for task in chosen}
    example = next(iter(alone.values())).report.example
    if example is None:
        raise ParameterError(f"{type(model).__name__}: no example could be made. Give a batch (`example_inputs=...`).")
    separate = Groups({(task,): network for task, network in alone.items()}, chosen)
    found = [_option("separate", separate.eval(), chosen, example)]
    if len(chosen) > 1:
        name = "one network" if networks.one_network else "tree"
        merged = _option(name, _merged(model, networks, chosen, options), chosen, example)
        found += [merged] if any(len(branch.tasks) > 1 and branch.layers for branch in merged.branches) else []
    if len(chosen) > 2 and len(found) > 1:
        costs = GroupCosts(_root(model, networks, chosen), example_inputs)
        groups = cheapest_groups(chosen, costs.macs)
        if 1 < len(groups) < len(chosen):
            parts = {g: alone[g[0]] if len(g) == 1 else _merged(model, networks, g, options) for g in groups}
            grouped = _option("groups", Groups(parts, chosen).eval(), chosen, example)
            found += [grouped] if grouped.macs < min(option.macs for option in found) else []
    if by == "milliseconds":
        found = _timed(found, example)
    return ServingPlan(chosen, tuple(found), by, example)


def _merged(
    model: MultiTaskModel, networks: TaskNetworks, tasks: Sequence[str], options: Mapping[str, Any]
) -> CompactedModule:
    """Return one compacted network of some tasks."""
    if networks.one_network:
        return compact(networks.network(model, tasks[0]), tasks=tasks, **options)
    example, multiple_of = options["example_inputs"], options["multiple_of"]

    def build(multiple: int) -> CompactedModule:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return compact_root(_root(model, networks, tasks), example, single=True, multiple_of=multiple)

    return fastest(build, example, multiple_of, single=True) if isinstance(multiple_of, str) else build(multiple_of)


def _root(model: MultiTaskModel, networks: TaskNetworks, tasks: Sequence[str]) -> Root:
    """Return a module that computes some tasks, each with its network."""
    if networks.one_network:
        own = with_weights(networks.network(model, tasks[0]), None, None, None)
        return root_of(own, tuple(tasks), alone=False, leaf_modules=())
    together = Together({task: networks.network(model, task) for task in tasks})
    return replace(root_of(together, None, alone=False, leaf_modules=()), merges=True)


def _option(name: str, network: nn.Module, tasks: Sequence[str], example: Inputs) -> PlanOption:
    branches = _branches(network, tasks, example)
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    return PlanOption(name, network, sum(branch.macs for branch in branches), size, branches)


def _timed(options: Sequence[PlanOption], example: Inputs) -> list[PlanOption]:
    """Return options with their times."""
    generator = torch.Generator().manual_seed(0)
    drawn = example.mapped(lambda like: like.drawn(generator))
    _, times = next(timings({option.name: option.network for option in options}, drawn, repeats=30))
    return [replace(option, milliseconds=times[option.name].median) for option in options]


def _branches(network: nn.Module, tasks: Sequence[str], example: Inputs) -> tuple[Branch, ...]:
    """Return the layers of a network by the tasks that compute them, those of most tasks first."""
    users = _users(network, tasks)
    generator = torch.Generator().manual_seed(0)
    drawn = one_sample(network, example.mapped(lambda like: like.drawn(generator)))
    counts: dict[tuple[str, ...], list[int]] = {}
    for layer, macs in macs_by_layer(network, *drawn.args, **drawn.kwargs).items():
        counts.setdefault(_owner(layer, users), []).append(macs)
    ordered = sorted(counts, key=lambda each: (-len(each), [tasks.index(task) for task in each]))
    return tuple(Branch(each, len(counts[each]), sum(counts[each])) for each in ordered)


def _owner(layer: str, users: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the tasks of a layer, or of the module that the graph calls and that the layer is a part of."""
    while layer not in users:
        layer = layer.rpartition(".")[0]
    return users[layer]


def _users(network: nn.Module, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return layer -> the tasks whose outputs depend on it."""
    if isinstance(network, Groups):
        found: dict[str, tuple[str, ...]] = {}
        for index, (group, part) in enumerate(zip(network.groups, network.networks, strict=True)):
            own = _users(part, group) if len(group) > 1 else dict.fromkeys((n for n, _ in part.named_modules()), group)
            found |= {f"networks.{index}.{name}": users for name, users in own.items()}
        return found
    assert isinstance(network, fx.GraphModule)
    (outputs,) = network.graph.output_node().args
    found = {}
    for task in tasks:
        for node in nodes_before(outputs[task]):  # type: ignore[index, call-overload]
            if node.op == "call_module":
                found[str(node.target)] = (*found.get(str(node.target), ()), task)
    return found


def _tree(branches: Sequence[Branch], tasks: Sequence[str]) -> list[str]:
    """Return lines that draw the branches, each below the smallest one that has all of its tasks and more."""
    below: dict[int | None, list[int]] = {}
    for index, branch in enumerate(branches):
        wider = [i for i, other in enumerate(branches) if set(other.tasks) > set(branch.tasks)]
        below.setdefault(min(wider, key=lambda i: len(branches[i].tasks), default=None), []).append(index)

    def lines(parent: int | None, margin: str) -> list[str]:
        drawn: list[str] = []
        inside = below.get(parent, [])
        for index in inside:
            branch, last = branches[index], index == inside[-1]
            names = "all tasks" if len(branch.tasks) == len(tasks) > 4 else ", ".join(branch.tasks)
            count = f"{branch.layers} layer{'s' if branch.layers > 1 else ''}, {branch.macs:,} multiply-adds"
            drawn.append(f"{margin}{'└─' if last else '├─'} {names}: {count}")
            drawn += lines(index, f"{margin}{'   ' if last else '│  '}")
        return drawn

    return ["input", *lines(None, "")]
