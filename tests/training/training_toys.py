"""Small problems, models and trainers for the tests beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.data import TensorLoader

WIDTH = 6


def table(count: int = 40, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    """Inputs, and labels that can be learned from them: a class, a number and a pair of yes or no."""
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x, {"a": x[:, :3].argmax(1), "b": x[:, 0] * 2 - x[:, 1], "c": (x[:, 2:4] > 0).to(dtype)}


def loader(
    count: int = 40, *, seed: int = 1, batch_size: int = 8, shuffle: bool = True, **options: Any
) -> TensorLoader:
    return TensorLoader(*table(count, seed=seed), batch_size=batch_size, shuffle=shuffle, **options)


def own_loaders(sizes: Mapping[str, int], *, batch_size: int = 4, shuffle: bool = True) -> dict[str, TensorLoader]:
    """A loader a task, with bare labels."""
    loaders = {}
    for seed, (task, size) in enumerate(sizes.items()):
        x, targets = table(size, seed=seed)
        loaders[task] = TensorLoader(x, targets[task], batch_size=batch_size, shuffle=shuffle)
    return loaders


def tasks(names: str = "ab", **weights: float) -> list[sm.Task]:
    kinds = {
        "a": lambda weight: sm.Classification("a", 3, weight=weight),
        "b": lambda weight: sm.Regression("b", weight=weight),
        "c": lambda weight: sm.MultiLabel("c", 2, weight=weight),
    }
    return [kinds[name](weights.get(name, 1.0)) for name in names]


def encoder(*, norm: bool = False, dropout: float = 0.0, lazy: bool = False) -> nn.Sequential:
    """An encoder, always the same one; the heads that are made next are too. A lazy one does not tell its width."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(WIDTH, 8)]
    if norm:
        layers.append(nn.BatchNorm1d(8))
    layers.append(nn.ReLU())
    if dropout:
        layers.append(nn.Dropout(dropout))
    network = nn.Sequential(*layers, nn.Linear(8, 5))
    if not lazy:
        network.out_features = 5  # type: ignore[assignment]
    return network


def shared(names: str = "ab", *, norm: bool = False, dropout: float = 0.0, **weights: float) -> sm.SharedBottom:
    return sm.SharedBottom(encoder(norm=norm, dropout=dropout), tasks(names, **weights))


def apart(names: str = "ab", *, norm: bool = False, dropout: float = 0.0) -> sm.SingleTask:
    return sm.SingleTask(encoder(norm=norm, dropout=dropout), tasks(names))


def quiet(model: sm.MultiTaskModel | None = None, **options: Any) -> sm.Trainer:
    """A trainer on the CPU that prints nothing."""
    return sm.Trainer(shared() if model is None else model, progress=False, accelerator="cpu", **options)


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that are not what they were."""
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
