"""Banks of a frozen network's features: a few samples of every class, or the classes' means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import each
from reference_toys import CLASSES, images, reference
from torch import Tensor

from sparsemtl import Classification
from sparsemtl.architectures.damtl.reference_features import ReferenceFeatures
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError


def auxiliary() -> Classification:
    return Classification("all", CLASSES, target="label")


def samples(labels: Tensor | None = None, *, named: bool = True, batch_size: int = 7) -> TensorLoader:
    labels = torch.tensor([0, 2, 2, 0, 1, 2, 2, 0, 2, 1]) if labels is None else labels
    return TensorLoader(images(len(labels)), {"label": labels} if named else labels, batch_size=batch_size)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_a_bank_of_means_has_the_mean_over_all_samples_of_every_class_that_has_any(
    named: bool, batch_size: int
) -> None:
    network = reference()
    features, classes = ReferenceFeatures(network, samples(named=named, batch_size=batch_size), auxiliary(), 0)()
    assert classes.tolist() == [0, 1, 2]  # of class 3 there is no sample
    everything = network(images())
    for name, of_layer in features.items():
        for row, members in enumerate([[0, 3, 7], [4, 9], [1, 2, 5, 6, 8]]):
            torch.testing.assert_close(of_layer[row], everything[name][members].mean(0))


@each("each", [1, 2, 4, 100])
@each("batch_size", [1, 4, 10])
def test_a_bank_of_samples_has_the_first_of_every_class(each: int, batch_size: int) -> None:
    network = reference()
    features, classes = ReferenceFeatures(network, samples(batch_size=batch_size), auxiliary(), each)()
    labels = samples().targets["label"].tolist()  # type: ignore[call-overload]
    chosen = [i for i, label in enumerate(labels) if labels[:i].count(label) < each]
    assert classes.tolist() == [labels[i] for i in chosen]
    everything = network(images())
    for name, of_layer in features.items():
        torch.testing.assert_close(of_layer, everything[name][chosen])


@pytest.mark.parametrize("each", [0, 2])
def test_samples_without_a_class_are_not_in_a_bank(each: int) -> None:
    network, labels = reference(), torch.tensor([0, -100, 2, 0, -100, 2])
    features, classes = ReferenceFeatures(network, samples(labels), auxiliary(), each)()
    kept = TensorLoader(images(6)[labels >= 0], labels[labels >= 0])
    expected, expected_classes = ReferenceFeatures(network, kept, auxiliary(), each)()
    assert torch.equal(classes, expected_classes)
    for name, of_layer in features.items():
        torch.testing.assert_close(of_layer, expected[name])


@pytest.mark.parametrize("each", [0, 2])
@pytest.mark.parametrize("empty", [[], [(images(2), torch.full((2,), -100))]], ids=["no batch", "no label"])
def test_a_bank_of_nothing_is_refused(each: int, empty: list[Any]) -> None:
    with pytest.raises(ParameterError, match="the auxiliary task has no samples"):
        ReferenceFeatures(reference(), empty, auxiliary(), each)


def test_a_label_that_the_auxiliary_task_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="label 4 is not one of the classes"):
        ReferenceFeatures(reference(), samples(torch.tensor([0, 4])), auxiliary(), 2)


@pytest.mark.parametrize("each", [0, 2])
def test_a_bank_is_saved_with_its_model(each: int) -> None:
    network = reference()
    bank, other = (
        ReferenceFeatures(network, samples(), auxiliary(), each),
        ReferenceFeatures(network, samples(), auxiliary(), each),
    )
    for tensor in other.buffers():
        tensor.zero_()
    other.load_state_dict(bank.state_dict())
    assert all(torch.equal(tensor, bank()[0][name]) for name, tensor in other()[0].items())
    assert torch.equal(other()[1], bank()[1])
    assert not list(bank.parameters())
