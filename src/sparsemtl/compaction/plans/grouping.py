"""Search for groups of tasks: each group is computed together, by a network with only the channels that it needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import torch
from torch import fx

from sparsemtl.compaction.graph.channels import Need
from sparsemtl.compaction.passes import fold_constants, fold_norms, needed_channels
from sparsemtl.compaction.pipeline import measured
from sparsemtl.compaction.rules import ChannelRule, UnknownRule, rules_for
from sparsemtl.compaction.rules.dense import Dense
from sparsemtl.compaction.tracing.trace import Root

Group = tuple[str, ...]
"""Tasks that are computed together."""


def cheapest_groups(tasks: Sequence[str], cost: Callable[[Group], float]) -> tuple[Group, ...]:
    """Return groups of tasks, found by merging the two groups that save most until no merge saves (agglomerative).

    Args:
        tasks: the tasks.
        cost: returns the cost of the network of a group; it is called once per group that is tried, of which there
            are at most as many as squares of the number of tasks.
    """
    cost = cache(cost)
    groups: list[Group] = [(task,) for task in tasks]

    def merged(pair: tuple[Group, Group]) -> Group:
        return tuple(sorted((*pair[0], *pair[1]), key=list(tasks).index))

    def saving(pair: tuple[Group, Group]) -> float:
        return cost(pair[0]) + cost(pair[1]) - cost(merged(pair))

    while len(groups) > 1:
        best = max(combinations(groups, 2), key=saving)
        if saving(best) <= 0:
            break
        groups = [group for group in groups if group not in best] + [merged(best)]
    return tuple(sorted(groups, key=lambda group: list(tasks).index(group[0])))


class GroupCosts:
    """Predicted multiply-adds of the compacted networks of groups of tasks, none of which is built.

    Args:
        root: module that maps a batch to task -> outputs. Its weights are changed.
        example: `example_inputs` of `compact`.

    Raises:
        CompactionError: if the module cannot be traced.
    """

    @torch.no_grad()
    @torch.random.fork_rng(devices=[])
    def __init__(self, root: Root, example: Any) -> None:
        network, macs = measured(root, example, single=True)
        fold_norms(network, rules_for(network))
        self._rules = rules_for(network)
        fold_constants(self._rules)
        self._output = network.graph.output_node()
        calls = Counter(str(node.target) for node in self._rules if node.op == "call_module")
        self._macs = {name: count / calls[name] for name, count in macs.items() if name in calls}

    @torch.no_grad()
    def macs(self, group: Group) -> float:
        """Return the multiply-adds of one sample that the network of some tasks needs.

        Inputs with weights of zero do not count, also where the network reads them since that is cheaper.
        """
        outputs: Any = self._output.args[0]
        read = nodes_before([outputs[task] for task in group])
        last = UnknownRule(self._output, [node for node in self._output.all_input_nodes if node in read])
        rules = {node: rule for node, rule in self._rules.items() if node in read} | {self._output: last}
        needed = needed_channels(rules)
        return sum(
            self._macs[str(node.target)] * _left(rule, needed[node], rules)
            for node, rule in rules.items()
            if node.op == "call_module" and str(node.target) in self._macs
        )


def _left(rule: ChannelRule, out: Need | None, rules: dict[fx.Node, ChannelRule]) -> float:
    """Return the fraction of a layer's multiply-adds that is left."""
    left = 1.0 if out is None else float(out.carried.double().mean())
    if isinstance(rule, Dense):
        (asked,) = rule.needs(out, rules[rule.inputs[0]].layout)
        left *= 1.0 if asked is None else float(asked.live.double().mean())
    return left


def nodes_before(outputs: Any) -> set[fx.Node]:
    """Return the nodes that some outputs depend on, and their own."""
    waiting: list[fx.Node] = []
    fx.node.map_arg(outputs, waiting.append)
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found
