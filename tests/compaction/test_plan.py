"""A plan computes all tasks as their own networks do, shares what is equal bit for bit, and chooses by cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compaction_toys import alive
from torch import Tensor, fx, nn

import sparsemtl as sm
from sparsemtl.backbones import CNN
from sparsemtl.compaction import Branch
from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.plans.grouping import GroupCosts, cheapest_groups
from sparsemtl.compaction.plans.merging import merge_equal
from sparsemtl.compaction.tracing.trace import root_of
from sparsemtl.errors import CompactionError, ParameterError
from sparsemtl.networks.task_networks import TaskNetworks

X = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TASKS = ("a", "b", "c")


def images() -> sm.SharedBottom:
    """Three convolutions with norms, in double precision."""
    model = sm.SharedBottom(CNN((2, 8, 8), widths=[4, 6, 8]), [sm.Regression(task) for task in TASKS])
    return alive(model)  # type: ignore[return-value]


def branching(model: sm.SharedBottom) -> TaskNetworks:
    """Networks of which all agree in the first layer, and `a` and `b` in the second; each misses own last channels."""
    first, second, third = sm.maskable_parameters(model).items()
    generator = torch.Generator().manual_seed(0)

    def mask(weight: Tensor) -> Tensor:
        rows = torch.rand(len(weight), *[1] * (weight.ndim - 1), generator=generator) < 0.5
        return rows.expand(weight.shape).clone()

    shared = mask(second[1])
    masks = {
        task: {
            first[0]: torch.ones_like(first[1], dtype=torch.bool),
            second[0]: mask(second[1]) if task == "c" else shared,
            third[0]: mask(third[1]),
        }
        for task in TASKS
    }
    return TaskNetworks.of_masks(sm.TaskMasks(masks))


@torch.no_grad()
def test_a_tree_computes_common_layers_once_and_every_task_exactly() -> None:
    model = images()
    networks = branching(model)
    plan = sm.plan(model, networks, example_inputs=X)
    assert [option.name for option in plan.options] == ["separate", "tree"]
    assert [(branch.tasks, branch.layers) for branch in plan.best.branches] == [
        (("a", "b", "c"), 1),
        (("a", "b"), 1),
        (("a",), 2),
        (("b",), 2),
        (("c",), 3),
    ]
    for option in plan.options:
        found = option.network(X)
        assert option.macs * len(X) == sm.macs(option.network, X) == sum(b.macs for b in option.branches) * len(X)
        for task in TASKS:
            expected = networks.network(model, task)(X)[task]
            torch.testing.assert_close(found[task], expected, atol=1e-12, rtol=1e-12)
    assert plan.best.macs < plan.options[0].macs
    assert "└─ a, b, c: 1 layer" in str(plan)
    assert "   │  ├─ a: 2 layers" in str(plan)


@torch.no_grad()
def test_tasks_that_compute_with_the_same_weights_have_one_network() -> None:
    model = images()
    plan = sm.plan(model, tasks=["c", "a"], example_inputs=X)
    assert plan.best.name == "one network"
    expected = sm.compact(model, tasks=["c", "a"], example_inputs=X)(X)
    assert list(plan.network(X)) == ["c", "a"]
    assert all(torch.equal(plan.network(X)[task], output) for task, output in expected.items())


def test_networks_that_agree_nowhere_stay_apart_and_the_plan_says_so() -> None:
    model = images()
    norms = [name for name, _ in model.named_buffers() if name.endswith("running_var")]
    first = next(iter(sm.maskable_parameters(model)))
    masks = {
        task: {first: (torch.arange(4).view(-1, 1, 1, 1) != index).expand(4, 2, 3, 3).clone()}
        for index, task in enumerate(TASKS)
    }
    own = {task: {norms[0]: torch.full((4,), 1.0 + index).double()} for index, task in enumerate(TASKS)}
    plan = sm.plan(model, TaskNetworks.of_masks(sm.TaskMasks(masks), own), example_inputs=X)
    assert [option.name for option in plan.options] == ["separate"]
    assert "agree in no layer" in str(plan)
    assert plan.best.branches == tuple(
        Branch((task,), 4, plan.best.branches[index].macs) for index, task in enumerate(TASKS)
    )


def halves() -> sm.SharedBottom:
    """Layers that all tasks share, in two halves that do not read each other; each task needs one of them."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    apart = torch.block_diag(torch.ones(8, 8), torch.ones(8, 8))
    heads = {task: nn.Linear(16, 1) for task in "ab"}
    model = sm.SharedBottom(encoder, [sm.Regression("a"), sm.Regression("b")], heads).eval()
    with torch.no_grad():
        for layer in (encoder[2], encoder[4]):
            layer.weight.mul_(apart)
        heads["a"].weight[:, 8:] = 0
        heads["b"].weight[:, :8] = 0
    return model


