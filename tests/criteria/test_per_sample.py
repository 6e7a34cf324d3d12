"""However gradients are taken, the scores are those of autograd, one sample after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fisher_oracles import assert_close, fisher, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from small_networks import NETWORKS, SAMPLES, DoubledLinear, Network, Runs, build, two_classifications
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import sparsemtl as sm
from sparsemtl.criteria import Fisher
from sparsemtl.criteria.per_sample import per_sample
from sparsemtl.criteria.power_sum import FEW, PowerSum
from sparsemtl.errors import ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters

POWERS = ["square", "abs"]
FALLING_BACK = [name for name, network in NETWORKS.items() if not network.hooks]


def scores(model: sm.SharedBottom, batches: Any, **options: Any) -> dict[str, dict[str, Tensor]]:
    criterion = Fisher(**{"estimator": "true", "mask_all": True, **options})
    return criterion.scores(model, batches, list(model.tasks.values()))


def expected(model: sm.SharedBottom, batches: Any, **options: Any) -> dict[str, dict[str, Tensor]]:
    names = list(maskable_parameters(model, mask_all=True))
    return {
        name: fisher(model, batches, task, names, estimator="true", **options) for name, task in model.tasks.items()
    }


@each("power", POWERS)
@each("name", NETWORKS)
def test_every_path_gives_what_autograd_gives(name: str, power: str) -> None:
    network = NETWORKS[name]
    tasks, targets = two_classifications()
    model, x = build(network, tasks)
    truth = expected(model, [(x, targets)], power=power)
    paths = ["auto", "loop"] + ["hooks"] * network.hooks + ["functional"] * network.vmap
    for path in paths:
        found = scores(model, [(x, targets)], power=power, path=path)
        for task in truth:
            assert_close(found[task], truth[task])


@each("name", NETWORKS)
def test_single_precision_gives_the_same_to_its_rounding(name: str) -> None:
    tasks, targets = two_classifications()
    model, x = build(NETWORKS[name], tasks, torch.float32)
    found = scores(model, [(x, targets)])
    x = tree_map_only(Tensor, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, x)
    truth = expected(model.double(), [(x, targets)])
    for task in truth:
        assert_close(found[task], truth[task], rounding(model))


@each("power", POWERS)
@each("name", FALLING_BACK)
def test_hooks_alone_refuse_what_they_would_get_wrong(name: str, power: str) -> None:
    tasks, targets = two_classifications()
    model, x = build(NETWORKS[name], tasks)
    with pytest.raises(ParameterError, match=r"path='hooks' cannot give per-sample gradients of encoder\.0"):
        scores(model, [(x, targets)], power=power, path="hooks")


def test_what_vmap_refuses_is_looped_over_unless_vmap_is_insisted_on() -> None:
    def run(module: Any, x: Tensor) -> Tensor:
        return module.layer(x) if bool((x > 0).any()) else x @ module.layer.weight

    tasks, targets = two_classifications()
    model, x = build(Network(lambda: Runs(run, layer=nn.Linear(5, 5)), (5,)), tasks)
    with pytest.raises(RuntimeError, match="vmap"):
        scores(model, [(x, targets)], path="functional")
    found, truth = scores(model, [(x, targets)], path="auto"), expected(model, [(x, targets)])
    for task in truth:
        assert_close(found[task], truth[task])


@each("path", ["auto", "functional"])
@each("power", POWERS)
@each("name", ["conv2d", "linear on many positions", "a layer used twice", "group norm", "resnet"])
def test_memory_for_chunks_does_not_change_the_result(name: str, power: str, path: str) -> None:
    tasks, targets = two_classifications()
    model, x = build(NETWORKS[name], tasks)
    whole = scores(model, [(x, targets)], power=power, path=path, chunk_mb=1000)
    for chunk_mb in (1e-6, 2e-3):
        found = scores(model, [(x, targets)], power=power, path=path, chunk_mb=chunk_mb)
        for task in whole:
            assert_close(found[task], whole[task])


def calls_again_for_positive(module: Any, x: Tensor) -> Tensor:
    hidden = module.layer(x).mean(1)
    return module.layer(hidden.tanh()) if bool((x > 0).all()) else hidden


def turns_positive_around(module: Any, x: Tensor) -> Tensor:
    return (module.layer(x.transpose(0, 1)).transpose(0, 1) if bool((x > 0).all()) else module.layer(x)).mean(1)


@pytest.mark.parametrize("run", [calls_again_for_positive, turns_positive_around])
@pytest.mark.parametrize("path", ["auto", "loop"])
def test_a_network_that_changes_its_ways_after_the_first_batch_is_followed(path: str, run: Any) -> None:
    torch.manual_seed(0)
    tasks, targets = two_classifications()
    heads = {task.name: nn.Linear(5, task.outputs) for task in tasks}
    model = sm.SharedBottom(Runs(run, layer=nn.Linear(5, 5)), tasks, heads).double()
    x = torch.randn(2, SAMPLES, 3, 5, dtype=torch.float64)
    batches = [(x[0], targets), (x[1].abs(), targets), (x[1] - 9, targets)]
    found, truth = scores(model, batches, path=path), expected(model, batches)
    for task in truth:
        assert_close(found[task], truth[task])


def test_head_that_reads_an_encoders_weight_counts_as_use_of_it() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    head = Runs(lambda m, x: x @ encoder[0].weight[:, :3], bias=nn.Parameter(torch.zeros(1)))
    model = sm.SharedBottom(encoder, [sm.Classification("kind", 3)], {"kind": head}).double()
    batches = [(torch.randn(SAMPLES, 5, dtype=torch.float64), {"kind": torch.tensor([0, 2, 1, 1])})]
    assert_close(scores(model, batches)["kind"], expected(model, batches)["kind"])


@pytest.mark.parametrize("path", ["auto", "hooks", "functional", "loop"])
def test_batch_norm_on_the_batchs_own_statistics_is_refused(path: str) -> None:
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))
    model = sm.SharedBottom(encoder, [sm.Classification("kind", 3)], {"kind": nn.Linear(4, 3)})
    batches = [(torch.randn(4, 5), {"kind": torch.tensor([0, 2, 1, 1])})]
    with pytest.raises(ParameterError, match=r"'encoder\.1' \(BatchNorm1d\) has no running statistics"):
        scores(model, batches, path=path)
    assert scores(model, batches, estimator="batch")["kind"]["encoder.0.weight"].any()


def test_samples_tied_by_the_networks_own_code_are_not_taken_for_independent() -> None:
    """Normalising over the batch by hand: hooks see the influence of a sample on the others, and refuse."""
    encoder = Runs(lambda m, x: m.layer(x) - m.layer(x).mean(0), layer=nn.Linear(5, 4))
    model = sm.SharedBottom(encoder, [sm.Classification("kind", 3)], {"kind": nn.Linear(4, 3)})
    with pytest.raises(ParameterError, match="path='hooks'"):
        scores(model, [(torch.randn(4, 5), {"kind": torch.tensor([0, 2, 1, 1])})], path="hooks")
    centred = Runs(lambda m, x: m.layer(x - x.mean(0)), layer=nn.Linear(5, 4))
    model = sm.SharedBottom(centred, [sm.Classification("kind", 3)], {"kind": nn.Linear(4, 3)})
    assert scores(model, [(torch.randn(4, 5), {"kind": torch.tensor([0, 2, 1, 1])})], path="hooks")


def test_general_path_is_taken_for_no_more_than_what_needs_it(caplog: pytest.LogCaptureFixture) -> None:
    plain, doubled = nn.Linear(5, 4), DoubledLinear(4, 4)
    tasks, targets = two_classifications()
    heads = {task.name: nn.Linear(4, task.outputs) for task in tasks}
    model = sm.SharedBottom(nn.Sequential(plain, doubled), tasks, heads)
    with caplog.at_level("INFO", logger="sparsemtl"):
        scores(model, [(torch.randn(SAMPLES, 5), targets)])
    assert [record.getMessage() for record in caplog.records] == ["general path for encoder.1.weight"]


@pytest.mark.parametrize("path", ["auto", "functional", "loop"])
def test_first_batch_of_a_single_sample_is_enough_to_tell(path: str) -> None:
    tasks, targets = two_classifications()
    model, x = build(NETWORKS["weight used as a function too"], tasks)
    batches = [(x[:1], {t: y[:1] for t, y in targets.items()}), (x[1:], {t: y[1:] for t, y in targets.items()})]
    found, truth = scores(model, batches, path=path), expected(model, batches)
    for task in truth:
        assert_close(found[task], truth[task])


def naive(total: Tensor, left: Tensor, right: Tensor, power: str) -> Tensor:
    """Sum over samples of |left_n right_n|^power."""
    gradients = torch.einsum("ngip,ngpo->ngio", left, right)
    return total + (gradients.square() if power == "square" else gradients.abs()).sum(0)


@settings(deadline=None)
@given(
    samples=st.integers(1, 5),
    groups=st.integers(1, 2),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    positions=st.integers(1, FEW + 2),
    power=st.sampled_from(POWERS),
    chunk=st.sampled_from([0, 100, 10**6]),
    seed=st.integers(0, 10**6),
)
def test_sum_of_powers_of_products_equals_its_definition(
    samples: int, groups: int, inputs: int, outputs: int, positions: int, power: Any, chunk: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(samples, groups, inputs, positions, generator=generator, dtype=torch.float64)
    right = torch.randn(samples, groups, positions, outputs, generator=generator, dtype=torch.float64)
    total = torch.rand(groups, inputs, outputs, generator=generator, dtype=torch.float64)
    truth = naive(total, left, right, power)
    PowerSum(power, chunk).products(total, left, right)
    torch.testing.assert_close(total, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("power", POWERS)
def test_gradient_too_large_to_share_a_cache_with_others_is_added_on_its_own(power: Any) -> None:
    left, right = torch.randn(3, 1, 200, 9, dtype=torch.float64), torch.randn(3, 1, 9, 200, dtype=torch.float64)
    total = torch.zeros(1, 200, 200, dtype=torch.float64)
    PowerSum(power, 2**30).products(total, left, right)
    torch.testing.assert_close(total, naive(torch.zeros(()).double(), left, right, power))


@each("positions", [1, FEW - 1, FEW + 1])
@each("path", ["auto", "functional", "loop"])
def test_squares_of_half_precision_do_not_overflow(path: str, positions: int) -> None:
    """300^2 is beyond float16; gradients are cast before they are squared."""
    torch.manual_seed(0)
    tasks, targets = two_classifications()
    heads = {task.name: nn.Linear(4, task.outputs) for task in tasks}
    model = sm.SharedBottom(Runs(lambda m, x: m.layer(x).mean(1), layer=nn.Linear(5, 4)), tasks, heads).half()
    x = (2000 * torch.rand(SAMPLES, positions, 5) + 1000).half()
    half = scores(model, [(x, targets)], path=path)
    truth = scores(model.float(), [(x.float(), targets)], path=path)
    for task in truth:
        assert truth[task]["encoder.layer.weight"].max() > torch.finfo(torch.float16).max
        assert {score.dtype for score in half[task].values()} == {torch.float32}
        assert_close(half[task], truth[task], relative=0.02)


def test_per_sample_asks_for_nothing_but_a_model_and_names() -> None:
    """The engine below the criterion stands alone: any gradients of outputs, any parameters."""
    tasks, _ = two_classifications()
    model, x = build(NETWORKS["conv2d"], tasks)
    model.eval()
    chosen = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    powers = per_sample(model, chosen, ["kind"], PowerSum("square", 2**20))
    total = powers.zeros()
    outputs = powers.forward(x, ("kind",))
    powers.add({"kind": torch.ones_like(outputs["kind"])}, total)
    for name, p in chosen.items():
        gradients = [torch.autograd.grad(model(x[n : n + 1])["kind"].sum(), p, allow_unused=True)[0] for n in range(4)]
        truth = sum(g.square() for g in gradients if g is not None)
        torch.testing.assert_close(total[name], torch.zeros_like(p) + truth, rtol=1e-10, atol=1e-12)
