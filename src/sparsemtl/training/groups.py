"""The optimizer of everything that a run trains, in groups of their own learning rates and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsemtl.models import MultiTaskModel


def make_optimizer(
    make: Callable[[Any], Optimizer], model: MultiTaskModel, extra: Sequence[nn.Parameter] = ()
) -> Optimizer:
    """Return the optimizer of the model's parameters, some at other rates (`lr_factors`), and of other ones.

    Args:
        make: makes an optimizer from parameter groups.
        model: the model.
        extra: parameters of the sharing method and the balancer; they have no weight decay.
    """
    factors = model.lr_factors
    named = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [{"params": [p for name, p in named.items() if name not in factors]}]
    for factor in dict.fromkeys(factors.values()):
        chosen = [named[name] for name, value in factors.items() if value == factor]
        groups.append({"params": chosen, "lr_factor": factor})
    if extra:
        groups.append({"params": list(extra), "weight_decay": 0.0})
    optimizer = make(groups)
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_factor", 1.0)
    return optimizer
