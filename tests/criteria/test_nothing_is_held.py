"""What a criterion computed of a batch is freed with it: a run of any number of renewals holds memory flat."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import sparsemtl as sm
from sparsemtl.criteria import Criterion, Fisher, Gradient
from sparsemtl.criteria.channels import channel_units

USES: dict[str, Callable[[sm.SharedBottom, Any], object]] = {
    "masks": lambda model, loader: sm.fisher_masks(model, loader, keep=0.5),
    "masks of channels": lambda model, loader: sm.fisher_masks(model, loader, keep=0.5, granularity="channel"),
    "norms behind layers": lambda model, loader: channel_units(model, loader[0][0]),
}
CRITERIA: dict[str, Callable[[], Criterion]] = {
    "gradient": Gradient,
    "loop": lambda: Fisher(path="loop"),
    "functional": lambda: Fisher(path="functional"),
    "batch": lambda: Fisher(estimator="batch"),
    "exact": lambda: Fisher(estimator="efs"),
}
for name, make in CRITERIA.items():
    USES[name] = lambda model, loader, make=make: make().scores(model, loader, list(model.tasks.values()))  # type: ignore[misc]


class Watched(nn.Module):
    """Passes a tensor on, and notes its storage without holding it."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: list[StorageWeakRef] = []

    def forward(self, x: Tensor) -> Tensor:
        if not torch._C._functorch.is_functorch_wrapped_tensor(x):
            self.storages.append(StorageWeakRef(x.untyped_storage()))
        return x


def network() -> tuple[sm.SharedBottom, Watched, list[Any]]:
    torch.manual_seed(0)
    watched = Watched()
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3), watched, nn.ReLU(), nn.Conv2d(4, 4, 3), watched, nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)
    )
    model = sm.SharedBottom(encoder, [sm.Classification("t", 3)], {"t": nn.Linear(5, 3)})
    return model, watched, [(torch.randn(4, 1, 6, 6), {"t": torch.tensor([0, 2, 1, 1])})]


@pytest.mark.usefixtures("collected")
@each("use", USES)
def test_no_activation_outlives_its_use(use: str) -> None:
    model, watched, loader = network()
    USES[use](model, loader)
    gc.collect()
    kept = sum(not storage.expired() for storage in watched.storages)
    assert kept == 0, f"{kept} of {len(watched.storages)} activations are held"


@pytest.mark.usefixtures("collected")
def test_ten_renewals_hold_no_more_tensors_than_one() -> None:
    model, _, loader = network()
    counts = []
    for renewals in (2, 8):  # the first fill caches
        for _ in range(renewals):
            sm.fisher_masks(model, loader, keep=0.5)
        gc.collect()
        counts.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    assert counts[1] <= counts[0]
