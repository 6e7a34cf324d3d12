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

# ---- the user's code: a network of two inputs (9 lines), a graph network (26 lines) ----


class TwoInputs(nn.Module):
    """Image-like and table-like features, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 8
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat([self.left(x[0]), self.right(x[1])], 1).relu()


@dataclass
class Graphs:
    """Nodes (all graphs, features), edges (2, E), and the graph of each node."""

    nodes: Tensor
    edges: Tensor
    graph: Tensor


class GraphNetwork(nn.Module):
    """One round of messages, then the mean over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 6
        self.message, self.update = nn.Linear(3, 6), nn.Linear(9, 6)

    def forward(self, x: Graphs) -> Tensor:
        sent = torch.zeros(len(x.nodes), 6, dtype=x.nodes.dtype)
        sent = sent.index_add(0, x.edges[1], self.message(x.nodes)[x.edges[0]])
        nodes = self.update(torch.cat([x.nodes, sent], 1)).relu()
        count = int(x.graph.max()) + 1
        total = torch.zeros(count, 6, dtype=nodes.dtype).index_add(0, x.graph, nodes)
        return total / torch.bincount(x.graph).unsqueeze(1)


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


def test_the_network_of_a_task_becomes_smaller() -> None:
    trainer = sm.Trainer(
        make_pairs(),
        sharing=sm.FisherSharing(keep=0.5, granularity="channel", estimator="sample"),
        epochs=2,
        progress=False,
    ).fit(pair_batches, list(pair_batches))
    walk.check_compaction(trainer, "kind", pair_batches[0][0])
