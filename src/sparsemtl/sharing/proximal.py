"""What the methods have in common that share all weights and let groups of them become zero while training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sparsemtl.errors import MaskWarning, ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.roles import refuse_computed, weight_ids
from sparsemtl.optim.penalties import Penalty
from sparsemtl.optim.proximal_step import ProximalStep, ProxLR
from sparsemtl.optim.sparsity import layer_sparsity, total_sparsity
from sparsemtl.sharing.schedule import Ramp, cubic
from sparsemtl.sharing.sharing import Sharing, Statistics, Update
from sparsemtl.tasks.batches import Loaders


class ProximalSharing(Sharing):
    """Every task uses all shared weights; a penalty's proximal step after each step of the optimizer zeroes groups.

    A method gives the penalty; everything else is here. The objective is B(L_1, ..., L_T) + strength * penalty, B being
    what the balancer makes of the losses: their mean with `mean`, their sum with `sum`.

    With `target_sparsity` the strength is not given but found: at each step it is what kills as many groups as the
    schedule asks for by then, s (1 - (1 - t)^3) of all on the way to the target s, t going from 0 to 1 between `start`
    and `reach_at` (Zhu & Gupta 2017), and s from then on.

    Args:
        adaptive: take the step in the metric of Adam's second moment (Deleu & Bengio 2021); otherwise the plain one.
        prox_lr: the size of an adaptive step: `lr` is the learning rate, as in the reference code, `step` the size of
            Adam's own step.
        start: dense epochs at the start.
        target_sparsity: fraction of the groups that shall be zero, in place of a strength; None keeps the strength.
        reach_at: epochs by which the target is reached; no earlier epoch's model is ever chosen.
        penalty_in_loss: add the penalty to the loss as well, so that it acts twice, as the reference code of Less is
            More does; for comparison only.
        update: how a batch becomes updates; see `Update`.
        bn: batch norm statistics, shared by default.
    """

    def __init__(
        self,
        penalty: Penalty,
        *,
        adaptive: bool,
        prox_lr: ProxLR,
        start: int,
        target_sparsity: float | None,
        reach_at: int | None,
        penalty_in_loss: bool,
        update: Update | None,
        bn: Statistics,
    ) -> None:
        super().__init__(update=update, bn=bn)
        if (target_sparsity is None) != (reach_at is None):
            raise ParameterError("`target_sparsity` and `reach_at` go together: how sparse, and by which epoch.")
        if reach_at is not None and reach_at <= start:
            raise ParameterError(f"`reach_at` must come after `start`, got {reach_at} and {start}.")
        self.start = start
        self.target_sparsity = target_sparsity
        self.reach_at = reach_at
        self.penalty_in_loss = penalty_in_loss
        self.shrink = ProximalStep(penalty, adaptive=adaptive, prox_lr=prox_lr)
        if target_sparsity is not None:
            self.shrink.remedy = f"Lower `target_sparsity` ({target_sparsity:g})"
        self._weights: dict[str, nn.Parameter] = {}
        self._ramp = Ramp(start, reach_at)

    def attach(self, model: MultiTaskModel) -> None:
        """Find the weights that the penalty covers.

        Raises:
            ParameterError: if there is none, or a layer computes such a weight from other parameters.
        """
        super().attach(model)
        shared = model.shared_parameters()
        refuse_computed(model.shared_modules(), self.shrink.penalty.covers)
        weights = weight_ids(model)
        self._weights = {n: p for n, p in shared.items() if id(p) in weights and self.shrink.penalty.covers(p)}
        if not self._weights:
            raise ParameterError(
                f"{type(self).__name__} finds nothing to make sparse: {type(model).__name__} shares {len(shared)} "
                "parameters, none of them of a convolution. `linear=True` takes linear layers as well; a single task "
                "alone trains as a 'shared-bottom' of one task."
            )

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Learn how far training has come."""
        self._ramp.begin_epoch(epoch, loaders)

    def is_selectable(self, epoch: int) -> bool:
        """When the target is reached; without one, after the dense epochs."""
        return epoch >= (self.start if self.reach_at is None else self.reach_at)

    def regularizer(self) -> Tensor | None:
        """The penalty, where it is to act on the gradient as well."""
        if not self.penalty_in_loss or not self._ramp.begun:
            return None
        return self.shrink.penalty.value(self._weights)

    def after_step(self, optimizer: Optimizer) -> None:
        """The proximal step."""
        self._ramp.step()
        if not self._ramp.begun:
            return
        if self.target_sparsity is not None:
            self._steer(optimizer)
        self.shrink(optimizer, self._weights, self.step_weights.regularizer)

    def _steer(self, optimizer: Optimizer) -> None:
        """Set the strength that leaves as many groups zero as the schedule asks for now."""
        critical = self.shrink.critical(optimizer, self._weights)
        dead = round(self.scheduled_sparsity() * len(critical))
        mortal = int(critical.isfinite().sum())
        strength = float(critical.kthvalue(min(dead, mortal)).values) if dead and mortal else 0.0
        strength /= self.step_weights.regularizer
        self.shrink.penalty = replace(self.shrink.penalty, strength=strength * (1 + 1e-6))  # equality dies, rounded too

    def end_training(self) -> None:
        """Warn if the penalty has left no group at zero."""
        strength = self.shrink.penalty.strength
        total = total_sparsity(self._weights, self.shrink.penalty.grouping)
        if strength > 0 and not total.zero_groups:
            warnings.warn(
                f"{type(self).__name__}: of {total.groups} groups (granularity {total.granularity}), none is zero in "
                f"the chosen model. `lambda` ({strength:g}) is too weak for these steps. Set `target_sparsity` and "
                "`reach_at`, which find the strength, or raise `lambda`; without Adam it must be larger by far.",
                MaskWarning,
                stacklevel=2,
            )

    def scheduled_sparsity(self) -> float:
        """The sparsity asked for at this step, in [0, target_sparsity]."""
        return (self.target_sparsity or 0.0) * cubic(self._ramp.way)

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """Fraction of the groups that are zero, of the weights in them, and the strength."""
        layers = layer_sparsity(self._weights, self.shrink.penalty.grouping).values()
        first, *rest = layers
        total = sum(rest, start=first)
        yield "", f"{total.granularity}_sparsity", total.of_groups
        yield "", "parameter_sparsity", total.of_parameters
        yield "", "lambda", self.shrink.penalty.strength

    def summary(self) -> dict[str, Any]:
        """What is left of every layer."""
        layers = layer_sparsity(self._weights, self.shrink.penalty.grouping)
        first, *rest = layers.values()
        total = sum(rest, start=first)
        return {
            "granularity": total.granularity,
            "group_sparsity": total.of_groups,
            "parameter_sparsity": total.of_parameters,
            "lambda": self.shrink.penalty.strength,
            "groups": {name: {"all": s.groups, "left": s.groups - s.zero_groups} for name, s in layers.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """With the strength found so far, and how far training has come."""
        strength, progress = self.shrink.penalty.strength, self._ramp.state_dict()
        return {**super().state_dict(), "strength": strength, "progress": progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        super().load_state_dict(state)
        self.shrink.penalty = replace(self.shrink.penalty, strength=state["strength"])
        self._ramp.load_state_dict(state["progress"])
