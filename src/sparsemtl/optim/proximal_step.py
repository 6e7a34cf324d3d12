"""The proximal step after a step of any torch optimizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsemtl.errors import MaskWarning, ParameterError
from sparsemtl.optim.groups import Grouping, Parameters, Part, dense, laid_out_as, named, places
from sparsemtl.optim.penalties import Penalty
from sparsemtl.optim.proximal import CACHED, Reused, Scratch
from sparsemtl.registry.parameters import validated

ProxLR = Literal["lr", "step"]
"""The size of an adaptive proximal step, in the metric d = sqrt(v) + eps of Adam's second moment v: `lr` is the
learning rate, as in the reference code; `step` is lr * sqrt(1 - beta2^t) / (1 - beta1^t), the size of Adam's own step
in that metric. `lr` is up to 6.5 times as large early in training, and the same late."""

SECOND_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq")
"""Where Adam and its kin keep v; the first with `amsgrad`."""

_PRECISE = (torch.float32, torch.float64)
"""What maps compute in; other dtypes are converted to the first."""
_NOTHING = torch.finfo(torch.float32).tiny
"""What is not above it may be zero in single precision, and moves nothing."""
_LOOK_EVERY = 100
"""Looking for dead layers makes an accelerator wait, so there it happens once in so many steps."""


class ProximalStep:
    """Shrinks weights by the proximal map of a penalty; call it after every step of an optimizer.

    The metric of the map is that of the step: after Adam or one of its kin (whatever keeps `exp_avg_sq`) it is
    sqrt(v) + eps, after any other optimizer the identity. Learning rate, eps and betas are read from the optimizer.

    Args:
        penalty: what makes the weights sparse, and how strongly; may be replaced at any time.
        adaptive: take the step in the optimizer's metric; otherwise, and where it has none, the plain step, of the
            size of the learning rate.
        prox_lr: the size of an adaptive step, see `ProxLR`.

    Raises:
        ParameterError: if the penalty is none, or an option is unknown.

    Example:
        >>> layer = nn.Conv2d(8, 4, 3)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> shrink = sm.optim.ProximalStep(sm.optim.GroupLasso(strength=0.02))
        >>> layer(torch.rand(2, 8, 5, 5)).square().sum().backward()
        >>> optimizer.step()
        >>> shrink(optimizer, layer.named_parameters())
    """

    @validated
    def __init__(self, penalty: Penalty, *, adaptive: bool = True, prox_lr: ProxLR = "lr") -> None:
        if not isinstance(penalty, Penalty):
            raise ParameterError(f"`penalty` must be a Penalty, as GroupLasso is, got {penalty!r}.")
        self.penalty = penalty
        self.adaptive = adaptive
        self.prox_lr = prox_lr
        self._grouping: Grouping | None = None
        self._splits: dict[Tensor, tuple[Part, ...]] = {}
        self._calls = 0
        self._told: set[str] = set()
        #: What to do where nothing of a weight is left, for who sets the strength; None: lower it.
        self.remedy: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the parts, which belong to parameters: a copy finds those of its own."""
        return {**self.__dict__, "_grouping": None, "_splits": {}}

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, parameters: Parameters, factor: float = 1.0) -> None:
        """Shrink those of the parameters that the penalty covers and that have a gradient, so took part in the step.

        Args:
            optimizer: whose step was just taken.
            parameters: some of its parameters; with their names, a warning can name them.
            factor: what the step weighs the penalty with, beside its strength: the factor that the gradient step put on
                the objective.

        Raises:
            ParameterError: if the optimizer does not hold one of them.

        Warns:
            MaskWarning: once for every weight that has no group left; see `_LOOK_EVERY`.
        """
        survivors: dict[str, Tensor] = {}
        scratch = Reused()
        for name, parameter, step in self._taken(optimizer, parameters):
            step = step._replace(size=step.size * factor)
            if step.size * self.penalty.strength > _NOTHING:
                survivors[name] = self._shrink(parameter, step, scratch)
        self._look(survivors)

    @torch.no_grad()
    def critical(self, optimizer: Optimizer, parameters: Parameters) -> Tensor:
        """The strength from which on each group becomes zero, if the proximal step were taken now.

        Args:
            optimizer: whose step was just taken.
            parameters: as for the step itself.

        Returns:
            (G,), at least 0, for the G groups of all the weights that took part; infinite for those that `keep_min`
            keeps.

        Raises:
            ParameterError: if no weight that the penalty covers took part.
        """
        unit, scratch = replace(self.penalty, strength=1.0), Reused()
        found = []
        for _, parameter, step in self._taken(optimizer, parameters):
            read = self._read(parameter, dense(parameter.detach()), step)
            own = torch.cat([_asked(unit.critical, x, s, unit, scratch).flatten() for x, s in _cut(read)]).double()
            found.append(own.index_fill_(0, self._best(own), math.inf))
        if not found:
            raise ParameterError("no weight that the penalty covers has a gradient; call this after an optimizer step.")
        return torch.cat(found)

    def _taken(self, optimizer: Optimizer, parameters: Parameters) -> Iterator[tuple[str, Tensor, _Step]]:
        """The covered weights that took part in the optimizer's step, and theirs."""
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in named(parameters):
            if parameter.grad is None or not self.penalty.covers(parameter):
                continue
            if parameter not in groups:
                raise ParameterError(f"{name} is not among the parameters of {type(optimizer).__name__}.")
            yield name, parameter, self._step(groups[parameter], optimizer.state.get(parameter, {}))

    def _step(self, group: dict[str, Any], state: dict[str, Any]) -> _Step:
        """The step that a parameter of this group and in this state takes."""
        lr = float(group["lr"])
        moment = next((state[key] for key in SECOND_MOMENTS if key in state), None)
        if moment is None or not self.adaptive:
            return _Step(lr, None, 0.0)
        if self.prox_lr == "step":
            t, (beta1, beta2) = float(state["step"]), map(float, group["betas"])
            lr *= math.sqrt(1 - beta2**t) / (1 - beta1**t)
        return _Step(lr, moment, float(group["eps"]))

    def _shrink(self, parameter: Tensor, step: _Step, scratch: Scratch) -> Tensor:
        """Shrink a parameter; gives a tensor that says whether any of its groups survives."""
        weight = dense(parameter.detach())
        read = self._read(parameter, weight, step)
        cut = _cut(read)
        kept = self._kept(cut, scratch) if self.penalty.keep_min else [None] * len(cut)
        alive = [self._shrink_piece(x, own, keep, scratch).any() for (x, own), keep in zip(cut, kept, strict=True)]
        for part, (x, _) in zip(self._parts(parameter), read, strict=True):
            part.write(weight, x)
        if not parameter.is_set_to(weight):
            parameter.copy_(weight)
        return torch.stack(alive).any()

    def _read(self, parameter: Tensor, weight: Tensor, step: _Step) -> list[tuple[Tensor, _Step]]:
        """The groups of a parameter's weight, part by part, with the step in theirs."""
        parts = self._parts(parameter)
        if step.moment is None:
            return [(part.read(weight), step) for part in parts]
        moment = laid_out_as(step.moment, weight)
        return [(part.read(weight), step._replace(moment=part.read(moment))) for part in parts]

    def _parts(self, parameter: Tensor) -> tuple[Part, ...]:
        """The parameter's parts, found once."""
        if self._grouping != self.penalty.grouping:
            self._grouping, self._splits = self.penalty.grouping, {}
        if parameter not in self._splits:
            self._splits[parameter] = self._grouping.split(parameter)
        return self._splits[parameter]

    def _shrink_piece(self, x: Tensor, step: _Step, keep: Tensor | None, scratch: Scratch) -> Tensor:
        """Shrink some groups, but not those to be kept that would die; gives which survive."""
        work = x if x.dtype in _PRECISE else x.float()
        before = None if keep is None else work.clone()
        alive = self.penalty.shrink_(work, step.shift(work, self.penalty, scratch), scratch)
        if keep is not None and before is not None:
            work.copy_(torch.where(keep & ~alive, before, work))
            alive |= keep
        if work is not x:
            x.copy_(work)
        return alive

    def _kept(self, cut: list[tuple[Tensor, _Step]], scratch: Scratch) -> list[Tensor]:
        """For every piece of a weight, the groups that are among the `keep_min` nearest to surviving, and not zero."""
        pulls = [_asked(self.penalty.pull, x, step, self.penalty, scratch) for x, step in cut]
        flat = torch.cat([pull.flatten() for pull in pulls])
        kept = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, self._best(flat), True) & (flat > 0)
        parts = kept.split([pull.numel() for pull in pulls])
        return [part.view_as(pull) for part, pull in zip(parts, pulls, strict=True)]

    def _best(self, pulls: Tensor) -> Tensor:
        """Which `keep_min` groups of a weight are nearest to surviving."""
        return pulls.topk(min(self.penalty.keep_min, len(pulls))).indices

    def _look(self, survivors: dict[str, Tensor]) -> None:
        """Warn of weights that nothing survives in."""
        self._calls += 1
        for name, some in survivors.items():
            if some.device.type != "cpu" and self._calls % _LOOK_EVERY:
                continue
            if name not in self._told and not bool(some):
                self._told.add(name)
                warnings.warn(
                    f"{name!r}: every group (granularity {self.penalty.grouping.name}) is zero, which cuts the "
                    f"network here. {self.remedy or self._lower()}, or keep some with keep_min=1.",
                    MaskWarning,
                    stacklevel=4,
                )

    def _lower(self) -> str:
        return f"Lower the strength {self.penalty.strength:g} of {type(self.penalty).__name__}"


