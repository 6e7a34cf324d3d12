"""AdamW and SGD with a proximal step: torch's optimizers in every other respect.

The proximal step is a hook behind the optimizer's own step. Therefore everything that works with torch's optimizers
works with these: closures, schedulers, gradient scalers (a skipped step shrinks nothing), accumulation, parameter
groups, foreach and fused kernels, distributed training (every process shrinks the same weights in the same way).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch.optim import Optimizer

from sparsemtl.errors import ParameterError
from sparsemtl.optim.groups import Parameters
from sparsemtl.optim.metric_step import ProxLR
from sparsemtl.optim.penalties import Penalty
from sparsemtl.optim.proximal_step import ProximalStep


class _Proximal(Optimizer):
    """Base of the proximal optimizers: the proximal step, whose options are options of the parameter groups."""

    _shrinks: dict[int, ProximalStep]

    def _add_proximal(self, **options: Any) -> None:
        """Set the options of groups that do not have their own, and register the hook.

        Raises:
            ParameterError: if an option is wrong, or no parameter is covered by a penalty.
        """
        self.defaults.update(options)
        for group in self.param_groups:
            for key, value in options.items():
                group.setdefault(key, value)
        self._register_hook()
        self._check_groups()

    def _register_hook(self) -> None:
        """Shrink after every step; further calls do nothing."""
        if "_shrinks" not in self.__dict__:
            self._shrinks = {}
            self.register_step_post_hook(_shrink_groups)

    def _check_groups(self) -> None:
        used = [group for group in self.param_groups if group["penalty"] is not None]
        for group in used:
            ProximalStep(group["penalty"], adaptive=group["adaptive"], prox_lr=group["prox_lr"])  # checks them
        if used and not any(True for group in used for _ in group["penalty"].grouping.layers(_named(group))):
            raise ParameterError(
                "no parameter is covered by a penalty: it acts on weights of four axes (convolutions), on those of two "
                "with linear=True, and on heads and neurons in the group that holds the weight that reads them."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register_hook()

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state, with penalties as their class and plain values."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["penalty"] = _plain_values(group["penalty"])
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of `state_dict`, or of the torch optimizer of the same class.

        Raises:
            ParameterError: if a group's penalty is of another class than the saved one.
        """
        saved = [dict(group) for group in state_dict["param_groups"]]
        for index, (group, own) in enumerate(zip(saved, self.param_groups, strict=False)):
            for key in ("adaptive", "prox_lr"):
                group.setdefault(key, own[key])
            group["penalty"] = (
                _restored(group["penalty"], own["penalty"], index) if "penalty" in group else own["penalty"]
            )
        super().load_state_dict({**state_dict, "param_groups": saved})


class ProximalAdamW(_Proximal, torch.optim.AdamW):
    """AdamW, then the proximal map of a penalty on the convolutions (Deleu & Bengio 2021).

    Args:
        params: parameters, named parameters or parameter groups. A group may have its own `penalty` (or None),
            `adaptive` and `prox_lr`. Make them by `penalty_groups`: gains and maps of positions may have as many axes
            as a weight. A penalty on heads or neurons needs named parameters, and acts on the parts of a unit that are
            in the group; `ProximalStep` acts across groups.
        lr: learning rate.
        betas: as in `torch.optim.AdamW`.
        eps: as in `torch.optim.AdamW`; by default that of the reference code.
        weight_decay: as in `torch.optim.AdamW`.
        penalty: penalty on the weights; None is AdamW. To change it later, set another one in the groups.
        adaptive: take the proximal step in Adam's metric, not the plain one. With the plain one, the usual strengths
            (1e-7 to 1e-2) hardly ever make a group zero.
        prox_lr: size of an adaptive step; see `ProxLR`.
        options: other options of `torch.optim.AdamW`, such as `amsgrad`.

    Differences from the paper's code: torch decays the weights before Adam's step, not after; the proximal step is last
    in both.

    Examples:
        >>> layer = nn.Conv2d(8, 4, 3)
        >>> penalty = sm.optim.GroupLasso(strength=1e-3)
        >>> optimizer = sm.optim.ProximalAdamW(layer.parameters(), lr=1e-2, penalty=penalty)
        >>> images = torch.rand(2, 8, 5, 5)
        >>> images[:, :2] = 0  # two channels without information
        >>> layer(images).square().sum().backward()
        >>> optimizer.step()
        >>> sm.optim.group_sparsity(layer.named_parameters(), "input-channel")
        0.25
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        penalty: Penalty | None,
        adaptive: bool = True,
        prox_lr: ProxLR = "lr",
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)
        self._add_proximal(penalty=penalty, adaptive=adaptive, prox_lr=prox_lr)


class ProximalSGD(_Proximal, torch.optim.SGD):
    """SGD, then the proximal map of a penalty on the convolutions.

    Args:
        params: as in `ProximalAdamW`.
        lr: learning rate.
        momentum: as in `torch.optim.SGD`.
        dampening: as in `torch.optim.SGD`.
        weight_decay: as in `torch.optim.SGD`.
        nesterov: as in `torch.optim.SGD`.
        penalty: penalty on the weights; None is SGD. To change it later, set another one in the groups.
        options: other options of `torch.optim.SGD`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        penalty: Penalty | None,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, **options)
        self._add_proximal(penalty=penalty, adaptive=False, prox_lr="lr")


def _shrink_groups(optimizer: _Proximal, args: Any, kwargs: Any) -> None:
    """Shrink every group by its penalty after a step, unless a fused kernel skipped the step for a gradient scaler."""
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and bool(found_inf):
        return
    for index, group in enumerate(optimizer.param_groups):
        if group["penalty"] is None:
            continue
        if index not in optimizer._shrinks:
            optimizer._shrinks[index] = ProximalStep(group["penalty"])
        shrink = optimizer._shrinks[index]
        shrink.penalty, shrink.adaptive, shrink.prox_lr = group["penalty"], group["adaptive"], group["prox_lr"]
        shrink(optimizer, _named(group))


def _named(group: dict[str, Any]) -> Parameters:
    """Return the parameters of a group, with their names if the optimizer was given them."""
    names = group.get("param_names")
    return group["params"] if names is None else zip(names, group["params"], strict=True)


def _plain_values(penalty: Penalty | None) -> dict[str, Any] | None:
    """Return a penalty as plain values, without functions and units."""
    if penalty is None:
        return None
    values = {field.name: getattr(penalty, field.name) for field in fields(penalty)}
    plain = {key: value for key, value in values.items() if not callable(value) and not isinstance(value, Mapping)}
    return {"kind": type(penalty).__name__, **plain}


def _restored(saved: Mapping[str, Any] | None, own: Penalty | None, index: int) -> Penalty | None:
    """Return the optimizer's own penalty with the saved values."""
    kind, own_kind = saved and saved["kind"], own and type(own).__name__
    if kind != own_kind:
        raise ParameterError(
            f"parameter group {index}: the state was saved with penalty {kind}, this optimizer has {own_kind}. Make it "
            "with the same penalties."
        )
    if saved is None or own is None:
        return None
    return replace(own, **{key: value for key, value in saved.items() if key != "kind"})
