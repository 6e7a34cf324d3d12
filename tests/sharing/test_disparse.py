"""DiSparse: the union of what tasks keep has the count asked for; one network serves all tasks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from policies import Started
from sharing_toys import NAMES, build, encoder, engine_of, loader, model, run_epoch, tasks, trained
from states import assert_same, state_of

import sparsemtl as sm
from sparsemtl.criteria import Gradient
from sparsemtl.errors import MaskError, MaskWarning, ParameterError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing.disparse import erdos_renyi_counts, union_of_best
from sparsemtl.sharing.masking import masks_of


def scored(seed: int, tasks: int = 3, *, distinct: bool = True) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if distinct else lambda *shape, generator: torch.randint(0, 4, shape, generator=generator).float()
    return {f"task{t}": {"a": draw(3, 4, generator=generator), "b": draw(7, generator=generator)} for t in range(tasks)}


def flat(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


def of_best(scores: dict[str, torch.Tensor], k: int) -> set[int]:
    """Indices of the k best of a task, slowly; a task has no say about zeros."""
    values = flat(scores).tolist()
    return {i for i in sorted(range(len(values)), key=lambda i: -values[i])[:k] if values[i] != 0}


@each("distinct", [True, False])
@each("seed", range(5))
def test_the_mask_lies_between_the_unions_of_the_k_and_the_k_plus_one_best(seed: int, distinct: bool) -> None:
    scores = scored(seed, distinct=distinct)
    unions = [set().union(*(of_best(found, k) for found in scores.values())) for k in range(20)]
    for count in range(1, 20):
        mask = union_of_best(scores, count)
        assert {name: part.shape for name, part in mask.items()} == {"a": (3, 4), "b": (7,)}
        chosen = set(flat(mask).nonzero().flatten().tolist())
        assert len(chosen) == count
        k = max(k for k in range(20) if len(unions[k]) <= count)
        assert unions[k] <= chosen
        if count < len(unions[-1]):
            assert chosen <= unions[k + 1]


def test_a_weight_is_removed_only_if_every_task_agrees() -> None:
    scores = {"one": {"w": torch.tensor([9.0, 1, 0, 0, 5])}, "two": {"w": torch.tensor([0.0, 0, 7, 0, 8])}}
    assert union_of_best(scores, 2)["w"].tolist() == [True, False, False, False, True]
    assert union_of_best(scores, 3)["w"].tolist() == [True, False, True, False, True]


def test_what_may_not_be_chosen_does_not_count_in_the_ranks() -> None:
    scores = {"one": {"w": torch.tensor([9.0, 8, 7, 6])}, "two": {"w": torch.tensor([1.0, 2, 3, 4])}}
    among = {"w": torch.tensor([False, False, True, True])}
    assert union_of_best(scores, 1, among=among)["w"].tolist() == [False, False, True, False]
    assert union_of_best(scores, 2, among=among)["w"].tolist() == [False, False, True, True]


@pytest.mark.parametrize("keep", [0.1, 0.37, 0.9])
@pytest.mark.parametrize("variant", ["static", "pretrained"])
def test_masks_are_those_of_saliencies_of_each_task_alone_with_the_exact_count(variant: Any, keep: float) -> None:
    network = model(norm=False)
    network(loader().__iter__().__next__()[0])
    sharing = sm.DiSparseSharing(variant=variant, keep=keep)
    masks = masks_of(sharing.begin_epoch(0, network, sharing.start(network), loader()))  # type: ignore[arg-type]
    size = 6 * 8 + 8 * 5
    scores = Gradient(times_weight=True).scores(network, loader(), list(network.tasks.values()))
    if variant == "pretrained":
        scores = {
            task: {name: score * network.get_parameter(name).abs() for name, score in found.items()}
            for task, found in scores.items()
        }
    assert masks.count("kind") == round(keep * size)
    assert_same(dict(masks["kind"]), union_of_best(scores, round(keep * size)))
    assert all(torch.equal(masks.flat("kind"), masks.flat(task)) for task in NAMES)


def test_one_forward_pass_and_one_step_serve_all_tasks_and_equal_a_masked_single_network() -> None:
    sharing = build("disparse", keep=0.5)
    engine = trained(sharing, loader(), network=model(norm=False), optimizer="sgd")
    assert engine.update == "joint"
    assert engine.networks.one_network
    masks = masks_of(engine.networks)["kind"]
    slow = trained(build("disparse", keep=0.5, update="average"), loader(), network=model(norm=False), optimizer="sgd")
    for name, p in engine.model.named_parameters():
        torch.testing.assert_close(p, slow.model.get_parameter(name), rtol=1e-4, atol=1e-6)
    start = state_of(model(norm=False))
    for name, mask in masks.items():
        moved = engine.model.get_parameter(name).detach() != start[name]
        assert not bool((moved & ~mask).any())
        assert bool(moved.any())


def test_balancers_that_combine_gradients_get_rows_of_the_one_network() -> None:
    engine = trained(build("disparse", keep=0.5), loader(), network=model(norm=False), balancing="aligned-mtl")
    assert engine.update == "joint"
    masks = masks_of(engine.networks)["kind"]
    start = state_of(model(norm=False))
    for name, mask in masks.items():
        assert not bool(((engine.model.get_parameter(name).detach() != start[name]) & ~mask).any())


def test_statistics_per_task_need_a_forward_pass_per_task() -> None:
    started = Started(build("disparse", bn="per_task"), model())
    assert not started.one_network
    assert started.update_for(own_data=False) == "alternate"


def test_dynamic_masks_keep_their_density_per_layer_and_exchange_less_and_less() -> None:
    network = model(norm=False)
    sharing = sm.DiSparseSharing(variant="dynamic", keep=0.5, drop=0.5, reach_at=4)
    engine = engine_of(network, sharing)
    torch.manual_seed(3)
    before, exchanged = None, []
    for epoch in range(6):
        run_epoch(engine, loader(), epoch)
        mask = {name: m.clone() for name, m in masks_of(engine.networks)["kind"].items()}
        if before is not None:
            assert {n: int(m.sum()) for n, m in mask.items()} == {n: int(m.sum()) for n, m in before.items()}
            exchanged.append(sum(int((mask[n] & ~before[n]).sum()) for n in mask))
        before = mask
    assert masks_of(engine.networks).count("kind") == 44
    assert exchanged[-2:] == [0, 0]
    assert 0 < exchanged[0] <= sum(round(n * 0.5 * 0.5 * (1 + math.cos(math.pi / 4))) for n in (24, 20))


def test_an_exchange_drops_the_smallest_and_grows_by_gradients_of_each_task() -> None:
    network: Any = model(norm=False)
    sharing: Any = sm.DiSparseSharing(variant="dynamic", keep=0.5, drop=1.0, reach_at=4, only="encoder.0")
    networks = sharing.begin_epoch(0, network, sharing.start(network), loader())
    before = masks_of(networks)["kind"]["encoder.0.weight"]
    after = masks_of(sharing.begin_epoch(2, network, networks, loader()))["kind"]["encoder.0.weight"]
    weight = network.encoder[0].weight.detach().abs()
    count = int(before.sum())
    stays = before & (weight >= weight[before].sort(descending=True).values[count - round(0.5 * count) - 1])
    assert bool(after[stays].all())
    scores = Gradient(only="encoder.0").scores(network, loader(), list(network.tasks.values()))
    grown = union_of_best(scores, count - int(stays.sum()), among={"encoder.0.weight": ~stays})
    assert torch.equal(after, stays | grown["encoder.0.weight"])


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7, 1.0])
def test_densities_of_erdos_renyi_kernels_add_up_to_the_count(keep: float) -> None:
    shapes = {"first": (8, 3, 3, 3), "second": (64, 32), "small": (2, 2)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    count = round(keep * sum(sizes.values()))
    counts = erdos_renyi_counts(shapes, count)
    assert sum(counts.values()) == count
    assert all(0 <= counts[name] <= sizes[name] for name in shapes)
    densities = [counts[name] / sizes[name] for name in ("small", "first", "second")]
    assert densities == sorted(densities, reverse=True)


def test_bad_schedules_and_layers_that_die_are_named() -> None:
    with pytest.raises(ParameterError, match="`reach_at` must come after the warm-up of 10 epochs, got 10"):
        sm.DiSparseSharing(variant="dynamic", warmup=10)
    network: Any = sm.SharedBottom(encoder(norm=False), tasks())
    network(loader().__iter__().__next__()[0])
    with torch.no_grad():
        network.encoder[0].weight.mul_(1e-6)  # no task asks for the first layer
    sharing = sm.DiSparseSharing(keep=0.1)
    networks = sharing.start(network)
    with pytest.warns(MaskWarning, match=r"no weight of 'encoder.0.weight' is left in the network of all tasks"):
        sharing.begin_epoch(0, network, networks, loader())
    with torch.no_grad():
        for head in network.heads.values():
            for p in head.parameters():
                p.zero_()
    with pytest.raises(MaskError, match="every gradient of the shared weights is zero"):
        sharing.begin_epoch(0, network, networks, loader())


def test_files_keep_that_one_network_serves_all_tasks(tmp_path: Path) -> None:
    engine = trained(build("disparse", keep=0.5), loader())
    engine.networks.save(tmp_path / "networks")
    again = TaskNetworks.load(tmp_path / "networks", engine.model)
    assert again.common
    assert again.one_network
    assert_same(again.state_dict(), engine.networks.state_dict())


def test_compaction_of_the_one_network_changes_no_output() -> None:
    engine = trained(build("disparse", keep=0.2), loader(), network=model(norm=False))
    x = torch.randn(4, 6)
    for task in NAMES:
        small = sm.compact(engine.model, engine.networks, task=task, example_inputs=x)
        with torch.no_grad(), engine.networks.swapped(engine.model, task):
            expected = engine.model.eval()(x, tasks=(task,))[task]
        torch.testing.assert_close(small(x)[task] if isinstance(small(x), dict) else small(x), expected)
