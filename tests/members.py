"""Members of registries, with the parameters that they require."""

from __future__ import annotations

from typing import Any

import torch

from sparsemtl.balancing import BALANCERS, Balancer
from sparsemtl.errors import MissingExtraError


def made_balancer(name: str, count: int) -> Balancer:
    """A member, with its required parameters."""
    required: dict[str, dict[str, Any]] = {
        "constant": {"weights": [1.0] * count},
        "constant-gradients": {"weights": [1.0] * count},
        "fairgrad": {"alpha": 1.0},
        "krum": {"n_byzantine": 0},
        "trimmed-mean": {"trim_number": 0},
    }
    return BALANCERS.build(name, **required.get(name, {}))


def is_installed(name: str) -> bool:
    """True unless a solver is missing."""
    try:
        made_balancer(name, 3).attach(3, torch.device("cpu"))
    except MissingExtraError:
        return False
    return True
