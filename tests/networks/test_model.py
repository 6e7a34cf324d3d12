from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsemtl import Classification, Regression, SharedBottom, SingleTask, TaskMasks
from sparsemtl.architectures.heads import heads_for, width_of
from sparsemtl.errors import ParameterError
from sparsemtl.heads.linear import LazyLinearHead, LinearHead
from sparsemtl.networks.shared_coverage import maskable_parameters


def encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6))


def test_masks_cover_the_shared_weights_of_two_dimensions_and_more() -> None:
    model = SharedBottom(encoder(), [Classification("a", 3), Regression("b")])
    model(torch.rand(2, 1, 5, 5))
    assert list(maskable_parameters(model)) == ["encoder.0.weight", "encoder.4.weight"]
    everything = ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]
    assert list(maskable_parameters(model, mask_all=True)) == [f"encoder.{name}" for name in everything]
    assert maskable_parameters(model)["encoder.0.weight"] is model.encoder[0].weight  # type: ignore[index]


def test_where_nothing_is_shared_there_is_nothing_to_mask() -> None:
    assert maskable_parameters(SingleTask(nn.Linear(3, 2), [Regression("a"), Regression("b")]), mask_all=True) == {}


def test_in_a_module_of_ones_own_all_parameters_count_as_shared() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert list(maskable_parameters(module)) == ["0.weight", "2.weight"]
    assert list(maskable_parameters(module, mask_all=True)) == [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize(
    ("told", "width"),
    [
        ({"out_features": 5}, 5),
        ({"num_features": 7}, 7),
        ({"out_features": 5, "num_features": 7}, 5),
        ({"out_features": None, "num_features": 7}, 7),
        ({"out_features": "five"}, None),
        ({"out_features": lambda: 5}, None),
        ({}, None),
    ],
)
def test_a_width_is_read_where_the_encoder_tells_one(told: dict[str, object], width: int | None) -> None:
    assert width_of(SimpleNamespace(**told)) == width  # type: ignore[arg-type]


@pytest.mark.parametrize(("encoder", "kind"), [(nn.Linear(2, 5), LinearHead), (nn.ReLU(), LazyLinearHead)])
def test_default_heads_know_their_width_or_wait_for_it(encoder: nn.Module, kind: type) -> None:
    tasks = {"a": Classification("a", 3), "b": Regression("b")}
    own = nn.Identity()
    heads = heads_for(tasks, {"b": own}, dict.fromkeys(tasks, encoder))
    assert list(heads) == ["a", "b"]
    assert type(heads["a"]) is kind
    assert heads["b"] is own


def test_waiting_heads_may_see_maps_of_any_size_afterwards() -> None:
    model = SharedBottom(nn.Conv2d(1, 4, 3), [Classification("a", 3)])
    for side in (5, 9):
        assert model(torch.rand(2, 1, side, side))["a"].shape == (2, 3)
    assert model.heads["a"].in_features == 4


def test_a_model_needs_a_task() -> None:
    with pytest.raises(ParameterError, match="a multi-task model needs at least one task"):
        SharedBottom(nn.Linear(2, 2), [])


def test_one_name_in_the_place_of_a_list_is_refused() -> None:
    model = SharedBottom(nn.Linear(4, 3), [Classification("a", 2)])
    with pytest.raises(ParameterError, match=r"`tasks` is a list of names, got 'a'\. Pass \['a'\]\."):
        model(torch.rand(2, 4), tasks="a")
    with pytest.raises(ParameterError, match="`tasks` is a list of names"):
        TaskMasks({"a": {"w": torch.tensor([True])}}).union("a")


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"expected tasks, such as sm\.Classification\('name', 10\), got 'kind'"):
        SharedBottom(nn.Identity(), ["kind"])  # type: ignore[list-item]


def test_task_names_differ() -> None:
    with pytest.raises(ParameterError, match=r"task names must differ, \['a', 'b'\] occur more than once"):
        SharedBottom(nn.Linear(2, 2), [Regression(name) for name in "bacab"])


def test_tasks_may_come_from_any_iterable() -> None:
    model = SharedBottom(nn.Linear(2, 2), (Regression(name) for name in "ab"))  # type: ignore[arg-type]
    assert list(model.tasks) == ["a", "b"]
    assert list(model(torch.rand(1, 2))) == ["a", "b"]


def test_two_tasks_may_read_one_target() -> None:
    tasks = [Classification("parity", 2, target="digit"), Regression("value", target="digit")]
    model = SharedBottom(nn.Linear(2, 2), tasks)
    outputs = model(torch.rand(4, 2))
    targets = {"digit": torch.tensor([0, 1, 1, 0])}
    assert all(task.loss(outputs[task.name], targets) > 0 for task in tasks)
