"""AdamW and SGD with a proximal step: torch's optimizers in every other respect.

The proximal step is a hook behind the optimizer's own step. So everything that goes with torch's optimizers goes with
these: closures, schedulers, gradient scalers (a skipped step shrinks nothing), accumulation, parameter groups, foreach
and fused kernels, distributed training (every process shrinks the same weights in the same way).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch.optim import Optimizer

from sparsemtl.errors import ParameterError
from sparsemtl.optim.penalties import Penalty
from sparsemtl.optim.proximal_step import ProximalStep, ProxLR


class _Proximal(Optimizer):
    """What the proximal optimizers add to torch's.

    The options of the proximal step are options of the parameter groups, like the learning rate.
    """

    _shrinks: dict[int, ProximalStep]

    def _add_proximal(self, **options: Any) -> None:
        """Give the options to groups that do not have their own, and start to listen.

        Raises:
            ParameterError: if an option is wrong, or no parameter is covered by a penalty.
        """
        self.defaults.update(options)
        for group in self.param_groups:
            for key, value in options.items():
                group.setdefault(key, value)
        self._listen()
        self._check_groups()

    def _listen(self) -> None:
        """Shrink after every step; once, however often it is called."""
        if "_shrinks" not in self.__dict__:
            self._shrinks = {}
            self.register_step_post_hook(_shrink_groups)

    def _check_groups(self) -> None:
        used = [group for group in self.param_groups if group["penalty"] is not None]
        for group in used:
            ProximalStep(group["penalty"], adaptive=group["adaptive"], prox_lr=group["prox_lr"])  # checks them
        if used and not any(group["penalty"].covers(p) for group in used for p in group["params"]):
            raise ParameterError(
                "no parameter is covered by a penalty: it acts on weights of four axes (convolutions), and on those of "
                "two with linear=True."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._listen()

    def state_dict(self) -> dict[str, Any]:
        """Torch's state; penalties are told by their kind and plain values."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["penalty"] = _told(group["penalty"])
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, or take over from the torch optimizer of the same kind.

        Raises:
            ParameterError: if a group's penalty is of another kind than the saved one.
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
        params: parameters, named parameters or parameter groups. A group may have its own `penalty` (None: none),
            `adaptive` and `prox_lr`. The penalty belongs to `sm.maskable_parameters(model).values()`: gains and maps of
            positions may have as many axes as a weight.
        lr, betas, eps, weight_decay, amsgrad: as in `torch.optim.AdamW`; eps is the reference code's by default.
        penalty: what makes weights sparse; None is AdamW. To change it later, put another into the groups.
        adaptive: take the proximal step in Adam's metric, not the plain one. With the plain one, the usual strengths
            (1e-7 to 1e-2) hardly ever make a group zero.
        prox_lr: the size of an adaptive step; see `ProxLR`.
        options: the other options of `torch.optim.AdamW`.

    Differences from the paper's code: torch decays the weights before Adam's step, not after; the proximal step is last
    in both.

    Example:
        >>> layer = nn.Conv2d(8, 4, 3)
        >>> penalty = sm.optim.GroupLasso(strength=1e-3)
        >>> optimizer = sm.optim.ProximalAdamW(layer.parameters(), lr=1e-2, penalty=penalty)
        >>> images = torch.rand(2, 8, 5, 5)
        >>> images[:, :2] = 0  # two channels that say nothing
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
        amsgrad: bool = False,
        *,
        penalty: Penalty | None,
        adaptive: bool = True,
        prox_lr: ProxLR = "lr",
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
        self._add_proximal(penalty=penalty, adaptive=adaptive, prox_lr=prox_lr)


class ProximalSGD(_Proximal, torch.optim.SGD):
    """SGD, then the proximal map of a penalty on the convolutions.

    Args:
        params: as in `ProximalAdamW`.
        lr, momentum, dampening, weight_decay, nesterov: as in `torch.optim.SGD`.
        penalty: what makes weights sparse; None is SGD. To change it later, put another into the groups.
        options: the other options of `torch.optim.SGD`.
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
    """After a step, shrink every group by its penalty; but not if a fused kernel skipped it for a gradient scaler."""
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
        names = group.get("param_names")
        shrink(optimizer, group["params"] if names is None else zip(names, group["params"], strict=True))


def _told(penalty: Penalty | None) -> dict[str, Any] | None:
    """A penalty as plain values; a function is left out."""
    if penalty is None:
        return None
    values = {field.name: getattr(penalty, field.name) for field in fields(penalty)}
    return {"kind": type(penalty).__name__, **{k: v for k, v in values.items() if not callable(v)}}


def _restored(told: Mapping[str, Any] | None, own: Penalty | None, index: int) -> Penalty | None:
    """The optimizer's own penalty with the saved values."""
    kind, own_kind = told and told["kind"], own and type(own).__name__
    if kind != own_kind:
        raise ParameterError(
            f"parameter group {index}: the state was saved with penalty {kind}, this optimizer has {own_kind}. Make it "
            "with the same penalties."
        )
    if told is None or own is None:
        return None
    return replace(own, **{key: value for key, value in told.items() if key != "kind"})
