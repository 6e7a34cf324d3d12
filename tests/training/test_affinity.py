"""Affinity of tasks: matrices against slow references, and groups against scipy's clustering."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.criteria import Specific
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError
from sparsemtl.training.choosing.affinity import TaskAffinity, task_affinity

NAMES = ("a", "b", "c")
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
TARGETS = {"a": X[:, 0] * X[:, 1], "b": torch.tanh(X[:, 0]), "c": X[:, 3].where(X[:, 2] > 0, torch.nan)}


def model() -> sm.SharedBottom:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 8))
    return sm.SharedBottom(encoder, [sm.Regression(n) for n in NAMES], {n: nn.Linear(8, 1) for n in NAMES}).eval()


def loader(batch_size: int = 16) -> TensorLoader:
    return TensorLoader(X, TARGETS, batch_size=batch_size)


def test_overlaps_are_those_of_the_masks() -> None:
    found = task_affinity(model(), loader(), keep=0.2)
    fisher = sm.fisher_masks(model(), loader(), keep=0.2, estimator="efs")
    specific = sm.choose_masks(Specific(of={"name": "fisher", "estimator": "efs"}), model(), loader(), keep=0.2)
    assert found.overlap == fisher.overlap().jaccard.tolist()
    assert found.specific == specific.overlap().jaccard.tolist()


def test_cosines_and_losses_are_those_of_all_known_labels_in_one_batch() -> None:
    net = model()
    losses = {n: task.loss(net(X)[n], TARGETS) for n, task in net.tasks.items()}
    rows = [
        torch.autograd.grad(loss, list(net.shared_parameters().values()), retain_graph=True) for loss in losses.values()
    ]
    flat = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    expected = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=2)
    for batch_size in (40, 16):
        found = task_affinity(model(), loader(batch_size))
        torch.testing.assert_close(torch.tensor(found.cosine), expected, rtol=1e-4, atol=1e-5)
        assert found.losses == pytest.approx({n: loss.item() for n, loss in losses.items()}, rel=1e-5)


def test_data_per_task_measure_the_same_and_the_model_stays_as_it_is() -> None:
    net = model().train()
    before = deepcopy(net.state_dict())
    state = torch.get_rng_state()
    each = {n: TensorLoader(X, labels, batch_size=16) for n, labels in TARGETS.items()}
    assert task_affinity(net, each) == task_affinity(net, loader())
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_no_more_samples_are_read_than_asked() -> None:
    found = task_affinity(model(), loader(8), samples=8)
    first = TensorLoader(X[:8], {n: labels[:8] for n, labels in TARGETS.items()}, batch_size=8)
    one = task_affinity(model(), first)
    assert (found.losses["a"], found.overlap[0][1]) == (one.losses["a"], one.overlap[0][1])


def test_groups_are_those_of_average_linkage() -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    distance = pytest.importorskip("scipy.spatial.distance")
    for seed in range(20):
        half = torch.rand(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        overlap = torch.triu(half, 1) + torch.triu(half, 1).T + torch.eye(6, dtype=torch.float64)
        affinity = TaskAffinity(tuple("abcdef"), 0.1, overlap.tolist(), [], [], {})
        tree = hierarchy.linkage(distance.squareform((1 - overlap).numpy(), checks=False), "average")
        for least in (0.3, 0.5, 0.7):
            labels = hierarchy.fcluster(tree, 1 - least, "distance")
            expected = {frozenset("abcdef"[i] for i in range(6) if labels[i] == label) for label in labels}
            assert set(map(frozenset, affinity.groups(least))) == expected
    assert affinity.groups(0.0) == [list("abcdef")]
    assert affinity.groups(1.1) == [[name] for name in "abcdef"]


def test_tasks_that_share_nothing_have_no_affinity() -> None:
    net = sm.SingleTask(nn.Linear(6, 4), [sm.Regression(n) for n in NAMES])
    with pytest.raises(ParameterError, match="the tasks of SingleTask share no trained weights"):
        task_affinity(net, loader())
    with pytest.raises(ParameterError, match="the tasks of SharedBottom share no trained weights"):
        task_affinity(model().requires_grad_(False), loader())


def test_it_is_shown_as_tables() -> None:
    found = task_affinity(model(), loader())
    text = str(found)
    assert "0.05 by chance" in text
    assert "Cosine of the tasks' gradients" in text
    assert found.record()["groups"] == found.groups()
