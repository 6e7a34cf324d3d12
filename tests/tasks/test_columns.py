"""Batches that hold inputs and labels side by side."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sparsemtl import Classification, SharedBottom, Trainer
from sparsemtl.architectures import EncoderAdapter
from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.tasks import ColumnLoader
from sparsemtl.tasks.batches import loader_generators


class Rows(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"a": torch.full((2,), float(i)), "b": torch.ones(3), "label_1": torch.tensor(i % 2)}


def test_columns_become_inputs_and_targets() -> None:
    loader = ColumnLoader(DataLoader(Rows(), batch_size=4), inputs=["a", "b"], targets={"intent": "label_1"})
    x, targets = next(iter(loader))
    assert {name: tuple(t.shape) for name, t in x.items()} == {"a": (4, 2), "b": (4, 3)}
    assert targets["intent"].tolist() == [0, 1, 0, 1]
    assert len(loader) == 2
    x, targets = next(iter(ColumnLoader(loader.loader, inputs="a", targets="label_1")))
    assert tuple(x.shape) == (4, 2)
    assert list(targets) == ["label_1"]


def test_the_loaders_random_state_is_found_behind_the_columns() -> None:
    generator = torch.Generator()
    inner = DataLoader(Rows(), batch_size=4, shuffle=True, generator=generator)
    loader = ColumnLoader(inner, inputs="a", targets={"intent": "label_1"})
    assert loader_generators(loader)[0] is generator
    assert pickle.loads(pickle.dumps(ColumnLoader([1], inputs="a", targets=[]))).inputs == "a"


def test_a_run_trains_on_columns() -> None:
    loader = ColumnLoader(DataLoader(Rows(), batch_size=4), inputs=["a"], targets={"intent": "label_1"})

    class Net(torch.nn.Linear):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return super().forward(a)

    model = SharedBottom(EncoderAdapter(Net(2, 3), out_features=3), [Classification("intent", 2)])
    trainer = Trainer(model, epochs=1, progress=False).fit(loader, list(loader))
    assert set(trainer.predict({"a": torch.ones(2, 2)})) == {"intent"}


def test_missing_and_doubled_columns_are_named() -> None:
    with pytest.raises(LabelError, match="label_2"):
        next(iter(ColumnLoader(DataLoader(Rows()), inputs="a", targets={"intent": "label_2"})))
    with pytest.raises(LabelError, match="mappings column -> tensor, got list"):
        next(iter(ColumnLoader([[1, 2]], inputs="a", targets={"intent": "b"})))
    with pytest.raises(ParameterError, match="as an input and as a target"):
        ColumnLoader([], inputs=["a", "b"], targets={"intent": "b"})
    with pytest.raises(ParameterError, match="names no column"):
        ColumnLoader([], inputs=[], targets={"intent": "b"})
