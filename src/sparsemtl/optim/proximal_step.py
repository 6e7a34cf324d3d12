"""Proximal step after a step of any torch optimizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsemtl.errors import MaskWarning, ParameterError
from sparsemtl.kernels import group_lasso
from sparsemtl.optim.groups import Grouping, GroupView, Parameters, laid_out_as, places
from sparsemtl.optim.layers import Layer
from sparsemtl.optim.metric_step import MetricStep, ProxLR, joint_step, step_of
from sparsemtl.optim.penalties import GroupLasso, Penalty
from sparsemtl.optim.proximal import CACHED, Reused, Scratch
from sparsemtl.registry.parameters import validated

_COMPILED: dict[type[Penalty], ModuleType] = {GroupLasso: group_lasso}
"""Penalty -> its compiled kernel; classes derived from one of these have maps of their own."""

_PRECISE = (torch.float32, torch.float64)
"""Dtypes that maps compute in; others are converted to the first."""
_NOTHING = torch.finfo(torch.float32).tiny
"""Largest step that may be zero in single precision, and moves nothing."""
_CHECK_EVERY = 100
"""Steps between two checks for empty weights on an accelerator, which each check makes wait."""


class ProximalStep:
    """Proximal map of a penalty, which shrinks weights; call it after every step of an optimizer.

    The metric of the map is that of the step: after Adam or a related optimizer (any that keeps `exp_avg_sq`) it is
    sqrt(v) + eps, after any other optimizer the identity. Learning rate, eps and betas are read from the optimizer.

    Args:
        penalty: penalty on the weights; may be replaced at any time.
        adaptive: take the step in the optimizer's metric; otherwise, and for optimizers without one, take the plain
            step, of the size of the learning rate.
        prox_lr: size of an adaptive step, see `ProxLR`.

    Raises:
        ParameterError: if `penalty` is no penalty, or an option is unknown.

    Examples:
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
        self._views: dict[Tensor, tuple[GroupView, ...]] = {}
        self._calls = 0
        self._warned: set[str] = set()
        #: Remedy that the warning of an empty weight names; None advises to lower the strength.
        self.remedy: str | None = None

    def __repr__(self) -> str:
        return f"ProximalStep({self.penalty!r}, adaptive={self.adaptive!r}, prox_lr={self.prox_lr!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the views, which belong to parameters: a copy makes its own."""
        return {**self.__dict__, "_grouping": None, "_views": {}}

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, parameters: Parameters, factor: float = 1.0) -> None:
        """Shrink the parameters that the penalty covers and that have a gradient, so that they took part in the step.

        Args:
            optimizer: optimizer that has just stepped.
            parameters: some of its parameters; with names, for warnings.
            factor: factor of the penalty beside its strength: the factor of the objective in the gradient step.

        Raises:
            ParameterError: if the optimizer does not hold one of the parameters.

        Warns:
            MaskWarning: once per weight all of whose groups are zero; see `_CHECK_EVERY`.
        """
        nonzero: dict[str, Tensor] = {}
        scratch = Reused()
        for layer, step in self._taken(optimizer, parameters):
            step = step._replace(size=step.size * factor)
            if step.size * self.penalty.strength > _NOTHING:
                nonzero[layer.name] = self._shrink(layer, step, scratch)
        self._warn_of_empty(nonzero)

    @torch.no_grad()
    def critical_strength(self, optimizer: Optimizer, parameters: Parameters) -> Tensor:
        """Return the least strength at which each group would become zero in a proximal step now.

        Args:
            optimizer: optimizer that has just stepped.
            parameters: as for the step itself.

        Returns:
            (G,), at least 0, for the G groups of all weights that took part; infinite for the groups that `keep_min`
            keeps.

        Raises:
            ParameterError: if no weight that the penalty covers took part.
        """
        unit, scratch = replace(self.penalty, strength=1.0), Reused()
        found = []
        for layer, step in self._taken(optimizer, parameters):
            read = self._read(layer, layer.gather(_detached(layer)), step)
            pieces = [_evaluate(unit.critical_factor, x, s, unit, scratch) for x, s in _pieces(read, unit)]
            own = torch.cat([factor.flatten() for factor in pieces]).double()
            found.append(own.index_fill_(0, self._kept_indices(own), math.inf))
        if not found:
            raise ParameterError("no weight that the penalty covers has a gradient; call this after an optimizer step.")
        return torch.cat(found)

    def _taken(self, optimizer: Optimizer, parameters: Parameters) -> Iterator[tuple[Layer, MetricStep]]:
        """Yield the covered layers that took part in the optimizer's step, with their proximal steps.

        Units consist of their parameters that took part, if the weight that reads the units is among them.
        """
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        for layer in self.penalty.grouping.layers(parameters):
            taken = [parameter.grad is not None for parameter in layer.parameters]
            if not taken[-1]:
                continue
            layer = layer if all(taken) else layer.restricted(taken)
            for index, parameter in enumerate(layer.parameters):
                if parameter not in groups:
                    name = layer.parts[index].name if layer.parts else layer.name
                    raise ParameterError(f"{name} is not among the parameters of {type(optimizer).__name__}.")
            prox_lr = self.prox_lr if self.adaptive else None
            steps = [step_of(groups[p], optimizer.state.get(p, {}), prox_lr) for p in layer.parameters]
            yield joint_step(layer, steps) if layer.parts else (layer, steps[0])

    def _shrink(self, layer: Layer, step: MetricStep, scratch: Scratch) -> Tensor:
        """Shrink the parameters of a layer; return a bool tensor, True if any of its groups is not zero."""
        weight = layer.gather(_detached(layer))
        read = self._read(layer, weight, step)
        pieces = _pieces(read, self.penalty)
        kept = self._kept(pieces, scratch) if self.penalty.keep_min else [None] * len(pieces)
        mask = [self._shrink_piece(x, own, keep, scratch).any() for (x, own), keep in zip(pieces, kept, strict=True)]
        for view, (x, _) in zip(self._views_of(layer, weight), read, strict=True):
            view.write(weight, x)
        layer.scatter(weight)
        return mask[0] if len(mask) == 1 else torch.stack(mask).any()

    def _read(self, layer: Layer, weight: Tensor, step: MetricStep) -> list[_Groups]:
        """Return the groups of a layer's weight per view, with the step whose moment has the same shape."""
        views = self._views_of(layer, weight)
        if step.moment is None:
            return [(view.read(weight), step) for view in views]
        moment = laid_out_as(step.moment, weight)
        return [(view.read(weight), step._replace(moment=view.read(moment))) for view in views]

    def _views_of(self, layer: Layer, weight: Tensor) -> tuple[GroupView, ...]:
        """Return the views of the groups of a layer's weight, made once for each parameter that is one."""
        if layer.parts:
            return self.penalty.grouping.split(weight)
        (parameter,) = layer.parameters
        if self._grouping != self.penalty.grouping:
            self._grouping, self._views = self.penalty.grouping, {}
        if parameter not in self._views:
            self._views[parameter] = self._grouping.split(parameter)
        return self._views[parameter]

    def _shrink_piece(self, x: Tensor, step: MetricStep, keep: Tensor | None, scratch: Scratch) -> Tensor:
        """Shrink some groups, except those of `keep` that would become zero; return the mask of nonzero groups."""
        work = x if x.dtype in _PRECISE else x.float()
        before = None if keep is None else work.clone()
        mask: Tensor
        if kernel := _kernel(self.penalty, work, step):
            mask = kernel.shrink_(work, step.moment, step.size * self.penalty.weight(work), step.eps)
        else:
            mask = self.penalty.shrink_(work, step.shift(work, self.penalty, scratch), scratch)
        if keep is not None and before is not None:
            work.copy_(torch.where(keep & ~mask, before, work))
            mask |= keep
        if work is not x:
            x.copy_(work)
        return mask

    def _kept(self, pieces: list[_Groups], scratch: Scratch) -> list[Tensor]:
        """Return per piece of a weight the nonzero groups among the `keep_min` with the strongest pull."""
        pulls = [_evaluate(self.penalty.pull, x, step, self.penalty, scratch) for x, step in pieces]
        flat = torch.cat([pull.flatten() for pull in pulls])
        kept = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, self._kept_indices(flat), True) & (flat > 0)
        parts = kept.split([pull.numel() for pull in pulls])
        return [part.view_as(pull) for part, pull in zip(parts, pulls, strict=True)]

    def _kept_indices(self, pulls: Tensor) -> Tensor:
        """Return the indices of a weight's `keep_min` groups with the strongest pull."""
        return pulls.topk(min(self.penalty.keep_min, len(pulls))).indices

    def _warn_of_empty(self, nonzero: dict[str, Tensor]) -> None:
        """Warn once of every weight all of whose groups are zero."""
        self._calls += 1
        for name, some in nonzero.items():
            if some.device.type != "cpu" and self._calls % _CHECK_EVERY:
                continue
            if name not in self._warned and not bool(some):
                self._warned.add(name)
                warnings.warn(
                    f"{name!r}: every group (granularity {self.penalty.grouping.name}) is zero, which cuts the "
                    f"network here. {self.remedy or self._lower()}, or keep some with keep_min=1.",
                    MaskWarning,
                    stacklevel=4,
                )

    def _lower(self) -> str:
        return f"Lower the strength {self.penalty.strength:g} of {type(self.penalty).__name__}"


