"""Lengths and angles of vectors along the second axis."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsemtl.tasks.vectors import cosine, squared_length, unit


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5, 7), (1, 8, 2)])
def test_they_are_what_torch_computes(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(2, *shape, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(cosine(a, b), F.cosine_similarity(a, b, dim=1))
    torch.testing.assert_close(unit(a), F.normalize(a, dim=1))
    torch.testing.assert_close(squared_length(a), a.norm(dim=1) ** 2)


def test_the_gradient_of_the_cosine_is_torch_s() -> None:
    a, b = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64, requires_grad=True).unbind(0)
    found = torch.autograd.grad(cosine(a, b).sum(), (a, b), retain_graph=True)
    expected = torch.autograd.grad(F.cosine_similarity(a, b, dim=1).sum(), (a, b))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zeros_and_small_numbers_give_no_nan(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [1e-5, 2e-5], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    cosines = cosine(x, torch.ones_like(x))
    cosines.sum().backward()
    assert cosines[0] == 0
    assert torch.equal(unit(x)[0], torch.zeros(2, dtype=dtype))
    assert unit(x).dtype == dtype
    assert x.grad is not None
    assert not x.grad.isnan().any()
    assert x.grad[1:].isfinite().all()  # the slope at zero is above half precision's numbers
    torch.testing.assert_close(unit(x)[1:].float().norm(dim=1), torch.ones(2), atol=1e-2, rtol=0)
