from __future__ import annotations

import pytest
import torch
from expert_oracles import assert_same_model, batch, gradients, stack, tasks
from torch import Tensor, nn

from sparsemtl import Regression, TaskMasks
from sparsemtl.architectures import CGC, PBFS
from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters

PAIRS = [["a", "b"], ["a", "c"], ["b", "c"]]


def heads(names: str = "abc") -> dict[str, nn.Module]:
    return {task.name: task.head(4) for task in tasks(names)}


def renamed(state: dict[str, Tensor], pools: list[str]) -> dict[str, Tensor]:
    """A state of PBFS with these pools, as that of a CGC: pools' experts are the shared ones, in order."""
    numbers = {f"levels.0.pools.{pool}.0.": f"levels.0.pools.pool1.{k}." for k, pool in enumerate(pools)}
    found = {}
    for name, tensor in state.items():
        prefix = next((p for p in numbers if name.startswith(p)), "")
        if prefix or ".pools." not in name:
            found[numbers.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return found


@pytest.mark.parametrize("merge", ["gate", "sum"])
def test_one_pool_of_everyone_is_cgc_bit_for_bit(merge: str) -> None:
    model = PBFS(stack(6, 4), tasks(), heads(), pools=[["a", "b", "c"]], pool_merge=merge).double()  # type: ignore[arg-type]
    other = CGC(stack(6, 4), tasks(), heads()).double()
    other.load_state_dict(model.state_dict())
    assert_same_model(model, other, batch())


@pytest.mark.parametrize("task", "abc")
def test_a_task_whose_masks_keep_all_of_its_pools_computes_what_it_does_in_cgc_bit_for_bit(task: str) -> None:
    torch.manual_seed(0)
    model = PBFS(stack(6, 4), tasks(), heads(), pools=PAIRS, pool_merge="gate").double()
    pools = list(model.levels[0].pools_of(task))
    assert len(pools) == 2
    other = CGC(stack(6, 4), tasks(task), heads(task), shared_experts=2).double()
    names = set(other.state_dict())
    other.load_state_dict({n: t for n, t in renamed(model.state_dict(), pools).items() if n in names})
    masks = TaskMasks.ones(maskable_parameters(model), model.tasks)
    with masks.applied(model, task):
        output = model(batch(), tasks=[task])[task]
        found = gradients(model, batch(), [task])
    assert torch.equal(output, other(batch())[task])
    ours = renamed({name: gradient for name, gradient in found.items() if gradient is not None}, pools)
    theirs = gradients(other, batch())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient is not None
        assert torch.equal(ours[name], gradient), name


@pytest.mark.parametrize("experts_per_pool", [1, 2])
@pytest.mark.parametrize("merge", ["gate", "sum"])
def test_outputs_are_those_of_the_paper_written_out(merge: str, experts_per_pool: int) -> None:
    torch.manual_seed(0)
    options = {"pools": PAIRS[:2], "pool_merge": merge, "experts_per_pool": experts_per_pool, "task_experts": 2}
    model = PBFS(stack(6, 4), tasks(), heads(), **options).double()  # type: ignore[arg-type]
    (level,) = model.levels
    x = batch()
    for task, output in model(x).items():
        own = [expert(x) for expert in level.experts[task]]
        pooled = [
            expert(x)
            for number, members in enumerate(PAIRS[:2], 1)
            if task in members
            for expert in level.pools[f"pool{number}"]
        ]
        slots = [*own, *([torch.stack(pooled).sum(0)] if merge == "sum" else pooled)]
        weights = (x @ level.gates[task].weight.T).softmax(1)
        assert weights.shape[1] == len(slots)
        features = sum(weights[:, k, None] * feature for k, feature in enumerate(slots))
        torch.testing.assert_close(output, model.heads[task](features))


def test_only_the_pools_of_the_named_tasks_are_run() -> None:
    model = PBFS(stack(4), tasks(), heads(), pools=PAIRS)
    ran: list[str] = []
    for name, pool in model.levels[0].pools.items():
        pool[0].register_forward_hook(lambda *_, name=name: ran.append(name))
    model(batch().float(), tasks=["c"])
    assert ran == ["pool2", "pool3"]


def test_a_pool_is_shared_by_its_tasks_and_what_masks_are_put_on() -> None:
    model = PBFS(stack(4), tasks(), heads(), pools=PAIRS[:2])
    assert list(model.shared_modules()) == ["levels.0.pools.pool1", "levels.0.pools.pool2"]
    assert model.parameter_tasks()["levels.0.pools.pool2.0.0.weight"] == {"a", "c"}
    assert set(maskable_parameters(model)) == {"levels.0.pools.pool1.0.0.weight", "levels.0.pools.pool2.0.0.weight"}


def test_a_weight_pruned_for_one_task_learns_from_another_that_keeps_it() -> None:
    torch.manual_seed(0)
    model = PBFS(nn.Linear(5, 4), tasks(), heads(), pools=[["a", "b", "c"]]).double()
    (name,) = maskable_parameters(model)
    masks = TaskMasks.ones(maskable_parameters(model), model.tasks)
    masks["b"][name][1] = False
    found = {}
    for task in model.tasks:
        with masks.applied(model, task):
            found[task] = gradients(model, batch(), [task])[name]
    assert not found["b"][1].any()
    assert found["b"][0].all()
    assert found["a"].all()


def test_a_task_in_no_pool_is_alone() -> None:
    model = PBFS(stack(4), tasks(), heads(), pools=[["a", "b"]])
    assert model.levels[0].gates["c"].out_features == 1
    own = set(model.task_parameters("c"))
    assert {name for name, users in model.parameter_tasks().items() if "c" in users} == own


def correlated() -> dict[str, Tensor]:
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    return {"a": (x[:, :2] * torch.tensor([2.0, 1.0])).argmax(1), "b": x[:, 0], "c": (x[:, 2] > 0).long()}


def test_pools_follow_from_the_training_labels() -> None:
    model = PBFS(stack(4), tasks(), heads(), correlated(), alpha=0.2)
    assert list(model.pools) == [("a", "b"), ("a", "b", "c")]
    assert str(model.pools).splitlines()[1] == "pool1   0.712  a, b"
    assert list(PBFS(stack(4), tasks(), heads(), correlated(), alpha=2.0).pools) == [("a", "b", "c")]


def test_two_tasks_need_no_labels_and_one_has_no_pool() -> None:
    assert list(PBFS(stack(4), tasks("ab")).pools) == [("a", "b")]
    assert list(PBFS(stack(4), tasks("a")).pools) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"makes pools from the training labels of its tasks, got none\. Give `labels`, or `pools`"),
        ({"pools": [["a", "d"]]}, "pool 1: unknown task 'd'"),
        ({"pools": [["a"]]}, "pool 1 must have two or more different tasks"),
        ({"pools": [["a", "b"]], "task_experts": 0}, "task 'c' has no expert"),
        ({"pools": PAIRS, "alpha": 0.0}, r"'alpha' parameter of PBFS must be a float in \(0, inf\)"),
        ({"pools": PAIRS, "pool_merge": "mean"}, "'pool_merge' parameter of PBFS must be one of 'sum', 'gate'"),
    ],
)
def test_what_makes_no_pools_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        PBFS(stack(4), tasks(), **options)  # type: ignore[arg-type]


def test_a_constant_label_is_named() -> None:
    with pytest.raises(LabelError, match="task 'c': all labels are equal"):
        PBFS(stack(4), tasks(), heads(), {**correlated(), "c": torch.zeros(400).long()})


def test_the_summary_tells_the_pools_and_what_they_were_made_from() -> None:
    names = ["a", "b", "c"]
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, generator=generator)
    labels = {"a": a, "b": a + torch.randn(50, generator=generator), "c": torch.randn(50, generator=generator)}
    model = PBFS(nn.Linear(4, 3), [Regression(name) for name in names], labels=labels, alpha=0.01)
    told = model.summary()
    assert [pool["tasks"] for pool in told["pools"].values()] == [list(tasks) for tasks in model.pools]
    assert told["correlations"][0][1] == pytest.approx(float(torch.corrcoef(torch.stack([a, labels["b"]]))[0, 1]))
    given = PBFS(nn.Linear(4, 3), [Regression(name) for name in names], pools=[names]).summary()
    assert given == {"pools": {"pool1": {"tasks": names, "similarity": None}}, "correlations": None}