def _detached(layer: Layer) -> list[Tensor]:
    return [parameter.detach() for parameter in layer.parameters]


def _kernel(penalty: Penalty, x: Tensor, step: MetricStep) -> ModuleType | None:
    """Return the compiled kernel of a penalty, if it is right for these groups."""
    kernel = _COMPILED.get(type(penalty))
    return kernel if kernel is not None and kernel.takes(x, step.moment) else None


def _pieces(read: list[_Groups], penalty: Penalty) -> list[_Groups]:
    """Return groups and steps whole for a compiled kernel, else in pieces that fit into the cache."""
    return [
        (x[place], step if step.moment is None else step._replace(moment=step.moment[place]))
        for x, step in read
        for place in ([...] if _kernel(penalty, x, step) else places(x, _piece_size(x, plain=step.moment is None)))
    ]


def _evaluate(
    function: Callable[[Tensor, Tensor | float, Scratch], Tensor],
    x: Tensor,
    step: MetricStep,
    penalty: Penalty,
    scratch: Scratch,
) -> Tensor:
    """Return a penalty's function of groups and a step."""
    work = x if x.dtype in _PRECISE else x.float()
    if step.moment is not None and (kernel := _kernel(penalty, work, step)):
        pull: Tensor = kernel.pull(work, step.moment, step.size * penalty.weight(work), step.eps)
        return pull
    return function(work, step.shift(work, penalty, scratch), scratch)


def _piece_size(groups: Tensor, *, plain: bool) -> int:
    """Return the number of entries per piece; the plain map is too fast to gain from pieces with gaps in memory."""
    whole_rows = plain and groups.shape[1] > 1
    if groups.device.type != "cpu":
        return groups.numel()
    return max(CACHED, groups[0].numel()) if whole_rows else CACHED


_Groups = tuple[Tensor, MetricStep]
"""Groups in the shape (L, A, G, B), and their step, whose moment has the same shape."""
