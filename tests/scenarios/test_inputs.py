"""Inputs that are no tensor: a tuple, and graphs as a list of edges over the nodes of all graphs of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import walk
from torch import Tensor, nn

import sparsemtl as sm

GRAPHS, NODES = 16, 4

# ---- the user's code: 37 lines, for two networks ----


class TwoInputs(nn.Module):
    """Image-like and table-like features, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 8
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.both = nn.Sequential(nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return self.both(torch.cat([self.left(x[0]), self.right(x[1])], 1))


@dataclass
class Graphs:
    """Nodes (all graphs, features), edges (2, E), and the graph of each node."""

    nodes: Tensor
    edges: Tensor
    graph: Tensor


@torch.fx.wrap  # so that torch.fx leaves its Python alone in compaction
def sums(rows: Tensor, groups: Tensor) -> Tensor:
    """Return the sum of the rows of each group."""
    return rows.new_zeros(int(groups.max()) + 1, rows.shape[1]).index_add(0, groups, rows)


class GraphNetwork(nn.Module):
    """One round of messages, then the mean over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 6
        self.message = nn.Linear(3, 6)
        self.update = nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 6))

    def forward(self, x: Graphs) -> Tensor:
        received = sums(self.message(x.nodes)[x.edges[0]], x.edges[1])
        nodes = self.update(torch.cat([x.nodes, received], 1)).relu()
        return sums(nodes, x.graph) / sums(torch.ones_like(nodes), x.graph)


tasks = [sm.Classification("kind", 2), sm.Regression("mass")]


def make_pairs() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    return sm.SharedBottom(TwoInputs(), tasks)


def make_graphs() -> sm.MultiTaskModel:
    torch.manual_seed(0)
    return sm.SharedBottom(GraphNetwork(), tasks)


# ---- what must work ----

generator = torch.Generator().manual_seed(0)
pair = (torch.randn(GRAPHS, 3, generator=generator), torch.randn(GRAPHS, 2, generator=generator))
pair_batches = walk.batches_of(pair, {"kind": (pair[0][:, 0] > 0).long(), "mass": pair[1].sum(1)})


def graph_batch(count: int) -> walk.Batch:
    nodes = torch.randn(count * NODES, 3, generator=generator)
    ring = torch.arange(NODES)
    edges = torch.stack([ring, ring.roll(1)])
    every = torch.cat([edges + i * NODES for i in range(count)], 1)
    graph = torch.arange(count).repeat_interleave(NODES)
    targets = {"kind": (nodes[::NODES, 0] > 0).long(), "mass": nodes.view(count, NODES, 3).sum((1, 2))}
    return Graphs(nodes, every, graph), targets


graph_batches = [graph_batch(8), graph_batch(8)]


def one_graph(x: Graphs, i: int) -> Graphs:
    chosen = x.graph == i
    inside = chosen[x.edges[0]]
    return replace(x, nodes=x.nodes[chosen], edges=x.edges[:, inside] - i * NODES, graph=x.graph[chosen] - i)


cases = pytest.mark.parametrize(
    ("make", "batches", "one"),
    [(make_pairs, pair_batches, walk.rows), (make_graphs, graph_batches, one_graph)],
    ids=["tuple", "graphs"],
)


@cases
@pytest.mark.parametrize("method", walk.METHODS)
def test_training(make: Any, batches: Any, one: Any, method: str) -> None:
    walk.train(make, method, batches)
    walk.plain_loop(make(), method, batches)


@cases
def test_fisher_information_equals_a_loop_over_samples(make: Any, batches: Any, one: Any) -> None:
    walk.check_fisher(make(), batches[0], one)


@cases
@pytest.mark.parametrize("method", walk.WHOLE)
def test_the_network_of_a_task_becomes_smaller(make: Any, batches: Any, one: Any, method: str) -> None:
    walk.check_whole(make, method, "neuron", batches, "kind", batches[0][0])


@cases
def test_units_whose_soft_mask_is_zero_leave_the_network(make: Any, batches: Any, one: Any) -> None:
    walk.check_soft(make, batches, "kind", batches[0][0])
