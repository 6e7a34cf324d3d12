"""Parameter groups of a run's optimizer, each with its learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.training.arguments import check_made


def make_optimizer(
    make: Callable[[Any], Optimizer],
    model: MultiTaskModel,
    extra: Iterable[tuple[Iterable[nn.Parameter], float | None]] = (),
) -> Optimizer:
    """Return the optimizer of the model's parameters, at rates by `lr_factors`, and of further parameters.

    Args:
        make: makes an optimizer from parameter groups.
        model: the model.
        extra: (parameters, their learning rate or None for the optimizer's) of the sharing method and the balancer;
            they have no weight decay.

    Raises:
        ParameterError: if `make` returns no optimizer.
    """
    factors = model.lr_factors
    named = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [{"params": [p for name, p in named.items() if name not in factors]}]
    for factor in dict.fromkeys(factors.values()):
        chosen = [named[name] for name, value in factors.items() if value == factor]
        groups.append({"params": chosen, "lr_factor": factor})
    for parameters, lr in extra:
        if found := list(parameters):
            groups.append({"params": found, "weight_decay": 0.0} | ({} if lr is None else {"lr": lr}))
    optimizer = make(groups)
    check_made("optimizer", optimizer, Optimizer)
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_factor", 1.0)
    return optimizer
