"""The compiled product of weights and masks is torch's, bit for bit, also where a mask meets NaN and infinity."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from sparsemtl.kernels.compiled import computed_by
from sparsemtl.kernels.masked_product import multiply
from sparsemtl.networks.masked_product import MaskedProducts

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None or shutil.which("ninja") is None, reason="needs a C++ compiler and ninja"
)
COUNT = 2**18 + 5
SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 0.0, -1.0, 1e-310, 1e38)


def weights(dtype: torch.dtype, count: int = COUNT) -> tuple[Tensor, Tensor]:
    """Weights and a mask; every special value is both kept and left out."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(count, generator=generator, dtype=torch.float64)
    weight[: 2 * len(SPECIAL)] = torch.tensor(SPECIAL * 2, dtype=torch.float64)[:count]
    mask = torch.rand(count, generator=generator) < 0.3
    mask[: len(SPECIAL)], mask[len(SPECIAL) : 2 * len(SPECIAL)] = True, False
    return weight.to(dtype), mask


def assert_same_bits(one: Tensor, other: Tensor) -> None:
    assert torch.equal(one.detach().view(torch.uint8), other.detach().view(torch.uint8))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [16, 2**14, COUNT])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_product_is_torch_s_bit_for_bit(dtype: torch.dtype, count: int, threads: int) -> None:
    weight, mask = weights(dtype, count)
    product, before = torch.empty_like(weight), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert multiply(weight, mask, product)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(product, weight * mask)


def test_other_numbers_are_left_to_torch() -> None:
    weight, mask = weights(torch.float32, 16)
    assert not multiply(weight.half(), mask, weight.half())
    negative = torch.complex(weight, weight).conj().imag  # a view with a bit that says so
    assert negative.is_neg()
    assert not multiply(negative, mask, weight)


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_large_products_and_their_gradients_are_torch_s_with_and_without_the_kernel(
    monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    monkeypatch.setenv("SPARSEMTL_KERNELS", kernels)
    value, mask = weights(torch.float32)
    found, expected = nn.Parameter(value), nn.Parameter(value.clone())
    product = MaskedProducts()(found, mask, "task", "weight")
    assert_same_bits(product, expected * mask)
    upstream = value.roll(3)
    product.backward(upstream)
    (expected * mask).backward(upstream)
    assert found.grad is not None
    assert expected.grad is not None
    assert_same_bits(found.grad, expected.grad)
    assert "masked_product" not in computed_by(), "a run does not depend on what computes equal bits"
