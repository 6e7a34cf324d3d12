"""States of models and checkpoints, as tests compare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as they stand now."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Bit for bit the same nest."""
    assert type(left) is type(right), where
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right), where
    elif isinstance(left, Mapping):
        assert list(left) == list(right), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for position, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}/{position}")
    else:
        assert left == right or (left != left and right != right), where