def _cut(read: list[tuple[Tensor, _Step]]) -> list[tuple[Tensor, _Step]]:
    """Groups and steps in pieces that fit into the cache."""
    return [
        (x[place], step if step.moment is None else step._replace(moment=step.moment[place]))
        for x, step in read
        for place in places(x, _piece(x, plain=step.moment is None))
    ]


def _asked(
    question: Callable[[Tensor, Tensor | float, Scratch], Tensor],
    x: Tensor,
    step: _Step,
    penalty: Penalty,
    scratch: Scratch,
) -> Tensor:
    """What a penalty says of groups and a step."""
    work = x if x.dtype in _PRECISE else x.float()
    return question(work, step.shift(work, penalty, scratch), scratch)


def _piece(part: Tensor, *, plain: bool) -> int:
    """Entries to work on at once. The plain map has too little to do to gain from pieces with gaps in memory."""
    whole_rows = plain and part.shape[1] > 1
    if part.device.type != "cpu":
        return part.numel()
    return max(CACHED, part[0].numel()) if whole_rows else CACHED


class _Step(NamedTuple):
    """A step of a given size in the metric d = sqrt(moment) + eps, or in that of the identity."""

    size: float
    moment: Tensor | None
    eps: float

    def shift(self, x: Tensor, penalty: Penalty, scratch: Scratch) -> Tensor | float:
        """Step size times the penalty's weight, over the diagonal of the metric."""
        plain = self.size * penalty.weight(x)
        if self.moment is None:
            return plain
        root = torch.rsqrt(self.moment.to(x.dtype), out=scratch("shift", x)).reciprocal_()  # twice as fast as sqrt
        return root.add_(self.eps).reciprocal_().mul_(plain)
