"""Task-specific scores: an oracle by hand, composition with any criterion, and what may not go wrong."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria import Criterion, Fisher, Gradient, Magnitude, Specific, as_criterion, choose_masks
from sparsemtl.criteria.batch_norm import with_recomputed_batch_norm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ConfigError, MaskError, ParameterError
from sparsemtl.networks.shared_coverage import maskable_parameters

NAMES = ("one", "two", "three")


def model() -> sm.SharedBottom:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5))
    tasks = [sm.Classification(name, 2 + index) for index, name in enumerate(NAMES)]
    return sm.SharedBottom(encoder, tasks, {task.name: nn.Linear(5, task.outputs) for task in tasks}).double()


def data() -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    return x, {name: (x[:, index] > 0).long() for index, name in enumerate(NAMES)}


def loader() -> TensorLoader:
    return TensorLoader(*data(), batch_size=8)


def own_loaders() -> dict[str, TensorLoader]:
    x, targets = data()
    return {name: TensorLoader(x, labels, batch_size=8) for name, labels in targets.items()}


class Given(Criterion):
    """Scores that are known beforehand."""

    reads_data = False

    def __init__(self, given: dict[str, list[float]]) -> None:
        self.given = given

    def scores(self, model: nn.Module, loaders: Any, tasks: Sequence[sm.Task]) -> dict[str, dict[str, Tensor]]:
        return {task: {"w": torch.tensor(values)} for task, values in self.given.items()}


def by_hand(scores: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, list[float]]]:
    """The formula, weight by weight."""
    mean = {}
    for task, found in scores.items():
        every = [float(value) for score in found.values() for value in score.flatten()]
        mean[task] = sum(every) / len(every)
    result: dict[str, dict[str, list[float]]] = {}
    for task, found in scores.items():
        for name, score in found.items():
            values = []
            for i, value in enumerate(score.flatten().tolist()):
                share = [float(scores[other][name].flatten()[i]) / mean[other] for other in scores]
                scaled = value / mean[task]
                values.append(scaled * (scaled / sum(share)) ** 2 if sum(share) else 0.0)
            result.setdefault(task, {})[name] = values
    return result


@pytest.mark.parametrize("inner", [Fisher(), Gradient(), Magnitude()], ids=["fisher", "gradient", "magnitude"])
def test_its_scores_are_those_of_the_formula(inner: Criterion) -> None:
    network = model()
    tasks = list(network.tasks.values())
    before = inner.scores(network, loader(), tasks)
    found = Specific(of=inner).scores(network, loader(), tasks)
    for task, scores in by_hand(before).items():
        assert list(found[task]) == list(maskable_parameters(network))
        for name, values in scores.items():
            torch.testing.assert_close(found[task][name].flatten(), torch.tensor(values, dtype=torch.float64))


def test_the_scale_of_a_tasks_scores_does_not_matter() -> None:
    one, other = [1.0, 2.0, 5.0], [4.0, 2.0, 2.0]
    found = Specific(of=Given({"a": one, "b": other})).scores(nn.Identity(), (), [])
    scaled = Specific(of=Given({"a": [1024 * value for value in one], "b": other})).scores(nn.Identity(), (), [])
    assert all(torch.equal(found[task]["w"], scaled[task]["w"]) for task in found)


def test_a_weight_of_one_task_goes_before_one_that_matters_more_but_to_all() -> None:
    scores = Specific(of=Given({"a": [3.0, 2.0, 1.0], "b": [4.0, 0.0, 2.0]})).scores(nn.Identity(), (), [])
    assert scores["a"]["w"].argmax() == 1
    assert scores["b"]["w"].argmax() == 2 or scores["b"]["w"].argmax() == 0


def test_a_task_alone_is_ranked_by_the_inner_criterion() -> None:
    network = model()
    first = list(network.tasks.values())[:1]
    inner = Fisher().scores(network, loader(), first)["one"]
    found = Specific().scores(network, loader(), first)["one"]
    for name, score in inner.items():
        assert torch.equal(score.flatten().argsort(), found[name].flatten().argsort())


def test_scores_of_zero_stay_zero_whatever_other_tasks_have() -> None:
    found = Specific(of=Given({"a": [0.0, 0.0], "b": [0.0, 1.0]})).scores(nn.Identity(), (), [])
    assert found["a"]["w"].tolist() == [0, 0]
    assert found["b"]["w"][0] == 0 < found["b"]["w"][1]


@pytest.mark.parametrize("loaders", [loader(), own_loaders()], ids=["shared", "own"])
def test_recomputed_norms_do_not_lose_the_other_tasks(loaders: Any) -> None:
    """With data per task, norms are recomputed and scores computed task by task; shares are among all tasks."""
    network = model()
    tasks = list(network.tasks.values())
    found = with_recomputed_batch_norm(Specific()).scores(network, loaders, tasks)
    inner = with_recomputed_batch_norm(Fisher()).scores(network, loaders, tasks)
    for task, scores in by_hand(inner).items():
        for name, values in scores.items():
            torch.testing.assert_close(found[task][name].flatten(), torch.tensor(values, dtype=torch.float64))


def test_names_mappings_and_objects_make_the_same_criterion() -> None:
    network = model()
    masks = [
        choose_masks(criterion, network, loader(), keep=0.3)
        for criterion in (
            Specific(of=Gradient(samples=16)),
            as_criterion({"name": "specific", "of": {"name": "gradient", "samples": 16}}),
            pickle.loads(pickle.dumps(Specific(of={"name": "gradient", "samples": 16}))),
        )
    ]
    assert masks[0] == masks[1] == masks[2]
    assert masks[0] != choose_masks(Specific(), network, loader(), keep=0.3)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown criterion 'fischer'. Did you mean 'fisher'"):
        Specific(of="fischer")
    with pytest.raises(ConfigError, match=r"expected the `name` of one of fisher, .*specific in \{'samples': 3\}"):
        Specific(of={"samples": 3})
    with pytest.raises(ConfigError, match="criterion 'fisher': unknown parameter 'sampels'"):
        Specific(of={"name": "fisher", "sampels": 3})
    with pytest.raises(ParameterError, match=r"must be a name .* Got 3 instead"):
        as_criterion(3)
    with pytest.raises(ParameterError, match="are for an inner criterion that is named"):
        Specific(of=Fisher(), mask_all=True)
    with pytest.raises(MaskError, match="task 'a', parameter 'w': Specific needs scores of at least 0"):
        Specific(of=Given({"a": [1.0, -1.0]})).scores(nn.Identity(), (), [])
