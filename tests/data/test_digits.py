from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsemtl.data import DATASETS, Split
from sparsemtl.data.digits import slant
from sparsemtl.errors import MissingExtraError, ParameterError
from sparsemtl.tasks import Task

pytest.importorskip("sklearn")


def built(**options: Any) -> tuple[tuple[Task, ...], Split, Split, Split]:
    data = DATASETS.build("digits", **options)
    assert isinstance(data.train, Split)
    assert isinstance(data.validation, Split)
    assert isinstance(data.test, Split)
    return data.tasks, data.train, data.validation, data.test


def test_all_1797_images_are_split_60_20_20_without_overlap() -> None:
    from sklearn.datasets import load_digits

    _, train, validation, test = built()
    assert [len(part) for part in (train, validation, test)] == [1078, 360, 359]
    images = torch.cat([part.x for part in (train, validation, test)]).flatten(1) * 16
    classes = torch.cat([part.targets["digit"] for part in (train, validation, test)])
    found = sorted([*row, label] for row, label in zip(images.tolist(), classes.tolist(), strict=True))
    bunch = load_digits()
    assert found == sorted([*row, label] for row, label in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True))


def test_parity_and_shape_follow_from_the_digit() -> None:
    _, train, _, _ = built()
    loop_bar_stem = {0: "100", 1: "001", 2: "000", 3: "000", 4: "011", 5: "010", 6: "100", 7: "010", 8: "100", 9: "101"}
    for digit, parity, shape in zip(*(train.targets[t].tolist() for t in ("digit", "parity", "shape")), strict=True):
        assert parity == digit % 2
        assert "".join(str(int(attribute)) for attribute in shape) == loop_bar_stem[digit]


def test_slant_is_the_weighted_regression_of_columns_on_rows() -> None:
    _, train, validation, _ = built()
    for part in (train, validation):
        expected = []
        for image in part.x[:50, 0].numpy():
            rows, columns = np.nonzero(image)
            slope, _ = np.polyfit(rows, columns, 1, w=np.sqrt(image[rows, columns]))
            expected.append(-slope)
        raw = slant(part.x[:, 0])[:50]
        torch.testing.assert_close(raw, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-4)
        labels = part.targets["slant"][:50]
        whole = slant(train.x[:, 0])
        torch.testing.assert_close(labels, (raw - whole.mean()) / whole.std(correction=0), rtol=1e-4, atol=1e-4)


def test_upright_strokes_have_no_slant_and_a_rising_diagonal_leans_right() -> None:
    images = torch.stack([torch.zeros(5, 5), torch.eye(5).flip(1), torch.eye(5)])
    images[0, :, 2] = 0.7
    torch.testing.assert_close(slant(images), torch.tensor([0.0, 1.0, -1.0]))


def test_slant_is_standardised_on_the_training_part() -> None:
    _, train, _, test = built()
    assert train.targets["slant"].mean().item() == pytest.approx(0, abs=1e-5)
    assert train.targets["slant"].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert test.targets["slant"].mean().item() != pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("missing", [0.25, 0.9])
def test_a_share_of_the_training_labels_of_every_task_is_hidden(missing: float) -> None:
    tasks, train, validation, test = built(missing=missing)
    _, whole, whole_validation, whole_test = built()
    known = {task.name: task.labelled(task.cast(train.targets[task.name])) for task in tasks}
    for task in tasks:
        assert (~known[task.name]).sum() == round(missing * 1078)
        assert torch.equal(train.targets[task.name][known[task.name]], whole.targets[task.name][known[task.name]])
        assert torch.equal(validation.targets[task.name], whole_validation.targets[task.name])
        assert torch.equal(test.targets[task.name], whole_test.targets[task.name])
    assert torch.equal(train.x, whole.x)
    assert len({tuple(rows.tolist()) for rows in known.values()}) == len(tasks)


def test_hidden_labels_are_noted() -> None:
    assert any("0.25 of the training labels" in note for note in DATASETS.build("digits", missing=0.25).notes)
    assert not any("hidden" in note for note in DATASETS.build("digits").notes)


@pytest.mark.parametrize("missing", [1.0, -0.5])
def test_not_all_labels_can_be_hidden(missing: float) -> None:
    with pytest.raises(ParameterError, match=r"'missing' parameter of digits must be a float in \[0, 1\)"):
        built(missing=missing)


def test_a_scikit_learn_with_the_file_elsewhere_reads_it_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected, _, _ = built()
    monkeypatch.setattr(Path, "exists", lambda path: False)
    _, found, _, _ = built()
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.targets["digit"], expected.targets["digit"])


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"'digits' needs 'scikit-learn': pip install 'sparsemtl\[data\]'"):
        built()


def test_a_data_set_that_is_changed_in_place_changes_no_other() -> None:
    _, train, _, _ = built()
    images, digits = train.x.clone(), train.targets["digit"].clone()
    train.x.zero_()
    train.targets["digit"].zero_()
    _, again, _, _ = built()
    assert torch.equal(again.x, images)
    assert torch.equal(again.targets["digit"], digits)
