"""The compiled restoring of entries against torch's, bit for bit; skipped where nothing can be compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsemtl.kernels import compiled, restore
from sparsemtl.optim import FreezeOutsideMask

DTYPES = [torch.float16, torch.float32, torch.float64, torch.float8_e5m2]
needs_kernel = pytest.mark.skipif(compiled.library("restore", exact=True) is None, reason="no compiler")


def bits(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Any bits, NaN of every kind among them."""
    size = torch.empty((), dtype=dtype).element_size()
    return torch.randint(-128, 128, (count * size,), dtype=torch.int8).view(dtype)


@needs_kernel
@pytest.mark.parametrize("count", [0, 1, 77, 10_001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_outside_of_the_mask_are_as_before(
    dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_WORTHWHILE", 0)
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[bits(1, dtype).element_size()]
    weight = nn.Parameter(bits(count, dtype), requires_grad=dtype.itemsize > 1)
    mask, before, after = torch.rand(count) < 0.5, weight.detach().clone(), bits(count, dtype)
    expected = torch.where(mask, after.view(integers), before.view(integers))
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            weight.data.copy_(before)
            with FreezeOutsideMask({"w": weight}, {"w": mask}):
                weight.data.copy_(after)
            assert torch.equal(weight.detach().view(integers), expected)
    finally:
        torch.set_num_threads(threads)


@needs_kernel
def test_other_tensors_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_WORTHWHILE", 6)
    now, before, active = torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    assert restore.takes(now, before, active)
    assert not restore.takes(now[:1], before[:1], active[:1])  # small
    assert not restore.takes(now, before, active[:, :1])
    assert not restore.takes(now, before.double(), active)
    assert not restore.takes(now.T, before.T, active.T)
    assert not restore.takes(*(tensor.to("meta") for tensor in (now, before, active)))
    monkeypatch.setenv("SPARSEMTL_KERNELS", "0")
    assert not restore.takes(now, before, active)


def test_a_run_does_not_depend_on_what_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed runs are not warned of a kernel that changes no bit."""
    monkeypatch.setattr(compiled, "_asked", set())
    weight, mask = nn.Parameter(torch.randn(512, 600)), torch.rand(512, 600) < 0.5
    found = []
    for kernels in ("1", "0"):
        monkeypatch.setenv("SPARSEMTL_KERNELS", kernels)
        own = nn.Parameter(weight.detach().clone())
        with FreezeOutsideMask({"w": own}, {"w": mask}), torch.no_grad():
            own += 1
        found.append(own.detach())
    assert torch.equal(*found)
    assert torch.equal(found[0], torch.where(mask, weight + 1, weight))
    assert compiled.computed_by() == {}