@pytest.mark.parametrize(("by", "best"), [("macs", "separate"), ("bytes", "separate"), ("milliseconds", None)])
def test_the_cost_decides(by: str, best: str | None) -> None:
    plan = sm.plan(halves(), example_inputs=torch.randn(2, 4), by=by)  # type: ignore[arg-type]
    assert plan.best.name == (best or plan.best.name)
    assert plan.best is min(plan.options, key=lambda option: getattr(option, by))
    assert ("ms" in str(plan)) == (by == "milliseconds")
    for option in plan.options:
        assert option.bytes == sum(tensor.nbytes for tensor in option.network.state_dict().values())


def blocks() -> sm.SharedBottom:
    """Layers of which one half of the channels serves the tasks a and b, and the other c, without a weight between."""
    encoder = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
    model = sm.SharedBottom(encoder, [sm.Regression(task) for task in TASKS])
    halves = torch.arange(12) < 6
    with torch.no_grad():
        for layer in (encoder[2], encoder[4]):
            layer.weight[halves[:, None] != halves] = 0
        model(torch.ones(1, 6))
        for task in TASKS:
            model.get_parameter(f"heads.{task}.weight")[:, halves if task == "c" else ~halves] = 0
    return model.double().eval()


@torch.no_grad()
def test_tasks_that_need_other_channels_are_computed_apart_and_others_together() -> None:
    model, x = blocks(), torch.randn(5, 6, dtype=torch.float64)
    plan = sm.plan(model, example_inputs=x)
    assert [option.name for option in plan.options] == ["separate", "one network", "groups"]
    assert plan.best.name == "groups"
    assert plan.best.macs == 2 * (6 * 6 + 6 * 6 + 6 * 6) + 3 * 6
    assert [branch.tasks for branch in plan.best.branches] == [("a", "b"), ("a",), ("b",), ("c",)]
    for option in plan.options:
        found = option.network(x)
        assert list(found) == list(TASKS)
        for task, expected in model(x).items():
            torch.testing.assert_close(found[task], expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_predicted_costs_of_groups_are_those_of_their_networks() -> None:
    model, x = blocks(), torch.randn(5, 6, dtype=torch.float64)
    costs = GroupCosts(root_of(copied(model), TASKS, alone=False, leaf_modules=()), x)
    for group in (("a",), ("c",), ("a", "b"), TASKS):
        small = sm.compact(model, tasks=group, example_inputs=x)
        zeros = sum(layer.weight.eq(0).sum().item() for layer in small.modules() if isinstance(layer, nn.Linear))
        read_anyway = zeros if len(group) < 3 else 3 * 6  # of the heads: cheaper to read than to leave out
        assert small.report.macs is not None
        assert costs.macs(group) == small.report.macs[1] - read_anyway


def test_groups_are_merged_as_long_as_that_saves() -> None:
    costs = {"a": 5, "b": 5, "c": 9, "d": 1, "ab": 6, "ac": 15, "ad": 6, "bc": 13, "bd": 6, "cd": 9, "abcd": 17}
    costs |= {"abc": 18, "abd": 8}
    assert cheapest_groups("abcd", lambda group: costs["".join(group)]) == (("a", "b"), ("c", "d"))
    assert cheapest_groups("ab", lambda group: len(group) ** 2) == (("a",), ("b",))
    assert cheapest_groups("abc", lambda group: 1) == (("a", "b", "c"),)


def test_all_tasks_are_in_one_onnx_file_with_an_output_each(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x = torch.randn(2, 4)
    plan = sm.plan(halves(), example_inputs=x)
    file = plan.export(tmp_path / "all.onnx")
    assert file.batch is None
    session = onnxruntime.InferenceSession(file.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["a", "b"]
    found = session.run(None, {"x": x[:1].numpy()})
    for output, expected in zip(found, plan.network(x[:1]).values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected.detach(), atol=1e-5, rtol=1e-4)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ParameterError, match="`by` must be one of macs, bytes, milliseconds, got 'speed'"):
        sm.plan(halves(), by="speed")  # type: ignore[arg-type]
    lazy = sm.SharedBottom(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), [sm.Regression("a")])
    with pytest.raises(CompactionError, match="does not know its shapes yet"):
        sm.plan(lazy, example_inputs=torch.rand(2, 4))
    with pytest.raises(ParameterError, match="Linear has no tasks"):
        sm.plan(nn.Linear(2, 2))  # type: ignore[arg-type]


class Twice(nn.Module):
    """Pairs of calls that look alike: the first two pairs compute the same, the others do not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.same, self.other = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.same.load_state_dict(self.one.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            *(self.one(x), self.same(x)),
            *(x.add(1), x.add(1)),
            *(self.one(x), self.other(x)),
            *(x.mul(2), x.mul(2.0)),
            *(torch.rand_like(x), torch.rand_like(x)),
            *(torch.bernoulli(x), torch.bernoulli(x)),
        )


def test_only_calls_that_compute_the_same_are_merged() -> None:
    module = Twice()
    network = Network.of(module, fx.symbolic_trace(module).graph, prefix="", name="Twice", leaf_modules=())
    merge_equal(network)
    (outputs,) = network.graph.output_node().args
    same = [outputs[index] is outputs[index + 1] for index in range(0, len(outputs), 2)]  # type: ignore[index, arg-type]
    assert same == [True, True, False, False, False, False]
