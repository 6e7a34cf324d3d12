"""Samples of inputs of any form: every path gives what a loop over the samples gives, or says that it cannot."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from fisher_oracles import add, assert_close, gradient
from loops import each
from policies import Started
from small_networks import Runs
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import sparsemtl as sm
from sparsemtl.criteria import Fisher
from sparsemtl.errors import ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters

KIND = torch.tensor([0, 2, 1, 1])
COUNT = len(KIND)


class Words(UserDict):  # type: ignore[type-arg]
    """As `transformers.BatchEncoding`: a mapping that is no dict."""


@dataclass(frozen=True)
class Record:
    a: Tensor
    b: list[Tensor]


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Opaque:
    """An object that nobody knows how to cut."""

    def __init__(self, a: Tensor) -> None:
        self.a = a


class Input(NamedTuple):
    """An encoder and how its input holds samples.

    Attributes:
        encoder: reads the input.
        x: input of the whole batch.
        sample: the truth: (x, i) -> sample i as a batch of one.
        rows: the default rule cuts it: the first axes are the batch's, or the rest is shared.
    """

    encoder: nn.Module
    x: Any
    sample: Callable[[Any, int], Any]
    rows: bool


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def two(first: Callable[[Any], Tensor], second: Callable[[Any], Tensor]) -> nn.Module:
    """Two layers of their own for two parts of an input, and a layer that is called twice."""

    def run(module: Any, x: Any) -> Tensor:
        return module.c(module.c((module.a(first(x)) + module.b(second(x))).tanh())).tanh()

    return Runs(run, a=nn.Linear(3, 4), b=nn.Linear(2, 4), c=nn.Linear(4, 4))


def graph() -> Input:
    """Four graphs of two nodes in one: features of nodes, a list of edges, and the graph of each node."""

    def run(module: Any, x: dict[str, Tensor]) -> Tensor:
        nodes = module.first(x["nodes"])
        source, target = x["edges"]
        nodes = module.second((nodes.index_add(0, target, nodes[source])).tanh())
        sums = nodes.new_zeros(int(x["of"].max()) + 1, nodes.shape[1])
        return sums.index_add(0, x["of"], nodes)

    def sample(x: dict[str, Tensor], i: int) -> dict[str, Tensor]:
        inside = x["of"][x["edges"][0]] == i
        return {"nodes": x["nodes"][x["of"] == i], "edges": x["edges"][:, inside] - 2 * i, "of": torch.zeros(2).long()}

    edges = torch.tensor([[0, 1, 2, 4, 7], [1, 0, 3, 5, 6]])
    x = {"nodes": rand(2 * COUNT, 3), "edges": edges, "of": torch.arange(COUNT).repeat_interleave(2)}
    return Input(Runs(run, first=nn.Linear(3, 4), second=nn.Linear(4, 4)), x, sample, rows=False)


def graph_of_as_many_nodes() -> Input:
    """One node per graph, so that nodes, edges and samples are equally many."""
    given = graph()
    x = {"nodes": rand(COUNT, 3), "edges": torch.tensor([[0, 2], [0, 2]]), "of": torch.arange(COUNT)}

    def sample(x: dict[str, Tensor], i: int) -> dict[str, Tensor]:
        edges = x["edges"][:, x["edges"][0] == i] - i
        return {"nodes": x["nodes"][i : i + 1], "edges": edges, "of": torch.zeros(1).long()}

    return Input(given.encoder, x, sample, rows=False)


def time_first(length: int) -> Input:
    rnn = Runs(lambda m, x: m.mix(m.rnn(x)[0][-1]), rnn=nn.GRU(3, 4), mix=nn.Linear(4, 4))
    return Input(rnn, rand(length, COUNT, 3), lambda x, i: x[:, i : i + 1], rows=False)


def packed() -> Input:
    rnn = Runs(lambda m, x: m.rnn(x)[1][0], rnn=nn.RNN(3, 4))
    sequences = [rand(length, 3) for length in (4, 3, 2, 2)]
    return Input(rnn, pack_sequence(sequences), lambda x, i: pack_sequence([sequences[i]]), rows=False)


def inputs() -> dict[str, Callable[[], Input]]:
    a, b, shared = rand(COUNT, 3), rand(COUNT, 2), rand(COUNT, 4)

    def one(i: int) -> tuple[Tensor, Tensor]:
        return a[i : i + 1], b[i : i + 1]

    def with_shared(module: Any, x: Any) -> Tensor:
        return module.c(module.a(x[0]).tanh() @ x[1]) * x[2]

    layers = {"a": lambda: nn.Linear(3, COUNT), "c": lambda: nn.Linear(4, 4)}
    wide = rand(5, 4)
    keyed = two(lambda x: x["a"], lambda x: x["b"])
    return {
        "a dict": lambda: Input(keyed, {"a": a, "b": b}, lambda x, i: dict(zip("ab", one(i), strict=True)), True),
        "a mapping that is no dict": lambda: Input(
            keyed, Words(a=a, b=b), lambda x, i: Words(zip("ab", one(i), strict=True)), True
        ),
        "a named tuple": lambda: Input(two(lambda x: x.a, lambda x: x.b), Pair(a, b), lambda x, i: Pair(*one(i)), True),
        "a frozen dataclass": lambda: Input(
            two(lambda x: x.a, lambda x: x.b[0]), Record(a, [b]), lambda x, i: Record(one(i)[0], [one(i)[1]]), True
        ),
        "a list with a scalar": lambda: Input(
            two(lambda x: x[0] * x[2], lambda x: x[1] * x[3]),
            [a, b, 2.0, torch.tensor(3.0).double()],
            lambda x, i: [*one(i), 2.0, x[3]],
            True,
        ),
        "a shared tensor of another length": lambda: Input(
            Runs(with_shared, a=nn.Linear(3, 5), c=layers["c"]()),
            (a, wide, 0.5),
            lambda x, i: (a[i : i + 1], wide, 0.5),
            True,
        ),
        "a shared tensor of the batch's length": lambda: Input(
            Runs(with_shared, a=layers["a"](), c=layers["c"]()),
            (a, shared, 0.5),
            lambda x, i: (a[i : i + 1], shared, 0.5),
            False,
        ),
        "the batch's size": lambda: Input(
            Runs(lambda m, x: m.a(m.a(x[0].view(x[1], 3)).tanh()), a=nn.Linear(3, 3)),
            (a, COUNT),
            lambda x, i: (a[i : i + 1], 1),
            False,
        ),
        "a lookup without an axis": lambda: Input(
            Runs(lambda m, x: m.a(x).tanh() * m.kind(torch.tensor(1)), a=nn.Linear(3, 4), kind=nn.Embedding(2, 4)),
            a,
            lambda x, i: x[i : i + 1],
            True,
        ),
        "an object": lambda: Input(
            Runs(lambda m, x: m.a(m.a(x.a).tanh()), a=nn.Linear(3, 3)),
            Opaque(a),
            lambda x, i: Opaque(a[i : i + 1]),
            False,
        ),
        "graphs with a list of edges": graph,
        "graphs of one node": graph_of_as_many_nodes,
        "sequences, time first": lambda: time_first(3),
        "sequences, time first, as long as the batch": lambda: time_first(COUNT),
        "sequences, time first, of length one": lambda: time_first(1),
        "packed sequences": packed,
    }


INPUTS = inputs()


def made(name: str) -> tuple[sm.SharedBottom, Input]:
    torch.manual_seed(0)
    given = INPUTS[name]()
    for p in given.encoder.parameters():
        nn.init.normal_(p)
    width = given.encoder.double()(given.x).shape[1]
    return sm.SharedBottom(given.encoder, [sm.Classification("t", 3)], {"t": nn.Linear(width, 3)}).double(), given


def oracle(model: sm.SharedBottom, given: Input, power: str) -> dict[str, Tensor]:
    """One sample after the other, each cut out by hand."""
    names, total = list(maskable_parameters(model, mask_all=True)), dict[str, Tensor]()
    model.eval()
    for i, kind in enumerate(KIND):
        output = model(given.sample(given.x, i))["t"]
        assert len(output) == 1
        add(total, 1 / COUNT, gradient(model, output.log_softmax(1)[0, kind], names), power)
    return total


def scores(model: sm.SharedBottom, x: Any, **options: Any) -> dict[str, Tensor]:
    criterion = Fisher(estimator="true", mask_all=True, **options)
    return criterion.scores(model, [(x, {"t": KIND})], list(model.tasks.values()))["t"]


@each("chunk_mb", [8, 1e-6])
@each("power", ["square", "abs"])
@each("name", INPUTS)
def test_scores_are_those_of_a_loop_over_the_samples(name: str, power: str, chunk_mb: float) -> None:
    model, given = made(name)
    assert_close(scores(model, given.x, power=power, chunk_mb=chunk_mb), oracle(model, given, power))


@each("path", ["auto", "functional", "loop"])
@each("name", INPUTS)
def test_a_users_cut_serves_any_input(name: str, path: Any) -> None:
    model, given = made(name)
    assert_close(scores(model, given.x, select=given.sample, path=path), oracle(model, given, "square"))


@each("path", ["functional", "loop"])
@each("name", INPUTS)
def test_a_path_that_must_cut_cuts_right_or_refuses(name: str, path: Any) -> None:
    model, given = made(name)
    if given.rows:
        assert_close(scores(model, given.x, path=path), oracle(model, given, "square"))
        return
    with pytest.raises((ParameterError, RuntimeError, IndexError)):
        scores(model, given.x, path=path)


@pytest.mark.parametrize("name", ["a dict", "sequences, time first", "graphs with a list of edges"])
def test_a_users_wrong_cut_is_refused(name: str) -> None:
    model, given = made(name)
    with pytest.raises(ParameterError, match=r"`select\(x, i\)` does not return sample i of the batch"):
        scores(model, given.x, select=lambda x, i: given.sample(x, (i + 1) % COUNT))
    with pytest.raises(ParameterError, match=r"`select\(x, i\)` does not return sample i of the batch"):
        scores(model, given.x, select=lambda x, i: x)


def test_a_shared_tensor_as_long_as_a_part_of_the_batch_stays_shared() -> None:
    """Five samples in chunks of two, and a shared tensor of two rows."""
    torch.manual_seed(0)
    encoder = Runs(lambda m, x: m.a(m.a(x[0]).tanh() @ x[1].T @ x[1]), a=nn.Linear(3, 3)).double()
    model = sm.SharedBottom(encoder, [sm.Classification("t", 3)], {"t": nn.Linear(3, 3)}).double()
    x, labels = (rand(5, 3), rand(2, 3)), torch.tensor([0, 2, 1, 1, 0])
    chunk_mb = 2 * 12 * 8 / 2**20
    criterion = Fisher(estimator="true", mask_all=True, chunk_mb=chunk_mb, path="functional")
    found = criterion.scores(model, [(x, {"t": labels})], list(model.tasks.values()))["t"]
    names, truth = list(found), dict[str, Tensor]()
    for i, label in enumerate(labels):
        value = model((x[0][i : i + 1], x[1]))["t"].log_softmax(1)[0, label]
        add(truth, 1 / 5, gradient(model, value, names), "square")
    assert_close(found, truth)


def test_the_slower_way_is_named_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    model, given = made("sequences, time first")
    with caplog.at_level("WARNING", logger="sparsemtl"):
        scores(model, given.x)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "samples cannot be cut out of the batch" in message
    assert "`select=`" in message


def test_masks_take_the_cut_as_well() -> None:
    model, given = made("sequences, time first")
    cut = sm.fisher_masks(model, [(given.x, {"t": KIND})], keep=0.5, select=given.sample)
    assert cut == sm.fisher_masks(model, [(given.x, {"t": KIND})], keep=0.5)


@pytest.mark.parametrize("name", ["graphs with a list of edges", "sequences, time first"])
@pytest.mark.parametrize("own_cut", [False, True])
def test_the_sharing_method_chooses_the_same_masks(name: str, own_cut: bool) -> None:
    model, given = made(name)
    loader = [(given.x, {"t": KIND})]
    method = sm.FisherSharing(keep=0.5, warmup=0)
    if own_cut:
        method.information.select = given.sample
    sharing = Started(method, model)
    sharing.begin_epoch(0, loader)
    assert sharing.masks == sm.fisher_masks(model, loader, keep=0.5)


def test_every_first_batch_of_one_is_followed_by_a_check_of_two() -> None:
    """One sample of one time, then as many times as samples: the first axis is the time all along."""
    torch.manual_seed(0)
    encoder = Runs(lambda m, x: m.a(x.transpose(0, 1)).tanh()[0], a=nn.Linear(3, 4))
    model = sm.SharedBottom(encoder, [sm.Classification("t", 3)], {"t": nn.Linear(4, 3)}).double()
    batches = [(rand(1, 1, 3), {"t": KIND[:1]}), (rand(3, 3, 3), {"t": KIND[:3]})]
    criterion = Fisher(estimator="true", mask_all=True)
    found = criterion.scores(model, batches, list(model.tasks.values()))["t"]
    truth: dict[str, Tensor] = {}
    for x, targets in batches:
        for i, label in enumerate(targets["t"]):
            value = model(x[i : i + 1])["t"].log_softmax(1)[0, label]
            add(truth, 1 / 4, gradient(model, value, list(found)), "square")
    assert_close(found, truth)
