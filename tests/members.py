"""Members of registries, with the parameters that they require."""

from __future__ import annotations

from typing import Any

import torch

from sparsemtl.balancing import BALANCERS, Balancer
from sparsemtl.errors import MissingExtraError


def required_parameters(name: str, count: int) -> dict[str, Any]:
    """The parameters that a member requires."""
    required: dict[str, dict[str, Any]] = {
        "constant": {"weights": [1.0] * count},
        "constant-gradients": {"weights": [1.0] * count},
        "fairgrad": {"alpha": 1.0},
        "krum": {"n_byzantine": 0},
        "trimmed-mean": {"trim_number": 0},
    }
    return required.get(name, {})


def made_balancer(name: str, count: int) -> Balancer:
    """A member, with its required parameters."""
    return BALANCERS.build(name, **required_parameters(name, count))


def is_installed(name: str) -> bool:
    """True unless a solver is missing."""
    try:
        made_balancer(name, 3).attach(3, torch.device("cpu"))
    except MissingExtraError:
        return False
    return True
